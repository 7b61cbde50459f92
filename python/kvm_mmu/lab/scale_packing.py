"""Where the copies of a scaled input lie in guest memory, and the memslots under them.

The blocks (1 GiB, what one level-2 table maps) that the input touches are numbered. Where RAM and MMIO lie in blocks of
their own, all copies' RAM comes first, under at most 509 memslots, and MMIO above it; where they share a block, every
copy has the input's slots, as many as that makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.scale_pattern import Pattern
from kvm_mmu.machine.memory_region import Slot
from kvm_mmu.machine.memslots import FIRST_HVA
from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.workload import Gpas
from kvm_mmu.types import GIB, KVM_USER_MEM_SLOTS, MIB, PAGE_SHIFT

#: Memslots above the kernel's limit, where the core allows them.
MOST_SLOTS = 1 << 20


@dataclass(frozen=True)
class Packing:
    """Blocks of `block` bytes by number. Copy k of the RAM blocks lies at `k * len(ram)` blocks, the MMIO blocks of all
    copies above all RAM; `together`: both numberings are one, and a copy is that many blocks."""

    block: int
    ram: Mapping[int, int]
    mmio: Mapping[int, int]
    together: bool = False

    def ram_gpas(self, gpa: int, copies: Gpas) -> Gpas:
        """An address of RAM in these copies."""
        first = self.ram[gpa // self.block] * self.block + gpa % self.block
        return copies * np.uint64(self.ram_shift) + np.uint64(first)

    def mmio_gpas(self, gpa: int, copies: Gpas, nr_copies: int) -> Gpas:
        """An MMIO address in these copies, of `nr_copies` in all."""
        if self.together:
            return self.ram_gpas(gpa, copies)
        first = self.mmio[gpa // self.block] * self.block + gpa % self.block + nr_copies * self.ram_shift
        return copies * np.uint64(len(self.mmio) * self.block) + np.uint64(first)

    @property
    def ram_shift(self) -> int:
        """Bytes between two copies of RAM."""
        return len(self.ram) * self.block

    def end(self, nr_copies: int) -> int:
        """End of guest memory with that many copies."""
        return nr_copies * (self.ram_shift + (0 if self.together else len(self.mmio) * self.block))


def packing(pattern: Pattern, block: int = GIB, together: bool = False) -> Packing:
    """Number the blocks of guest memory that the input touches.

    Raises:
        UsageError: it touches none.
    """
    numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for gpa in pattern.gpas:
        mine = numbers[gpa in pattern.mmio]
        mine.setdefault(gpa // block, len(mine))
    if not numbers[0] and not numbers[1]:
        raise UsageError(f"{pattern.name}: nothing in it touches guest memory, so there is nothing to repeat")
    if together:
        both = {number: i for i, number in enumerate(sorted({*numbers[0], *numbers[1]}))}
        return Packing(block, both, both, together=True)
    return Packing(block, *numbers)


def packings(pattern: Pattern) -> Iterator[Packing]:
    """The ways to pack a pattern, the most faithful first."""
    apart = packing(pattern)
    if set(apart.ram) & set(apart.mmio):
        yield packing(pattern, together=True)
    yield apart
    yield packing(pattern, 2 * MIB)


@lru_cache(maxsize=1)
def most_slots() -> int:
    """Memslots that a VM can have here: the kernel's number, or more where the core allows it."""
    vm = Vm(kernel="v5.0", events="off", max_memslots=MOST_SLOTS)
    try:
        vm.install_slot(0, vm.generation(0), (MOST_SLOTS - 1, 0, 1, FIRST_HVA, 0))
    except UsageError:
        return KVM_USER_MEM_SLOTS
    return MOST_SLOTS


def nr_slots(pattern: Pattern, packed: Packing, copies: int) -> int:
    """Memslots that so many copies take."""
    if packed.together:
        return copies * len(_pieces(pattern, packed))
    return min(KVM_USER_MEM_SLOTS, copies * len(packed.ram))


def install(vm: Vm, pattern: Pattern, packed: Packing, copies: int) -> None:
    """Put memslots under every copy, without an update of the generation: they were there before the copies ran."""
    if packed.together:
        _install_pieces(vm, _pieces(pattern, packed), copies, packed.ram_shift)
    elif packed.ram:
        _install_runs(vm, pattern, copies * len(packed.ram), packed.block)


def _pieces(pattern: Pattern, packed: Packing) -> list[tuple[int, Slot]]:
    """The input's slots, cut to the blocks that it touches, in copy 0; ids are left open."""
    found = []
    for as_id, slot in pattern.slots:
        for number, index in packed.ram.items():
            low = max(slot.base << PAGE_SHIFT, number * packed.block)
            high = min((slot.base + slot.npages) << PAGE_SHIFT, (number + 1) * packed.block)
            if low < high:
                base = index * packed.block + low % packed.block
                hva = slot.hva + (low - (slot.base << PAGE_SHIFT))
                found.append(
                    (as_id, Slot(0, base >> PAGE_SHIFT, (high - low) >> PAGE_SHIFT, hva, slot.flags))
                )
    return found


def _install_pieces(vm: Vm, pieces: Sequence[tuple[int, Slot]], copies: int, shift: int) -> None:
    """Each copy's own slots, the highest first (the order of an array); all share the input's host memory."""
    for as_id in sorted({as_id for as_id, _ in pieces}):
        mine = sorted((slot for space, slot in pieces if space == as_id), key=lambda slot: -slot.base)
        number = copies * len(mine)
        for copy in reversed(range(copies)):
            for slot in mine:
                number -= 1
                base = slot.base + (copy * shift >> PAGE_SHIFT)
                vm.install_slot(
                    as_id, vm.generation(as_id), (number, base, slot.npages, slot.hva, slot.flags)
                )


def _install_runs(vm: Vm, pattern: Pattern, blocks: int, block: int) -> None:
    """RAM under every block from 0 on, in as many slots as the kernel has."""
    spaces = sorted({as_id for as_id, _ in pattern.slots}) or [0]
    most = KVM_USER_MEM_SLOTS if len(spaces) == 1 else KVM_USER_MEM_SLOTS // 2
    each = -(-blocks // most)
    for as_id in spaces:
        for number, first in enumerate(range(0, blocks, each)):
            npages = min(each, blocks - first) * block >> PAGE_SHIFT
            base = first * block >> PAGE_SHIFT
            slot = (number, base, npages, FIRST_HVA + (base << PAGE_SHIFT), pattern.flags)
            vm.install_slot(as_id, vm.generation(as_id), slot)
