"""The host behind the slots: what a host page is like and what pinning it gives.

Owns the reading and writing of `HostMemory`, and `HostAnswer`, what a fault operation says in its place. The host
frame of a host virtual address is the address divided by the page size until the host changes it; this replaces
get_user_pages, vma sizes and transparent huge pages of the real host. States and sizes are kept by host page.
"""

from __future__ import annotations

from dataclasses import dataclass

from .constants import (
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    PAGE_SHIFT,
    PT_MAX_HUGEPAGE_LEVEL,
    kvm_pages_per_hpage,
)
from .slots import gfn_to_host_page, gfn_to_memslot, mmu_gfn_lpage_is_disallowed
from .state import HostMemory, Kvm, KvmMemorySlot

HOST_STATES = ("rw", "cow", "absent", "zero", "ro", "fault", "hwpoison")
HOST_STATES_6 = ("rw", "cow", "cow_copy", "absent", "ro", "fault", "hwpoison")
COPIED_FRAME = 0x400000  # flipped in the frame of a page that is copied by a write
HOST_PAGE_KINDS = ("none", "thp", "hugetlb2m", "hugetlb1g")
HOST_LEVEL = {"none": 1, "thp": 1, "hugetlb2m": 2, "hugetlb1g": 3}
# v6 asks the host's page tables, where a transparent huge page shows.
HOST_LEVEL_V6 = {**HOST_LEVEL, "thp": 2}


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What the host said to one fault: the level it allows, whether the page is writable, and the gfns that the
    prefetch's lookup finds (None: ask the model). `is_retry`: it said nothing, the lookup must come again.

    `is_written`: whether the leaf was written where old and new one differ only in the bits that a processor sets.
    `pfn`: the frame of the page, where it is not the model's own.
    """

    level: int = 1
    is_writable: bool = False
    found: frozenset[int] | None = None
    is_retry: bool = False
    is_written: bool | None = None
    pfn: int | None = None


def set_host_state(host: HostMemory, first_pfn: int, npages: int, state: str) -> None:
    host.states.append((first_pfn, first_pfn + npages, state))


def set_host_huge(host: HostMemory, first_pfn: int, npages: int, kind: str) -> None:
    host.huge.append((first_pfn, first_pfn + npages, kind))


def host_frame(host: HostMemory, page: int) -> int:
    """The frame behind a host page."""
    return host.frames.get(page, page)


def latest(ranges: list[tuple[int, int, str]], pfn: int, default: str) -> str:
    for first, end, what in reversed(ranges):
        if first <= pfn < end:
            return what
    return default


def host_state(host: HostMemory, pfn: int) -> str:
    return latest(host.states, pfn, "rw")


def host_page_kind(host: HostMemory, pfn: int) -> str:
    return latest(host.huge, pfn, "none")


def is_compound_page(host: HostMemory, pfn: int) -> bool:
    """PageTransCompoundMap: a real hugetlb page is a compound page too."""
    return host_page_kind(host, pfn) != "none"


def host_mapping_level(kvm: Kvm, gfn: int) -> int:
    """kvm_host_page_size: always through address space 0 and for writing, whatever the vCPU is in."""
    slot = gfn_to_memslot(kvm, 0, gfn)
    if slot is None or slot.flags & (KVM_MEMSLOT_INVALID | KVM_MEM_READONLY):
        return 1
    pfn = (slot.userspace_addr >> PAGE_SHIFT) + gfn - slot.base_gfn
    return HOST_LEVEL[host_page_kind(kvm.host, pfn)]


def host_pfn_mapping_level(kvm: Kvm, slot: KvmMemorySlot, gfn: int) -> int:
    """v6: the level at which the host maps the page behind a gfn; a huge page lies wholly inside its range."""
    page = gfn_to_host_page(slot, gfn)
    for first, end, kind in reversed(kvm.host.huge):
        if not first <= page < end:
            continue
        for level in range(HOST_LEVEL_V6[kind], 1, -1):
            pages = kvm_pages_per_hpage(level)
            base = page & ~(pages - 1)
            if kvm.format == 1 or (first <= base and base + pages <= end):
                return level
        return 1
    return 1


def kvm_mmu_max_mapping_level(
    kvm: Kvm, slot: KvmMemorySlot, gfn: int, max_level: int = PT_MAX_HUGEPAGE_LEVEL
) -> int:
    """v6: the highest level that nothing vetoes, but not above that of the host's page."""
    level = min(kvm.config.lpage_level, max_level)
    while level > 1 and mmu_gfn_lpage_is_disallowed(slot, gfn, level):
        level -= 1
    return min(level, host_pfn_mapping_level(kvm, slot, gfn)) if level > 1 else level


def can_pin_for_write_atomically(host: HostMemory, pfn: int) -> bool:
    return host_state(host, pfn) == "rw"


def map_zero_page(host: HostMemory, pfn: int) -> None:
    """A read of a page that was never touched maps the host's zero page: read-only until it is written."""
    set_host_state(host, pfn, 1, "zero")


def break_cow(host: HostMemory, pfn: int) -> None:
    """A write request gives the host page an own copy: from now on it is writable."""
    set_host_state(host, pfn, 1, "rw")
