"""Finding or creating a shadow page where guests have tables: pages that went stale are synced or replaced on the way.

Owns nothing. Models kvm_mmu_get_page of v5.0 to v5.4 for shadow paging.
"""

from __future__ import annotations

from ..common.constants import KVM_REQ_MMU_SYNC, KVM_REQ_TLB_FLUSH, PT_PAGE_TABLE_LEVEL
from ..common.events import note_get_page
from ..common.flush import kvm_flush_remote_tlbs_with_address
from ..common.role import role_is_direct, role_level
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.account import account_shadowed
from ..shadow.page import for_each_sp, is_valid_sp, kvm_mmu_alloc_page
from .gpte import rmap_write_protect_gfn
from .sync import kvm_mmu_flush_or_zap, kvm_sync_pages, sync_page_in_place


def kvm_mmu_get_shadow_page(kvm: Kvm, vcpu: Vcpu, gfn: int, role: int) -> ShadowPage:
    """The page of this gfn and role; an unsync one is synced first, and made anew if that ends it."""
    invalid_list: list[int] = []
    collisions = 0
    need_sync = False
    found = None
    for sp in for_each_sp(kvm, gfn):
        if not is_valid_sp(kvm, sp):
            continue
        if sp.gfn != gfn:
            collisions += 1
            continue
        need_sync |= sp.unsync
        if sp.role != role:
            continue
        if sp.unsync:
            if not sync_page_in_place(kvm, vcpu, sp, invalid_list):
                break
            vcpu.requests |= KVM_REQ_TLB_FLUSH
        found = sp
        break
    if found is not None:
        if found.unsync_child_bitmap:
            vcpu.requests |= KVM_REQ_MMU_SYNC
        found.write_flooding_count = 0
        kvm.work["get_page_found"] += 1
        note_get_page(kvm, found, role, 0)
    else:
        found = make_shadow_page(kvm, vcpu, gfn, role, need_sync, invalid_list)
    kvm.ctr["max_collisions"] = max(kvm.ctr["max_collisions"], collisions)
    most = kvm.stat["max_mmu_page_hash_collisions"]
    kvm.stat["max_mmu_page_hash_collisions"] = max(most, collisions)
    return found


def make_shadow_page(
    kvm: Kvm, vcpu: Vcpu, gfn: int, role: int, need_sync: bool, invalid_list: list[int]
) -> ShadowPage:
    """A new page; the table that it shadows cannot be written any more without being noticed."""
    sp = kvm_mmu_alloc_page(kvm, gfn, role)
    flush = False
    if not role_is_direct(role):
        account_shadowed(kvm, sp)
        if role_level(role) == PT_PAGE_TABLE_LEVEL:
            if rmap_write_protect_gfn(kvm, vcpu, gfn):
                kvm_flush_remote_tlbs_with_address(kvm, gfn, 1)
        elif need_sync:
            flush = kvm_sync_pages(kvm, vcpu, gfn, invalid_list)
    note_get_page(kvm, sp, role, 1)
    kvm_mmu_flush_or_zap(kvm, vcpu, invalid_list, False, flush)
    return sp
