"""Reading guest tables again: single pages, what lies below a page, and all roots of a vCPU.

Owns nothing. Models sync_page, kvm_sync_page, kvm_sync_pages, mmu_sync_children and kvm_mmu_sync_roots of v5.0 to
v6.12.

A page that is synced keeps the entries whose guest entry maps the same gfn; they are made anew as a prefetch would,
so they lose the accessed bit. In v5 a page that keeps none is zapped.
"""

from __future__ import annotations

from ..common.constants import KVM_REQ_TLB_FLUSH, SET_SPTE_NEED_REMOTE_TLB_FLUSH, X86_CR4_PAE
from ..common.flush import kvm_flush_remote_tlbs
from ..common.lock import cond_resched_lock, need_resched
from ..common.mmio import get_mmio_spte_gfn, is_mmio_spte
from ..common.page_table import kvm_mmu_page_get_gfn, write_spte
from ..common.pin import PinnedPfn
from ..common.spte import spte_to_pfn
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_memory import kvm_vcpu_read_guest
from ..shadow.guest_mode import ROLE_8_BYTE_ENTRIES, mode_of
from ..shadow.page import for_each_gfn_indirect_valid_sp
from ..shadow.rmap import drop_spte
from ..shadow.unsync import (
    for_each_unsync_sp,
    kvm_unlink_unsync_page,
    mmu_pages_clear_parents,
    mmu_unsync_walk,
)
from ..shadow.zap import kvm_mmu_prepare_zap_page, kvm_mmu_remote_flush_or_zap
from ..v5.map import mark_mmio_spte, set_spte
from .gpte import get_level1_sp_gpa, gpte_gfn_and_access, prefetch_invalid_gpte, rmap_write_protect_gfn


def kvm_mmu_flush_or_zap(kvm: Kvm, vcpu: Vcpu, invalid_list: list[int], remote: bool, local: bool) -> None:
    """A commit flushes anyway, else one flush of all, else a request to this vCPU alone."""
    if invalid_list or remote:
        kvm_mmu_remote_flush_or_zap(kvm, invalid_list, remote)
    elif local:
        vcpu.requests |= KVM_REQ_TLB_FLUSH


def sync_mmio_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, gfn: int, access: int) -> bool:
    """Mark an MMIO entry anew, or clear it if the gfn is another; true when it was kept."""
    if gfn != get_mmio_spte_gfn(kvm.masks, sp.sptes[index]):
        write_spte(sp, index, 0)
        return False
    mark_mmio_spte(kvm, vcpu, sp, index, gfn, access)
    return True


def sync_page(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage) -> int:
    """Compare every entry with the guest's: how many survived, 0 also where the table cannot be read."""
    size = mode_of(vcpu).entry_size
    survivors, result = 0, 0
    for index in sorted(sp.sptes):
        entry = kvm_vcpu_read_guest(kvm, vcpu, get_level1_sp_gpa(vcpu, sp, index), size)
        if entry is None:
            return 0
        if prefetch_invalid_gpte(kvm, vcpu, sp, index, entry):
            kvm.tlbs_dirty += 1
            continue
        gfn, access = gpte_gfn_and_access(vcpu, sp, entry)
        spte = sp.sptes[index]
        if is_mmio_spte(kvm.masks, spte):
            survivors += sync_mmio_spte(kvm, vcpu, sp, index, gfn, access)
            continue
        if gfn != kvm_mmu_page_get_gfn(sp, index):
            drop_spte(kvm, sp, index)
            kvm.tlbs_dirty += 1
            continue
        survivors += 1
        is_host_writable = spte & kvm.masks.host_writeable != 0
        pinned = PinnedPfn(spte_to_pfn(spte), is_host_writable=is_host_writable)
        result |= set_spte(
            kvm, vcpu, sp, index, gfn, pinned, access=access, is_speculative=True, can_unsync=False
        )
    if result & SET_SPTE_NEED_REMOTE_TLB_FLUSH:
        kvm_flush_remote_tlbs(kvm)
    return survivors


def sync_page_in_place(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, invalid_list: list[int]) -> bool:
    """__kvm_sync_page: false when the page went to the list, as nothing of it was any good in this mode."""
    is_8_bytes = vcpu.cr4 & X86_CR4_PAE != 0
    is_other_mode = (sp.role & ROLE_8_BYTE_ENTRIES != 0) != is_8_bytes or mode_of(vcpu).name == "none"
    if is_other_mode or not sync_page(kvm, vcpu, sp):
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
        return False
    return True


def kvm_sync_page(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, invalid_list: list[int]) -> bool:
    """Take the page off the unsync ones and sync it; false when it was zapped."""
    kvm_unlink_unsync_page(kvm, sp)
    return sync_page_in_place(kvm, vcpu, sp, invalid_list)


def kvm_sync_pages(kvm: Kvm, vcpu: Vcpu, gfn: int, invalid_list: list[int]) -> bool:
    """Sync all pages of a table that gets a shadow at an upper level; true when one survived."""
    survived = False
    for sp in for_each_gfn_indirect_valid_sp(kvm, gfn):
        if sp.unsync:
            survived |= kvm_sync_page(kvm, vcpu, sp, invalid_list)
    return survived


def mmu_sync_children(kvm: Kvm, vcpu: Vcpu, parent: ShadowPage) -> None:
    """Sync every unsync page below a page, with an offer of the lock after each vector of them."""
    invalid_list: list[int] = []
    flush = False
    while True:
        found, pvec = mmu_unsync_walk(kvm, parent)
        if not found:
            break
        protected = False
        for sp, _ in for_each_unsync_sp(pvec):
            protected |= rmap_write_protect_gfn(kvm, vcpu, sp.gfn)
        if protected:
            kvm_flush_remote_tlbs(kvm)
            flush = False
        for sp, path in for_each_unsync_sp(pvec):
            flush |= kvm_sync_page(kvm, vcpu, sp, invalid_list)
            mmu_pages_clear_parents(path)
        if need_resched(kvm):
            kvm_mmu_flush_or_zap(kvm, vcpu, invalid_list, False, flush)
            cond_resched_lock(kvm)
            flush = False
    kvm_mmu_flush_or_zap(kvm, vcpu, invalid_list, False, flush)
