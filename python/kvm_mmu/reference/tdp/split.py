"""Splitting large leaves of the TDP MMU into tables of the next level, ahead of a fault or in one.

Owns nothing. Models make_huge_page_split_spte, tdp_mmu_split_huge_page, tdp_mmu_split_huge_pages_root and
kvm_tdp_mmu_try_split_huge_pages of v6.1 and v6.12.

Newer kernels drop the lock for each table, so that anything may have happened to the leaf when the walk, begun again
at the root, comes back to it; a table that then finds no leaf waits for the next one, or is thrown away untold.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import (
    PAGE_SHIFT,
    PT64_ENT_PER_PAGE,
    PT_PAGE_SIZE_MASK,
    PT_PAGE_TABLE_LEVEL,
    U64,
    kvm_pages_per_hpage,
)
from ..common.events import note_split
from ..common.lock import drop_lock_to_allocate
from ..common.page_table import kvm_update_page_stats
from ..common.state import Kvm, KvmMemorySlot, ShadowPage
from .change import tdp_mmu_link_sp
from .iter import TdpIter, for_each_tdp_pte_min_level, is_leaf, tdp_mmu_iter_cond_resched
from .page import tdp_mmu_init_child_sp
from .roots import for_each_valid_tdp_mmu_root_yield_safe


def make_spte_executable(kvm: Kvm, spte: int) -> int:
    """Give the execute right; a leaf that is access-tracked has it among the saved ones."""
    masks = kvm.masks
    is_tracked = word.is_access_track_spte(masks, spte)
    if is_tracked:
        spte = word.restore_acc_track_spte(masks, spte)
    spte = spte & ~masks.nx & U64 | masks.x
    return word.mark_spte_for_access_track(masks, spte) if is_tracked else spte


def make_huge_page_split_spte(kvm: Kvm, huge_spte: int, level: int, index: int) -> int:
    """The leaf of this level that maps the index-th part of a large one, with all its rights and marks."""
    spte = huge_spte + (index * kvm_pages_per_hpage(level) << PAGE_SHIFT)
    if level == PT_PAGE_TABLE_LEVEL:
        spte &= ~PT_PAGE_SIZE_MASK
        if kvm.nx_huge_pages:
            spte = make_spte_executable(kvm, spte)
    return spte


def tdp_mmu_split_huge_page(kvm: Kvm, it: TdpIter, child: ShadowPage, shared: bool) -> None:
    """Fill the table from the leaf that the walk stands on, then put it in the leaf's place. No flush."""
    huge_spte, level = it.old_spte, it.level - 1
    for index in range(PT64_ENT_PER_PAGE):
        child.sptes[index] = make_huge_page_split_spte(kvm, huge_spte, level, index)
    tdp_mmu_link_sp(kvm, it, child, shared)
    kvm_update_page_stats(kvm, level, PT64_ENT_PER_PAGE)
    note_split(kvm, it.gfn, huge_spte, it.level)


def tdp_mmu_split_huge_pages_root(
    kvm: Kvm, root: ShadowPage, start: int, end: int, target_level: int, shared: bool
) -> None:
    """Split what is larger than a level over gfns start..end (end exclusive), down to that level."""
    has_table = False
    for it in for_each_tdp_pte_min_level(kvm, root, target_level + 1, start, end, empty="polled"):
        if tdp_mmu_iter_cond_resched(kvm, it, False, shared):
            continue
        if not is_leaf(kvm, it.old_spte, it.level):
            continue
        if kvm.rules.tdp_split_drops_lock and not has_table:
            drop_lock_to_allocate(kvm)
            has_table = True
            it.yielded = True
            continue
        tdp_mmu_split_huge_page(kvm, it, tdp_mmu_init_child_sp(kvm, it.sp, it.gfn), shared)
        has_table = False
    if has_table:
        kvm.rcu_frees += 1


def kvm_tdp_mmu_try_split_huge_pages(
    kvm: Kvm, slot: KvmMemorySlot, start: int, end: int, target_level: int, shared: bool
) -> None:
    for root in for_each_valid_tdp_mmu_root_yield_safe(kvm, slot.as_id):
        tdp_mmu_split_huge_pages_root(kvm, root, start, end, target_level, shared)
