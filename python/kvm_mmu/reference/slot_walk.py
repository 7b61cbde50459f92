"""Walking the reverse-map heads of a slot, level by level, polling for the lock after every head.

Owns the order of such walks and where they poll and flush. Models slot_rmap_walk_*, slot_handle_level_range and
kvm_handle_hva_range of v5.0 to v6.12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .constants import PAGE_SHIFT, PAGE_SIZE, PT_MAX_HUGEPAGE_LEVEL, kvm_pages_per_hpage
from .flush import kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_with_address
from .lock import cond_resched_lock, need_resched
from .pte_list import PteList, pte_list_is_empty
from .slots import gfn_to_index
from .state import Kvm, KvmMemorySlot

# (VM, slot, head, level, first gfn of the step) -> something changed
RmapHandler = Callable[[Kvm, KvmMemorySlot, PteList, int, int], bool]


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels a walk covers, both ends included."""

    first: int = 1
    last: int = PT_MAX_HUGEPAGE_LEVEL


ALL_LEVELS = Levels()
LEAF_LEVEL = Levels(1, 1)
LARGE_LEVELS = Levels(2, PT_MAX_HUGEPAGE_LEVEL)


def handle_rmap_head(
    kvm: Kvm, slot: KvmMemorySlot, handler: RmapHandler, level: int, index: int, gfn: int
) -> bool:
    """Run a handler on one head if there is one, and forget the head once it is empty."""
    head = slot.rmap[level].get(index)
    if head is None:
        return False
    changed = handler(kvm, slot, head, level, gfn)
    if pte_list_is_empty(head):
        slot.rmap[level].pop(index, None)
    return changed


def slot_handle_level_range(
    kvm: Kvm,
    slot: KvmMemorySlot,
    handler: RmapHandler,
    levels: Levels,
    first_gfn: int,
    last_gfn: int,
    *,
    flush_inside: bool,
) -> bool:
    """Walk first_gfn..last_gfn (included); returns a flush that is still to be done by the caller."""

    def flush_walked(until_gfn: int) -> None:
        if kvm.rules.slot_walk_flushes_ranges:
            kvm_flush_remote_tlbs_with_address(kvm, first_gfn, until_gfn - first_gfn + 1)
        else:
            kvm_flush_remote_tlbs(kvm)

    if kvm.lock.need == 0:
        pending = handle_heads_in_range(kvm, slot, handler, levels, first_gfn, last_gfn)
        if pending and flush_inside:
            flush_walked(last_gfn)
        return pending and not flush_inside
    pending = False
    for level in range(levels.first, levels.last + 1):
        gfn = first_gfn
        start = gfn_to_index(first_gfn, slot.base_gfn, level)
        end = gfn_to_index(last_gfn, slot.base_gfn, level)
        for index in range(start, end + 1):
            pending |= handle_rmap_head(kvm, slot, handler, level, index, gfn)
            if need_resched(kvm):
                if pending and flush_inside:
                    flush_walked(gfn)
                    pending = False
                cond_resched_lock(kvm)
            gfn += kvm_pages_per_hpage(level)
    if pending and flush_inside:
        flush_walked(last_gfn)
        pending = False
    return pending


def handle_heads_in_range(
    kvm: Kvm, slot: KvmMemorySlot, handler: RmapHandler, levels: Levels, first_gfn: int, last_gfn: int
) -> bool:
    """The walk where no poll can be true: the same heads in the same order, and the polls counted at once."""
    changed = False
    for level in range(levels.first, levels.last + 1):
        start = gfn_to_index(first_gfn, slot.base_gfn, level)
        end = gfn_to_index(last_gfn, slot.base_gfn, level)
        for index in existing_heads(slot, level, start, end):
            gfn = first_gfn + (index - start) * kvm_pages_per_hpage(level)
            changed |= handle_rmap_head(kvm, slot, handler, level, index, gfn)
        kvm.ctr["need_resched"] += end - start + 1
    return changed


def existing_heads(slot: KvmMemorySlot, level: int, start: int, end: int) -> list[int]:
    """Indices start..end (end included) that have a head, ascending."""
    heads = slot.rmap[level]
    if end - start < len(heads):
        return [index for index in range(start, end + 1) if index in heads]
    return sorted(index for index in heads if start <= index <= end)


def slot_handle_levels(
    kvm: Kvm, slot: KvmMemorySlot, handler: RmapHandler, levels: Levels, *, flush_inside: bool
) -> bool:
    """Walk a whole slot."""
    last = slot.base_gfn + slot.npages - 1
    return slot_handle_level_range(kvm, slot, handler, levels, slot.base_gfn, last, flush_inside=flush_inside)


def kvm_handle_hva_range(kvm: Kvm, start: int, end: int, handler: RmapHandler) -> bool:
    """Run a handler on every head that a range of host addresses reaches; never offers the lock."""
    changed = False
    for memslots in kvm.memslots:
        for slot in list(memslots.memslots):
            slot_end = slot.userspace_addr + (slot.npages << PAGE_SHIFT)
            hva_start, hva_end = max(start, slot.userspace_addr), min(end, slot_end)
            if hva_start >= hva_end:
                continue
            first_gfn = slot.base_gfn + ((hva_start - slot.userspace_addr) >> PAGE_SHIFT)
            end_gfn = slot.base_gfn + ((hva_end - slot.userspace_addr + PAGE_SIZE - 1) >> PAGE_SHIFT)
            for level in range(1, PT_MAX_HUGEPAGE_LEVEL + 1):
                first = gfn_to_index(first_gfn, slot.base_gfn, level)
                last = gfn_to_index(end_gfn - 1, slot.base_gfn, level)
                for index in existing_heads(slot, level, first, last):
                    gfn = first_gfn + (index - first) * kvm_pages_per_hpage(level)
                    changed |= handle_rmap_head(kvm, slot, handler, level, index, gfn)
    return changed
