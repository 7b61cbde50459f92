"""Finding or creating a shadow page where guests have tables, from v6 on.

Owns nothing. Models kvm_mmu_find_shadow_page, kvm_mmu_alloc_shadow_page and kvm_mmu_get_child_sp of v6.1 and v6.12.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import PT_PAGE_TABLE_LEVEL
from ..common.events import note_get_page
from ..common.flush import kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_with_address
from ..common.page_table import child_of, is_child_kept
from ..common.role import role_address_space, role_is_direct, role_level
from ..common.slots import gfn_to_memslot
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.account import account_shadowed
from ..shadow.page import for_each_sp, is_valid_sp, kvm_mmu_alloc_page
from ..shadow.track import kvm_mmu_rmap_write_protect_gfn
from ..shadow.zap import kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page
from .sync_v6 import sync_or_zap_page


def kvm_mmu_find_shadow_page(kvm: Kvm, vcpu: Vcpu, gfn: int, role: int) -> ShadowPage | None:
    """The page of this gfn and role, synced if it was unsync; where it is an upper table others that are unsync go."""
    invalid_list: list[int] = []
    collisions = 0
    found = None
    for sp in for_each_sp(kvm, gfn):
        if not is_valid_sp(kvm, sp):
            continue
        if sp.gfn != gfn:
            collisions += 1
            continue
        if sp.role != role:
            if role_level(role) > PT_PAGE_TABLE_LEVEL and sp.unsync:
                kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
            continue
        if not role_is_direct(sp.role):
            if sp.unsync:
                flush = sync_or_zap_page(kvm, vcpu, sp, invalid_list)
                if flush is None:
                    break
                if flush:
                    kvm_flush_remote_tlbs(kvm)
            sp.write_flooding_count = 0
        found = sp
        break
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    kvm.ctr["max_collisions"] = max(kvm.ctr["max_collisions"], collisions)
    most = kvm.stat["max_mmu_page_hash_collisions"]
    kvm.stat["max_mmu_page_hash_collisions"] = max(most, collisions)
    return found


def kvm_mmu_get_shadow_page_v6(kvm: Kvm, vcpu: Vcpu, gfn: int, role: int) -> ShadowPage:
    sp = kvm_mmu_find_shadow_page(kvm, vcpu, gfn, role)
    if sp is not None:
        kvm.work["get_page_found"] += 1
        note_get_page(kvm, sp, role, 0)
        return sp
    sp = kvm_mmu_alloc_page(kvm, gfn, role)
    if not role_is_direct(role):
        account_shadowed(kvm, sp)
        slot = gfn_to_memslot(kvm, role_address_space(role), gfn)
        is_small = role_level(role) == PT_PAGE_TABLE_LEVEL
        if is_small and slot is not None and kvm_mmu_rmap_write_protect_gfn(kvm, slot, gfn):
            kvm_flush_remote_tlbs_with_address(kvm, gfn, 1)
    note_get_page(kvm, sp, role, 1)
    return sp


def kvm_mmu_get_child_sp(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, gfn: int, role: int
) -> tuple[ShadowPage, bool]:
    """The table wanted under an entry, and whether the entry links it already."""
    spte = sp.sptes.get(index, 0)
    if word.is_shadow_present_pte(kvm.masks, spte) and not word.is_large_pte(spte):
        child = child_of(kvm, spte)
        if is_child_kept(kvm, child, gfn, role):
            return child, True
    return kvm_mmu_get_shadow_page_v6(kvm, vcpu, gfn, role), False
