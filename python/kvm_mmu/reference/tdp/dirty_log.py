"""The dirty log over the TDP MMU: write protection and the clearing of dirty bits.

Owns nothing. Models wrprot_gfn_range, clear_dirty_gfn_range, clear_dirty_pt_masked, write_protect_gfn and the
kvm_tdp_mmu functions over them of v6.1 and v6.12.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import PT_PAGE_TABLE_LEVEL, PT_WRITABLE_MASK, U64
from ..common.events import note_spte_changed
from ..common.page_table import kvm_set_pfn_dirty, write_spte
from ..common.state import Kvm, KvmMemorySlot, ShadowPage
from .change import tdp_mmu_set_spte
from .iter import for_each_tdp_pte_min_level, is_leaf, tdp_mmu_iter_cond_resched, tdp_root_for_each_leaf_pte
from .roots import for_each_tdp_mmu_root_yield_safe, for_each_valid_tdp_mmu_root_yield_safe

BITS_PER_LONG = 64


def kvm_tdp_mmu_wrprot_slot(kvm: Kvm, slot: KvmMemorySlot, min_level: int) -> bool:
    """Take W from every leaf of a slot from a level on; it may become writable again without a fault's walk."""
    changed = False
    for root in for_each_valid_tdp_mmu_root_yield_safe(kvm, slot.as_id):
        changed |= wrprot_gfn_range(kvm, root, slot.base_gfn, slot.base_gfn + slot.npages, min_level)
    return changed


def wrprot_gfn_range(kvm: Kvm, root: ShadowPage, start: int, end: int, min_level: int) -> bool:
    changed = False
    for it in for_each_tdp_pte_min_level(kvm, root, min_level, start, end, empty="polled"):
        if tdp_mmu_iter_cond_resched(kvm, it, False, shared=True):
            continue
        if is_leaf(kvm, it.old_spte, it.level) and word.is_writable_pte(it.old_spte):
            tdp_mmu_set_spte(kvm, it, it.old_spte & ~PT_WRITABLE_MASK & U64, shared=True)
            changed = True
    return changed


def dirty_bit_of(kvm: Kvm, spte: int) -> int:
    """What of a leaf says that it was written: D where the processor sets it, else W."""
    return kvm.masks.dirty if word.spte_ad_enabled(kvm.masks, spte) else PT_WRITABLE_MASK


def kvm_tdp_mmu_clear_dirty_slot(kvm: Kvm, slot: KvmMemorySlot) -> bool:
    """Take D, or W where there is none, from every leaf of a slot."""
    changed = False
    for root in for_each_valid_tdp_mmu_root_yield_safe(kvm, slot.as_id):
        for it in tdp_root_for_each_leaf_pte(kvm, root, slot.base_gfn, slot.base_gfn + slot.npages):
            if tdp_mmu_iter_cond_resched(kvm, it, False, shared=True):
                continue
            cleared = it.old_spte & ~dirty_bit_of(kvm, it.old_spte) & U64
            if cleared != it.old_spte:
                tdp_mmu_set_spte(kvm, it, cleared, shared=True)
                changed = True
    return changed


def kvm_tdp_mmu_clear_dirty_pt_masked(
    kvm: Kvm, slot: KvmMemorySlot, first: int, mask: int, wrprot: bool
) -> None:
    """The small leaves of up to 64 gfns from `first` on whose bit is set."""
    only_valid = not kvm.rules.tdp_walks_invalid_roots
    for root in for_each_tdp_mmu_root_yield_safe(kvm, slot.as_id, only_valid):
        clear_dirty_pt_masked(kvm, root, first, mask, wrprot)


def clear_dirty_pt_masked(kvm: Kvm, root: ShadowPage, first: int, mask: int, wrprot: bool) -> None:
    start = first + (mask & -mask).bit_length() - 1 if mask else first
    for it in tdp_root_for_each_leaf_pte(kvm, root, start, first + BITS_PER_LONG):
        if not mask:
            break
        if it.level > PT_PAGE_TABLE_LEVEL or not mask >> (it.gfn - first) & 1:
            continue
        mask &= ~(1 << (it.gfn - first))
        old = it.old_spte
        new = old & ~(PT_WRITABLE_MASK if wrprot else dirty_bit_of(kvm, old)) & U64
        if new == old:
            continue
        if kvm.rules.tdp_log_marks_dirty:
            it.old_spte = new
            write_spte(it.sp, it.index, new)
            note_spte_changed(kvm, it.sp, it.gfn, old, new)
            kvm_set_pfn_dirty(kvm, word.spte_to_pfn(old))
        else:
            tdp_mmu_set_spte(kvm, it, new, shared=False)


def kvm_tdp_mmu_write_protect_gfn(kvm: Kvm, slot: KvmMemorySlot, gfn: int, min_level: int) -> bool:
    """Take W, and that it may come back without a walk, from the leaf over a gfn; no flush here."""
    changed = False
    only_valid = not kvm.rules.tdp_walks_invalid_roots
    for root in for_each_tdp_mmu_root_yield_safe(kvm, slot.as_id, only_valid):
        for it in for_each_tdp_pte_min_level(kvm, root, min_level, gfn, gfn + 1, empty="ignored"):
            if not is_leaf(kvm, it.old_spte, it.level):
                continue
            new = it.old_spte & ~(PT_WRITABLE_MASK | kvm.masks.mmu_writeable) & U64
            if new != it.old_spte:
                tdp_mmu_set_spte(kvm, it, new, shared=False)
                changed = True
    return changed
