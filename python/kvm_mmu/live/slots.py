"""Memslots: both address spaces, their slots, and of each slot the reverse maps, vetoes, tracking and dirty log.

Owns: `Slot` and `Space`. Arrays are read piece by piece, and of them is kept what is not 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import LiveError
from kvm_mmu.live.chains import Faults, chain_nodes
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import U64, Memory
from kvm_mmu.live.rmaps import Heads, PteLists

I64 = npt.NDArray[np.int64]
#: The kernel's own limit of pages in a slot, and more slots than it allows.
MAX_PAGES, MAX_SLOTS = (1 << 31) - 1, 1 << 15
LOG_DIRTY, INVALID = 1, 1 << 16
#: The bit of a veto that says that a range has mixed attributes: no count.
_MIXED = 1 << 31
_NODE = 16
EMPTY_I64: I64 = np.zeros(0, np.int64)


@dataclass
class Slot:
    """One memslot. Arrays have a row for each value that is not 0.

    Args:
        address: of its `struct kvm_memory_slot`.
        rmap: by level, SPTE addresses under the index of their head.
        has_rmap: by level, whether there is an array.
        disallow: by level (2 and up), index and count of what forbids a large page.
        track: index and count of write tracking.
        dirty: the bitmap of the log, words of 64 pages; None without a log.
    """

    address: int
    id: int
    base: int
    npages: int
    flags: int
    hva: int
    as_id: int | None
    rmap: dict[int, Heads] = field(default_factory=dict)
    has_rmap: dict[int, bool] = field(default_factory=dict)
    disallow: dict[int, tuple[I64, I64]] = field(default_factory=dict)
    track: tuple[I64, I64] = (EMPTY_I64, EMPTY_I64)
    has_track: bool = False
    dirty: U64 | None = None

    @property
    def is_sane(self) -> bool:
        """Whether its place and size are those that a slot can have; nothing else of it is looked at where not."""
        return 0 < self.npages <= MAX_PAGES and self.base + self.npages <= 1 << 52

    @property
    def end(self) -> int:
        """The gfn behind the last one."""
        return self.base + self.npages

    @property
    def is_dirty(self) -> npt.NDArray[np.bool_]:
        """Of each page whether the log says that it is dirty; empty without a log."""
        if self.dirty is None:
            return np.zeros(0, np.bool_)
        return np.unpackbits(self.dirty.view(np.uint8), bitorder="little")[: self.npages].astype(np.bool_)

    def steps(self, level: int) -> int:
        """How many pages of a level the slot touches: the length of its arrays there."""
        shift = 9 * (level - 1)
        return ((self.end - 1) >> shift) - (self.base >> shift) + 1 if self.npages else 0


@dataclass
class Space:
    """One address space: its generation, and its slots by ascending base."""

    generation: int
    slots: list[Slot]


class SlotReader:
    """Reads the memslots of VMs of one kernel."""

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory, self._layout = memory, layout
        self._lists = PteLists(memory, layout)

    def spaces(self, kvm: int, raw: bytes, faults: Faults, with_rmaps: bool = True) -> list[Space]:
        """Both address spaces of a VM.

        Args:
            kvm: address of `struct kvm`.
            raw: its bytes.
            faults: takes what cannot be read.
            with_rmaps: also the reverse maps.

        Returns:
            One for each address space.
        """
        place = self._layout["kvm.memslots"]
        found = []
        for as_id in range(min(max(place.length, 1), 4)):
            at = place.offset + 8 * as_id
            slots = int.from_bytes(raw[at : at + 8], "little")
            found.append(self._space(slots, as_id, faults, with_rmaps))
        return found

    def _space(self, memslots: int, as_id: int, faults: Faults, with_rmaps: bool) -> Space:
        layout, memory = self._layout, self._memory
        what = f"memslots of address space {as_id}"
        try:
            raw = memory.read(memslots, layout.size("struct kvm_memslots"), what)
        except LiveError as error:
            faults.add(error)
            return Space(0, [])
        at = layout["memslots.generation"].offset
        generation = int.from_bytes(raw[at : at + 8], "little")
        addresses = list(self._addresses(memslots, raw, what, faults))
        slots = []
        for address in addresses:
            try:
                slots.append(self._slot(address, faults, with_rmaps))
            except LiveError as error:
                faults.add(error)
        slots.sort(key=lambda slot: (slot.base, slot.id))
        return Space(generation, slots)

    def _addresses(self, memslots: int, raw: bytes, what: str, faults: Faults) -> Iterator[int]:
        layout = self._layout
        heads = layout.find("memslots.id_hash")
        if heads is None:
            yield from self._sorted_array(memslots, raw, what, faults)
            return
        index_at, node_at = layout["memslots.node_idx"], layout["memory_slot.id_node"].offset
        index = int.from_bytes(raw[index_at.offset : index_at.offset + index_at.size], "little")
        if index > 1:
            faults.add(f"{what}: node_idx is {index}, expected 0 or 1")
            return
        step = node_at + _NODE * index
        count = 0
        for number, first in enumerate(np.frombuffer(raw, "<u8", heads.length, heads.offset).tolist()):
            for node in chain_nodes(
                first, lambda node: self._memory.number(node, 8, what), f"{what}, hash {number}", faults
            ):
                count += 1
                if count > MAX_SLOTS:
                    faults.add(f"{what}: more than {MAX_SLOTS:,} slots")
                    return
                yield node - step

    def _sorted_array(self, memslots: int, raw: bytes, what: str, faults: Faults) -> Iterator[int]:
        """The form before v5.17: an array by descending base, of which `used_slots` are in use."""
        layout = self._layout
        array, used = layout["memslots.slots"], layout["memslots.used_slots"]
        count = int.from_bytes(raw[used.offset : used.offset + used.size], "little")
        if count > MAX_SLOTS:
            faults.add(f"{what}: {count:,} slots in use, expected at most {MAX_SLOTS:,}")
            return
        size = layout.size("struct kvm_memory_slot")
        for number in range(count):
            yield memslots + array.offset + number * size

    def _slot(self, address: int, faults: Faults, with_rmaps: bool) -> Slot:
        layout = self._layout
        raw = self._memory.read(address, layout.size("struct kvm_memory_slot"), "a memslot")

        def number(key: str) -> int:
            place = layout[f"memory_slot.{key}"]
            return int.from_bytes(
                raw[place.offset : place.offset + place.size], "little", signed=place.is_signed
            )

        as_id = number("as_id") if layout.has("memory_slot.as_id") else None
        slot = Slot(
            address, number("id"), number("base"), number("npages"), number("flags"), number("hva"), as_id
        )
        if not slot.is_sane:
            faults.add(
                f"slot {slot.id} at {address:#x}: {slot.npages:,} pages from gfn {slot.base:#x}, "
                f"expected 1 to {MAX_PAGES:,} below 2^52; its arrays are not read"
            )
            return slot
        arrays = ((self._rmaps,) if with_rmaps else ()) + (self._vetoes, self._tracked, self._dirty)
        for read in arrays:
            try:
                read(slot, raw, faults)
            except LiveError as error:
                faults.add(f"slot {slot.id}: {error}")
        return slot

    def _pointers(self, raw: bytes, key: str) -> list[int]:
        place = self._layout[f"memory_slot.{key}"]
        return [int(value) for value in np.frombuffer(raw, "<u8", max(1, place.length), place.offset)]

    def _rmaps(self, slot: Slot, raw: bytes, faults: Faults) -> None:
        for level, array in enumerate(self._pointers(raw, "rmap"), 1):
            slot.has_rmap[level] = bool(array)
            if not array:
                continue
            what = f"reverse maps of slot {slot.id}, level {level}"
            numbers, values = [], []
            for first, piece in self._memory.pieces(array, slot.steps(level), 8, what):
                filled = np.flatnonzero(piece)
                numbers.append(filled + first)
                values.append(piece[filled])
            slot.rmap[level] = self._lists.expand(
                np.concatenate(numbers), np.concatenate(values), what, faults
            )

    def _vetoes(self, slot: Slot, raw: bytes, faults: Faults) -> None:
        width = self._layout.size("struct kvm_lpage_info")
        for level, array in enumerate(self._pointers(raw, "lpage_info"), 2):
            if array:
                what = f"large-page information of slot {slot.id}, level {level}"
                index, value = self._filled(array, slot.steps(level), width, what)
                value &= ~_MIXED & 0xFFFFFFFF
                slot.disallow[level] = (index[value != 0], value[value != 0])

    def _tracked(self, slot: Slot, raw: bytes, faults: Faults) -> None:
        if not self._layout.has("memory_slot.track"):
            return
        array = self._pointers(raw, "track")[0]
        slot.has_track = bool(array)
        if array:
            slot.track = self._filled(array, slot.npages, 2, f"tracking of slot {slot.id}")

    def _filled(self, array: int, count: int, width: int, what: str) -> tuple[I64, I64]:
        index, value = [EMPTY_I64], [EMPTY_I64]
        for first, piece in self._memory.pieces(array, count, width, what):
            filled = np.flatnonzero(piece)
            index.append(filled + first)
            value.append(piece[filled].astype(np.int64))
        return np.concatenate(index), np.concatenate(value)

    def _dirty(self, slot: Slot, raw: bytes, faults: Faults) -> None:
        bitmap = self._pointers(raw, "dirty")[0]
        if not bitmap:
            return
        count = -(-slot.npages // 64)
        found = [piece for _, piece in self._memory.pieces(bitmap, count, 8, f"dirty log of slot {slot.id}")]
        slot.dirty = np.concatenate(found).astype(np.uint64)
