"""What a guest may do with the entries of its own tables: the verdict, the error code and the accessed and dirty bits.

Arrays in, arrays out, one row an access; the core walks each row as a page fault does. Models walk_addr and
permission_fault of v5.0 to v7.3. Source: the architecture's rules of access rights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvm_mmu import _core
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import integer, unsigned

U64 = npt.NDArray[np.uint64]

WRITE, USER, FETCH = 2, 4, 16


class GuestPermissions(NamedTuple):
    """Verdicts as columns, one row an access.

    Attributes:
        allowed: whether the guest may do it; bool.
        error_code: of the guest's page fault, -1 where there is none; int64.
        level: the leaf's, or that of the entry that ended the walk; 0 without paging; uint8.
        gfn: what the address leads to, 0 for a fault; uint64.
        entries: those given, with the bits A and D that the walk sets, a fault sets none; uint64, of the same shape.
    """

    allowed: npt.NDArray[np.bool_]
    error_code: npt.NDArray[np.int64]
    level: npt.NDArray[np.uint8]
    gfn: U64
    entries: U64


def _column(name: str, values: npt.ArrayLike, rows: int) -> U64:
    """The values as one column: a scalar for all rows, or one value a row."""
    array = unsigned(name, values)
    if array.shape not in ((), (rows,)):
        raise UsageError(
            f"{name}: shape {array.shape}; expected a number or {rows} of them, one a row of entries"
        )
    return np.broadcast_to(array, (rows,))


def guest_permissions(
    entries: npt.ArrayLike,
    access: npt.ArrayLike,
    *,
    cr0: npt.ArrayLike = 0x80010001,
    cr4: npt.ArrayLike = 0x20,
    efer: npt.ArrayLike = 0xD00,
    pkru: npt.ArrayLike = 0,
    ac: npt.ArrayLike = False,
    implicit: npt.ArrayLike = False,
    gva: npt.ArrayLike = 0,
    phys_bits: int = 46,
) -> GuestPermissions:
    """`guest_permissions` walks each row of entries as the guest's own tables and says what the access comes to.

    Every argument but `entries` and `phys_bits` is one value for all rows or one value a row. A row's paging mode
    follows from its registers: four or five levels, PAE, two levels of 4-byte entries, or none.

    Args:
        entries: shape (rows, levels), one entry a level; the last column is level 1, the first the top. Rows of a mode
            with fewer levels use the last columns. PAE uses two: its PDPTE counts as present.
        access: what is wanted, as in an error code: 0 read, 2 write, 16 fetch, plus 4 from user mode.
        cr0: PG (bit 31) and WP (bit 16) count.
        cr4: PSE, PAE, LA57, SMEP, SMAP and PKE count.
        efer: LMA (bit 10) and NXE (bit 11) count.
        pkru: two bits a protection key: no access, no write.
        ac: EFLAGS.AC, with which a supervisor reaches user pages under SMAP.
        implicit: a supervisor's access that no instruction asked for; `ac` does not help it.
        gva: the address, bytes; it only adds the low bits of `gfn`.
        phys_bits: guest physical address width, 36 to 52.

    Returns:
        Verdicts as columns, one row an access.

    Raises:
        UsageError: no integers, shapes that do not fit, an access that does not exist, or a row without the entries
            that its mode walks; the message names the argument or the row.
    """
    table = unsigned("entries", entries)
    if table.ndim != 2 or not 1 <= table.shape[1] <= 5:
        raise UsageError(f"entries: shape {table.shape}; expected (rows, levels) with 1 to 5 levels")
    rows = table.shape[0]
    wanted = _column("access", access, rows)
    wrong = (wanted & ~np.uint64(WRITE | USER | FETCH) != 0) | (wanted & (WRITE | FETCH) == WRITE | FETCH)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UsageError(
            f"access: row {row} has {int(wanted[row]):#x}; expected 0, 2 or 16, plus 4 from user mode"
        )
    unasked = _column("implicit", implicit, rows)
    if (both := (unasked != 0) & (wanted & USER != 0)).any():
        raise UsageError(
            f"implicit: row {int(np.argmax(both))} is an access from user mode, which never is one"
        )
    columns = [
        wanted,
        _column("cr0", cr0, rows),
        _column("cr4", cr4, rows),
        _column("efer", efer, rows),
        _column("pkru", pkru, rows),
        _column("ac", ac, rows),
        unasked,
        _column("gva", gva, rows),
    ]
    codes, levels, gfns, marked = _core.guest_permissions(
        table, columns, integer("phys_bits", phys_bits, 36, 52)
    )
    return GuestPermissions(codes < 0, codes, levels, gfns, marked)
