"""From a gfn to a pinned host page frame, or to the reason why there is none.

Owns the special frame numbers. Models __gfn_to_pfn_memslot with hva_to_pfn_fast and hva_to_pfn_slow on the
modelled host (v5.0 to v6.12).
"""

from __future__ import annotations

from dataclasses import dataclass

from .constants import ACC_ALL, EFAULT, PAGE_SHIFT, RET_PF_EMULATE, RET_PF_RETRY
from .events import note_hwpoison_signal
from .host_memory import (
    COPIED_FRAME,
    HostAnswer,
    break_cow,
    can_pin_for_write_atomically,
    host_frame,
    host_state,
    map_zero_page,
)
from .mmio_fault import vcpu_cache_mmio_info
from .slots import gfn_to_host_page, memslot_is_readonly, memslot_is_visible
from .state import Kvm, KvmMemorySlot, Vcpu

# Frames that are none; all negative, so they never equal a frame in an entry.
PFN_NOSLOT = -1
PFN_RO_FAULT = -2
PFN_POISONED = -3
PFN_FAULT = -4
PFN_RETRY = -5


@dataclass(frozen=True, slots=True)
class PinnedPfn:
    pfn: int
    hva: int = 0
    is_host_writable: bool = False


def gfn_to_pfn(
    kvm: Kvm, slot: KvmMemorySlot | None, gfn: int, is_write: bool, answer: HostAnswer | None = None
) -> PinnedPfn:
    """Pin the page behind a gfn; a read also tries to get it writable."""
    if slot is None or not memslot_is_visible(slot):
        return PinnedPfn(PFN_NOSLOT)
    is_readonly = memslot_is_readonly(slot)
    if is_readonly and is_write:
        return PinnedPfn(PFN_RO_FAULT)
    page = gfn_to_host_page(slot, gfn)
    pfn = host_frame(kvm.host, page)
    hva = slot.userspace_addr + (gfn - slot.base_gfn << PAGE_SHIFT)  # a private slot's need not be aligned
    if answer is not None:
        if answer.is_retry:
            return PinnedPfn(PFN_RETRY)
        is_writable = answer.is_writable and not is_readonly
        return PinnedPfn(pfn if answer.pfn is None else answer.pfn, hva, is_writable)
    if not is_readonly and can_pin_for_write_atomically(kvm.host, page):
        return PinnedPfn(pfn, hva, is_host_writable=True)
    match host_state(kvm.host, page):
        case "fault":
            return PinnedPfn(PFN_FAULT, hva)
        case "hwpoison":
            return PinnedPfn(PFN_POISONED, hva)
        case "ro" if is_write:
            return PinnedPfn(PFN_FAULT, hva)
        case "absent" if kvm.format == 6:
            # The page is made, and found writable where that may be asked.
            break_cow(kvm.host, page)
            return PinnedPfn(pfn, hva, is_host_writable=not is_readonly)
        case "absent" if not is_write:
            map_zero_page(kvm.host, page)
        case "cow_copy" if is_write:
            invalidate = kvm.run_invalidation
            invalidate(kvm, page << PAGE_SHIFT, page + 1 << PAGE_SHIFT)
            pfn ^= COPIED_FRAME
            kvm.host.frames[page] = pfn
    if is_write:
        break_cow(kvm.host, page)
    return PinnedPfn(pfn, hva, is_host_writable=is_write)


def noslot_access(kvm: Kvm) -> int:
    """The access that a fault without a slot leaves in the vCPU's cache."""
    return ACC_ALL & kvm.masks.mmio_access if kvm.rules.mmio_cache_access == "masked" else ACC_ALL


def handle_abnormal_pfn(
    kvm: Kvm, vcpu: Vcpu, gfn: int, pinned: PinnedPfn, gva: int = 0, access: int | None = None
) -> int | None:
    """The end of a fault whose page frame is none; None when the fault goes on."""
    if pinned.pfn == PFN_RO_FAULT:
        return RET_PF_EMULATE
    if pinned.pfn == PFN_POISONED:
        note_hwpoison_signal(kvm, pinned.hva)
        return RET_PF_RETRY
    if pinned.pfn == PFN_RETRY:
        return RET_PF_RETRY
    if pinned.pfn == PFN_NOSLOT:
        vcpu_cache_mmio_info(kvm, vcpu, gfn, noslot_access(kvm) if access is None else access, gva)
        return None
    return -EFAULT if pinned.pfn < 0 else None
