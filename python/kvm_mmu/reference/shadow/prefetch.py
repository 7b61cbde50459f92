"""The pages behind the neighbours of a fault, as far as they can be had at once.

Owns nothing. Models gfn_to_page_many_atomic and gfn_to_memslot_dirty_bitmap of v5.0 to v6.12.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..common.constants import ACC_WRITE_MASK, PAGE_SHIFT, PTE_PREFETCH_NUM
from ..common.host_memory import HostAnswer, can_pin_for_write_atomically, host_frame
from ..common.page_table import kvm_mmu_page_get_gfn
from ..common.pin import PinnedPfn
from ..common.role import role_access
from ..common.slots import gfn_to_host_page, kvm_vcpu_gfn_to_memslot, memslot_is_readonly, memslot_is_visible
from ..common.spte import is_shadow_present_pte
from ..common.state import Kvm, ShadowPage, Vcpu


def empty_runs(kvm: Kvm, sp: ShadowPage, faulting: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of empty entries start..end (end exclusive) in the group of eight around a fault; open: to its end."""
    group = faulting & ~(PTE_PREFETCH_NUM - 1)
    start = None
    for index in range(group, group + PTE_PREFETCH_NUM):
        if index == faulting or is_shadow_present_pte(kvm.masks, sp.sptes.get(index, 0)):
            if start is not None:
                yield start, index, False
            start = None
        elif start is None:
            start = index
    if start is not None:
        yield start, group + PTE_PREFETCH_NUM, True


def pin_run(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, start: int, end: int, answer: HostAnswer | None
) -> list[PinnedPfn]:
    """Pages for entries start..end (end exclusive), as far as they can be pinned at once; empty: none may be."""
    gfn = kvm_mmu_page_get_gfn(sp, start)
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    if slot is None or not memslot_is_visible(slot):
        return []
    is_logged = slot.dirty_bitmap is not None and role_access(sp.role) & ACC_WRITE_MASK
    if is_logged or memslot_is_readonly(slot):
        return []
    if slot.base_gfn + slot.npages - gfn < end - start:
        return []
    pinned = []
    for position in range(end - start):
        page = gfn_to_host_page(slot, gfn + position)
        if answer is None or answer.found is None:
            is_found = can_pin_for_write_atomically(kvm.host, page)
        else:
            is_found = gfn + position in answer.found
        if not is_found:
            break
        pinned.append(PinnedPfn(host_frame(kvm.host, page), page << PAGE_SHIFT, is_host_writable=True))
    return pinned
