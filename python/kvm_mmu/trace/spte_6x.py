"""SPTE words of v6.1 and v6.12 with the legacy masks (AMD): leaves, MMIO entries, links to tables.

| bit | meaning |
|---|---|
| 0, 1, 2 | present, writable, user |
| 5, 6, 7 | accessed, dirty, large |
| 9, 10 | host writable, MMU writable |
| 11 | MMU present |
| 51 | MMIO (with bit 0, without bit 11) |
| 63 | no execute |
"""

from __future__ import annotations

PRESENT, WRITABLE, USER = 1 << 0, 1 << 1, 1 << 2
ACCESSED, DIRTY, LARGE = 1 << 5, 1 << 6, 1 << 7
HOST_WRITABLE, MMU_WRITABLE, MMU_PRESENT = 1 << 9, 1 << 10, 1 << 11
NO_EXECUTE = 1 << 63
_MMIO = 1 << 51 | PRESENT
_FRAME = 0x000FFFFFFFFFF000
_CPU_SETS = ACCESSED | DIRTY

#: Generation bits 0-7 of an MMIO entry are its bits 3-10, generation bits 8-18 its bits 52-62.
_GEN_LOW, _GEN_HIGH = 0xFF, 0x7FF
GEN_MASK = (1 << 19) - 1


def is_mmio(value: int) -> bool:
    """An MMIO entry."""
    return value & _MMIO == _MMIO and not value & MMU_PRESENT


def is_shadow_present(value: int) -> bool:
    """A leaf or a link; MMIO and empty entries are not."""
    return bool(value & MMU_PRESENT)


def make_mmio(gfn: int, access: int, gen: int) -> int:
    """The MMIO entry of a gfn; the executable bit of the access is not kept."""
    gen &= GEN_MASK
    return (
        _MMIO | access & (WRITABLE | USER) | gfn << 12 | (gen & _GEN_LOW) << 3 | (gen >> 8 & _GEN_HIGH) << 52
    )


def mmio_gen(value: int) -> int:
    """The generation an MMIO entry was made with, its low 19 bits."""
    return value >> 3 & _GEN_LOW | (value >> 52 & _GEN_HIGH) << 8


def mmio_gfn(value: int) -> int:
    """The gfn of an MMIO entry."""
    return (value & _FRAME & ~(1 << 51)) >> 12


def mmio_access(value: int) -> int:
    """The access of an MMIO entry: writable and user."""
    return value & (WRITABLE | USER)


def make_leaf(pfn: int, level: int, *, host_writable: bool, prefetch: bool, executable: bool) -> int:
    """A leaf with all access the host allows. The dirty bit comes with the writable one; `drop_dirty` takes
    it off."""
    value = PRESENT | USER | MMU_PRESENT | pfn << 12 & _FRAME
    if not prefetch:
        value |= ACCESSED
    if level > 1:
        value |= LARGE
    if host_writable:
        value |= HOST_WRITABLE | MMU_WRITABLE | WRITABLE | DIRTY
    if not executable:
        value |= NO_EXECUTE
    return value


def make_link(page: int) -> int:
    """An entry that points to a table."""
    return PRESENT | WRITABLE | USER | ACCESSED | MMU_PRESENT | page << 12 & _FRAME


def pfn_of(value: int) -> int:
    """The frame of a leaf."""
    return (value & _FRAME) >> 12


def same_but_cpu_bits(one: int, other: int) -> bool:
    """Equal, apart from what the CPU sets by itself."""
    return one | _CPU_SETS == other | _CPU_SETS


def access_text(value: int) -> str:
    """`rwxu` with a dash for what is missing."""
    executable = not value & NO_EXECUTE
    return (
        f"{'r' if value & PRESENT else '-'}{'w' if value & WRITABLE else '-'}"
        f"{'x' if executable else '-'}{'u' if value & USER else '-'}"
    )
