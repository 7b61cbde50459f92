"""Reading a kernel's memory: virtual and physical addresses, with the place and what was expected in every error.

Owns: the direct map (an address in it is read as a physical one, which is faster), and the list of what was read,
which is what a reduced dump keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import LiveError

PAGE = 4096
U64 = npt.NDArray[np.uint64]
_TOP = 1 << 64
#: The direct map is at most this long: what lies above is something else.
_DIRECT_MAP = {4: 1 << 46, 5: 1 << 52}
#: Where it begins when a kernel has no variable for it.
_DIRECT_MAP_AT = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}
#: A piece of a long array that is read at a time.
PIECE = 8 << 20


class Memory:
    """The memory of one program.

    Args:
        program: the drgn program.
    """

    def __init__(self, program: Any) -> None:
        import drgn

        self._program = program
        self._faults = (drgn.FaultError, OSError, ValueError, OverflowError)
        self.direct_map = 0
        self.direct_map_end = 0
        #: `(is physical, address, size, structure)` of every read while this is a list.
        self.reads: list[tuple[bool, int, int, str]] | None = None

    def set_direct_map(self, base: int | None, levels: int, others: Sequence[int] = ()) -> None:
        """Say where the direct map begins, and what may lie behind it.

        Args:
            base: its first address; None: where it is without randomisation.
            levels: of the host's own page tables.
            others: where other areas of the kernel begin (vmalloc, the array of `struct page`).
        """
        self.direct_map = base or _DIRECT_MAP_AT[levels]
        ends = [self.direct_map + _DIRECT_MAP[levels], *(at for at in others if at > self.direct_map)]
        self.direct_map_end = min(ends)

    def physical(self, address: int, what: str = "a table") -> int:
        """The physical address of one in the direct map.

        Raises:
            LiveError: it is not in the direct map.
        """
        if not self.direct_map <= address < self.direct_map_end:
            raise LiveError(f"{what} {address:#x}: expected an address of the direct map")
        return address - self.direct_map

    def read(self, address: int, size: int, what: str, structure: str = "") -> bytes:
        """Read memory at a virtual address.

        Args:
            address: of the first byte.
            size: how many.
            what: its name in errors.
            structure: the type of what lies there, where only some of its fields are looked at.

        Raises:
            LiveError: it is not there; `what` says what was looked for.
        """
        if self.direct_map <= address and address + size <= self.direct_map_end:
            return self.read_physical(address - self.direct_map, size, what, structure)
        if not 0 <= address <= _TOP - size:
            raise LiveError(f"{what} at {address:#x}: not an address")
        try:
            found: bytes = self._program.read(address, size)
        except self._faults as error:
            raise LiveError(f"{what} at {address:#x}: {_said(error)}") from None
        if self.reads is not None:
            self.reads.append((False, address, size, structure))
        return found

    def read_physical(self, address: int, size: int, what: str, structure: str = "") -> bytes:
        """Read memory at a physical address.

        Raises:
            LiveError: it is not there.
        """
        try:
            found: bytes = self._program.read(address, size, True)
        except self._faults as error:
            raise LiveError(f"{what} at physical {address:#x}: {_said(error)}") from None
        if self.reads is not None:
            self.reads.append((True, address, size, structure))
        return found

    def number(self, address: int, size: int, what: str) -> int:
        """Read an unsigned number."""
        return int.from_bytes(self.read(address, size, what), "little")

    def words(self, address: int, count: int, what: str) -> U64:
        """Read an array of 64-bit words."""
        return np.frombuffer(self.read(address, 8 * count, what), "<u8")

    def pieces(
        self, address: int, count: int, width: int, what: str
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Read a long array piece by piece: the number of the first element, and unsigned elements of `width` bytes."""
        step = PIECE // width
        for first in range(0, count, step):
            number = min(step, count - first)
            yield first, np.frombuffer(self.read(address + first * width, number * width, what), f"<u{width}")


def _said(error: BaseException) -> str:
    text = str(error).partition(":")[0].strip() or type(error).__name__
    return f"cannot be read ({text})"
