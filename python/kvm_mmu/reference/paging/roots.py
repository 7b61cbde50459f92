"""The roots of a vCPU whose guest pages, and what the guest does to CR3 and the PDPTEs.

Owns `Vcpu.prev_roots`, `Vcpu.root_cr3` and `Vcpu.pdptrs`. Models mmu_alloc_shadow_roots, mmu_alloc_direct_roots,
kvm_mmu_free_roots, load_pdptrs, kvm_set_cr3, fast_cr3_switch and cached_root_available of v5.0 to v5.4.

Invariant: a page's root_count is the number of vCPUs' roots, current and previous, that it is, and of those forgotten
when a later root of the same load failed.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..common.constants import (
    ACC_ALL,
    KVM_PRIVATE_MEM_SLOTS,
    KVM_REQ_LOAD_CR3,
    KVM_REQ_MMU_SYNC,
    KVM_REQ_TRIPLE_FAULT,
    PAGE_SHIFT,
)
from ..common.role import role_is_invalid
from ..common.slots import gfn_to_memslot, memslot_is_visible
from ..common.state import Kvm, Vcpu
from ..shadow.guest_memory import kvm_vcpu_read_guest
from ..shadow.guest_mode import (
    ROLE_SMEP_SMAP_ANDNOT_WP,
    is_pae_paging,
    kvm_init_shadow_mmu,
    mode_of,
    shadow_page_role,
)
from ..shadow.guest_walk import PT_PRESENT
from ..shadow.reclaim import make_mmu_pages_available
from ..shadow.zap import kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page
from .get_page import kvm_mmu_get_shadow_page
from .sync_roots import kvm_mmu_sync_roots

PAE_ROOT_LEVEL = 2
PDPTRS = 4
# What MOV to CR3 came to.
CR3_SWITCHED = 0
CR3_IS_SAME = 1
CR3_REFUSED = 2
#: A load that ends so has asked for a triple fault.
ROOT_NOT_VISIBLE = 1


def mmu_check_root(kvm: Kvm, vcpu: Vcpu, gfn: int) -> bool:
    """Whether a root's table is the guest's memory, always in address space 0; else the guest is shut down."""
    slot = gfn_to_memslot(kvm, 0, gfn)
    if (
        slot is not None
        and memslot_is_visible(slot)
        and slot.id < kvm.rules.mem_slots - KVM_PRIVATE_MEM_SLOTS
    ):
        return True
    vcpu.requests |= KVM_REQ_TRIPLE_FAULT
    return False


def wanted_roots(kvm: Kvm, vcpu: Vcpu) -> list[tuple[int | None, int, bool]]:
    """The roots of the mode: gfn, the first address it translates, and whether it is direct; None: no root there."""
    mode = mode_of(vcpu)
    cr3_gfn = (vcpu.cr3 & mode.address_mask) >> PAGE_SHIFT
    if mode.name == "long":
        return [(cr3_gfn, 0, False)]
    gfns: list[int | None] = [cr3_gfn] * PDPTRS
    if mode.name == "none":
        gfns = [i << 30 - PAGE_SHIFT for i in range(PDPTRS)]
    elif mode.name == "pae":
        gfns = [
            (entry & mode.address_mask) >> PAGE_SHIFT if entry & PT_PRESENT else None for entry in vcpu.pdptrs
        ]
    return [(gfn, i << 30, mode.name == "none") for i, gfn in enumerate(gfns)]


def load_shadow_roots(kvm: Kvm, vcpu: Vcpu) -> int:
    """0; -ENOSPC without room; 1 where a table is no memory. Roots made before a failure keep their count."""
    mode = mode_of(vcpu)
    if mode.name != "none" and not mmu_check_root(kvm, vcpu, vcpu.cr3 >> PAGE_SHIFT):
        return ROOT_NOT_VISIBLE
    roots = []
    level = mode.root_level if mode.name == "long" else PAE_ROOT_LEVEL
    for gfn, gva, is_direct in wanted_roots(kvm, vcpu):
        if gfn is None:
            roots.append(0)
            continue
        if mode.name == "pae" and not mmu_check_root(kvm, vcpu, gfn):
            return ROOT_NOT_VISIBLE
        error = make_mmu_pages_available(kvm)
        if error:
            return error
        role = shadow_page_role(kvm, vcpu, gva, level, is_direct, ACC_ALL)
        sp = kvm_mmu_get_shadow_page(kvm, vcpu, gfn, role)
        sp.root_count += 1
        roots.append(sp.id)
    vcpu.roots = roots
    vcpu.root_cr3 = vcpu.cr3
    return 0


def kvm_mmu_load_shadow(kvm: Kvm, vcpu: Vcpu) -> int:
    """Load the roots, and sync what lies below them, also after a failure."""
    error = load_shadow_roots(kvm, vcpu)
    kvm_mmu_sync_roots(kvm, vcpu)
    return error


def mmu_free_root_pages(kvm: Kvm, page_ids: Iterable[int]) -> None:
    """Give roots up; one that was zapped while in use is zapped again, and freed. One commit."""
    invalid_list: list[int] = []
    for page_id in page_ids:
        sp = kvm.pages[page_id]
        sp.root_count -= 1
        if sp.root_count == 0 and role_is_invalid(sp.role):
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
    kvm_mmu_commit_zap_page(kvm, invalid_list)


def free_current_roots(kvm: Kvm, vcpu: Vcpu) -> None:
    page_ids, vcpu.roots, vcpu.root_cr3 = [page_id for page_id in vcpu.roots if page_id], [], 0
    mmu_free_root_pages(kvm, page_ids)


def free_all_roots(kvm: Kvm, vcpu: Vcpu) -> None:
    """The previous ones first."""
    page_ids = [previous[1] for previous in vcpu.prev_roots if previous is not None]
    page_ids += [page_id for page_id in vcpu.roots if page_id]
    vcpu.prev_roots, vcpu.roots, vcpu.root_cr3 = [None, None, None], [], 0
    mmu_free_root_pages(kvm, page_ids)


def read_pdptrs(kvm: Kvm, vcpu: Vcpu, cr3: int) -> list[int] | None:
    """The four entries in memory, None where they cannot be read."""
    entries = [kvm_vcpu_read_guest(kvm, vcpu, (cr3 & 0xFFFFFFE0) + i * 8, 8) for i in range(PDPTRS)]
    return None if None in entries else [entry for entry in entries if entry is not None]


def load_pdptrs(kvm: Kvm, vcpu: Vcpu, cr3: int) -> bool:
    """Take the PDPTEs into the processor; false where one is no good, and then the old ones stay."""
    entries = read_pdptrs(kvm, vcpu, cr3)
    reserved = mode_of(vcpu).rsvd[0].get(3, 0)
    if entries is None or any(entry & PT_PRESENT and entry & reserved for entry in entries):
        return False
    vcpu.pdptrs = entries
    return True


def set_guest_registers(kvm: Kvm, vcpu: Vcpu) -> int:
    """After the registers were stored: all roots go, the context follows, then the PDPTEs; 2 if these are refused."""
    free_all_roots(kvm, vcpu)
    kvm_init_shadow_mmu(kvm, vcpu)
    if is_pae_paging(vcpu) and not load_pdptrs(kvm, vcpu, vcpu.cr3):
        return CR3_REFUSED
    return 0


def kvm_set_cr3(kvm: Kvm, vcpu: Vcpu, cr3: int) -> int:
    """MOV to CR3: 0 switched, 1 the same value again, 2 refused."""
    has_pdptrs = is_pae_paging(vcpu)
    if cr3 == vcpu.cr3 and (not has_pdptrs or read_pdptrs(kvm, vcpu, cr3) == vcpu.pdptrs):
        kvm_mmu_sync_roots(kvm, vcpu)
        return CR3_IS_SAME
    if has_pdptrs and not load_pdptrs(kvm, vcpu, cr3):
        return CR3_REFUSED
    if not fast_cr3_switch(kvm, vcpu, cr3):
        free_current_roots(kvm, vcpu)
    vcpu.cr3 = cr3
    return CR3_SWITCHED


def fast_cr3_switch(kvm: Kvm, vcpu: Vcpu, cr3: int) -> bool:
    """Find the root among the previous ones; false when what is current now must go."""
    if mode_of(vcpu).name != "long":
        return False
    if not mmu_check_root(kvm, vcpu, cr3 >> PAGE_SHIFT) or not cached_root_available(kvm, vcpu, cr3):
        return False
    vcpu.requests |= KVM_REQ_LOAD_CR3 | KVM_REQ_MMU_SYNC
    vcpu.mmio_gva = 0
    kvm.pages[vcpu.roots[0]].write_flooding_count = 0
    return True


def cached_root_available(kvm: Kvm, vcpu: Vcpu, cr3: int) -> bool:
    """Rotate the roots until the wanted one is current; else the oldest is."""
    wanted_role = vcpu.base_role & ~ROLE_SMEP_SMAP_ANDNOT_WP | mode_of(vcpu).root_level | ACC_ALL << 8
    current = (vcpu.root_cr3, vcpu.roots[0]) if vcpu.roots else None
    is_found = False
    for i, previous in enumerate(vcpu.prev_roots):
        vcpu.prev_roots[i], current = current, previous
        if current is not None and current[0] == cr3 and kvm.pages[current[1]].role == wanted_role:
            is_found = True
            break
    vcpu.roots = [current[1]] if current is not None else []
    vcpu.root_cr3 = current[0] if current is not None else 0
    return is_found
