"""The walk over a root: from the entry that contains the first gfn on, upper entries before what lies below them.

Owns `TdpIter`. Models struct tdp_iter, tdp_iter_start, tdp_iter_restart, tdp_iter_next and
tdp_mmu_iter_cond_resched of v6.1 and v6.12.

Invariant: after the lock was dropped nothing below the root is taken for granted: the walk begins again at the root,
at the gfn it had come to, so an upper entry may be seen twice, and no gfn is passed over.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..common.constants import (
    PAGE_SHIFT,
    PT64_BASE_ADDR_MASK,
    PT64_ENT_PER_PAGE,
    PT64_LEVEL_BITS,
    PT_PAGE_SIZE_MASK,
    PT_PAGE_TABLE_LEVEL,
)
from ..common.flush import kvm_flush_remote_tlbs
from ..common.lock import (
    READ_LOCK,
    WRITE_LOCK,
    cond_resched_lock,
    count_polls,
    need_resched,
    polls_before_a_true_one,
)
from ..common.role import role_level
from ..common.state import Kvm, ShadowPage

LAST_INDEX = PT64_ENT_PER_PAGE - 1


@dataclass(slots=True)
class TdpIter:
    """Where a walk is: an entry, its value when the walk came to it, and the tables above it."""

    root: ShadowPage
    min_level: int
    next_last_level_gfn: int  # what the walk has come to, in pages
    yielded_gfn: int = 0  # what it had come to when the lock was last dropped
    gfn: int = 0  # the first that the entry covers
    level: int = 0
    sp: ShadowPage = field(init=False)
    index: int = 0
    old_spte: int = 0
    tables: dict[int, ShadowPage] = field(default_factory=dict)
    stored: dict[int, list[int]] = field(default_factory=dict)  # by level: indices that held something
    yielded: bool = False
    valid: bool = True


def tdp_iter_restart(it: TdpIter) -> None:
    """Begin at the root, at the gfn that the walk has come to."""
    it.yielded = False
    it.yielded_gfn = it.next_last_level_gfn
    enter_table(it, it.root)


def enter_table(it: TdpIter, sp: ShadowPage) -> None:
    """Stand on the entry of a table that covers what the walk has come to."""
    level = role_level(sp.role)
    shift = PT64_LEVEL_BITS * (level - 1)
    it.sp = it.tables[level] = sp
    it.stored.pop(level, None)
    it.level = level
    it.gfn = it.next_last_level_gfn >> shift << shift
    it.index = it.next_last_level_gfn >> shift & LAST_INDEX
    it.old_spte = sp.sptes.get(it.index, 0)


def tdp_iter_next(kvm: Kvm, it: TdpIter) -> None:
    """Go on: from the root again after a yield, else down where there is a table, else to the side, else up and on.

    The entry is read again: what was done to it decides whether there is a table below.
    """
    kvm.ctr["tdp_steps"] += 1
    if it.yielded:
        tdp_iter_restart(it)
        return
    level = it.level
    if level > it.min_level:
        spte = it.sp.sptes.get(it.index, 0)
        if spte & kvm.masks.mmu_present and not spte & PT_PAGE_SIZE_MASK:
            enter_table(it, kvm.pages[(spte & PT64_BASE_ADDR_MASK) >> PAGE_SHIFT])
            return
    root_level = role_level(it.root.role)
    while it.index == LAST_INDEX:
        if level == root_level:
            it.valid = False
            return
        level += 1
        shift = PT64_LEVEL_BITS * (level - 1)
        it.level, it.sp = level, it.tables[level]
        it.gfn = it.gfn >> shift << shift
        it.index = it.gfn >> shift & LAST_INDEX
    it.gfn += 1 << PT64_LEVEL_BITS * (level - 1)
    it.next_last_level_gfn = it.gfn
    it.index += 1
    it.old_spte = it.sp.sptes.get(it.index, 0)


def for_each_tdp_pte_min_level(
    kvm: Kvm, root: ShadowPage, min_level: int, start: int, end: int, empty: str = "shown"
) -> Iterator[TdpIter]:
    """Every entry of gfns start..end (end exclusive) from a level on, whatever it holds.

    `empty`: what the caller does at empty entries: `shown` something of its own, `polled` nothing but offer the lock,
    `ignored` nothing. Such entries are passed over together, with the steps and polls counted, as far as no poll is
    true.
    """
    kvm.ctr["tdp_walks"] += 1
    it = TdpIter(root, max(min_level, PT_PAGE_TABLE_LEVEL), start)
    tdp_iter_restart(it)
    while it.valid and it.gfn < end:
        if not it.old_spte and empty != "shown":
            pass_empty(kvm, it, end, is_polled=empty == "polled")
            if it.gfn >= end:
                return
        yield it
        tdp_iter_next(kvm, it)
        if empty != "shown":
            kvm.work["walk_visited"] += 1


def pass_empty(kvm: Kvm, it: TdpIter, end: int, is_polled: bool) -> None:
    """Go to the side over empty entries at once, not further than the last entry of the table."""
    if is_polled and it.next_last_level_gfn == it.yielded_gfn:
        return  # this one has no poll
    stored = it.stored.get(it.level)
    if stored is None:
        stored = it.stored[it.level] = sorted(it.sp.sptes)
    position = bisect_left(stored, it.index)
    stop = min(stored[position] if position < len(stored) else LAST_INDEX, LAST_INDEX)
    shift = PT64_LEVEL_BITS * (it.level - 1)
    number = min(stop - it.index, (end - it.gfn + (1 << shift) - 1) >> shift)
    if is_polled:
        number = min(number, polls_before_a_true_one(kvm))
    if number <= 0:
        return
    if is_polled:
        count_polls(kvm, number)
    kvm.ctr["tdp_steps"] += number
    kvm.work["walk_visited"] += number
    it.gfn += number << shift
    it.next_last_level_gfn = it.gfn
    it.index += number
    it.old_spte = it.sp.sptes.get(it.index, 0)


def for_each_tdp_pte(
    kvm: Kvm, root: ShadowPage, start: int, end: int, empty: str = "shown"
) -> Iterator[TdpIter]:
    return for_each_tdp_pte_min_level(kvm, root, PT_PAGE_TABLE_LEVEL, start, end, empty)


def is_leaf(kvm: Kvm, spte: int, level: int) -> bool:
    """Whether the entry maps a page."""
    if not spte & kvm.masks.mmu_present:
        return False
    return level == PT_PAGE_TABLE_LEVEL or spte & PT_PAGE_SIZE_MASK != 0


def is_link(kvm: Kvm, spte: int, level: int) -> bool:
    """Whether the entry points to a table."""
    return spte & kvm.masks.mmu_present != 0 and not is_leaf(kvm, spte, level)


def tdp_root_for_each_leaf_pte(kvm: Kvm, root: ShadowPage, start: int, end: int) -> Iterator[TdpIter]:
    """The leaves that cover gfns start..end (end exclusive)."""
    for it in for_each_tdp_pte(kvm, root, start, end, empty="ignored"):
        if is_leaf(kvm, it.old_spte, it.level):
            yield it


def tdp_mmu_iter_cond_resched(kvm: Kvm, it: TdpIter, flush: bool, shared: bool) -> bool:
    """Drop the lock if somebody waits for it and the walk came forward; true: leave the entry, it will come again."""
    if it.next_last_level_gfn == it.yielded_gfn:
        return False
    if need_resched(kvm):
        if flush:
            kvm_flush_remote_tlbs(kvm)
        cond_resched_lock(kvm, READ_LOCK if shared else WRITE_LOCK)
        it.yielded = True
    return it.yielded
