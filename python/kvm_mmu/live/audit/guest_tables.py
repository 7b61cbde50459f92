"""The check that needs the guest's memory: shadow pages in sync against the tables that they shadow.

Compared are the gfn, what a link leads to, and that nothing is allowed that the guest does not allow. Source: the
formats of x86's page tables; entries of 32-bit tables are half as long, so a shadow page has a quadrant of one.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kvm_mmu.errors import LiveError
from kvm_mmu.live.audit.facts import WRITABLE, Seen
from kvm_mmu.live.audit.findings import Check

_PRESENT, _WRITE, _USER, _DIRTY, _LARGE = 1, 2, 4, 1 << 6, 1 << 7
_ADDRESS = (1 << 52) - 1 & ~0xFFF


class Guest(Protocol):
    """Whatever gives pages of the guest."""

    def page(self, space: int, gfn: int) -> bytes:
        """One page, or `LiveError`."""


def guest_tables(seen: Seen, check: Check, guest: Guest) -> None:
    """The entries of a table in sync are those of the guest's own table."""
    pages = seen.pages
    unsync = pages.column("unsync")
    rows = np.flatnonzero(seen.is_active & ~seen.is_direct & ~seen.is_invalid & (unsync == 0))
    missing = 0
    for row in rows.tolist():
        inside = seen.entries.of(row)
        if inside.start == inside.stop:
            continue
        try:
            data = guest.page(int(pages.space[row]), int(pages.gfn[row]))
        except LiveError:
            missing += 1
            continue
        if not any(data):  # a dump that leaves guest memory out may read as zeros
            missing += 1
            continue
        _compare(seen, check, row, inside, data)
    if missing:
        check.skipped = f"{missing} of {len(rows)} tables of the guest are not in the source"


def _compare(seen: Seen, check: Check, row: int, inside: slice, data: bytes) -> None:
    bits = {
        name: int(seen.pages.role[row]) >> at & (1 << width) - 1
        for name, (at, width) in seen.c.facts.role_bits.items()
    }
    level = int(seen.pages.level[row])
    is_short = bool(
        bits.get("has_4_byte_gpte") or bits.get("gpte_is_8_bytes") == 0 or bits.get("cr4_pae") == 0
    )
    table = np.frombuffer(data, "<u4" if is_short else "<u8").astype(np.uint64)
    child_of: dict[int, int] = dict(zip(seen.links.tolist(), seen.child.tolist(), strict=True))
    for at in range(inside.start, inside.stop):
        index = int(seen.index[at])
        check.compare(1)
        said = _part(
            seen, at, int(table[_guest_index(index, level, is_short, bits)]), is_short, bits, child_of.get(at)
        )
        if said:
            check.find(f"{seen.entry_name(at)}: {said}")


def _guest_index(index: int, level: int, is_short: bool, bits: dict[str, int]) -> int:
    if not is_short:
        return index
    quadrant = bits.get("quadrant", 0)
    return quadrant * 512 + index & 1023 if level == 1 else (quadrant * 256 + (index >> 1)) & 1023


def _part(seen: Seen, at: int, gpte: int, is_short: bool, bits: dict[str, int], child: int | None) -> str:
    """What is wrong with one entry against the guest's, in words; "" for nothing."""
    level, raw, own = int(seen.level[at]), int(seen.entries.raw[at]), int(seen.entries.gfn[at])
    if not gpte & _PRESENT:
        return f"the guest's entry {gpte:#x} is not present"
    is_large = level > 1 and bool(gpte & _LARGE)
    gfn = (gpte & _ADDRESS) >> 12
    if is_large:
        # A large page of a 32-bit table has 4 MiB, of which an entry here maps a half.
        gfn &= ~((1 << (10 if is_short else 9 * (level - 1))) - 1)
        if is_short:
            gfn += 512 * (int(seen.index[at]) & 1)
    if seen.is_link[at]:
        if child is None or child < 0:
            return ""  # said by link_level
        is_direct, found = bool(seen.is_direct[child]), int(seen.pages.gfn[child])
        if is_direct != is_large:
            return f"leads to a {'direct page' if is_direct else 'shadowed table'}, the guest's entry is {gpte:#x}"
        return "" if found == gfn else f"leads to a page of gfn {found:#x}, the guest's entry says {gfn:#x}"
    if level > 1 and not is_large and not seen.is_mmio[at]:
        return f"is a large leaf, the guest's entry {gpte:#x} leads to a table"
    if own != gfn:
        return f"is of gfn {own:#x}, the guest's entry says {gfn:#x}"
    if seen.is_mmio[at]:
        return ""
    return _too_much(seen, raw, gpte, bits)


def _too_much(seen: Seen, raw: int, gpte: int, bits: dict[str, int]) -> str:
    if raw & int(WRITABLE) and bits.get("cr0_wp", 1):
        if not gpte & _WRITE:
            return f"is writable, the guest's entry {gpte:#x} is not"
        if not gpte & _DIRTY:
            return f"is writable, the guest's entry {gpte:#x} is not dirty"
    if raw & seen.c.facts.masks.get("user", _USER) and not gpte & _USER:
        return f"lets user mode in, the guest's entry {gpte:#x} does not"
    return ""


def check_guest(seen: Seen, guest: Any) -> Check:
    """Do the check; `guest` is what gives pages, or the error that says why there is none."""
    check = Check("guest_tables")
    if isinstance(guest, LiveError):
        check.skipped = str(guest)
    elif not len(np.flatnonzero(seen.is_active & ~seen.is_direct)):
        check.skipped = "no table of the guest is shadowed"
    else:
        guest_tables(seen, check, guest)
    return check
