"""The page tables of the 6.x recorder's guest: what its VMM wrote into them, and what an address is for the guest.

Owns: where the VMM puts tables (one page behind the other from the first free page behind the root, in order of need)
and what it writes there. The memory itself is the model's, so that the accessed and dirty bits in it are those the
model set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvm_mmu.errors import TraceError

PAGE_SHIFT = 12
_PAGE = 1 << PAGE_SHIFT
_PRESENT, _WRITABLE, _USER, _LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
_ADDRESS = 0x000FFFFFFFFFF000
_FIRST_ROOT = 0x100000
_LOW_END = 0x400000
#: Entries of one operation; the recorder's largest has some thousand.
_ENTRIES_MAX = 1 << 18
#: What the recorder writes into a page of the colliding tables, and where it points.
_COLLIDING_ENTRIES, _DATA = 4, 0x1000000
#: Where the root maps itself, by the size of an entry.
_SELF_INDEX = {8: 510, 4: 1000}


@dataclass(frozen=True)
class Paging:
    """How a guest mode pages: levels, bits of an index, bytes of an entry."""

    levels: int
    index_bits: int
    entry_size: int

    def shift(self, level: int) -> int:
        """The lowest bit of an address that chooses an entry of a level."""
        return PAGE_SHIFT + self.index_bits * (level - 1)

    def index(self, gva: int, level: int) -> int:
        """The number of the entry that an address uses."""
        return gva >> self.shift(level) & (1 << self.index_bits) - 1


MODES = {
    "long": Paging(4, 9, 8),
    "long5": Paging(5, 9, 8),
    "pae": Paging(3, 9, 8),
    "p32": Paging(2, 10, 4),
}

Read = Callable[[int, int], int]
Write = Callable[[int, int, int], None]


class GuestTables:
    """The tables of one guest; `read(gpa, size)` and `write(gpa, value, size)` reach the model's memory."""

    def __init__(self, mode: str, read: Read, write: Write):
        self.mode, self.paging = mode, MODES[mode]
        self._read, self._write = read, write
        self._root = _FIRST_ROOT
        self._next = _FIRST_ROOT
        self._has_root = False
        self._known: dict[tuple[int, int], int | None] = {}
        #: the pages in which the tables of these translations lie
        self._used: set[int] = set()

    # -- what the VMM does ---------------------------------------------------------------------------------------

    def map_range(self, root: int, gva: int, gpa: int, size: int, flags: int, level: int) -> None:
        """`host_map`: leaves of one level for a range, with the tables above them."""
        if not 1 <= level <= min(self.paging.levels, 3):
            raise TraceError(f"host_map of level {level}: expected 1 to 3")
        self._take_root(root)
        step = 1 << self.paging.shift(level)
        if (size + step - 1) // step > _ENTRIES_MAX:
            raise TraceError(f"host_map of {size:#x} bytes: more than any recording has")
        leaf = flags | _PRESENT | (_LARGE if level > 1 else 0)
        for offset in range(0, size, step):
            self.write_entry(self.entry_of(root, gva + offset, level), gpa + offset | leaf)

    def write_entry(self, gpa: int, value: int) -> None:
        """The VMM writes an entry; a table that is new for this is the next one."""
        self._note_table(gpa)
        self.store(gpa, value, self.paging.entry_size)

    def write_directory_entry(self, gva: int, value: int) -> None:
        """`host_pde`: the entry of level 2 in the first root."""
        self.write_entry(self.entry_of(self._root, gva, 2), value)

    def map_itself(self) -> None:
        """`host_selfmap`: an entry of the first root that is the root."""
        size = self.paging.entry_size
        self.write_entry(self._root + _SELF_INDEX[size] * size, self._root | _PRESENT | _WRITABLE)

    def put_table(self, gva: int, gfn: int) -> None:
        """`host_pt_at`: a page of its own as the last table of an address, with four entries."""
        size = self.paging.entry_size
        entry = self.entry_of(self._root, gva, 2)
        self.store(entry, gfn << PAGE_SHIFT | _PRESENT | _WRITABLE | _USER, size)
        for i in range(_COLLIDING_ENTRIES):
            self.store((gfn << PAGE_SHIFT) + i * size, _DATA + i * _PAGE | _PRESENT | _WRITABLE, size)

    def see_root(self, cr3: int) -> None:
        """The guest is to use a root: one that is the next free page is a copy of the first, made for this."""
        if self._has_root and cr3 == self._next and cr3 + _PAGE <= _LOW_END:
            self._next += _PAGE
            for offset in range(0, _PAGE, 8):
                value = self._read(self._root + offset, 8)
                if value:
                    self.store(cr3 + offset, value, 8)

    def entry_of(self, root: int, gva: int, level: int) -> int:
        """Where the entry of a level for an address is; tables that are missing above it are made."""
        table, size = root, self.paging.entry_size
        for above in range(self.paging.levels, level, -1):
            place = table + self._index(gva, above) * size
            entry = self._read(place, size)
            if not entry & _PRESENT:
                is_pdpte = self.mode == "pae" and above == self.paging.levels
                entry = self._next | _PRESENT | (0 if is_pdpte else _WRITABLE | _USER)
                self._next += _PAGE
                self.store(place, entry, size)
            table = entry & _ADDRESS
        return table + self._index(gva, level) * size

    # -- what the guest does -------------------------------------------------------------------------------------

    def store(self, gpa: int, value: int, size: int) -> None:
        """Write to the memory."""
        self.written(gpa)
        self._write(gpa, value, size)

    def written(self, gpa: int) -> None:
        """Somebody wrote there: translations through this table are looked up again."""
        if gpa >> PAGE_SHIFT in self._used:
            self.forget()

    def forget(self) -> None:
        """What is mapped where may have changed."""
        self._known.clear()
        self._used.clear()

    def translate(self, cr3: int, gva: int) -> int | None:
        """The address that the guest's own tables give, None where they give none."""
        key = (cr3, gva >> PAGE_SHIFT)
        if key not in self._known:
            self._known[key] = self._walk(cr3, gva)
        page = self._known[key]
        return None if page is None else page | gva & _PAGE - 1

    def _walk(self, cr3: int, gva: int) -> int | None:
        size = self.paging.entry_size
        table = cr3 & (0xFFFFFFE0 if self.mode == "pae" else _ADDRESS)
        for level in range(self.paging.levels, 0, -1):
            self._used.add(table >> PAGE_SHIFT)
            entry = self._read(table + self._index(gva, level) * size, size)
            if not entry & _PRESENT:
                return None
            is_large = (
                entry & _LARGE and level > 1 and not (self.mode == "pae" and level == self.paging.levels)
            )
            if level == 1 or is_large:
                within = (1 << self.paging.shift(level)) - 1
                return (entry & _ADDRESS & ~within | gva & within) & ~(_PAGE - 1)
            table = entry & _ADDRESS
        return None

    def place(self, cr3: int, gva: int, entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where the entries of a printed walk were read from: (address, value); only of its first pass."""
        size = self.paging.entry_size
        table, found = cr3 & _ADDRESS, []
        last = self.paging.levels + 1
        for value, level in entries:
            if level >= last:
                break
            last = level
            if self.mode != "pae" or level < self.paging.levels:
                found.append((table + self._index(gva, level) * size, value))
            table = value & _ADDRESS
        return found

    def _index(self, gva: int, level: int) -> int:
        index = self.paging.index(gva, level)
        return index & 3 if self.mode == "pae" and level == self.paging.levels else index

    def _take_root(self, root: int) -> None:
        if not self._has_root:
            self._root, self._next, self._has_root = root, root + _PAGE, True

    def _note_table(self, gpa: int) -> None:
        if self._has_root and gpa & _ADDRESS == self._next:
            self._next += _PAGE
