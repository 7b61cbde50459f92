"""Aging leaves of the TDP MMU, which were used and how the next use is noticed; and a host page that became another.

Owns nothing. Models age_gfn_range, test_age_gfn, kvm_tdp_mmu_age_gfn_range, kvm_tdp_mmu_test_age_gfn and
kvm_tdp_mmu_set_spte_gfn of v6.1 and v6.12.
"""

from __future__ import annotations

from collections.abc import Callable

from ..common import spte as word
from ..common.constants import PAGE_SHIFT, PT64_BASE_ADDR_MASK, PT_PAGE_TABLE_LEVEL, PT_WRITABLE_MASK, U64
from ..common.events import note_spte_changed
from ..common.page_table import kvm_set_pfn_dirty, write_spte
from ..common.state import Kvm
from .change import EMPTY, handle_changed_spte, tdp_mmu_set_spte
from .iter import TdpIter, tdp_root_for_each_leaf_pte
from .roots import for_each_tdp_mmu_root_yield_safe

TdpHandler = Callable[[Kvm, TdpIter], bool]


def kvm_tdp_mmu_handle_gfn(kvm: Kvm, as_id: int, first: int, end: int, handler: TdpHandler) -> bool:
    """Run a handler on each leaf over gfns first..end (end exclusive); the lock is never dropped."""
    ret = False
    only_valid = kvm.rules.aging_is_lockless
    for root in for_each_tdp_mmu_root_yield_safe(kvm, as_id, only_valid):
        for it in tdp_root_for_each_leaf_pte(kvm, root, first, end):
            ret |= handler(kvm, it)
    return ret


def age_gfn_range(kvm: Kvm, it: TdpIter) -> bool:
    """Make the next use of a leaf visible; true when it had been used.

    Without A/D bits W is what stands for dirty, and it goes with the read and the execute right.
    """
    old = it.old_spte
    if not word.is_accessed_spte(kvm.masks, old):
        return False
    new = word.mark_spte_for_access_track(kvm.masks, old)
    tells_host = not word.spte_ad_enabled(kvm.masks, old) and word.is_writable_pte(old)
    if tells_host and kvm.rules.copies_ad_on_zap:
        kvm_set_pfn_dirty(kvm, word.spte_to_pfn(old))
    it.old_spte = new
    write_spte(it.sp, it.index, new)
    if kvm.rules.tdp_age_marks_twice:
        handle_changed_spte(kvm, it.sp, it.gfn, old, new, shared=False, tells_accessed=False)
    elif new != old:
        note_spte_changed(kvm, it.sp, it.gfn, old, new)
    return True


def test_age_gfn(kvm: Kvm, it: TdpIter) -> bool:
    return word.is_accessed_spte(kvm.masks, it.old_spte)


def kvm_tdp_mmu_age_gfn_range(kvm: Kvm, as_id: int, first: int, end: int) -> bool:
    return kvm_tdp_mmu_handle_gfn(kvm, as_id, first, end, age_gfn_range)


def kvm_tdp_mmu_test_age_gfn(kvm: Kvm, as_id: int, first: int, end: int) -> bool:
    return kvm_tdp_mmu_handle_gfn(kvm, as_id, first, end, test_age_gfn)


def kvm_tdp_mmu_set_spte_gfn(kvm: Kvm, as_id: int, first: int, end: int, pfn: int, is_writable: bool) -> bool:
    """The host has another page behind a gfn: its small leaf goes; a read-only page is mapped in its place."""

    def set_spte_gfn(kvm: Kvm, it: TdpIter) -> bool:
        if it.level > PT_PAGE_TABLE_LEVEL:
            return False
        old = it.old_spte
        tdp_mmu_set_spte(kvm, it, EMPTY, shared=False)
        if not is_writable:
            lost = PT64_BASE_ADDR_MASK | PT_WRITABLE_MASK | kvm.masks.host_writeable | kvm.masks.mmu_writeable
            new = old & ~lost & U64 | pfn << PAGE_SHIFT
            tdp_mmu_set_spte(kvm, it, word.mark_spte_for_access_track(kvm.masks, new), shared=False)
        return True

    return kvm_tdp_mmu_handle_gfn(kvm, as_id, first, end, set_spte_gfn)
