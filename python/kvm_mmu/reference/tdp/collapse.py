"""The end of the dirty log: tables of the TDP MMU that could be large leaves.

Owns nothing. Models kvm_tdp_mmu_zap_collapsible_sptes of v6.1 and v6.12, and kvm_tdp_mmu_recover_huge_pages of v6.18.

Up to v6.12 such a table is cut off and the next fault maps large; later the leaf takes its place at once, with the
rights and marks of the first page that the table maps.
"""

from __future__ import annotations

from ..common.constants import (
    PAGE_SHIFT,
    PT64_BASE_ADDR_MASK,
    PT_MAX_HUGEPAGE_LEVEL,
    PT_PAGE_SIZE_MASK,
    PT_PAGE_TABLE_LEVEL,
    U64,
    kvm_pages_per_hpage,
)
from ..common.flush import kvm_arch_flush_remote_tlbs_memslot
from ..common.host_memory import kvm_mmu_max_mapping_level
from ..common.page_table import child_of
from ..common.role import role_level
from ..common.state import Kvm, KvmMemorySlot, ShadowPage
from .change import tdp_mmu_set_spte, tdp_mmu_zap_spte_atomic
from .iter import (
    TdpIter,
    for_each_tdp_pte_min_level,
    is_leaf,
    is_link,
    tdp_mmu_iter_cond_resched,
)
from .roots import for_each_valid_tdp_mmu_root_yield_safe

# Where the tables that may give way are linked.
LEVEL = PT_PAGE_TABLE_LEVEL + 1


def kvm_tdp_mmu_zap_collapsible_sptes(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Make room for large leaves in a slot, or make them, by the kernel."""
    for root in for_each_valid_tdp_mmu_root_yield_safe(kvm, slot.as_id):
        if kvm.rules.tdp_collapse == "in_place":
            recover_huge_pages_range(kvm, root, slot)
        else:
            zap_collapsible_spte_range(kvm, root, slot)


def is_collapsible(kvm: Kvm, it: TdpIter, slot: KvmMemorySlot) -> bool:
    """Whether the entry is a table that begins in the slot and whose range could be one leaf."""
    if it.level > PT_MAX_HUGEPAGE_LEVEL or not is_link(kvm, it.old_spte, it.level):
        return False
    if not slot.base_gfn <= it.gfn < slot.base_gfn + slot.npages:
        return False
    return kvm_mmu_max_mapping_level(kvm, slot, it.gfn) >= it.level


def zap_collapsible_spte_range(kvm: Kvm, root: ShadowPage, slot: KvmMemorySlot) -> None:
    end = slot.base_gfn + slot.npages
    for it in for_each_tdp_pte_min_level(kvm, root, LEVEL, slot.base_gfn, end, empty="polled"):
        if tdp_mmu_iter_cond_resched(kvm, it, False, shared=True):
            continue
        if is_collapsible(kvm, it, slot):
            tdp_mmu_zap_spte_atomic(kvm, it)


def recover_huge_pages_range(kvm: Kvm, root: ShadowPage, slot: KvmMemorySlot) -> None:
    """One flush of the slot at the end, and before each yield, if anything was recovered since the last."""
    flush = False
    end = slot.base_gfn + slot.npages
    for it in for_each_tdp_pte_min_level(kvm, root, LEVEL, slot.base_gfn, end, empty="polled"):
        if tdp_mmu_iter_cond_resched(kvm, it, flush, shared=True):
            flush = False
            continue
        if not is_collapsible(kvm, it, slot):
            continue
        new = make_huge_spte(kvm, it)
        if new is not None:
            tdp_mmu_set_spte(kvm, it, new, shared=True)
            flush = True
    if flush:
        kvm_arch_flush_remote_tlbs_memslot(kvm, slot)


def make_huge_spte(kvm: Kvm, it: TdpIter) -> int | None:
    """The leaf that takes a table's place, made from the first leaf below it; None: the table maps nothing."""
    leaf = first_leaf_below(kvm, child_of(kvm, it.old_spte))
    if leaf is None:
        return None
    pages = kvm_pages_per_hpage(it.level)
    frame = leaf & PT64_BASE_ADDR_MASK & ~((pages << PAGE_SHIFT) - 1)
    spte = leaf & ~PT64_BASE_ADDR_MASK & U64 | frame | PT_PAGE_SIZE_MASK
    if kvm.nx_huge_pages:
        spte = spte & ~kvm.masks.x & U64 | kvm.masks.nx
    return spte


def first_leaf_below(kvm: Kvm, sp: ShadowPage) -> int | None:
    """The first leaf of a table or of those below it; looking for it is no walk that counters count."""
    level = role_level(sp.role)
    for _, spte in sorted(sp.sptes.items()):
        if is_leaf(kvm, spte, level):
            return spte
        below = first_leaf_below(kvm, child_of(kvm, spte)) if is_link(kvm, spte, level) else None
        if below is not None:
            return below
    return None
