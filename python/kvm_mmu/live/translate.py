"""Page tables of the host, walked by hand: where a virtual address lies, and which entries say so.

A reduced dump must carry the entries that lead to what it holds, and the guest's memory is reached through the tables
of its VMM's process. Owns the format of x86-64's own tables (not those of KVM).
"""

from __future__ import annotations

from typing import NamedTuple

from kvm_mmu.errors import LiveError
from kvm_mmu.live.memory import Memory
from kvm_mmu.live.program import Opened

_PRESENT, _LARGE = 1, 1 << 7
_ADDRESS = (1 << 52) - 1 & ~0xFFF
_KERNEL_MAP = 0xFFFFFFFF80000000


class Mapped(NamedTuple):
    """Where a virtual address lies: physical address, bytes from there on that are mapped together, entries read."""

    physical: int
    length: int
    entries: list[int]


class HostTables:
    """Page tables of the host.

    Args:
        memory: where they lie.
        root: physical address of the highest one.
        levels: 4 or 5.
        encrypted: the bit of an address that says "encrypted", or 0.
    """

    def __init__(self, memory: Memory, root: int, levels: int, encrypted: int = 0) -> None:
        self._memory, self._root, self._levels = memory, root, levels
        self._mask = _ADDRESS & ~encrypted

    def find(self, address: int) -> Mapped:
        """Walk to a virtual address.

        Raises:
            LiveError: nothing is mapped there, or a table cannot be read.
        """
        table, entries = self._root, []
        for level in range(self._levels, 0, -1):
            shift = 12 + 9 * (level - 1)
            at = table + 8 * (address >> shift & 511)
            entries.append(at)
            entry = int.from_bytes(self._memory.read_physical(at, 8, "a page table of the host"), "little")
            if not entry & _PRESENT:
                raise LiveError(f"address {address:#x}: not mapped by the host's level {level}")
            if level == 1 or (level <= 3 and entry & _LARGE):
                size = 1 << shift
                inside = address & size - 1
                return Mapped((entry & self._mask & ~(size - 1)) + inside, size - inside, entries)
            table = entry & self._mask
        raise LiveError(f"address {address:#x}: no level of the host's tables maps it")


def kernel_tables(opened: Opened, levels: int) -> HostTables:
    """The kernel's own tables.

    Raises:
        LiveError: VMCOREINFO does not say where they are.
    """
    symbol, base = opened.info("SYMBOL(swapper_pg_dir)"), opened.info("NUMBER(phys_base)")
    if symbol is None or base is None:
        raise LiveError("VMCOREINFO does not say where the kernel's page tables are")
    encrypted = int(opened.info("NUMBER(sme_mask)") or "0", 0)
    return HostTables(opened.memory, int(symbol, 16) - _KERNEL_MAP + int(base, 0), levels, encrypted)
