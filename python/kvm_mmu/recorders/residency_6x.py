"""Which host pages of the 6.x recorder are resident and writable, where a trace carries no host answers.

Owns: the recorder's backings, what it touched before the guest ran, and what faults made of pages since. A
page that is not resident reads as the zero page: mapped, not host-writable, and not found by the lookup that
prefetch uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_PAGES_2M = 512
_PAGE_SHIFT = 12
_FULLY_WRITTEN = frozenset({"data", "churn"})
#: Code of the three guest modes, the first page of commands.
_LOW_TOUCHED = (1, 2, 3, 8)
_COMMANDS, _COMMAND_SIZE = 8, 64
_COMMANDS_MAX = 512
_SMM_HANDLER = 0x38
_FIRST_TABLE = 0x100
#: The recorder has no room for more guest page tables than this.
_TABLES_MAX = 1 << 12
#: (bits an index has, levels) of guest page tables
_PAGING = {"long": (9, 4), "long5": (9, 5), "pae": (9, 3), "p32": (10, 2)}


@dataclass(frozen=True)
class Backing:
    """Host memory of the recorder, by host page number."""

    name: str
    first: int
    npages: int
    thp: bool


class Residency:
    """Resident host pages.

    `note_huge(first, count)` is called once for each range of host pages that the host maps with 2 MiB from then on.
    """

    def __init__(self, note_huge: Callable[[int, int], None] = lambda _first, _count: None) -> None:
        self._note_huge = note_huge
        self._backings: list[Backing] = []
        self._resident: set[int] = set()
        self._mapped_2m: set[int] = set()
        #: (root, level, index) of each guest table that the recorder made: they lie behind each other
        self._tables: set[tuple[int, int, int]] = set()
        self._root = _FIRST_TABLE << _PAGE_SHIFT

    def add_backing(self, name: str, hva: int, size: int, thp: bool) -> None:
        """The recorder made a backing and wrote some of it."""
        backing = Backing(name, hva >> 12, size >> 12, thp)
        self._backings.append(backing)
        if thp and name in _FULLY_WRITTEN:
            start = backing.first + _PAGES_2M - 1 & -_PAGES_2M
            end = backing.first + backing.npages & -_PAGES_2M
            if start < end:
                self._note_huge(start, end - start)
        if name == "low":
            for page in _LOW_TOUCHED:
                self.touch(backing.first + page)
            self._touch_tables(backing)

    @staticmethod
    def is_fully_written(name: str) -> bool:
        """Whether the recorder writes all of a backing when it makes it."""
        return name in _FULLY_WRITTEN

    def is_resident(self, page: int) -> bool:
        """Whether the host page is there and writable."""
        if page in self._resident:
            return True
        backing = self._find(page)
        return backing is not None and backing.name in _FULLY_WRITTEN

    def touch(self, page: int) -> None:
        """A write made the page resident, with its whole aligned 2 MiB where it can be a huge page."""
        backing = self._find(page)
        if backing is not None and self._huge_range(backing, page):
            start = page & -_PAGES_2M
            self._resident.update(range(start, start + _PAGES_2M))
            if backing.name not in _FULLY_WRITTEN:
                self._map_2m(start)
        else:
            self._resident.add(page)

    def note_2m(self, page: int) -> None:
        """A fault was told that the host maps this page with 2 MiB."""
        backing = self._find(page)
        if backing is None or not self._huge_range(backing, page):
            self._map_2m(page & -_PAGES_2M)

    def _map_2m(self, start: int) -> None:
        if start not in self._mapped_2m:
            self._mapped_2m.add(start)
            self._note_huge(start, _PAGES_2M)

    def map_guest_range(self, mode: str, root: int, gva: int, size: int, level: int) -> None:
        """The recorder wrote guest page tables for a range: each distinct table takes one more page of
        `low`."""
        if mode not in _PAGING or not 1 <= level <= 4:
            return
        bits, top = _PAGING[mode]
        if not self._tables:
            self._root = root
        self._tables.add((root, top, 0))
        for above in range(top, level, -1):
            shift = 12 + bits * (above - 1)
            first, last = gva >> shift, gva + max(size, 1) - 1 >> shift
            for index in range(first, min(last, first + _TABLES_MAX) + 1):
                self._tables.add((root, above - 1, index))
        for low in self._low():
            self._touch_tables(low)

    def map_guest_table(self, mode: str, gva: int) -> None:
        """The recorder hung a page of its own in as the last table of an address: what is above it is new, too."""
        self.map_guest_range(mode, self._root, gva, 1, 2)

    def write_guest_table(self, gpa: int) -> None:
        """The recorder wrote into a guest table that it made for this, or for a mapping before."""
        for low in self._low():
            page = gpa >> _PAGE_SHIFT
            if _FIRST_TABLE <= page < low.npages:
                if page == _FIRST_TABLE + len(self._tables):
                    self._tables.add((gpa & -1 << _PAGE_SHIFT, 0, 0))
                self.touch(low.first + page)

    def write_commands(self, count: int) -> None:
        """The recorder wrote a batch of commands for the guest, and a last one that ends it."""
        last = _COMMANDS + (min(count, _COMMANDS_MAX - 1) * _COMMAND_SIZE >> _PAGE_SHIFT)
        for low in self._low():
            for page in range(_COMMANDS, last + 1):
                self.touch(low.first + page)

    def touch_smm_handler(self) -> None:
        """The recorder wrote the handler of system management mode."""
        for low in self._low():
            self.touch(low.first + _SMM_HANDLER)

    def _low(self) -> Iterator[Backing]:
        return (backing for backing in self._backings if backing.name == "low")

    def _touch_tables(self, low: Backing) -> None:
        for number in range(min(len(self._tables), low.npages - _FIRST_TABLE)):
            self.touch(low.first + _FIRST_TABLE + number)

    def _huge_range(self, backing: Backing, page: int) -> bool:
        start = page & -_PAGES_2M
        return backing.thp and backing.first <= start and start + _PAGES_2M <= backing.first + backing.npages

    def _find(self, page: int) -> Backing | None:
        return next(self._matching(page), None)

    def _matching(self, page: int) -> Iterator[Backing]:
        return (b for b in self._backings if b.first <= page < b.first + b.npages)
