"""The page fault of a direct MMU of v5.0 to v5.4, from the MMIO check on.

Owns nothing. Models tdp_page_fault, mapping_level, fast_page_fault, try_async_pf and transparent_hugepage_adjust of
v5.0 to v5.4, which agree. What v6 does the same way (page tracking, the end of a fault without a page frame) it takes
from here.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import (
    PAGE_SHIFT,
    PFERR_FETCH,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    kvm_pages_per_hpage,
)
from ..common.events import note_fast_page_fault
from ..common.host_memory import HostAnswer, host_mapping_level, is_compound_page
from ..common.mmio_fault import walk_to_last
from ..common.page_table import kvm_mmu_page_get_gfn, vcpu_root, write_spte
from ..common.pin import (
    PinnedPfn,
    gfn_to_pfn,
    handle_abnormal_pfn,
)
from ..common.role import role_level
from ..common.slots import (
    kvm_vcpu_gfn_to_memslot,
    kvm_vcpu_mark_page_dirty,
    memslot_is_visible,
    mmu_gfn_lpage_is_disallowed,
    page_fault_handle_page_track,
)
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.reclaim import make_mmu_pages_available
from .map import direct_map


def tdp_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int, error_code: int, answer: HostAnswer | None) -> int:
    """A RET_PF value or a negative errno."""
    gfn = gpa >> PAGE_SHIFT
    if page_fault_handle_page_track(kvm, vcpu, gfn, error_code):
        return RET_PF_EMULATE
    level, is_forced = mapping_level(kvm, vcpu, gfn)
    if not is_forced:
        # From here on a large mapping is about its first page, the page frame lookup included.
        gfn &= ~(kvm_pages_per_hpage(level) - 1)
    if fast_page_fault(kvm, vcpu, gpa, level, error_code):
        return RET_PF_RETRY
    is_write = error_code & PFERR_WRITE != 0
    pinned = gfn_to_pfn(kvm, kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn), gfn, is_write, answer)
    verdict = handle_abnormal_pfn(kvm, vcpu, gfn, pinned)
    if verdict is not None:
        return verdict
    if answer is not None and answer.is_retry:
        return RET_PF_RETRY
    if make_mmu_pages_available(kvm) < 0:
        return RET_PF_RETRY
    if answer is not None and pinned.pfn >= 0:
        within = kvm_pages_per_hpage(answer.level) - 1
        gfn, level = gpa >> PAGE_SHIFT & ~within, answer.level
        pinned = PinnedPfn(pinned.pfn & ~within, pinned.hva, pinned.is_host_writable)
    elif not is_forced:
        gfn, pinned, level = transparent_hugepage_adjust(kvm, vcpu, gpa, gfn, pinned, level)
    return direct_map(kvm, vcpu, gpa, is_write, level, gfn, pinned, answer)


def mapping_level(kvm: Kvm, vcpu: Vcpu, gfn: int) -> tuple[int, bool]:
    """The level to map at, and whether level 1 is forced whatever the host page is."""
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    if slot is None or not memslot_is_visible(slot) or slot.dirty_bitmap is not None:
        return PT_PAGE_TABLE_LEVEL, True
    host_level = host_mapping_level(kvm, gfn)
    level = PT_PAGE_TABLE_LEVEL
    while level < min(host_level, kvm.config.lpage_level):
        if mmu_gfn_lpage_is_disallowed(slot, gfn, level + 1):
            break
        level += 1
    return level, False


def page_fault_can_be_fast(kvm: Kvm, error_code: int) -> bool:
    """With access tracking any entry may only lack bits; otherwise only a write protection is quick."""
    if error_code & PFERR_RSVD:
        return False
    if error_code & PFERR_FETCH and error_code & PFERR_PRESENT:
        return False
    is_write_protection = error_code & PFERR_PRESENT and error_code & PFERR_WRITE
    return kvm.masks.acc_track != 0 or bool(is_write_protection)


def fast_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int, level: int, error_code: int) -> bool:
    """Mend an entry without the lock; true when the fault is dealt with."""
    root = vcpu_root(vcpu, gpa)
    if root is None or not page_fault_can_be_fast(kvm, error_code):
        return False
    sp, index, old = walk_to_last(kvm, root, gpa, stop_below=level)
    handled = False
    if word.is_last_spte(old, role_level(sp.role)):
        if word.is_access_allowed(kvm.masks, error_code, old):
            handled = True
        else:
            handled = fast_pf_fix_spte(kvm, vcpu, sp, index, old, error_code)
    note_fast_page_fault(kvm, vcpu, gpa, error_code, sp, index, old, int(handled))
    return handled


def fast_pf_fix_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, old: int, error_code: int) -> bool:
    new = old
    if word.is_access_track_spte(kvm.masks, old):
        new = word.restore_acc_track_spte(kvm.masks, new)
    if error_code & PFERR_WRITE and word.spte_can_locklessly_be_made_writable(kvm.masks, old):
        new |= PT_WRITABLE_MASK
        if role_level(sp.role) > PT_PAGE_TABLE_LEVEL:
            return False  # dirty logging must see which small page is written
    if new == old or not word.is_access_allowed(kvm.masks, error_code, new):
        return False
    write_spte(sp, index, new)
    if word.is_writable_pte(new) and not word.is_writable_pte(old):
        kvm_vcpu_mark_page_dirty(kvm, vcpu, kvm_mmu_page_get_gfn(sp, index))
    return True


def transparent_hugepage_adjust(
    kvm: Kvm, vcpu: Vcpu, gpa: int, gfn: int, pinned: PinnedPfn, level: int
) -> tuple[int, PinnedPfn, int]:
    """Map 2 MiB where the small page is part of a huge one and nothing speaks against it."""
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    if (
        level == PT_PAGE_TABLE_LEVEL
        and pinned.pfn >= 0
        and is_compound_page(kvm.host, pinned.pfn)
        and not mmu_gfn_lpage_is_disallowed(slot, gpa >> PAGE_SHIFT, PT_DIRECTORY_LEVEL)
    ):
        within = kvm_pages_per_hpage(PT_DIRECTORY_LEVEL) - 1
        first = PinnedPfn(pinned.pfn & ~within, pinned.hva, pinned.is_host_writable)
        return gfn & ~within, first, PT_DIRECTORY_LEVEL
    return gfn, pinned, level
