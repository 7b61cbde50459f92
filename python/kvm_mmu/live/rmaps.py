"""Reverse-map heads and parents: what a head holds, and the chains of descriptors behind it.

A head is 0, the address of one SPTE, or the address of a `pte_list_desc` with bit 0 set. Owns: `Heads`, one row an
SPTE address, in the order of the chain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import LiveError
from kvm_mmu.live.chains import Faults, chain_nodes
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import U64, Memory

I64 = npt.NDArray[np.int64]
_MANY = np.uint64(1)
#: Bits of a head that are no address: bit 0 many, bit 1 is a lock in newer kernels.
_FLAGS = np.uint64(7)


class Heads:
    """What heads hold: `head` is the number of the head that an SPTE address (`sptep`) stands under."""

    def __init__(self, head: I64, sptep: U64) -> None:
        self.head, self.sptep = head, sptep

    def __len__(self) -> int:
        return len(self.sptep)


class PteLists:
    """Reads chains of descriptors.

    Args:
        memory: where they lie.
        layout: of the kernel.
    """

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory = memory
        self._size = layout.size("struct pte_list_desc")
        sptes = layout["pte_list_desc.sptes"]
        self._sptes, self._slots = sptes.offset, max(1, sptes.length)
        self._more = layout["pte_list_desc.more"].offset
        self._count = layout.find("pte_list_desc.count")

    def expand(self, number: I64, value: U64, what: str, faults: Faults) -> Heads:
        """Follow heads that are not 0.

        Args:
            number: of each head, ascending.
            value: what is in it.
            what: its name in errors.
            faults: takes a sentence for each chain that breaks.

        Returns:
            Every SPTE address, in the order of heads and chains.
        """
        many = np.flatnonzero(value & _MANY)
        if not len(many):
            return Heads(number, value & ~_FLAGS)
        chains: dict[int, list[int]] = {}
        lengths = np.ones(len(value), np.int64)
        for place in many.tolist():
            chains[place] = self._chain(int(value[place]) & ~7, f"{what}, head {int(number[place])}", faults)
            lengths[place] = len(chains[place])
        head = np.repeat(number, lengths)
        sptep = np.repeat(value & ~_FLAGS, lengths)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        for place, chain in chains.items():
            sptep[starts[place] : starts[place] + len(chain)] = np.array(chain, np.uint64)
        return Heads(head, sptep)

    def _chain(self, address: int, what: str, faults: Faults) -> list[int]:
        found: list[int] = []
        raw = b""

        def following(place: int) -> int:
            return int.from_bytes(raw[self._more : self._more + 8], "little")

        nodes = chain_nodes(address, following, f"{what}: the chain", faults)
        try:
            for node in nodes:
                raw = self._memory.read(node, self._size, "a descriptor of SPTEs")
                found += self._addresses(raw, node, what, faults)
        except LiveError as error:
            faults.add(f"{what}: {error}")
        return found

    def _addresses(self, raw: bytes, node: int, what: str, faults: Faults) -> list[int]:
        slots: list[int] = np.frombuffer(raw, "<u8", self._slots, self._sptes).tolist()
        if self._count is None:
            return slots[: slots.index(0)] if 0 in slots else slots
        at = self._count
        count = int.from_bytes(raw[at.offset : at.offset + at.size], "little")
        if count > self._slots:
            faults.add(
                f"{what}: the descriptor at {node:#x} says {count} SPTEs, expected at most {self._slots}"
            )
            count = self._slots
        return slots[:count]
