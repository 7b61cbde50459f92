"""Shadow pages and tables: `struct kvm_mmu_page` by columns, and of each table the entries that are not empty.

Owns: `Pages` (one row a page, kept as the kernel's own bytes) and `Entries` (one row an entry). Memory grows with
pages and with entries that are not empty: a page takes its 184 bytes, an entry 22.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import LiveError
from kvm_mmu.live.chains import Faults
from kvm_mmu.live.kernel_facts import EMPTY, FROZEN, KernelFacts
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import PAGE, U64, Memory

I64 = npt.NDArray[np.int64]
BOOL = Any  # numpy says no better of what its comparisons give
ENTRIES = 512
#: Tables read before their entries are taken out.
_BATCH = 256


class Pages:
    """The pages of a VM, as a capture found them: columns of the kernel's own bytes.

    Args:
        layout: of the kernel.
        addresses: of each `struct kvm_mmu_page`.
        raw: its bytes.
        direct_map: where the direct map begins.
    """

    def __init__(
        self, layout: Layout, addresses: Sequence[int], raw: Sequence[bytes], direct_map: int
    ) -> None:
        self._layout = layout
        self.addresses: U64 = np.array(addresses, np.uint64)
        size = layout.size("struct kvm_mmu_page")
        self._raw = np.frombuffer(b"".join(raw), np.uint8).reshape(len(addresses), size)
        self.direct_map = direct_map

    def __len__(self) -> int:
        return len(self.addresses)

    def column(self, key: str) -> I64:
        """One field of every page, as signed 64-bit numbers (addresses: `unsigned`)."""
        return self.unsigned(key).astype(np.int64)

    def unsigned(self, key: str) -> U64:
        """One field of every page; zeros where this kernel has no such field."""
        field = self._layout.find(f"mmu_page.{key}")
        if field is None:
            return np.zeros(len(self), np.uint64)
        width = field.size
        if width not in (1, 2, 4, 8):
            raise LiveError(f"struct kvm_mmu_page.{field.name}: {width} bytes, expected a number")
        part = np.ascontiguousarray(self._raw[:, field.offset : field.offset + width])
        return part.view(f"<u{width}").reshape(len(self)).astype(np.uint64)

    def bytes_of(self, key: str) -> npt.NDArray[np.uint8]:
        """The bytes of a field that is no number, a row each."""
        field = self._layout[f"mmu_page.{key}"]
        return self._raw[:, field.offset : field.offset + field.size]

    @cached_property
    def role(self) -> I64:
        """The role words."""
        return self.column("role")

    @cached_property
    def level(self) -> I64:
        """The level of each table, 1 for leaves of 4 KiB."""
        return self.role & 15

    @cached_property
    def space(self) -> I64:
        """The address space of each page: 0 normal, 1 SMM."""
        return self.role >> 24 & 0xFF

    @cached_property
    def gfn(self) -> U64:
        """The guest frame of each page."""
        return self.unsigned("gfn")

    @cached_property
    def table(self) -> U64:
        """The physical address of each table; all ones where its address is not in the direct map."""
        spt = self.unsigned("spt")
        inside = (spt >= np.uint64(self.direct_map)) & (
            spt < np.uint64(min(self.direct_map + (1 << 55), (1 << 64) - 1))
        )
        return np.where(inside, spt - np.uint64(self.direct_map), np.uint64((1 << 64) - 1))

    @cached_property
    def _tables_sorted(self) -> tuple[U64, I64]:
        order = np.argsort(self.table, kind="stable")
        return self.table[order], order

    def at_table(self, physical: U64) -> I64:
        """The page whose table lies at each physical address (of an entry, or of the table); -1 for none."""
        tables, order = self._tables_sorted
        if not len(tables):
            return np.full(len(physical), -1, np.int64)
        wanted = physical & ~np.uint64(PAGE - 1)
        place = np.minimum(np.searchsorted(tables, wanted), len(tables) - 1)
        return np.where(tables[place] == wanted, order[place], -1)

    @cached_property
    def by_address(self) -> dict[int, int]:
        """The row of each page by the address of its `struct kvm_mmu_page`."""
        return {int(address): row for row, address in enumerate(self.addresses)}


class Entries:
    """Every entry that is not empty: its page (a row of `Pages`), index, word, and the gfn it is of."""

    def __init__(self, page: I64, index: I64, raw: U64, gfn: U64) -> None:
        self.page, self.index, self.raw, self.gfn = page, index, raw, gfn

    def __len__(self) -> int:
        return len(self.raw)

    def of(self, row: int) -> slice:
        """The entries of one page."""
        first, last = np.searchsorted(self.page, [row, row + 1])
        return slice(int(first), int(last))


class Words:
    """What an entry's word says, for arrays of them."""

    def __init__(self, facts: KernelFacts) -> None:
        self._facts = facts
        self.mmio_mask = np.uint64(facts.masks.get("mmio", facts.codec.masks["mmio_mask"]))
        self.mmio_value = np.uint64(facts.masks.get("mmio_value", facts.codec.masks["mmio_value"]))
        self._address = np.uint64(facts.address_mask)

    def is_mmio(self, raw: U64) -> BOOL:
        """Whether it is an MMIO SPTE."""
        if not int(self.mmio_value):
            return np.zeros(len(raw), np.bool_)
        return (raw & self.mmio_mask) == self.mmio_value

    def is_frozen(self, raw: U64) -> BOOL:
        """Whether the TDP MMU is taking a table down here."""
        return (raw & np.uint64((1 << 63) - 1)) == np.uint64(FROZEN)

    def is_present(self, raw: U64) -> BOOL:
        """Whether it maps something: a leaf or a link."""
        bit = self._facts.present_bit
        if bit is None:
            return (raw != 0) & ~self.is_mmio(raw) & ~self.is_frozen(raw)
        return (raw & np.uint64(bit)) != 0

    def is_link(self, raw: U64, level: I64) -> BOOL:
        """Whether it leads to a table."""
        return self.is_present(raw) & (level > 1) & ((raw & np.uint64(1 << 7)) == 0)

    def is_leaf(self, raw: U64, level: I64) -> BOOL:
        """Whether it maps a page of the host."""
        return self.is_present(raw) & ((level == 1) | ((raw & np.uint64(1 << 7)) != 0))

    def address(self, raw: U64) -> U64:
        """The physical address in it, without the bit of memory encryption."""
        return raw & self._address


def read_pages(memory: Memory, layout: Layout, addresses: Sequence[int], faults: Faults) -> Pages:
    """Read `struct kvm_mmu_page` at each address; those that cannot be read are left out and said."""
    size = layout.size("struct kvm_mmu_page")
    raw: list[bytes] = []
    found: list[int] = []
    for address in addresses:
        try:
            raw.append(memory.read(address, size, "a shadow page"))
            found.append(address)
        except LiveError as error:
            faults.add(error)
    return Pages(layout, found, raw, memory.direct_map)


def read_entries(memory: Memory, pages: Pages, words: Words, codec: Any, faults: Faults) -> Entries:
    """Read every table and keep what is not empty; a table that cannot be read is said and counts as empty.

    Without a codec the gfns are left out.
    """
    columns: list[tuple[I64, I64, U64]] = []
    buffer = np.zeros((_BATCH, ENTRIES), np.uint64)
    tables = pages.table
    for first in range(0, len(pages), _BATCH):
        count = min(_BATCH, len(pages) - first)
        buffer[:count] = 0
        for row in range(count):
            try:
                physical = int(tables[first + row])
                if physical >> 52:
                    spt = int(pages.unsigned("spt")[first + row])
                    raise LiveError(
                        f"the table of page {int(pages.addresses[first + row]):#x} at {spt:#x}: not in the direct map"
                    )
                data = memory.read_physical(physical, PAGE, "a table")
                buffer[row] = np.frombuffer(data, "<u8")
            except LiveError as error:
                faults.add(error)
        filled = buffer[:count]
        row_at, index = np.nonzero((filled != np.uint64(EMPTY[0])) & (filled != np.uint64(EMPTY[1])))
        columns.append(((row_at + first).astype(np.uint32), index.astype(np.uint16), filled[row_at, index]))
    if columns:
        page, index, raw = (np.concatenate(column) for column in zip(*columns, strict=True))
    else:
        page, index, raw = np.zeros(0, np.uint32), np.zeros(0, np.uint16), np.zeros(0, np.uint64)
    if codec is None:
        return Entries(page, index, raw, np.zeros(0, np.uint64))
    return Entries(page, index, raw, _gfns(memory, pages, page, index, raw, words, codec, faults))


def _gfns(
    memory: Memory, pages: Pages, page: Any, index: Any, raw: U64, words: Words, codec: Any, faults: Faults
) -> U64:
    shift = ((pages.level[page] - 1) * 9).clip(0, 63).astype(np.uint64)
    found: U64 = pages.gfn[page] + (index.astype(np.uint64) << shift)
    translation = pages.unsigned("translation")
    # A page that shadows a guest's table says itself which gfn each entry is of; `gfns` was that before there was
    # an access beside it.
    packed = pages._layout["mmu_page.translation"].name != "gfns"
    indirect = np.flatnonzero((pages.role >> 7 & 1) == 0)
    for row in indirect.tolist():
        first, last = np.searchsorted(page, [row, row + 1])
        if first == last or not int(translation[row]):
            continue
        try:
            kept = memory.words(int(translation[row]), ENTRIES, "the gfns of a shadow page")
        except LiveError as error:
            faults.add(error)
            continue
        values = kept[index[first:last]]
        found[first:last] = values >> np.uint64(12) if packed else values
    mmio = np.flatnonzero(words.is_mmio(raw))
    if len(mmio):
        found[mmio] = codec.decode_mmio_sptes(raw[mmio]).gfn
    return found
