"""The page fault of a guest that pages, up to v5.4: the guest's walk, the host's page, and the way down to the leaf.

Owns nothing. Models page_fault, is_self_change_mapping, fetch, gpte_changed, validate_direct_spte and
shadow_page_table_clear_flood of v5.0 to v5.4.

The tables between the root and the guest's leaf shadow guest tables; below a large guest page that is mapped smaller
they are direct. All tables that one fault makes have the access of the entries above the leaf.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import (
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    EIO,
    PAGE_SHIFT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    PTE_PREFETCH_NUM,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    kvm_pages_per_hpage,
    spte_index,
)
from ..common.errors import KernelBug
from ..common.events import note_inject_page_fault
from ..common.flush import kvm_flush_remote_tlbs_with_address
from ..common.page_table import child_of, kvm_mmu_page_get_gfn, vcpu_root
from ..common.pin import PinnedPfn, gfn_to_pfn, handle_abnormal_pfn
from ..common.role import role_access, role_is_direct, role_level
from ..common.slots import kvm_vcpu_gfn_to_memslot, page_fault_handle_page_track
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_memory import kvm_vcpu_read_guest
from ..shadow.guest_mode import mode_of, shadow_page_role
from ..shadow.guest_walk import GuestWalk, has_room_for_walk, walk_addr
from ..shadow.page import drop_parent_pte, link_shadow_page
from ..shadow.reclaim import make_mmu_pages_available
from ..shadow.rmap import drop_spte
from ..v5.fault import mapping_level, transparent_hugepage_adjust
from ..v5.map import mmu_set_spte
from .get_page import kvm_mmu_get_shadow_page
from .prefetch import pte_prefetch


def paging_page_fault(kvm: Kvm, vcpu: Vcpu, gva: int, error_code: int) -> int:
    """A RET_PF value or a negative errno."""
    error_code &= ~PFERR_RSVD
    if not has_room_for_walk(kvm, vcpu):
        return -EIO
    walk = walk_addr(kvm, vcpu, gva, error_code)
    if walk.error_code is not None:
        inject_page_fault(kvm, vcpu, gva, walk.error_code)
        return RET_PF_RETRY
    if page_fault_handle_page_track(kvm, vcpu, walk.gfn, error_code):
        shadow_page_table_clear_flood(kvm, vcpu, gva)
        return RET_PF_EMULATE
    level, is_forced = PT_PAGE_TABLE_LEVEL, True
    is_user_fault = error_code & PFERR_USER != 0
    if walk.level >= PT_DIRECTORY_LEVEL and not is_self_change_mapping(vcpu, walk, is_user_fault):
        level, is_forced = mapping_level(kvm, vcpu, walk.gfn)
        if not is_forced:
            level = min(walk.level, level)
            walk.gfn &= ~(kvm_pages_per_hpage(level) - 1)
    is_write = error_code & PFERR_WRITE != 0
    pinned = gfn_to_pfn(kvm, kvm_vcpu_gfn_to_memslot(kvm, vcpu, walk.gfn), walk.gfn, is_write)
    verdict = handle_abnormal_pfn(kvm, vcpu, walk.gfn, pinned, gva, walk.pte_access)
    if verdict is not None:
        return verdict
    if is_write and pinned.pfn >= 0:
        allow_supervisor_write(vcpu, walk, is_user_fault)
    if make_mmu_pages_available(kvm) < 0:
        return RET_PF_RETRY
    if not is_forced:
        gpa = walk.gfn << PAGE_SHIFT
        walk.gfn, pinned, level = transparent_hugepage_adjust(kvm, vcpu, gpa, walk.gfn, pinned, level)
    return fetch(kvm, vcpu, gva, walk, is_write, level, pinned)


def inject_page_fault(kvm: Kvm, vcpu: Vcpu, gva: int, error_code: int) -> None:
    """The fault is the guest's own."""
    note_inject_page_fault(kvm, vcpu, gva, error_code)
    vcpu.is_fault_injected = True


def allow_supervisor_write(vcpu: Vcpu, walk: GuestWalk, is_user_fault: bool) -> None:
    """With CR0.WP clear the kernel of the guest may write a read-only page: then user mode must not reach it."""
    mode = mode_of(vcpu)
    if walk.pte_access & ACC_WRITE_MASK or mode.wp or is_user_fault:
        return
    walk.pte_access = (walk.pte_access | ACC_WRITE_MASK) & ~ACC_USER_MASK
    if mode.smep:
        walk.pte_access &= ~ACC_EXEC_MASK


def shadow_page_table_clear_flood(kvm: Kvm, vcpu: Vcpu, gva: int) -> None:
    """The tables on the way to an address are in use: writes to them do not count as flooding any more."""
    page_id = vcpu_root(vcpu, gva)
    while page_id is not None:
        sp = kvm.pages[page_id]
        sp.write_flooding_count = 0
        level = role_level(sp.role)
        spte = sp.sptes.get(spte_index(gva, level), 0)
        is_link = word.is_shadow_present_pte(kvm.masks, spte) and not word.is_last_spte(spte, level)
        page_id = word.spte_to_pfn(spte) if is_link else None


def is_self_change_mapping(vcpu: Vcpu, walk: GuestWalk, is_user_fault: bool) -> bool:
    """Whether a large page holds one of the tables that map it, and may be written."""
    if not walk.pte_access & ACC_WRITE_MASK and (mode_of(vcpu).wp or is_user_fault):
        return False
    within = kvm_pages_per_hpage(walk.level) - 1
    return any(
        (walk.gfn ^ walk.table_gfn[level]) & ~within == 0 for level in range(walk.level, walk.max_level + 1)
    )


def read_prefetch_group(kvm: Kvm, vcpu: Vcpu, walk: GuestWalk) -> list[int] | None:
    """The aligned group of eight level-1 entries around the walked one; None where it cannot be read."""
    size = mode_of(vcpu).entry_size
    base = walk.pte_gpa[PT_PAGE_TABLE_LEVEL] & ~(size * PTE_PREFETCH_NUM - 1)
    entries = [kvm_vcpu_read_guest(kvm, vcpu, base + i * size, size) for i in range(PTE_PREFETCH_NUM)]
    return None if None in entries else [entry for entry in entries if entry is not None]


def gpte_changed(kvm: Kvm, vcpu: Vcpu, walk: GuestWalk, level: int) -> bool:
    """Whether the guest's entry is another one than the walk read."""
    entry = kvm_vcpu_read_guest(kvm, vcpu, walk.pte_gpa[level], mode_of(vcpu).entry_size)
    return entry != walk.ptes[level]


def fetch(
    kvm: Kvm, vcpu: Vcpu, gva: int, walk: GuestWalk, is_write: bool, goal_level: int, pinned: PinnedPfn
) -> int:
    """Walk down the shadow tables, make those that are missing, and map the page."""
    root = vcpu_root(vcpu, gva)
    if gpte_changed(kvm, vcpu, walk, walk.max_level) or root is None:
        return RET_PF_RETRY
    sp = kvm.pages[root]
    while role_level(sp.role) > walk.level:
        below = shadow_table_below(kvm, vcpu, gva, walk, sp)
        if below is None:
            return RET_PF_RETRY
        sp = below
    while role_level(sp.role) > goal_level:
        sp = direct_table_below(kvm, vcpu, gva, walk, sp)
    sp.write_flooding_count = 0
    index = spte_index(gva, goal_level)
    check_direct_gfn(kvm, sp, index, walk.gfn)
    entries = read_prefetch_group(kvm, vcpu, walk) if walk.level == PT_PAGE_TABLE_LEVEL else []
    if entries is None:
        return RET_PF_RETRY
    verdict = mmu_set_spte(
        kvm,
        vcpu,
        sp,
        index,
        walk.gfn,
        pinned,
        access=walk.pte_access,
        is_write_fault=is_write,
        is_speculative=False,
    )
    pte_prefetch(kvm, vcpu, sp, index, entries)
    return verdict


def check_direct_gfn(kvm: Kvm, sp: ShadowPage, index: int, gfn: int) -> None:
    """A direct table stays where a large guest page became a table behind KVM's back: these kernels stop then."""
    line = kvm.rules.direct_gfn_bug_line
    is_direct = role_is_direct(sp.role) and index not in sp.aliased
    if line and is_direct and kvm_mmu_page_get_gfn(sp, index) != gfn:
        raise KernelBug(kvm.rules.name, f"mmu.c:{line} gfn != kvm_mmu_page_get_gfn(sp, index)")


def drop_large_spte(kvm: Kvm, sp: ShadowPage, index: int) -> None:
    spte = sp.sptes.get(index, 0)
    if word.is_shadow_present_pte(kvm.masks, spte) and word.is_large_pte(spte):
        drop_spte(kvm, sp, index)
        kvm.ctr["lpages"] -= 1
        kvm_flush_remote_tlbs_with_address(kvm, sp.gfn, kvm_pages_per_hpage(role_level(sp.role)))


def shadow_table_below(kvm: Kvm, vcpu: Vcpu, gva: int, walk: GuestWalk, sp: ShadowPage) -> ShadowPage | None:
    """The page that shadows the guest table of the next level; None when that table's entry changed meanwhile."""
    level = role_level(sp.role)
    index = spte_index(gva, level)
    sp.write_flooding_count = 0
    role = shadow_page_role(kvm, vcpu, gva, level - 1, False, walk.pt_access)
    wanted = walk.table_gfn[level - 1]
    drop_other_child(kvm, sp, index, wanted, role)
    drop_large_spte(kvm, sp, index)
    spte = sp.sptes.get(index, 0)
    is_present = word.is_shadow_present_pte(kvm.masks, spte)
    child = child_of(kvm, spte) if is_present else kvm_mmu_get_shadow_page(kvm, vcpu, wanted, role)
    if gpte_changed(kvm, vcpu, walk, level - 1):
        return None
    if not is_present:
        link_shadow_page(kvm, sp, index, child)
    return child


def drop_other_child(kvm: Kvm, sp: ShadowPage, index: int, gfn: int, role: int) -> None:
    """Unlink a table that is not the one wanted. No kernel here does: assumed to be as for a table of other rights."""
    reuse = kvm.rules.child_reuse
    spte = sp.sptes.get(index, 0)
    is_link = word.is_shadow_present_pte(kvm.masks, spte) and not word.is_large_pte(spte)
    if reuse not in ("gfn", "gfn_role") or not is_link:
        return
    child = child_of(kvm, spte)
    if child.gfn != gfn or (reuse == "gfn_role" and child.role != role):
        drop_parent_pte(kvm, child, sp, index)
        kvm_flush_remote_tlbs_with_address(kvm, child.gfn, 1)


def validate_direct_spte(kvm: Kvm, sp: ShadowPage, index: int, access: int) -> None:
    """Unlink a direct table that gives other rights than the guest's leaf gives now."""
    spte = sp.sptes.get(index, 0)
    if not word.is_shadow_present_pte(kvm.masks, spte) or word.is_large_pte(spte):
        return
    child = child_of(kvm, spte)
    if role_access(child.role) != access:
        drop_parent_pte(kvm, child, sp, index)
        kvm_flush_remote_tlbs_with_address(kvm, child.gfn, 1)


def direct_table_below(kvm: Kvm, vcpu: Vcpu, gva: int, walk: GuestWalk, sp: ShadowPage) -> ShadowPage:
    """The direct table under a large guest page that is mapped smaller."""
    level = role_level(sp.role)
    index = spte_index(gva, level)
    sp.write_flooding_count = 0
    gfn = walk.gfn & ~(kvm_pages_per_hpage(level) - 1)
    role = shadow_page_role(kvm, vcpu, gva, level - 1, True, walk.pte_access)
    if kvm.rules.child_reuse == "access":
        validate_direct_spte(kvm, sp, index, walk.pte_access)
    drop_other_child(kvm, sp, index, gfn, role)
    drop_large_spte(kvm, sp, index)
    spte = sp.sptes.get(index, 0)
    if word.is_shadow_present_pte(kvm.masks, spte):
        return child_of(kvm, spte)
    child = kvm_mmu_get_shadow_page(kvm, vcpu, gfn, role)
    link_shadow_page(kvm, sp, index, child)
    return child
