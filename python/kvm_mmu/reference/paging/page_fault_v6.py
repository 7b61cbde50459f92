"""The page fault of a guest that pages, from v6 on.

Owns nothing. Models page_fault, is_self_change_mapping and fetch of v6.1 and v6.12.

Unlike before, each table has the access of the entries above it; a table that is there but is not the one wanted gives
way; one with unsync pages below is synced before it is linked; and the level is settled between the tables that shadow
the guest's and the direct ones.
"""

from __future__ import annotations

from ..common.constants import (
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    EIO,
    ENOSPC,
    KVM_REQ_MMU_RELOAD,
    PFERR_PRESENT,
    PFERR_RSVD,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    kvm_pages_per_hpage,
    spte_index,
)
from ..common.events import note_requested
from ..common.nx_huge_page import account_nx_huge_page, is_huge_page_disallowed
from ..common.page_fault import PageFault
from ..common.page_table import is_obsolete_sp, kvm_set_pfn_accessed, vcpu_root
from ..common.pin import PFN_NOSLOT, PinnedPfn, gfn_to_pfn, handle_abnormal_pfn
from ..common.role import role_level
from ..common.slots import kvm_vcpu_gfn_to_memslot, memslot_is_visible, page_fault_handle_page_track
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_mode import child_page_role, mode_of
from ..shadow.guest_walk import GuestWalk, has_room_for_walk, walk_addr
from ..shadow.page import link_shadow_page
from ..shadow.reclaim import make_mmu_pages_available
from ..v6.fault import direct_page_fault, kvm_mmu_hugepage_adjust, was_invalidated
from ..v6.map import make_room_for_table, mmu_set_spte, replace_by_mmio_spte
from .get_page_v6 import kvm_mmu_get_child_sp
from .invlpg import kvm_mmu_invalidate_current
from .page_fault import (
    gpte_changed,
    inject_page_fault,
    is_self_change_mapping,
    read_prefetch_group,
    shadow_page_table_clear_flood,
    validate_direct_spte,
)
from .prefetch import pte_prefetch
from .sync_v6 import mmu_sync_children_v6


def nonpaging_page_fault_v6(kvm: Kvm, vcpu: Vcpu, fault: PageFault) -> int:
    """The fault of a guest that has paging off: that of a direct MMU, but not above 2 MiB."""
    fault.max_level = PT_DIRECTORY_LEVEL
    return direct_page_fault(kvm, vcpu, fault)


def paging_page_fault_v6(kvm: Kvm, vcpu: Vcpu, fault: PageFault) -> int:
    """A RET_PF value or a negative errno."""
    fault.error_code &= ~PFERR_RSVD
    if not has_room_for_walk(kvm, vcpu):
        return -EIO
    walk = walk_addr(kvm, vcpu, fault.gpa, fault.error_code)
    if walk.error_code is not None:
        if walk.error_code & (PFERR_PRESENT | PFERR_RSVD) == PFERR_PRESENT:
            # What the processor may hold of the address would fault for ever.
            kvm_mmu_invalidate_current(kvm, vcpu, fault.gpa)
        inject_page_fault(kvm, vcpu, fault.gpa, walk.error_code)
        return RET_PF_RETRY
    fault.walked_gfn, fault.max_level = walk.gfn, walk.level
    fault.slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, walk.gfn)
    if page_fault_handle_page_track(kvm, vcpu, walk.gfn, fault.error_code):
        shadow_page_table_clear_flood(kvm, vcpu, fault.gpa)
        return RET_PF_WRITE_PROTECTED
    if kvm.rules.self_map_is_small and is_self_change_mapping(vcpu, walk, fault.is_user):
        fault.max_level = PT_PAGE_TABLE_LEVEL
    if kvm.rules.self_map_is_small:
        fault.is_write_to_own_table = fault.is_write and walk.gfn in walk.table_gfn.values()
    fault.sequence = kvm.invalidation.sequence
    if fault.slot is not None and not memslot_is_visible(fault.slot):
        return RET_PF_RETRY
    if kvm.rules.retry_before_pin and was_invalidated(kvm, fault):
        return RET_PF_RETRY
    pinned = gfn_to_pfn(kvm, fault.slot, walk.gfn, fault.is_write, fault.answer)
    access = walk.pte_access & kvm.masks.mmio_access
    abnormal = handle_abnormal_pfn(kvm, vcpu, walk.gfn, pinned, fault.gpa, access)
    if abnormal is not None:
        return abnormal
    if pinned.pfn == PFN_NOSLOT and not kvm.masks.mmio_value:
        return RET_PF_EMULATE
    if fault.answer is not None and fault.answer.is_retry:
        return RET_PF_RETRY
    if fault.slot is not None:
        allow_supervisor_write(vcpu, walk, fault)
    verdict = map_walked(kvm, vcpu, fault, walk, pinned)
    if pinned.pfn >= 0 and kvm.format == 6:
        kvm_set_pfn_accessed(kvm, pinned.pfn)
    return verdict


def allow_supervisor_write(vcpu: Vcpu, walk: GuestWalk, fault: PageFault) -> None:
    """With CR0.WP clear the kernel of the guest may write a read-only page: then user mode must not reach it."""
    mode = mode_of(vcpu)
    if not fault.is_write or walk.pte_access & ACC_WRITE_MASK or mode.wp or fault.is_user:
        return
    walk.pte_access = (walk.pte_access | ACC_WRITE_MASK) & ~ACC_USER_MASK
    if mode.smep:
        walk.pte_access &= ~ACC_EXEC_MASK


def is_page_fault_stale(kvm: Kvm, vcpu: Vcpu, root: int | None, fault: PageFault) -> bool:
    """Whether the root went, or the page did. Of four roots and of the dummy only a pending request can tell.

    No root at all counts as one that went (assumed: a kernel warns of such a fault).
    """
    if not vcpu.roots:
        return True
    if root is None or len(vcpu.roots) > 1:
        is_root_gone = vcpu.requests & KVM_REQ_MMU_RELOAD != 0
    else:
        is_root_gone = is_obsolete_sp(kvm, kvm.pages[root])
    return is_root_gone or was_invalidated(kvm, fault)


def map_walked(kvm: Kvm, vcpu: Vcpu, fault: PageFault, walk: GuestWalk, pinned: PinnedPfn) -> int:
    """Everything under mmu_lock, after the page was pinned."""
    root = vcpu_root(vcpu, fault.gpa)
    stale_test = kvm.rules.stale_test
    if kvm.rules.retry_before_pin and was_invalidated(kvm, fault):
        return RET_PF_RETRY
    if stale_test == "before_reclaim" and is_page_fault_stale(kvm, vcpu, root, fault):
        return RET_PF_RETRY
    if make_mmu_pages_available(kvm) < 0:
        return -ENOSPC
    if stale_test == "after_reclaim" and is_page_fault_stale(kvm, vcpu, root, fault):
        return RET_PF_RETRY
    return fetch_v6(kvm, vcpu, fault, walk, pinned)


def fetch_v6(kvm: Kvm, vcpu: Vcpu, fault: PageFault, walk: GuestWalk, pinned: PinnedPfn) -> int:
    """Walk down the shadow tables, make those that are missing or others than wanted, and map the page."""
    root = vcpu_root(vcpu, fault.gpa)
    if gpte_changed(kvm, vcpu, walk, walk.max_level) or root is None:
        return RET_PF_RETRY
    sp = kvm.pages[root]
    while role_level(sp.role) > walk.level:
        below = shadow_table_below(kvm, vcpu, fault, walk, sp)
        if below is None:
            return RET_PF_RETRY
        sp = below
    entries = read_prefetch_group(kvm, vcpu, walk) if walk.level == PT_PAGE_TABLE_LEVEL else []
    if entries is None:
        return RET_PF_RETRY
    kvm_mmu_hugepage_adjust(kvm, fault, pinned)
    note_requested(kvm, fault.gfn, pinned.pfn, fault.goal_level)
    while True:
        sp.write_flooding_count = 0
        if role_level(sp.role) == fault.goal_level:
            if not is_huge_page_disallowed(kvm, sp, fault.gpa):
                break
            fault.goal_level -= 1
        sp = direct_table_below(kvm, vcpu, fault, walk, sp)
    index = spte_index(fault.gpa, fault.goal_level)
    within = kvm_pages_per_hpage(fault.goal_level) - 1
    if pinned.pfn == PFN_NOSLOT:
        replace_by_mmio_spte(kvm, vcpu, sp, index, fault.gfn & ~within, walk.pte_access)
        verdict = RET_PF_EMULATE
    else:
        first = PinnedPfn(pinned.pfn & ~within, pinned.hva, pinned.is_host_writable)
        verdict = mmu_set_spte(kvm, vcpu, sp, index, fault.gfn & ~within, first, fault, walk.pte_access)
    if verdict != RET_PF_SPURIOUS:
        pte_prefetch(kvm, vcpu, sp, index, entries, fault.answer)
    return verdict


def shadow_table_below(
    kvm: Kvm, vcpu: Vcpu, fault: PageFault, walk: GuestWalk, sp: ShadowPage
) -> ShadowPage | None:
    """The page that shadows the guest table of the next level; None where the fault must come again."""
    level = role_level(sp.role)
    index = spte_index(fault.gpa, level)
    sp.write_flooding_count = 0
    role = child_page_role(kvm, sp, index, False, walk.access_above[level - 1])
    child, is_linked = kvm_mmu_get_child_sp(kvm, vcpu, sp, index, walk.table_gfn[level - 1], role)
    must_sync = not is_linked and bool(child.unsync_child_bitmap)
    if must_sync and not mmu_sync_children_v6(kvm, vcpu, child, can_yield=False):
        return None
    if gpte_changed(kvm, vcpu, walk, level - 1):
        return None
    if not is_linked:
        make_room_for_table(kvm, sp, index)
        link_shadow_page(kvm, sp, index, child)
    if fault.is_write and walk.table_gfn[level - 1] == fault.gfn:
        fault.is_write_to_own_table = True
    return child


def direct_table_below(kvm: Kvm, vcpu: Vcpu, fault: PageFault, walk: GuestWalk, sp: ShadowPage) -> ShadowPage:
    """The direct table under a large guest page that is mapped smaller."""
    level = role_level(sp.role)
    index = spte_index(fault.gpa, level)
    validate_direct_spte(kvm, sp, index, walk.pte_access)
    role = child_page_role(kvm, sp, index, True, walk.pte_access)
    gfn = fault.gfn & ~(kvm_pages_per_hpage(level) - 1)
    child, is_linked = kvm_mmu_get_child_sp(kvm, vcpu, sp, index, gfn, role)
    if is_linked:
        return child
    make_room_for_table(kvm, sp, index)
    link_shadow_page(kvm, sp, index, child)
    if fault.is_huge_page_disallowed:
        is_possible = fault.requested_level >= level
        if is_possible or kvm.rules.nx_marks_all_levels:
            account_nx_huge_page(kvm, child, is_possible)
    return child
