"""Residency of the recorder's host memory, page by page: what a lookup of a page for a fault will find.

Owns: the states a page of the 5.x recorder can be in and how a fault changes them. Pages are named by
(address space, slot id, page offset), since markers of that recorder carry no host address; each slot gets a
host range of its own here. The engine knows only what it needs for the next fault (`rw`, `cow`, a lookup that
retries); this module decides which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvm_mmu.recorders.page_ranges import PageRanges

Op = dict[str, object]
Apply = Callable[[Op], dict[str, object]]

#: Host ranges are handed out upwards from here. Multiples of 1 GiB: a slot's base and its host address then
#: agree modulo every page size that its base is aligned to. Small ranges keep all slots below the end of user
#: addresses.
_FIRST = 1 << 36
_RANGE = 1 << 30
#: A slot cannot have this size; it is refused whatever its host address.
TOO_LARGE = 1 << 43
_PAGES_2M = 512
_WRITE, _RESERVED = 1 << 1, 1 << 3


@dataclass
class Slot:
    """A memslot of the recorder."""

    as_id: int
    id: int
    base: int
    npages: int
    hva: int


@dataclass
class HostMemory:
    """Host memory behind the slots; pages neither absent nor mapped to the zero page are resident and writable."""

    apply: Apply
    slots: dict[tuple[int, int], Slot] = field(default_factory=dict)
    ranges: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    absent: PageRanges = field(default_factory=PageRanges)
    zero: PageRanges = field(default_factory=PageRanges)
    read_only: set[int] = field(default_factory=set)
    huge: set[tuple[int, int]] = field(default_factory=set)
    _next: int = _FIRST

    def hva_of(self, as_id: int, slot_id: int, size: int) -> int:
        """The host address of a slot's first page; a slot that is made again gets the same memory."""
        if size >= TOO_LARGE:
            return _FIRST
        start, length = self.ranges.get((as_id, slot_id), (0, 0))
        if length < max(size, 1):
            # Room to grow (twice the size), so that a slot made again somewhat larger keeps its pages.
            length = max(2 * size + _RANGE - 1, _RANGE) & -_RANGE
            start = self._next
            self._next += length
            self.ranges[as_id, slot_id] = (start, length)
        return start

    def find(self, gfn: int, as_id: int = 0) -> Slot | None:
        """The slot a gfn lies in."""
        for slot in self.slots.values():
            if slot.as_id == as_id and slot.base <= gfn < slot.base + slot.npages:
                return slot
        return None

    def make_huge(self, slot: Slot) -> None:
        """The slot's memory consists of transparent huge pages, from its first use on; those split since stay
        split."""
        if (slot.as_id, slot.id) in self.huge:
            return
        self.huge.add((slot.as_id, slot.id))
        npages = max(slot.npages, _PAGES_2M)
        self.apply({"op": "host_huge", "hva": slot.hva, "npages": npages, "kind": "thp"})

    def drop(self, gpa: int, size: int) -> None:
        """The VMM gave the pages back (MADV_DONTNEED): mappings go, huge pages split, pages are absent."""
        slot = self.find(gpa >> 12)
        if slot is None or gpa & 0xFFF:
            return
        first = (slot.hva >> 12) + (gpa >> 12) - slot.base
        start, length = self.ranges[slot.as_id, slot.id]
        count = min((size + 0xFFF) >> 12, (start + length >> 12) - first)
        self._unmap(first, count)
        self._state(first, count, "cow")
        self._split(first, count)
        self.absent.add(first, first + count)
        self.zero.remove(first, first + count)

    def protect(self, gpa: int, read_only: bool) -> None:
        """The VMM changed a page's protection (mprotect): its mapping goes, a huge page splits, reads map the
        page read-only while it lasts."""
        slot = self.find(gpa >> 12)
        if slot is None or gpa & 0xFFF:
            return
        page = (slot.hva >> 12) + (gpa >> 12) - slot.base
        self._unmap(page, 1)
        self._split(page, 1)
        if read_only:
            self.read_only.add(page)
        else:
            self.read_only.discard(page)
        own = page not in self.absent and page not in self.zero
        self._state(page, 1, "rw" if own and not read_only else "cow")

    def fault(self, op: Op, gpa: int, error_code: int) -> dict[str, object]:
        """Apply a fault, with the lookup of its page answered from residency, and follow what the fault
        changed."""
        slot = self.find(gpa >> 12)
        page = -1 if slot is None else (slot.hva >> 12) + (gpa >> 12) - slot.base
        is_absent, write = page in self.absent, bool(error_code & _WRITE)
        if not is_absent and page not in self.zero and not (write and page in self.read_only):
            return self.apply(op)
        # What the page becomes if the fault gets as far as its lookup; an emulated access does not.
        if not write:
            result = self.apply(op)
            if is_absent and not _emulated(result):
                self.absent.remove(page, page + 1)
                self.zero.add(page, page + 1)
            return result
        looked_up = "fault" if page in self.read_only else "rw" if is_absent else "hwpoison"
        self._state(page, 1, looked_up)
        result = self.apply(op)
        if looked_up == "hwpoison":
            return self._broke_zero_page(page, result)
        if looked_up == "fault" or _emulated(result):
            self._state(page, 1, "cow")
        else:
            self.absent.remove(page, page + 1)
        return result

    def _broke_zero_page(self, page: int, result: dict[str, object]) -> dict[str, object]:
        """A write to the zero page: breaking it invalidates the range, so the fault maps nothing and comes
        again.

        To the engine the page was one whose lookup is retried (`hwpoison`, whose signal is no output of a
        replay).
        """
        if not any(event[0] == "hwpoison_signal" for event in _events(result)):
            self._state(page, 1, "cow")
            return result
        self._unmap(page, 1)
        self._state(page, 1, "rw")
        self.zero.remove(page, page + 1)
        return result

    def _split(self, first: int, count: int) -> None:
        """Huge pages that were changed in a part of them are mapped by small pages from now on."""
        begin, end = first & -_PAGES_2M, (first + count + _PAGES_2M - 1) & -_PAGES_2M
        self.apply({"op": "host_huge", "hva": begin << 12, "npages": end - begin, "kind": "none"})

    def _unmap(self, first: int, count: int) -> None:
        self.apply({"op": "unmap_hva", "start": first << 12, "end": first + count << 12})

    def _state(self, first: int, count: int, state: str) -> None:
        self.apply({"op": "host_state", "hva": first << 12, "npages": count, "state": state})


def _events(result: dict[str, object]) -> list[list[object]]:
    events = result.get("events")
    return events if isinstance(events, list) else []


def _emulated(result: dict[str, object]) -> bool:
    return any(event[0] in ("emulate", "inject_pf") for event in _events(result))
