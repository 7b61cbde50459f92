"""The roots of a vCPU whose guest pages, and what the guest does to CR3, from v6 on.

Owns nothing beside `roots`. Models mmu_alloc_shadow_roots, mmu_alloc_direct_roots, kvm_mmu_free_obsolete_roots,
fast_pgd_switch, kvm_mmu_new_pgd, load_pdptrs and kvm_set_cr3 of v6.1 and v6.12.

A root whose table is no memory is, by the kernel, a triple fault or a dummy: a table that maps nothing, page 0 here.
"""

from __future__ import annotations

from ..common.constants import (
    ACC_ALL,
    KVM_PRIVATE_MEM_SLOTS,
    KVM_REQ_LOAD_CR3,
    KVM_REQ_MMU_RELOAD,
    KVM_REQ_MMU_SYNC,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_TRIPLE_FAULT,
    PAGE_SHIFT,
)
from ..common.masks import bits
from ..common.page_table import is_obsolete_sp
from ..common.slots import kvm_vcpu_gfn_to_memslot, memslot_is_visible
from ..common.state import Kvm, Vcpu
from ..shadow.guest_mode import is_pae_paging, kvm_init_shadow_mmu, mode_of, shadow_page_role
from ..shadow.guest_walk import PT_PRESENT
from ..shadow.reclaim import make_mmu_pages_available
from .get_page_v6 import kvm_mmu_get_shadow_page_v6
from .roots import (
    CR3_SWITCHED,
    PAE_ROOT_LEVEL,
    ROOT_NOT_VISIBLE,
    free_all_roots,
    free_current_roots,
    mmu_free_root_pages,
    read_pdptrs,
    wanted_roots,
)
from .sync_roots import kvm_mmu_sync_roots

DUMMY_ROOT = 0
CR3_REFUSED = 1


def kvm_vcpu_is_visible_gfn(kvm: Kvm, vcpu: Vcpu, gfn: int) -> bool:
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    is_user_slot = slot is not None and slot.id < kvm.rules.mem_slots - KVM_PRIVATE_MEM_SLOTS
    return is_user_slot and memslot_is_visible(slot)


def load_shadow_roots(kvm: Kvm, vcpu: Vcpu) -> int:
    """0; -ENOSPC without room; 1 where a table is no memory and the kernel has no dummy for it."""
    mode = mode_of(vcpu)
    wanted = wanted_roots(kvm, vcpu)
    if mode.name != "none":
        gfns = {vcpu.cr3 >> PAGE_SHIFT} | {gfn for gfn, _, _ in wanted if gfn is not None}
        hidden = {gfn for gfn in gfns if not kvm_vcpu_is_visible_gfn(kvm, vcpu, gfn)}
        if hidden and not kvm.rules.has_dummy_root:
            vcpu.requests |= KVM_REQ_TRIPLE_FAULT
            return ROOT_NOT_VISIBLE
        if vcpu.cr3 >> PAGE_SHIFT in hidden:
            vcpu.roots = [DUMMY_ROOT]
            return 0
        wanted = [(None if gfn in hidden else gfn, gva, is_direct) for gfn, gva, is_direct in wanted]
    error = make_mmu_pages_available(kvm)
    if error:
        return error
    level = mode.root_level if mode.name == "long" else PAE_ROOT_LEVEL
    roots = []
    for gfn, gva, is_direct in wanted:
        if gfn is None:
            roots.append(0)
            continue
        role = shadow_page_role(kvm, vcpu, gva, level, is_direct, ACC_ALL)
        sp = kvm_mmu_get_shadow_page_v6(kvm, vcpu, gfn, role)
        sp.root_count += 1
        roots.append(sp.id)
    vcpu.roots = roots
    vcpu.root_cr3 = vcpu.cr3
    return 0


def kvm_mmu_load_shadow_v6(kvm: Kvm, vcpu: Vcpu) -> int:
    error = load_shadow_roots(kvm, vcpu)
    if not error:
        kvm_mmu_sync_roots(kvm, vcpu)
    return error


def kvm_mmu_free_obsolete_roots(kvm: Kvm, vcpu: Vcpu) -> None:
    """Give up the roots that went; four roots and the dummy cannot be told, and always go."""
    page_ids = []
    for i, previous in enumerate(vcpu.prev_roots):
        if previous is not None and is_obsolete_sp(kvm, kvm.pages[previous[1]]):
            page_ids.append(previous[1])
            vcpu.prev_roots[i] = None
    if vcpu.roots and is_obsolete_root(kvm, vcpu):
        page_ids += [page_id for page_id in vcpu.roots if page_id]
        vcpu.roots, vcpu.root_cr3 = [], 0
    mmu_free_root_pages(kvm, page_ids)


def is_obsolete_root(kvm: Kvm, vcpu: Vcpu) -> bool:
    return not has_root_page(vcpu) or is_obsolete_sp(kvm, kvm.pages[vcpu.roots[0]])


def has_root_page(vcpu: Vcpu) -> bool:
    """Whether the root is one page that shadows a table."""
    return len(vcpu.roots) == 1 and vcpu.roots[0] != DUMMY_ROOT


def load_pdptrs_v6(kvm: Kvm, vcpu: Vcpu, cr3: int) -> bool:
    """Take the PDPTEs into the processor; roots that were made of others go."""
    entries = read_pdptrs(kvm, vcpu, cr3)
    reserved = bits(kvm.config.phys_bits, 63) | bits(5, 8) | bits(1, 2)
    if entries is None or any(entry & PT_PRESENT and entry & reserved for entry in entries):
        return False
    if entries != vcpu.pdptrs:
        free_current_roots(kvm, vcpu)
    vcpu.pdptrs = entries
    vcpu.requests |= KVM_REQ_LOAD_CR3
    return True


def set_guest_registers_v6(kvm: Kvm, vcpu: Vcpu) -> int:
    if is_pae_paging(vcpu):
        load_pdptrs_v6(kvm, vcpu, vcpu.cr3)
    unload_roots_v6(kvm, vcpu)
    kvm_init_shadow_mmu(kvm, vcpu)
    return 0


def unload_roots_v6(kvm: Kvm, vcpu: Vcpu) -> None:
    free_all_roots(kvm, vcpu)
    vcpu.mmio_gva = 0


def kvm_set_cr3_v6(kvm: Kvm, vcpu: Vcpu, cr3: int) -> int:
    """MOV to CR3: 0, or 1 where the PDPTEs are refused; a sync follows at the next entry."""
    has_pdptrs = is_pae_paging(vcpu)
    if cr3 != vcpu.cr3 or has_pdptrs:
        if has_pdptrs and not load_pdptrs_v6(kvm, vcpu, cr3):
            return CR3_REFUSED
        if cr3 != vcpu.cr3:
            kvm_mmu_new_pgd(kvm, vcpu, cr3)
        vcpu.cr3 = cr3
    vcpu.requests |= KVM_REQ_MMU_SYNC | KVM_REQ_TLB_FLUSH_CURRENT
    return CR3_SWITCHED


def kvm_mmu_new_pgd(kvm: Kvm, vcpu: Vcpu, cr3: int) -> None:
    if vcpu.roots and not has_root_page(vcpu):
        free_current_roots(kvm, vcpu)
    if not fast_pgd_switch(kvm, vcpu, cr3):
        return
    sp = kvm.pages[vcpu.roots[0]]
    if is_obsolete_sp(kvm, sp):
        vcpu.requests |= KVM_REQ_MMU_RELOAD
    vcpu.requests |= KVM_REQ_LOAD_CR3
    vcpu.mmio_gva = 0
    sp.write_flooding_count = 0


def is_root_usable(kvm: Kvm, root: tuple[int, int] | None, cr3: int, role: int) -> bool:
    return root is not None and root[0] == cr3 and kvm.pages[root[1]].role == role


def fast_pgd_switch(kvm: Kvm, vcpu: Vcpu, cr3: int) -> bool:
    """Find the root: the current one, or a previous one, which then is current; what falls out is freed."""
    mode = mode_of(vcpu)
    if mode.name == "none":
        return False
    role = shadow_page_role(kvm, vcpu, 0, mode.root_level, False, ACC_ALL)
    if not vcpu.roots:
        return find_root_without_current(kvm, vcpu, cr3, role)
    current: tuple[int, int] | None = (vcpu.root_cr3, vcpu.roots[0])
    if is_root_usable(kvm, current, cr3, role):
        return True
    for i, previous in enumerate(vcpu.prev_roots):
        vcpu.prev_roots[i], current = current, previous
        if is_root_usable(kvm, current, cr3, role):
            break
    vcpu.roots = [current[1]] if current is not None else []
    vcpu.root_cr3 = current[0] if current is not None else 0
    if is_root_usable(kvm, current, cr3, role):
        return True
    free_current_roots(kvm, vcpu)
    return False


def find_root_without_current(kvm: Kvm, vcpu: Vcpu, cr3: int, role: int) -> bool:
    """The first previous root that fits becomes current, and those behind it move up."""
    for i, previous in enumerate(vcpu.prev_roots):
        if previous is not None and is_root_usable(kvm, previous, cr3, role):
            vcpu.root_cr3, vcpu.roots = previous[0], [previous[1]]
            vcpu.prev_roots = [*vcpu.prev_roots[:i], *vcpu.prev_roots[i + 1 :], None]
            return True
    return False
