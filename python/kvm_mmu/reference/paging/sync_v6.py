"""Reading guest tables again, from v6 on.

Owns nothing. Models kvm_sync_page, sync_spte and mmu_sync_children of v6.1 and v6.12. A page that keeps no entry stays;
only one of another mode, or whose table cannot be read, is zapped.
"""

from __future__ import annotations

from ..common.constants import ACC_ALL, KVM_REQ_MMU_SYNC
from ..common.lock import cond_resched_lock, need_resched
from ..common.make_spte import make_spte
from ..common.mmio import get_mmio_spte_gfn, is_mmio_spte
from ..common.page_table import kvm_mmu_page_get_gfn, write_spte
from ..common.pin import PinnedPfn
from ..common.role import ROLE_INVALID
from ..common.spte import spte_to_pfn
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_memory import kvm_vcpu_read_guest
from ..shadow.guest_mode import mode_of
from ..shadow.rmap import drop_spte, mmu_spte_update
from ..shadow.try_unsync import mmu_try_to_unsync_pages
from ..shadow.unsync import (
    for_each_unsync_sp,
    kvm_unlink_unsync_page,
    mmu_pages_clear_parents,
    mmu_unsync_walk,
)
from ..shadow.zap import kvm_mmu_prepare_zap_page, kvm_mmu_remote_flush_or_zap
from ..v6.map import mark_mmio_spte
from .gpte import get_level1_sp_gpa, gpte_gfn_and_access, is_prefetch_invalid_gpte, rmap_write_protect_gfn

#: Bits of a role in which a page may differ from the root: level, quadrant, direct, access.
IGNORED_BY_SYNC = 0xF | 3 << 5 | ACC_ALL << 8


def is_of_other_mode(vcpu: Vcpu, sp: ShadowPage) -> bool:
    """Whether the page was made in another mode than the vCPU's root."""
    if mode_of(vcpu).name == "none":
        return True
    return (sp.role ^ vcpu.base_role) & ~(IGNORED_BY_SYNC | ROLE_INVALID) != 0


def sync_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int) -> bool | None:
    """Compare one entry with the guest's: true when a flush is owed, None where the guest's cannot be read."""
    spte = sp.sptes.get(index, 0)
    if not spte:
        return False
    entry = kvm_vcpu_read_guest(kvm, vcpu, get_level1_sp_gpa(vcpu, sp, index), mode_of(vcpu).entry_size)
    if entry is None:
        return None
    if is_prefetch_invalid_gpte(vcpu, entry):
        drop_spte(kvm, sp, index)
        return True
    gfn, access = gpte_gfn_and_access(vcpu, sp, entry)
    if is_mmio_spte(kvm.masks, spte):
        if gfn == get_mmio_spte_gfn(kvm.masks, spte):
            mark_mmio_spte(kvm, vcpu, sp, index, gfn, access)
        else:
            write_spte(sp, index, 0)
        return False
    if gfn != kvm_mmu_page_get_gfn(sp, index):
        drop_spte(kvm, sp, index)
        return True
    if kvm.rules.sync_keeps_same_access and sp.shadowed_access.get(index) == access:
        return False
    sp.shadowed_access[index] = access
    pinned = PinnedPfn(spte_to_pfn(spte), is_host_writable=spte & kvm.masks.host_writeable != 0)
    new, _ = make_spte(
        kvm,
        vcpu,
        sp,
        spte,
        gfn,
        pinned,
        True,
        access=access,
        can_unsync=False,
        is_sync=True,
        try_unsync=mmu_try_to_unsync_pages,
    )
    return mmu_spte_update(kvm, sp, index, new)


def sync_or_zap_page(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, invalid_list: list[int]) -> bool | None:
    """kvm_sync_page: true when a flush is owed, None when the page went to the list."""
    flush = False
    is_bad = is_of_other_mode(vcpu, sp)
    for index in sorted(sp.sptes) if not is_bad else ():
        changed = sync_spte(kvm, vcpu, sp, index)
        if changed is None:
            is_bad = True
            break
        flush |= changed
    if is_bad:
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
        return None
    return flush


def mmu_sync_children_v6(kvm: Kvm, vcpu: Vcpu, parent: ShadowPage, can_yield: bool) -> bool:
    """Sync every unsync page below a page; false when the lock was wanted and could not be offered."""
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
            kvm_mmu_remote_flush_or_zap(kvm, invalid_list, True)
            flush = False
        for sp, path in for_each_unsync_sp(pvec):
            kvm_unlink_unsync_page(kvm, sp)
            flush |= bool(sync_or_zap_page(kvm, vcpu, sp, invalid_list))
            mmu_pages_clear_parents(path)
        if need_resched(kvm):
            kvm_mmu_remote_flush_or_zap(kvm, invalid_list, flush)
            if not can_yield:
                vcpu.requests |= KVM_REQ_MMU_SYNC
                return False
            cond_resched_lock(kvm)
            flush = False
    kvm_mmu_remote_flush_or_zap(kvm, invalid_list, flush)
    return True
