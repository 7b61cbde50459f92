"""How a guest pages: its registers, the shape of its tables and the words of its entries.

Owns nothing of a VM. What the processor does with an entry is the core's to say (`kvm_mmu.guest_permissions`); here
stands what a guest must know to write its own tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import flag, integer, shown, word

MODES = ("long", "long5", "pae", "p32", "none")

CR0_PE, CR0_WP, CR0_PG = 1 << 0, 1 << 16, 1 << 31
CR4_PSE, CR4_PAE, CR4_LA57, CR4_SMEP, CR4_SMAP = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21
EFER_LME, EFER_LMA, EFER_NX = 1 << 8, 1 << 10, 1 << 11

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
#: Letters of an entry's flags; without `x` an entry forbids fetches where the guest can say so.
LETTERS = {"r": 0, "w": WRITABLE, "u": USER, "x": 0, "a": ACCESSED, "d": DIRTY}


class Registers(NamedTuple):
    """The control registers that say how a guest pages."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A paging mode: its tables and entries.

    Attributes:
        mode: one of `MODES`.
        top: level of the first table, 0 without paging; in PAE mode that of the four entries which CR3 leads to.
        entry_size: bytes of an entry.
        index_bits: address bits that choose an entry.
        has_nx: bit 63 of an entry forbids fetches.
        has_large: entries above level 1 can be leaves.
    """

    mode: str
    top: int
    entry_size: int
    index_bits: int
    has_nx: bool
    has_large: bool

    @property
    def address_mask(self) -> int:
        """The address bits of an entry."""
        return 0xFFFFF000 if self.entry_size == 4 else 0xFFFFFFFFFF000

    def covers(self, level: int) -> int:
        """Bytes that one entry of this level covers."""
        return 1 << 12 + self.index_bits * (level - 1)

    def index(self, gva: int, level: int) -> int:
        """The entry of a table of this level that an address chooses."""
        entries = 4 if self.mode == "pae" and level == 3 else 1 << self.index_bits
        return gva // self.covers(level) % entries

    def entries(self, level: int) -> int:
        """Entries of a table of this level."""
        return 4 if self.mode == "pae" and level == 3 else 1 << self.index_bits

    def is_leaf(self, entry: int, level: int) -> bool:
        """Whether an entry of this level maps a page and no table."""
        if level == 1:
            return True
        largest = {"long": 3, "long5": 3}.get(self.mode, 2)
        return bool(self.has_large and level <= largest and entry & LARGE)

    def level_of(self, page: int) -> int:
        """The level whose leaves map pages of this size.

        Raises:
            UsageError: the mode has no such pages.
        """
        largest = {"long": 3, "long5": 3}.get(self.mode, 2) if self.has_large else 1
        sizes = {self.covers(level): level for level in range(1, largest + 1)}
        if page not in sizes:
            known = ", ".join(f"{size:#x}" for size in sizes)
            raise UsageError(f"page={shown(page)}: mode {self.mode} has pages of {known} bytes")
        return sizes[page]

    def leads_to(self, entry: int, level: int) -> int:
        """The guest-physical address in an entry: of a table, or of the page of a leaf."""
        if not self.is_leaf(entry, level) or level == 1:
            return entry & self.address_mask
        address = entry & self.address_mask & ~(self.covers(level) - 1)
        # PSE36: bits 13 to 16 of a large 4-byte entry are address bits 32 to 35.
        return address | (entry >> 13 & 0xF) << 32 if self.entry_size == 4 else address

    def leaf(self, gpa: int, flags: str | int, level: int) -> int:
        """The entry that maps the page at `gpa`."""
        large = LARGE if level > 1 else 0
        if self.entry_size == 4 and level > 1:
            gpa = gpa & 0xFFFFFFFF | (gpa >> 32 & 0xF) << 13
        return gpa | self.flag_bits(flags) | large

    def flag_bits(self, flags: str | int) -> int:
        """The bits of an entry's flags.

        Raises:
            UsageError: a letter that is not known.
        """
        if not isinstance(flags, str):
            return integer("flags", flags, 0, (1 << 8 * self.entry_size) - 1)
        bits = PRESENT
        for letter in flags:
            if letter not in LETTERS:
                raise UsageError(f"flags={shown(flags)}: expected the letters {' '.join(LETTERS)}")
            bits |= LETTERS[letter]
        return bits if "x" in flags or not self.has_nx else bits | NX


def shape_of(registers: Registers) -> Shape:
    """The paging mode that registers say."""
    cr0, _, cr4, efer = registers
    has_nx = efer & EFER_NX != 0
    if not cr0 & CR0_PG:
        return Shape("none", 0, 8, 9, has_nx=False, has_large=False)
    if efer & EFER_LMA:
        if cr4 & CR4_LA57:
            return Shape("long5", 5, 8, 9, has_nx, has_large=True)
        return Shape("long", 4, 8, 9, has_nx, has_large=True)
    if cr4 & CR4_PAE:
        return Shape("pae", 3, 8, 9, has_nx, has_large=True)
    return Shape("p32", 2, 4, 10, has_nx=False, has_large=cr4 & CR4_PSE != 0)


def registers_of(mode: str, cr3: int, *, wp: bool, nx: bool, smep: bool, smap: bool, pse: bool) -> Registers:
    """The registers of a guest in a paging mode.

    Raises:
        UsageError: a mode that is not known.
    """
    word("mode", mode, MODES)
    cr0 = CR0_PE | (CR0_WP if flag("wp", wp) else 0) | (0 if mode == "none" else CR0_PG)
    cr4 = (CR4_SMEP if flag("smep", smep) else 0) | (CR4_SMAP if flag("smap", smap) else 0)
    efer = EFER_NX if flag("nx", nx) else 0
    if mode == "p32":
        cr4 |= CR4_PSE if flag("pse", pse) else 0
    elif mode != "none":
        cr4 |= CR4_PAE | (CR4_LA57 if mode == "long5" else 0)
        efer |= EFER_LME | EFER_LMA if mode.startswith("long") else 0
    return Registers(cr0, cr3, cr4, efer)


def flag_letters(shape: Shape, entry: int) -> str:
    """An entry's flags as letters, `r-x-a-` and the like; without `x` it forbids fetches."""
    can_fetch = not (shape.has_nx and entry & NX)
    on = (
        (entry & WRITABLE, "w"),
        (entry & USER, "u"),
        (can_fetch, "x"),
        (entry & ACCESSED, "a"),
        (entry & DIRTY, "d"),
    )
    return "r" + "".join(letter if is_on else "-" for is_on, letter in on)
