"""Filling entries of a shadow page before anybody asked for them.

Owns nothing. Models pte_prefetch_gpte, prefetch_invalid_gpte and pte_prefetch of v5.0 to v6.12 for pages that shadow
a guest table; direct pages are prefetched as everywhere.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import ACC_WRITE_MASK, PAGE_SHIFT, PT_PAGE_TABLE_LEVEL, PTE_PREFETCH_NUM
from ..common.host_memory import can_pin_for_write_atomically, host_frame
from ..common.pin import PinnedPfn
from ..common.role import role_access, role_is_direct, role_level
from ..common.slots import gfn_to_host_page, memslot_is_readonly
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_memory import kvm_vcpu_gfn_to_visible_slot
from ..shadow.guest_mode import is_rsvd_bits_set, mode_of
from ..shadow.guest_walk import PT_ACCESSED, PT_PRESENT, gpte_access, protect_clean_gpte
from ..shadow.rmap import drop_spte
from ..v5.map import direct_pte_prefetch, mmu_set_spte


def is_prefetch_invalid_gpte(vcpu: Vcpu, entry: int) -> bool:
    """Whether an entry of a level-1 table maps nothing now, or the guest never used it."""
    if not entry & PT_PRESENT or not entry & PT_ACCESSED:
        return True
    return is_rsvd_bits_set(mode_of(vcpu), entry, PT_PAGE_TABLE_LEVEL)


def prefetch_invalid_gpte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, entry: int) -> bool:
    """Drop the shadow of an entry that is no good, also an MMIO one."""
    if not is_prefetch_invalid_gpte(vcpu, entry):
        return False
    drop_spte(kvm, sp, index)
    return True


def gpte_gfn_and_access(vcpu: Vcpu, sp: ShadowPage, entry: int) -> tuple[int, int]:
    """What an entry of the table that a page shadows maps, and the rights that the page may give."""
    gfn = (entry & mode_of(vcpu).address_mask) >> PAGE_SHIFT
    return gfn, protect_clean_gpte(role_access(sp.role) & gpte_access(entry), entry)


def pte_prefetch_gfn_to_pfn(kvm: Kvm, vcpu: Vcpu, gfn: int, no_dirty_log: bool) -> PinnedPfn | None:
    """The host page behind a gfn if it can be had at once and writable."""
    slot = kvm_vcpu_gfn_to_visible_slot(kvm, vcpu, gfn)
    if slot is None or memslot_is_readonly(slot) or (no_dirty_log and slot.dirty_bitmap is not None):
        return None
    page = gfn_to_host_page(slot, gfn)
    if not can_pin_for_write_atomically(kvm.host, page):
        return None
    return PinnedPfn(host_frame(kvm.host, page), page << PAGE_SHIFT, is_host_writable=True)


def prefetch_gpte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, entry: int, no_dirty_log: bool) -> bool:
    """Map what a guest entry says; false when it says nothing that can be mapped now."""
    if prefetch_invalid_gpte(kvm, vcpu, sp, index, entry):
        return False
    gfn, access = gpte_gfn_and_access(vcpu, sp, entry)
    pinned = pte_prefetch_gfn_to_pfn(kvm, vcpu, gfn, no_dirty_log and access & ACC_WRITE_MASK != 0)
    if pinned is None:
        return False
    mmu_set_spte(kvm, vcpu, sp, index, gfn, pinned, access=access, is_write_fault=False, is_speculative=True)
    return True


def pte_prefetch(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, faulting: int, entries: list[int]) -> None:
    """Fill the aligned group of eight around a fault, until an entry cannot be mapped."""
    if role_level(sp.role) > PT_PAGE_TABLE_LEVEL:
        return
    if role_is_direct(sp.role):
        direct_pte_prefetch(kvm, vcpu, sp, faulting)
        return
    group = faulting & ~(PTE_PREFETCH_NUM - 1)
    for index in range(group, group + PTE_PREFETCH_NUM):
        if index == faulting or word.is_shadow_present_pte(kvm.masks, sp.sptes.get(index, 0)):
            continue
        if not prefetch_gpte(kvm, vcpu, sp, index, entries[index - group], no_dirty_log=True):
            return
