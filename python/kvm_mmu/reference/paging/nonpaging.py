"""The page fault of a guest that has paging off, on shadow pages, up to v5.4.

Owns nothing. Models nonpaging_page_fault and nonpaging_map of v5.0 to v5.4: guest-physical addresses, direct tables of
two levels below four roots.
"""

from __future__ import annotations

from ..common.constants import (
    ACC_ALL,
    PAGE_SHIFT,
    PAGE_SIZE,
    PFERR_WRITE,
    PT_DIRECTORY_LEVEL,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    kvm_pages_per_hpage,
)
from ..common.pin import gfn_to_pfn, handle_abnormal_pfn
from ..common.slots import kvm_vcpu_gfn_to_memslot, page_fault_handle_page_track
from ..common.state import Kvm, Vcpu
from ..shadow.reclaim import make_mmu_pages_available
from ..v5.fault import fast_page_fault, mapping_level, transparent_hugepage_adjust
from ..v5.map import direct_map


def nonpaging_page_fault(kvm: Kvm, vcpu: Vcpu, address: int, error_code: int) -> int:
    """A RET_PF value or a negative errno."""
    gpa = address & ~(PAGE_SIZE - 1)
    gfn = gpa >> PAGE_SHIFT
    if page_fault_handle_page_track(kvm, vcpu, gfn, error_code):
        return RET_PF_EMULATE
    level, is_forced = mapping_level(kvm, vcpu, gfn)
    level = min(level, PT_DIRECTORY_LEVEL)
    if not is_forced:
        gfn &= ~(kvm_pages_per_hpage(level) - 1)
    if fast_page_fault(kvm, vcpu, gpa, level, error_code):
        return RET_PF_RETRY
    is_write = error_code & PFERR_WRITE != 0
    pinned = gfn_to_pfn(kvm, kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn), gfn, is_write)
    verdict = handle_abnormal_pfn(kvm, vcpu, gfn, pinned, gpa, ACC_ALL)
    if verdict is not None:
        return verdict
    if make_mmu_pages_available(kvm) < 0:
        return RET_PF_RETRY
    if not is_forced:
        gfn, pinned, level = transparent_hugepage_adjust(kvm, vcpu, gpa, gfn, pinned, level)
    return direct_map(kvm, vcpu, gpa, is_write, level, gfn, pinned)
