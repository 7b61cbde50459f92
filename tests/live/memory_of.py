"""A reduced dump whose memory can be changed before it is read: for mutants and for damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from kvm_mmu import live
from kvm_mmu.live import packed
from kvm_mmu.live.kernel import LiveKernel
from kvm_mmu.live.layout import Field
from kvm_mmu.live.live_vm import LiveVm
from kvm_mmu.live.translate import kernel_tables


class Changeable:
    """One dump, with a layer of changed bytes over it.

    Args:
        elf: the unpacked dump.
        folder: its facts.
    """

    def __init__(self, elf: Path, folder: Path) -> None:
        self.core = packed.read_core(elf.read_bytes(), elf.name)
        self.folder = folder
        self.clean = live.open(str(elf), facts=folder)
        self.vm = self.clean.vms()[0]
        self.state = self.vm.state
        self.tables = kernel_tables(self.clean.opened, self.clean.facts.host_levels)
        self.changes: dict[int, int] = {}

    def physical(self, address: int) -> int:
        """Where a virtual address lies."""
        memory = self.clean.opened.memory
        if memory.direct_map <= address < memory.direct_map_end:
            return address - memory.direct_map
        return self.tables.find(address).physical

    def read(self, address: int, size: int) -> int:
        """A number of the memory with its changes."""
        found = bytearray(self.clean.opened.memory.read(address, size, "a number"))
        for at in range(size):
            physical = self.physical(address + at)
            found[at] = self.changes.get(physical, found[at])
        return int.from_bytes(found, "little")

    def write(self, address: int, size: int, value: int) -> None:
        """Change a number at a virtual address."""
        for at, byte in enumerate((value & (1 << 8 * size) - 1).to_bytes(size, "little")):
            self.changes[self.physical(address + at)] = byte

    def add(self, address: int, size: int, by: int) -> None:
        """Add to a number."""
        self.write(address, size, self.read(address, size) + by)

    def field(self, key: str) -> Field:
        """Where a thing lies in its structure."""
        return self.clean.opened.layout[key]

    def kvm(self, key: str) -> int:
        """The address of a thing in `struct kvm`."""
        return self.vm.kvm + self.field(f"kvm.{key}").offset

    def page(self, row: int, key: str) -> int:
        """The address of a thing in a page."""
        return int(self.state.pages.addresses[row]) + self.field(f"mmu_page.{key}").offset

    def slot(self, slot_id: int, key: str, space: int = 0) -> int:
        """The address of a thing in a slot."""
        found = next(slot for slot in self.state.spaces[space].slots if slot.id == slot_id)
        return found.address + self.field(f"memory_slot.{key}").offset

    def vcpu(self, number: int, key: str) -> int:
        """The address of a thing in a vCPU."""
        return self.state.vcpus[number].address + self.field(f"vcpu.{key}").offset

    def sptep(self, at: int) -> int:
        """The address of an entry."""
        state = self.state
        row = int(state.entries.page[at])
        return int(state.pages.table[row]) + state.pages.direct_map + 8 * int(state.entries.index[at])

    def entries(self, kind: str, level: int | None = None, writable: bool | None = None) -> list[int]:
        """The entries of a kind (leaf, link, mmio)."""
        columns = self.vm.entries()
        chosen = columns["kind"] == kind
        if level is not None:
            chosen &= columns["level"] == level
        if writable is not None:
            chosen &= (columns["spte"] & np.uint64(2) != 0) == writable
        return np.flatnonzero(chosen).tolist()

    def raw(self, at: int) -> int:
        """The word of an entry."""
        return int(self.state.entries.raw[at])

    def elf(self) -> bytes:
        """The changed dump as a file."""
        segments = []
        for segment in self.core.segments:
            data = bytearray(segment.data)
            for physical, byte in self.changes.items():
                if segment.physical <= physical < segment.physical + len(data):
                    data[physical - segment.physical] = byte
            segments.append(packed.Segment(segment.physical, bytes(data)))
        notes = [(name, kind, data) for (name, kind), data in self.core.notes.items()]
        return packed.write_core(segments, notes)

    def changed(self) -> LiveKernel:
        """The kernel with the changes."""
        program = packed.open_core(self.core, "a changed dump")
        for physical, byte in self.changes.items():
            program.add_memory_segment(physical, 1, _always(bytes([byte])), True)
        return live.from_program(program, "a changed dump", facts=self.folder)

    def changed_vm(self) -> LiveVm:
        """The first VM with the changes, read and no more."""
        return self.changed().vms()[0]


def _always(data: bytes) -> Callable[[int, int, int, bool], bytes]:
    return lambda _address, count, offset, _physical: data[offset : offset + count]
