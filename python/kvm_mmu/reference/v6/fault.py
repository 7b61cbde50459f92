"""The page fault of a direct MMU that settles the level first, from the MMIO check on: v5.10 and later.

Owns nothing. Models direct_page_fault, fast_page_fault, kvm_faultin_pfn, kvm_mmu_hugepage_adjust
and is_page_fault_stale of v6.1 and v6.12, as far as direct pages go.

The order: page tracking, the lock-free path, the host's page, room for pages and a stale root or a range that is being
invalidated (the fault comes again), the level, and then the mapping in `map_v6`. Some kernels look for an invalidation
before they pin the page as well. An access without a slot ends at the emulator before anything is built where there
are no MMIO entries, or none so high.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import (
    ENOSPC,
    PAGE_SHIFT,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_INVALID,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    U32,
)
from ..common.events import note_fast_page_fault, note_requested
from ..common.host_memory import kvm_mmu_max_mapping_level
from ..common.invalidation import mmu_invalidate_retry
from ..common.mmio_fault import walk_to_last
from ..common.page_fault import PageFault
from ..common.page_table import (
    has_guest_tables,
    is_obsolete_sp,
    kvm_mmu_page_get_gfn,
    kvm_set_pfn_accessed,
    vcpu_root,
    write_spte,
)
from ..common.pin import PFN_NOSLOT, PinnedPfn, gfn_to_pfn, handle_abnormal_pfn
from ..common.role import role_level
from ..common.slots import (
    kvm_mmu_max_gfn,
    kvm_vcpu_gfn_to_memslot,
    kvm_vcpu_mark_page_dirty,
    memslot_is_visible,
    page_fault_handle_page_track,
)
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.reclaim import make_mmu_pages_available
from ..tdp.map import kvm_tdp_mmu_map
from .map import direct_map


def direct_page_fault(kvm: Kvm, vcpu: Vcpu, fault: PageFault) -> int:
    """A RET_PF value or a negative errno."""
    fault.slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, fault.gfn)
    if page_fault_handle_page_track(kvm, vcpu, fault.gfn, fault.error_code):
        return RET_PF_WRITE_PROTECTED
    verdict = fast_page_fault(kvm, vcpu, fault)
    if verdict != RET_PF_INVALID:
        vcpu.stat["pf_fast"] += 1
        return verdict
    fault.sequence = kvm.invalidation.sequence
    if kvm.rules.invalid_slot_retries and fault.slot is not None and not memslot_is_visible(fault.slot):
        return RET_PF_RETRY
    if kvm.rules.retry_before_pin and was_invalidated(kvm, fault):
        return RET_PF_RETRY
    pinned = gfn_to_pfn(kvm, fault.slot, fault.gfn, fault.is_write, fault.answer)
    gva = fault.gpa if has_guest_tables(kvm) else 0
    abnormal = handle_abnormal_pfn(kvm, vcpu, fault.gfn, pinned, gva)
    if abnormal is not None:
        return abnormal
    if pinned.pfn == PFN_NOSLOT:
        if not kvm.masks.mmio_value or fault.gfn > kvm_mmu_max_gfn(kvm):
            return RET_PF_EMULATE
        if fault.answer is not None and fault.answer.is_retry:
            return RET_PF_RETRY
    verdict = map_pinned(kvm, vcpu, fault, pinned)
    if pinned.pfn >= 0 and kvm.format == 6:
        kvm_set_pfn_accessed(kvm, pinned.pfn)
    return verdict


def was_invalidated(kvm: Kvm, fault: PageFault) -> bool:
    """Whether the host takes the page away now, or took one away since the fault began."""
    slot = fault.slot
    if slot is None:
        return False
    hva = slot.userspace_addr + (fault.gfn - slot.base_gfn << PAGE_SHIFT)
    return mmu_invalidate_retry(kvm, fault.sequence, fault.gfn, hva)


def map_pinned(kvm: Kvm, vcpu: Vcpu, fault: PageFault, pinned: PinnedPfn) -> int:
    """Everything under mmu_lock, after the page was pinned."""
    root = vcpu_root(vcpu, fault.gpa)
    if kvm.rules.retry_before_pin and was_invalidated(kvm, fault):
        return RET_PF_RETRY
    if kvm.rules.stale_test == "before_reclaim" and is_page_fault_stale(kvm, root, fault):
        return RET_PF_RETRY
    if kvm.rules.stale_test == "none" and (root is None or was_invalidated(kvm, fault)):
        return RET_PF_RETRY
    if not kvm.config.tdp_mmu and make_mmu_pages_available(kvm) < 0:
        return -ENOSPC if kvm.rules.enospc_to_user else RET_PF_RETRY
    if kvm.rules.stale_test == "after_reclaim" and is_page_fault_stale(kvm, root, fault):
        return RET_PF_RETRY
    if root is None:
        return RET_PF_RETRY
    kvm_mmu_hugepage_adjust(kvm, fault, pinned)
    note_requested(kvm, fault.gfn, pinned.pfn, fault.goal_level)
    if kvm.config.tdp_mmu:
        return kvm_tdp_mmu_map(kvm, vcpu, kvm.pages[root], fault, pinned)
    return direct_map(kvm, vcpu, root, fault, pinned)


def is_page_fault_stale(kvm: Kvm, root: int | None, fault: PageFault) -> bool:
    """Whether the root went, or the page did. No root at all counts as one that went (assumed: a kernel warns)."""
    return root is None or is_obsolete_sp(kvm, kvm.pages[root]) or was_invalidated(kvm, fault)


def kvm_mmu_hugepage_adjust(kvm: Kvm, fault: PageFault, pinned: PinnedPfn) -> None:
    """The level to ask for, what the host maps and nothing vetoes, and the level to map at."""
    fault.is_huge_page_disallowed = fault.is_exec and kvm.nx_huge_pages
    slot = fault.slot
    if slot is None or pinned.pfn < 0:
        return
    if fault.answer is not None:
        fault.requested_level = fault.goal_level = fault.answer.level
        if not kvm.config.tdp_mmu or not fault.is_huge_page_disallowed:
            return
        # The level that was asked for is 1; which one the page could have is the model's to know.
    if slot.dirty_bitmap is not None:
        return
    fault.requested_level = kvm_mmu_max_mapping_level(kvm, slot, fault.gfn, fault.max_level)
    if not fault.is_huge_page_disallowed:
        fault.goal_level = fault.requested_level


def page_fault_can_be_fast(kvm: Kvm, error_code: int) -> bool:
    """A write to a present entry; without accessed bits also an entry that was made not present to see its use."""
    if error_code & PFERR_RSVD:
        return False
    if not error_code & PFERR_PRESENT:
        return kvm.masks.accessed == 0
    return error_code & PFERR_WRITE != 0


def fast_page_fault(kvm: Kvm, vcpu: Vcpu, fault: PageFault) -> int:
    """Mend an entry without the lock, or find that there is nothing to mend; RET_PF_INVALID when the fault goes on."""
    gpa, error_code = fault.gpa, fault.error_code
    root = vcpu_root(vcpu, gpa)
    if root is None or not page_fault_can_be_fast(kvm, error_code):
        return RET_PF_INVALID
    sp, index, old = walk_to_last(kvm, root, gpa)
    handled, verdict = 0, RET_PF_INVALID
    if word.is_shadow_present_pte(kvm.masks, old) and word.is_last_spte(old, role_level(sp.role)):
        if word.is_access_allowed(kvm.masks, error_code, old):
            handled, verdict = 2, RET_PF_SPURIOUS
        elif fast_pf_fix_spte(kvm, vcpu, sp, index, old, error_code):
            handled, verdict = 1, RET_PF_FIXED
    shown_code = error_code if kvm.rules.fast_pf_whole_error_code else error_code & U32
    note_fast_page_fault(kvm, vcpu, gpa, shown_code, sp, index, old, handled)
    return verdict


def fast_pf_fix_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, old: int, error_code: int) -> bool:
    new = old
    if word.is_access_track_spte(kvm.masks, old):
        new = word.restore_acc_track_spte(kvm.masks, new)
    if error_code & PFERR_WRITE and word.spte_can_locklessly_be_made_writable(kvm.masks, old):
        new |= PT_WRITABLE_MASK
        slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, kvm_mmu_page_get_gfn(sp, index))
        is_logged = slot is not None and slot.dirty_bitmap is not None
        if role_level(sp.role) > PT_PAGE_TABLE_LEVEL and is_logged:
            return False  # dirty logging must see which small page is written
    if new == old or not word.is_access_allowed(kvm.masks, error_code, new):
        return False
    write_spte(sp, index, new)
    if word.is_writable_pte(new) and not word.is_writable_pte(old):
        kvm_vcpu_mark_page_dirty(kvm, vcpu, kvm_mmu_page_get_gfn(sp, index))
    return True
