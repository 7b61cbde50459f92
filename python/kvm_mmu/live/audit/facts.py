"""What several checks ask of a capture: kinds of entries, their addresses, children, and the slot of a gfn."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from kvm_mmu.live.capture import Capture
from kvm_mmu.live.slots import Slot

WRITABLE = np.uint64(2)


class Seen:
    """A capture with what follows from it, computed once.

    Args:
        capture: the VM.
    """

    def __init__(self, capture: Capture) -> None:
        self.c = capture
        self.pages, self.entries, self.words = capture.pages, capture.entries, capture.words
        self.nr_shadow = capture.nr_shadow

    @cached_property
    def page(self) -> Any:
        """The page (row) of each entry."""
        return self.entries.page.astype(np.int64)

    @cached_property
    def index(self) -> Any:
        """The index of each entry."""
        return self.entries.index.astype(np.int64)

    @cached_property
    def level(self) -> Any:
        """The level of each entry's table."""
        return self.pages.level[self.page]

    @cached_property
    def space(self) -> Any:
        """The address space of each entry's table."""
        return self.pages.space[self.page]

    @cached_property
    def is_leaf(self) -> Any:
        """Which entries map a page."""
        return self.words.is_leaf(self.entries.raw, self.level)

    @cached_property
    def is_link(self) -> Any:
        """Which entries lead to a table."""
        return self.words.is_link(self.entries.raw, self.level)

    @cached_property
    def is_mmio(self) -> Any:
        """Which entries are MMIO SPTEs."""
        return self.words.is_mmio(self.entries.raw)

    @cached_property
    def sptep(self) -> Any:
        """The virtual address of each entry."""
        base = np.uint64(self.pages.direct_map)
        return self.pages.table[self.page] + self.index.astype(np.uint64) * np.uint64(8) + base

    @cached_property
    def links(self) -> Any:
        """The entries that are links."""
        return np.flatnonzero(self.is_link)

    @cached_property
    def child(self) -> Any:
        """The page (row) that each link leads to; -1 where there is none."""
        return self.pages.at_table(self.words.address(self.entries.raw[self.links]))

    @cached_property
    def is_direct(self) -> Any:
        """Which pages map guest frames directly."""
        return (self.pages.role >> 7 & 1) == 1

    @cached_property
    def is_invalid(self) -> Any:
        """Which pages were zapped while in use, by the kernel's own bit field."""
        return self.role_bit("invalid")

    def role_bit(self, name: str) -> Any:
        """A one-bit field of every page's role."""
        at, _ = self.c.facts.role_bits.get(name, (31, 0))
        return (self.pages.role >> at & 1) == 1

    @cached_property
    def is_active(self) -> Any:
        """Which pages are on the active list."""
        return np.arange(len(self.pages)) < self.c.nr_active

    def slots(self, space: int) -> list[Slot]:
        """The slots of an address space; none where it does not exist."""
        return self.c.spaces[space].slots if space < len(self.c.spaces) else []

    def slot_of(self, space: Any, gfn: Any) -> Any:
        """The number of the slot (in `all_slots`) of each gfn of an address space; -1 for none."""
        found = np.full(len(gfn), -1, np.int64)
        first = 0
        for number, one in enumerate(self.c.spaces):
            here = np.flatnonzero(space == number)
            if len(one.slots) and len(here):
                base = np.array([slot.base for slot in one.slots], np.uint64)
                end = np.array([slot.end if slot.is_sane else slot.base for slot in one.slots], np.uint64)
                at = np.searchsorted(base, gfn[here], "right") - 1
                inside = (at >= 0) & (gfn[here] < end[at])
                found[here] = np.where(inside, at + first, -1)
            first += len(one.slots)
        return found

    @cached_property
    def all_slots(self) -> list[tuple[int, Slot]]:
        """Every slot with its address space, in the order that `slot_of` counts."""
        return [(number, slot) for number, one in enumerate(self.c.spaces) for slot in one.slots]

    def page_name(self, row: int) -> str:
        """A page in words."""
        return (
            f"page {int(self.c.ids[row])} (gfn {int(self.pages.gfn[row]):#x}, level {int(self.pages.level[row])}, "
            f"at {int(self.pages.addresses[row]):#x})"
        )

    def entry_name(self, at: int) -> str:
        """An entry in words."""
        return f"entry {int(self.index[at])} of {self.page_name(int(self.page[at]))}: {int(self.entries.raw[at]):#x}"

    def place_name(self, sptep: int) -> str:
        """An SPTE's address in words."""
        row = int(
            self.pages.at_table(np.array([sptep - self.pages.direct_map & (1 << 64) - 1], np.uint64))[0]
        )
        if row < 0:
            return f"SPTE {sptep:#x}, which is in no table of this VM"
        return f"SPTE {sptep:#x}, entry {(sptep & 4095) // 8} of page {int(self.c.ids[row])}"
