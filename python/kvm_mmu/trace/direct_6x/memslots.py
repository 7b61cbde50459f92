"""Memslots and their generations in v6.1/v6.12: which change a request is, and which are refused without
effect."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

LOG_DIRTY, READONLY = 1 << 0, 1 << 1


class Change(Enum):
    """What a request does."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS = "flags"


@dataclass(frozen=True)
class Slot:
    """A memslot; base and npages in pages, hva in bytes."""

    as_id: int
    id: int
    base: int
    npages: int
    hva: int
    flags: int

    def holds(self, gfn: int) -> bool:
        """Whether a gfn lies in it."""
        return self.base <= gfn < self.base + self.npages

    def hva_of(self, gfn: int) -> int:
        """Host address of a gfn."""
        return self.hva + (gfn - self.base << 12)


class Memslots:
    """The slots of both address spaces."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], Slot] = {}
        self.generations = [0, 1]
        self._last_found: Slot | None = None

    def find(self, as_id: int, gfn: int) -> Slot | None:
        """The slot of a gfn."""
        last = self._last_found
        if last is not None and last.as_id == as_id and last.holds(gfn):
            return last
        for slot in self.slots.values():
            if slot.as_id == as_id and slot.holds(gfn):
                self._last_found = slot
                return slot
        return None

    def classify(self, new: Slot) -> Change | None:
        """Which change a request is; None: refused, or nothing to change."""
        old = self.slots.get((new.as_id, new.id))
        if new.npages == 0:
            return None if old is None else Change.DELETE
        if old is None:
            return None if self._overlaps(new) else Change.CREATE
        if new.npages != old.npages or new.hva != old.hva or (new.flags ^ old.flags) & READONLY:
            return None
        if new.base != old.base:
            return None if self._overlaps(new) else Change.MOVE
        return None if new.flags == old.flags else Change.FLAGS

    def put(self, slot: Slot) -> None:
        """Make a slot visible, in place of the one of the same id."""
        self.slots[slot.as_id, slot.id] = slot
        self._last_found = None

    def remove(self, slot: Slot) -> None:
        """Take a slot away."""
        del self.slots[slot.as_id, slot.id]
        self._last_found = None

    def total_pages(self) -> int:
        """Pages of all slots of both address spaces."""
        return sum(slot.npages for slot in self.slots.values())

    def _overlaps(self, new: Slot) -> bool:
        return any(
            slot.as_id == new.as_id
            and slot.id != new.id
            and slot.base < new.base + new.npages
            and new.base < slot.base + slot.npages
            for slot in self.slots.values()
        )
