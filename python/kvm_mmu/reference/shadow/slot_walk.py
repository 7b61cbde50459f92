"""Walking the reverse-map heads of a slot, level by level, polling for the lock after every head.

Owns the order of such walks and where they poll and flush. Models slot_rmap_walk_*, slot_handle_level_range and
kvm_handle_hva_range of v5.0 to v6.12. v5 polls after every head of the range; v6 passes over empty
ones, except the first of each level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..common.constants import PAGE_SHIFT, PAGE_SIZE, PT_MAX_HUGEPAGE_LEVEL, kvm_pages_per_hpage
from ..common.flush import kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_with_address
from ..common.lock import cond_resched_lock, count_polls, may_break, need_resched
from ..common.pte_list import PteList, pte_list_is_empty
from ..common.slots import gfn_to_index
from ..common.state import Kvm, KvmMemorySlot, KvmMemslots

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
COLLAPSIBLE_LEVELS = Levels(1, PT_MAX_HUGEPAGE_LEVEL - 1)


@dataclass(frozen=True, slots=True)
class WalkRange:
    """The part of a slot a walk covers: first and last gfn, both included."""

    slot: KvmMemorySlot
    first: int
    last: int
    levels: Levels = ALL_LEVELS


def whole_slot(slot: KvmMemorySlot, levels: Levels) -> WalkRange:
    return WalkRange(slot, slot.base_gfn, slot.base_gfn + slot.npages - 1, levels)


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


def heads_in(kvm: Kvm, walk: WalkRange) -> Iterator[tuple[int, int, int]]:
    """Level, index and gfn of the heads a walk comes to; what is empty is seen when the walk is there."""
    for level in range(walk.levels.first, walk.levels.last + 1):
        start = gfn_to_index(walk.first, walk.slot.base_gfn, level)
        end = gfn_to_index(walk.last, walk.slot.base_gfn, level)
        index: int | None = start
        while index is not None:
            # Of a step, not rounded to the level.
            yield level, index, walk.first + (index - start) * kvm_pages_per_hpage(level)
            if not kvm.rules.walk_skips_empty_heads:
                index = index + 1 if index < end else None
            else:
                following = existing_heads(walk.slot, level, index + 1, end)
                index = following[0] if following else None


def slot_handle_level_range(
    kvm: Kvm,
    walk: WalkRange,
    handler: RmapHandler,
    *,
    flush_on_yield: bool,
    pending: bool = False,
) -> bool:
    """Walk a range; returns the flush that is still to be done by the caller, `pending` being one from before."""
    if not may_break(kvm):
        return handle_heads_at_once(kvm, walk, handler) or pending
    for level, index, gfn in heads_in(kvm, walk):
        pending |= handle_rmap_head(kvm, walk.slot, handler, level, index, gfn)
        if need_resched(kvm):
            if pending and flush_on_yield:
                flush_walked(kvm, walk.first, gfn)
                pending = False
            cond_resched_lock(kvm)
    return pending


def flush_walked(kvm: Kvm, first: int, last: int) -> None:
    if kvm.rules.walk_flush_ranged:
        kvm_flush_remote_tlbs_with_address(kvm, first, last - first + 1)
    else:
        kvm_flush_remote_tlbs(kvm)


def handle_heads_at_once(kvm: Kvm, walk: WalkRange, handler: RmapHandler) -> bool:
    """The walk where no poll can be true: the same heads in the same order, and the polls counted at once."""
    changed = False
    for level in range(walk.levels.first, walk.levels.last + 1):
        start = gfn_to_index(walk.first, walk.slot.base_gfn, level)
        end = gfn_to_index(walk.last, walk.slot.base_gfn, level)
        heads = existing_heads(walk.slot, level, start, end)
        polls = len(heads) + (start not in heads[:1]) if kvm.rules.walk_skips_empty_heads else end - start + 1
        for index in heads:
            gfn = walk.first + (index - start) * kvm_pages_per_hpage(level)
            changed |= handle_rmap_head(kvm, walk.slot, handler, level, index, gfn)
        count_polls(kvm, polls)
    return changed


def handle_heads_without_polls(kvm: Kvm, walk: WalkRange, handler: RmapHandler) -> bool:
    """The same heads in the same order; the lock is never offered."""
    changed = False
    for level in range(walk.levels.first, walk.levels.last + 1):
        start = gfn_to_index(walk.first, walk.slot.base_gfn, level)
        end = gfn_to_index(walk.last, walk.slot.base_gfn, level)
        for index in existing_heads(walk.slot, level, start, end):
            gfn = walk.first + (index - start) * kvm_pages_per_hpage(level)
            changed |= handle_rmap_head(kvm, walk.slot, handler, level, index, gfn)
    return changed


def existing_heads(slot: KvmMemorySlot, level: int, start: int, end: int) -> list[int]:
    """Indices start..end (end included) that have a head, ascending."""
    heads = slot.rmap[level]
    if end - start < len(heads):
        return [index for index in range(start, end + 1) if index in heads]
    return sorted(index for index in heads if start <= index <= end)


def slots_in_hva_range(
    kvm: Kvm, memslots: KvmMemslots, start: int, end: int
) -> Iterator[tuple[KvmMemorySlot, int, int]]:
    """The slots that a range of host addresses reaches, with the gfns reached (end exclusive).

    v5 goes through the array; v6 has a tree by host address, of equal ones the one put last comes last.
    """
    slots = list(memslots.memslots)
    if kvm.rules.notifier_by_hva:
        slots.sort(key=lambda slot: (slot.userspace_addr, slot.placed))
    for slot in slots:
        slot_end = slot.userspace_addr + (slot.npages << PAGE_SHIFT)
        hva_start, hva_end = max(start, slot.userspace_addr), min(end, slot_end)
        if hva_start < hva_end:
            first_gfn = slot.base_gfn + ((hva_start - slot.userspace_addr) >> PAGE_SHIFT)
            end_gfn = slot.base_gfn + ((hva_end - slot.userspace_addr + PAGE_SIZE - 1) >> PAGE_SHIFT)
            yield slot, first_gfn, end_gfn


def kvm_handle_hva_range(kvm: Kvm, start: int, end: int, handler: RmapHandler) -> bool:
    """Run a handler on every head that a range of host addresses reaches; never offers the lock."""
    changed = False
    for memslots in kvm.memslots:
        for slot, first_gfn, end_gfn in slots_in_hva_range(kvm, memslots, start, end):
            changed |= handle_heads_without_polls(kvm, WalkRange(slot, first_gfn, end_gfn - 1), handler)
    return changed
