"""A guest that pages: it builds its own page tables, reads and writes through them, flushes and switches them.

    vm = km.Vm(kernel="v6.12", family="shadow")
    vm.memslots.create(0, gpa=0, size=16 * km.MIB)
    vm.guest.map(0x400000, 0x200000, flags="rwu")
    vm.guest.write(0x400000, 42)

The same object stands over a `Vm` (`vm.guest`) and over an engine that takes operations, such as the reference
(`Guest(reference.Engine("v6.12", {"family": "shadow"}))`). It keeps where its next table goes and nothing else: what
the tables hold is read from guest memory every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.guest_machine import FIRST_TABLE, GuestMachine, TakesOperations, guest_machine
from kvm_mmu.machine.guest_paging import (
    PRESENT,
    USER,
    WRITABLE,
    Shape,
    flag_letters,
    registers_of,
    shape_of,
)
from kvm_mmu.machine.numbers import integer, unsigned, word
from kvm_mmu.machine.vcpu import ACCESS_KINDS, OUTCOMES, AccessColumns, AccessResult
from kvm_mmu.types import PAGE_SIZE, AccessKind

if TYPE_CHECKING:
    from kvm_mmu.machine.vm import Vm

SIZES = (1, 2, 4, 8)
U52 = (1 << 52) - 1


@dataclass(frozen=True, slots=True)
class GuestEntry:
    """One present entry of a guest's tables.

    Attributes:
        gva: first address that it translates.
        level: of its table.
        table: gpa of the table.
        index: place in the table.
        entry: the word.
        gpa: what it leads to: the next table, or the page.
        is_leaf: it maps a page.
        flags: `r`, then `w u x a d` where the bit is on, a dash where not.
    """

    gva: int
    level: int
    table: int
    index: int
    entry: int
    gpa: int
    is_leaf: bool
    flags: str

    def __str__(self) -> str:
        arrow = "page" if self.is_leaf else "table"
        place = f"level {self.level} {self.table:#x}[{self.index}]"
        return f"{place} gva {self.gva:#x} {self.flags} -> {arrow} {self.gpa:#x}"


class Guest:
    """The guest on one vCPU of a machine whose page tables are shadowed.

    Args:
        machine: a `Vm` of family `shadow`, or an engine with a method `apply`.
        vcpu: number of the vCPU.

    Raises:
        UsageError: the machine shadows no tables of a guest.
    """

    def __init__(self, machine: Vm | TakesOperations, vcpu: int = 0) -> None:
        self._machine: GuestMachine = guest_machine(machine, integer("vcpu", vcpu))
        self.vcpu = vcpu

    def __repr__(self) -> str:
        return f"<Guest of vcpu {self.vcpu}, mode {self.mode}, CR3 {self.cr3:#x}>"

    # -- how it pages -------------------------------------------------------------------------------------------

    @property
    def _shape(self) -> Shape:
        return shape_of(self._machine.registers())

    @property
    def mode(self) -> str:
        """The paging mode, one of `long`, `long5`, `pae`, `p32` and `none`."""
        return self._shape.mode

    @property
    def cr3(self) -> int:
        """Where the tables in use begin."""
        return self._machine.registers().cr3

    def set_mode(
        self,
        mode: str,
        *,
        wp: bool = True,
        nx: bool = True,
        smep: bool = False,
        smap: bool = False,
        pse: bool = True,
    ) -> int:
        """Choose how the guest pages; where it has tables already it begins with an empty one.

        Args:
            mode: `long` (4 levels), `long5`, `pae`, `p32` or `none`.
            wp: a supervisor may not write to what is write-protected.
            nx: entries can forbid fetches.
            smep: a supervisor does not fetch from the user's pages.
            smap: a supervisor does not read or write the user's pages.
            pse: 32-bit tables have large pages.

        Returns:
            CR3.

        Raises:
            UsageError: a mode that is not known.
        """
        cr3 = self.new_root() if self._machine.pool.has_tables else self.cr3
        registers = registers_of(mode, cr3, wp=wp, nx=nx, smep=smep, smap=smap, pse=pse)
        # A guest turns paging off to come to another mode; up to v5.4 one that does not keeps its old walker.
        self._machine.set_registers(registers_of("none", cr3, wp=wp, nx=nx, smep=smep, smap=smap, pse=pse))
        self._machine.set_registers(registers)
        return cr3

    def add_memory(self, gpa: int, size: int, slot: int = 0) -> None:
        """Give the guest memory: a memslot.

        Args:
            gpa: guest-physical address, bytes.
            size: bytes.
            slot: slot id.

        Raises:
            MemslotError: the kernel refuses the slot.
        """
        self._machine.add_memory(integer("gpa", gpa), integer("size", size), integer("slot", slot))

    # -- its tables ---------------------------------------------------------------------------------------------

    def new_root(self) -> int:
        """Take a page for an empty first table.

        Returns:
            Its gpa, for `set_cr3` and `map`.
        """
        return self._new_table()

    def map(
        self,
        gva: int,
        gpa: int,
        size: int = PAGE_SIZE,
        flags: str | int = "rwx",
        *,
        page: int = PAGE_SIZE,
        cr3: int | None = None,
    ) -> int:
        """Map a range of addresses; missing tables are taken from the pool, one page after the other.

        After `map_tables` the guest stores the entries itself, through its own mapping of its tables. Before, and in
        other address spaces, they are stored as KVM does for an instruction that it emulates: the MMU is told of each.

        Args:
            gva: first guest-virtual address, bytes.
            gpa: guest-physical address that it leads to.
            size: bytes.
            flags: letters `r w x u a d`, without `x` the pages cannot be fetched from; or the bits of the entries.
            page: bytes of a page: 4 KiB, and 2 MiB, 4 MiB or 1 GiB where the mode has them.
            cr3: the tables; None: those in use.

        Returns:
            How many entries were stored, those of tables included.

        Raises:
            UsageError: addresses that do not fit the page size, a large page in the way, or no memory for the tables.
        """
        shape = self._paging("map")
        level = shape.level_of(integer("page", page))
        gva, gpa, size = integer("gva", gva), integer("gpa", gpa, 0, U52), integer("size", size, 1)
        for name, value in (("gva", gva), ("gpa", gpa), ("size", size)):
            if value % page:
                raise UsageError(f"{name}={value:#x}: expected a multiple of the page size {page:#x}")
        root = self.cr3 if cr3 is None else integer("cr3", cr3)
        stored = 0
        for offset in range(0, size, page):
            table, made = self._table_of(shape, root, gva + offset, level)
            self._store(shape, table, gva + offset, level, shape.leaf(gpa + offset, flags, level))
            stored += made + 1
        return stored

    def map_tables(self, gva: int, pages: int = 64, *, cr3: int | None = None) -> int:
        """Map the pages in which tables lie: `map`, `unmap` and `set_entry` write them as the guest does from now on.

        Args:
            gva: where the first table appears, bytes; the others follow.
            pages: how many pages; tables beyond are written as before.
            cr3: the tables that get the mapping; None: those in use.

        Returns:
            How many entries were stored.
        """
        pages = integer("pages", pages, 1, 1 << 20)
        stored = self.map(gva, FIRST_TABLE, pages * PAGE_SIZE, "rw", cr3=cr3)
        self._machine.pool.window = (gva, gva + pages * PAGE_SIZE)
        return stored

    def unmap(self, gva: int, size: int = PAGE_SIZE, *, cr3: int | None = None) -> int:
        """Clear the leaves that map a range of addresses; tables stay.

        Args:
            gva: first guest-virtual address, bytes.
            size: bytes.
            cr3: the tables; None: those in use.

        Returns:
            How many leaves were cleared.
        """
        shape = self._paging("unmap")
        first, end = integer("gva", gva), integer("gva", gva) + integer("size", size, 1)
        leaves = [
            found
            for found in self.tables(cr3)
            if found.is_leaf and found.gva < end and first < found.gva + shape.covers(found.level)
        ]
        for found in leaves:
            self._store(shape, found.table, found.gva, found.level, 0)
        return len(leaves)

    def set_entry(self, gva: int, value: int, level: int = 1, *, cr3: int | None = None) -> None:
        """Store the entry of an address; how, is said at `map`.

        Args:
            gva: guest-virtual address, bytes.
            value: the word.
            level: of the table.
            cr3: the tables; None: those in use.

        Raises:
            UsageError: no table of that level translates the address.
        """
        shape = self._paging("set_entry")
        found = self.entry_gpa(gva, level, cr3=cr3)
        value = integer("value", value, 0, (1 << 8 * shape.entry_size) - 1)
        self._write_entry(found, value, shape.entry_size)

    def entry_gpa(self, gva: int, level: int = 1, *, cr3: int | None = None) -> int:
        """Find where the entry of an address lies: map that page too, and the guest can write its own tables.

        Args:
            gva: guest-virtual address, bytes.
            level: of the table.
            cr3: the tables; None: those in use.

        Returns:
            Its guest-physical address.

        Raises:
            UsageError: no table of that level translates the address.
        """
        shape = self._paging("entry_gpa")
        gva, level = integer("gva", gva), integer("level", level, 1, shape.top)
        table = self._root(cr3)
        for above in range(shape.top, level, -1):
            entry = self._entry(shape, table, gva, above)
            if not entry & PRESENT or shape.is_leaf(entry, above):
                raise UsageError(
                    f"gva {gva:#x}: no table of level {level} translates it, level {above} has {entry:#x}"
                )
            table = shape.leads_to(entry, above)
        return table + shape.index(gva, level) * shape.entry_size

    def tables(self, cr3: int | None = None) -> Iterator[GuestEntry]:
        """Read the guest's tables.

        Args:
            cr3: the tables; None: those in use.

        Yields:
            Present entries, each before what lies below it, by rising address.
        """
        shape = self._shape
        if shape.top:
            yield from self._below(shape, self._root(cr3), shape.top, 0)

    def translate(self, gva: int, *, cr3: int | None = None) -> int | None:
        """Follow the tables without any access: rights, accessed and dirty bits play no part.

        Args:
            gva: guest-virtual address, bytes.
            cr3: the tables; None: those in use.

        Returns:
            The guest-physical address; None where nothing is mapped.
        """
        shape = self._shape
        gva = integer("gva", gva)
        table = self._root(cr3)
        for level in range(shape.top, 0, -1):
            entry = self._entry(shape, table, gva, level)
            if not entry & PRESENT:
                return None
            table = shape.leads_to(entry, level)
            if shape.is_leaf(entry, level):
                return table + gva % shape.covers(level)
        return gva

    # -- what it does -------------------------------------------------------------------------------------------

    def access(self, gva: int, kind: AccessKind = "r", user: bool = False) -> AccessResult:
        """Touch an address: vCPU entry, the processor's walk of the shadow tables, faults until it ends.

        Args:
            gva: guest-virtual address, bytes.
            kind: `r`, `w` or `x`.
            user: from privilege level 3.

        Returns:
            How it ended; `guest_fault`: the guest got a page fault of its own.
        """
        chosen = cast(AccessKind, word("kind", kind, ACCESS_KINDS))
        return self._machine.access(integer("gva", gva), chosen, bool(user))

    def access_many(self, gvas: npt.ArrayLike, kind: AccessKind = "r", user: bool = False) -> AccessColumns:
        """Touch many addresses in order.

        Args:
            gvas: guest-virtual addresses, bytes; one dimension of integers.
            kind: `r`, `w` or `x`, for all of them.
            user: from privilege level 3.

        Returns:
            A row for each.
        """
        array = unsigned("gvas", gvas)
        if array.ndim != 1:
            raise UsageError(f"access_many: gvas has shape {array.shape}, expected one dimension")
        quick = self._machine.access_many(np.ascontiguousarray(array), kind, bool(user))
        if quick is not None:
            return quick
        done = [self.access(gva, kind, user) for gva in array.tolist()]
        return AccessColumns(
            np.array([OUTCOMES.index(row.outcome) for row in done], np.uint8),
            np.array([row.faults for row in done], np.uint8),
            np.array([row.ret for row in done], np.int32),
        )

    def read(self, gva: int, size: int = 8, user: bool = False) -> tuple[AccessResult, int]:
        """Read memory through the guest's tables.

        Args:
            gva: guest-virtual address, bytes.
            size: 1, 2, 4 or 8 bytes.
            user: from privilege level 3.

        Returns:
            How it ended, and the value; 0 where the read did not go through.
        """
        size = _size(size)
        done = self.access(gva, "r", user)
        gpa = self.translate(gva)
        return done, 0 if done.outcome != "hit" or gpa is None else self._machine.peek(gpa, size)

    def write(self, gva: int, value: int, size: int = 8, user: bool = False) -> AccessResult:
        """Write memory through the guest's tables; a write to a table that KVM watches is emulated, and it is told.

        Args:
            gva: guest-virtual address, bytes.
            value: what is written.
            size: 1, 2, 4 or 8 bytes.
            user: from privilege level 3.

        Returns:
            How it ended; memory is written where it is `hit` or `emulate`.
        """
        size = _size(size)
        value = integer("value", value, 0, (1 << 8 * size) - 1)
        gpa = self.translate(gva)
        if gpa is None:
            return self.access(gva, "w", user)
        return self._machine.write(integer("gva", gva), gpa, value, size, bool(user))

    def invlpg(self, gva: int) -> None:
        """Flush one address.

        Args:
            gva: guest-virtual address, bytes.
        """
        self._machine.invlpg(integer("gva", gva))

    def set_cr3(self, cr3: int) -> int:
        """Switch the tables, or flush: CR3 with the value it has.

        Args:
            cr3: where the tables begin.

        Returns:
            As the kernel's function: 0 for a switch; up to v5.4 1 for the same value, 2 where PDPTEs are refused.
        """
        return self._machine.set_cr3(integer("cr3", cr3))

    def peek(self, gpa: int, size: int = 8) -> int:
        """Read guest memory by physical address, as nobody in particular.

        Args:
            gpa: guest-physical address, bytes.
            size: 1, 2, 4 or 8 bytes.

        Returns:
            The value; 0 where there is no memory.
        """
        return self._machine.peek(integer("gpa", gpa), _size(size))

    def poke(self, gpa: int, value: int, size: int = 8) -> None:
        """Write guest memory by physical address behind the MMU's back, as a device does.

        Args:
            gpa: guest-physical address, bytes.
            value: what is written.
            size: 1, 2, 4 or 8 bytes.

        Raises:
            UsageError: there is no memory.
        """
        size = _size(size)
        if not self._machine.poke(integer("gpa", gpa), integer("value", value, 0, (1 << 8 * size) - 1), size):
            raise UsageError(f"gpa {gpa:#x}: the guest has no memory there")

    # -- inside -------------------------------------------------------------------------------------------------

    def _paging(self, what: str) -> Shape:
        shape = self._shape
        if not shape.top:
            raise UsageError(f"{what}: the guest does not page; choose a mode with set_mode")
        return shape

    def _root(self, cr3: int | None) -> int:
        shape = self._shape
        root = self.cr3 if cr3 is None else integer("cr3", cr3)
        return root & 0xFFFFFFE0 if shape.mode == "pae" else root & shape.address_mask

    def _entry(self, shape: Shape, table: int, gva: int, level: int) -> int:
        return self._machine.peek(table + shape.index(gva, level) * shape.entry_size, shape.entry_size)

    def _new_table(self) -> int:
        pool = self._machine.pool
        page = pool.next_page
        for offset in range(0, PAGE_SIZE, 8):
            if self._machine.peek(page + offset, 8):
                raise UsageError(f"gpa {page:#x}: the next table goes there, and the page is not empty")
        if not self._machine.poke(page, 0, 8):
            raise UsageError(
                f"gpa {page:#x}: the guest has no memory for its tables there; create a memslot or call add_memory"
            )
        pool.next_page = page + PAGE_SIZE
        pool.has_tables = True
        return page

    def _table_of(self, shape: Shape, cr3: int, gva: int, level: int) -> tuple[int, int]:
        """The table of this level, made where it is missing, and how many entries that took."""
        table, made = self._root(cr3), 0
        for above in range(shape.top, level, -1):
            entry = self._entry(shape, table, gva, above)
            if entry & PRESENT and shape.is_leaf(entry, above):
                raise UsageError(f"gva {gva:#x}: a page of {shape.covers(above):#x} bytes is mapped there")
            if not entry & PRESENT:
                is_pdpte = shape.mode == "pae" and above == 3
                entry = self._new_table() | PRESENT | (0 if is_pdpte else WRITABLE | USER)
                self._store(shape, table, gva, above, entry)
                made += 1
                if is_pdpte and cr3 == self.cr3:
                    self._machine.set_cr3(cr3)  # The processor keeps the four of them.
            table = shape.leads_to(entry, above)
        return table, made

    def _store(self, shape: Shape, table: int, gva: int, level: int, entry: int) -> None:
        gpa = table + shape.index(gva, level) * shape.entry_size
        self._write_entry(gpa, entry, shape.entry_size)
        if self._machine.peek(gpa, shape.entry_size) != entry:
            raise UsageError(
                f"gpa {gpa:#x}: the guest has no memory for its tables there; create a memslot or call add_memory"
            )
        self._machine.pool.has_tables = True

    def _write_entry(self, gpa: int, entry: int, size: int) -> None:
        """Through the window onto the tables where it shows this one, else as an emulated instruction."""
        first, end = self._machine.pool.window
        gva = first + gpa - FIRST_TABLE
        if first <= gva < end and self.translate(gva) == gpa:
            self._machine.write(gva, gpa, entry, size, False)
        else:
            self._machine.emulate_write(gpa, entry, size)

    def _below(self, shape: Shape, table: int, level: int, gva: int) -> Iterator[GuestEntry]:
        for index in range(shape.entries(level)):
            entry = self._machine.peek(table + index * shape.entry_size, shape.entry_size)
            if not entry & PRESENT:
                continue
            first = gva + index * shape.covers(level)
            if shape.mode.startswith("long") and level == shape.top and index >= 256:
                first |= -1 << shape.index_bits * shape.top + 12 & (1 << 64) - 1
            is_leaf = shape.is_leaf(entry, level)
            leads_to = shape.leads_to(entry, level)
            yield GuestEntry(first, level, table, index, entry, leads_to, is_leaf, flag_letters(shape, entry))
            if not is_leaf:
                yield from self._below(shape, leads_to, level - 1, first)


def _size(size: int) -> int:
    if integer("size", size) not in SIZES:
        raise UsageError(f"size={size}: expected 1, 2, 4 or 8 bytes")
    return int(size)
