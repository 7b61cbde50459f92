"""A vCPU's root: loading, unloading, entry requests, and the mode that roles are made of.

Owns `Vcpu.roots`, the root counts and `Vcpu.base_role`. Models kvm_mmu_load, kvm_mmu_unload,
mmu_free_root_page, kvm_mmu_reset_context, kvm_mmu_free_obsolete_roots and the request handling of vcpu_enter_guest for
a direct MMU (v5.0 to v6.12), which has one root whose gfn is 0 whatever the guest does, or, without two-dimensional
paging, four of level 2 for the four GiB that a guest without paging reaches.

Invariant: a page's root_count is the number of loads of it that no unload has answered; entries load only where
there is no root.
"""

from __future__ import annotations

from ..common.constants import (
    EIO,
    KVM_REQ_LOAD_CR3,
    KVM_REQ_MMU_RELOAD,
    KVM_REQ_MMU_SYNC,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_TLB_FLUSH_GUEST,
    KVM_REQ_UPDATE_CPU_DIRTY_LOGGING,
)
from ..common.page_table import has_guest_tables, is_obsolete_sp, root_role
from ..common.role import kvm_calc_tdp_mmu_base_role, role_is_invalid
from ..common.state import Kvm, Vcpu
from ..paging.roots import free_all_roots, kvm_mmu_load_shadow
from ..paging.roots_v6 import kvm_mmu_free_obsolete_roots, kvm_mmu_load_shadow_v6, unload_roots_v6
from ..paging.sync_roots import kvm_mmu_sync_roots
from ..shadow.guest_mode import kvm_init_shadow_mmu
from ..shadow.page import kvm_mmu_get_page
from ..shadow.reclaim import make_mmu_pages_available
from ..shadow.zap import kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page
from ..tdp.roots import kvm_tdp_mmu_get_vcpu_root, kvm_tdp_mmu_put_root

#: What an entry has done after roots were freed and synced.
ANSWERED_AT_ENTRY = (
    KVM_REQ_TLB_FLUSH
    | KVM_REQ_TLB_FLUSH_CURRENT
    | KVM_REQ_TLB_FLUSH_GUEST
    | KVM_REQ_MMU_SYNC
    | KVM_REQ_LOAD_CR3
    | KVM_REQ_UPDATE_CPU_DIRTY_LOGGING
)
PAE_ROOT_LEVEL = 2
PAE_ROOT_GFNS = (0, 0x40000, 0x80000, 0xC0000)


def is_tdp(kvm: Kvm) -> bool:
    return kvm.config.family != "shadow"


def root_level(kvm: Kvm) -> int:
    """The level of the one root; in format 6 EPT has a fifth only for a guest that is wider than 48 bits."""
    level = kvm.config.tdp_level
    is_limited = kvm.format == 6 and kvm.config.family != "npt" and kvm.config.phys_bits <= 48
    return min(level, 4) if is_limited else level


def kvm_mmu_load(kvm: Kvm, vcpu: Vcpu) -> int:
    """Load a root; -ENOSPC when the limit leaves no page for it. One held already keeps its count."""
    if has_guest_tables(kvm):
        load = kvm_mmu_load_shadow_v6 if kvm.rules.is_level_requested else kvm_mmu_load_shadow
        return load(kvm, vcpu)
    if not kvm.config.tdp_mmu or kvm.rules.tdp_load_needs_room:
        error = make_mmu_pages_available(kvm)
        if error:
            return error
    if kvm.config.tdp_mmu:
        vcpu.roots = [kvm_tdp_mmu_get_vcpu_root(kvm, root_role(kvm, vcpu, root_level(kvm))).id]
        return 0
    gfns, level = ((0,), root_level(kvm)) if is_tdp(kvm) else (PAE_ROOT_GFNS, PAE_ROOT_LEVEL)
    vcpu.roots = []
    for gfn in gfns:
        sp = kvm_mmu_get_page(kvm, gfn, root_role(kvm, vcpu, level))
        sp.root_count += 1
        vcpu.roots.append(sp.id)
    return 0


def kvm_mmu_unload(kvm: Kvm, vcpu: Vcpu) -> None:
    """Give the roots up; one that was zapped while in use is zapped again, and freed."""
    if has_guest_tables(kvm):
        unload = unload_roots_v6 if kvm.rules.is_level_requested else free_all_roots
        unload(kvm, vcpu)
        return
    roots, vcpu.roots = [kvm.pages[page_id] for page_id in vcpu.roots], []
    if kvm.config.tdp_mmu:
        for root in roots:
            kvm_tdp_mmu_put_root(kvm, root)
        return
    invalid_list: list[int] = []
    for sp in roots:
        sp.root_count -= 1
        if sp.root_count == 0 and role_is_invalid(sp.role):
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
    kvm_mmu_commit_zap_page(kvm, invalid_list)


def has_obsolete_root(kvm: Kvm, vcpu: Vcpu) -> bool:
    return any(is_obsolete_sp(kvm, kvm.pages[page_id]) for page_id in vcpu.roots if page_id)


def vcpu_enter_guest(kvm: Kvm, vcpu: Vcpu) -> int:
    """Handle the requests and see that there is a root."""
    if kvm.is_bugged:
        return -EIO
    if vcpu.requests & KVM_REQ_MMU_RELOAD:
        vcpu.requests &= ~KVM_REQ_MMU_RELOAD
        if has_guest_tables(kvm) and kvm.rules.reload_keeps_valid_root:
            kvm_mmu_free_obsolete_roots(kvm, vcpu)
        elif not kvm.rules.reload_keeps_valid_root or has_obsolete_root(kvm, vcpu):
            kvm_mmu_unload(kvm, vcpu)
    if vcpu.requests & KVM_REQ_MMU_SYNC and has_guest_tables(kvm):
        kvm_mmu_sync_roots(kvm, vcpu)
    vcpu.requests &= ~ANSWERED_AT_ENTRY
    return kvm_mmu_load(kvm, vcpu) if not vcpu.roots else 0


def init_kvm_mmu(kvm: Kvm, vcpu: Vcpu) -> None:
    if has_guest_tables(kvm):
        kvm_init_shadow_mmu(kvm, vcpu)
        return
    vcpu.base_role = kvm_calc_tdp_mmu_base_role(
        kvm.rules, kvm.masks, is_tdp(kvm), vcpu.cr0, vcpu.efer, vcpu.smm
    )


def kvm_mmu_reset_context(kvm: Kvm, vcpu: Vcpu) -> None:
    """Unload and take the mode anew, also when nothing in it changed."""
    kvm_mmu_unload(kvm, vcpu)
    init_kvm_mmu(kvm, vcpu)
