"""Shadow pages against the guest's own tables: tables made to fit are equal, and each difference is found."""

from __future__ import annotations

import numpy as np
import pytest
from kvm_mmu import live
from kvm_mmu.errors import LiveError
from kvm_mmu.live.audit import audit
from kvm_mmu.live.audit.facts import Seen

pytest.importorskip("drgn", reason="drgn has no wheel for this platform: the extra `live` is not installed")
SHADOW = (
    "6.1.192/npt0",
    "6.1.192/npt0_p32",
    "6.1.192/la57_npt0",
    "6.12.117/npt0_obsolete",
    "6.12.117/npt0_p32",
)
PRESENT, WRITE, USER, DIRTY, LARGE = 1, 2, 4, 0x40, 0x80


class Made:
    """A guest whose tables are those that its shadow pages came from: what each entry must have been."""

    def __init__(self, seen: Seen) -> None:
        self.tables: dict[tuple[int, int], np.ndarray] = {}
        child_of = dict(zip(seen.links.tolist(), seen.child.tolist(), strict=True))
        for at in range(len(seen.entries)):
            row = int(seen.page[at])
            if seen.is_direct[row] or not seen.is_active[row]:
                continue
            role, level, index = int(seen.pages.role[row]), int(seen.level[at]), int(seen.index[at])
            is_short, quadrant = role >> 4 & 1, role >> 5 & 3
            table = self.tables.setdefault(
                (int(seen.pages.space[row]), int(seen.pages.gfn[row])),
                np.zeros(1024 if is_short else 512, "<u4" if is_short else "<u8"),
            )
            if is_short:
                index = (quadrant * 512 + index if level == 1 else quadrant * 256 + index // 2) % 1024
            gfn, extra = int(seen.entries.gfn[at]), DIRTY
            if seen.is_link[at]:
                child = child_of[at]
                gfn, extra = int(seen.pages.gfn[child]), LARGE | DIRTY if seen.is_direct[child] else 0
            elif level > 1:
                extra = DIRTY | LARGE
            if extra & LARGE and is_short:
                gfn &= ~1023
            table[index] = gfn << 12 | PRESENT | WRITE | USER | extra

    def page(self, space: int, gfn: int) -> bytes:
        """A table of the guest."""
        if (space, gfn) not in self.tables:
            raise LiveError("not there")
        return self.tables[space, gfn].tobytes()


def seen_of(dumps, case: str) -> Seen:
    dump = dumps[case]
    with live.open(str(dump.elf), facts=dump.folder) as kernel:
        return Seen(kernel.vms()[0].state)


@pytest.mark.parametrize("case", SHADOW)
def test_tables_that_fit_are_equal(case: str, dumps):
    seen = seen_of(dumps, case)
    found = audit(seen.c, Made(seen))
    assert list(found) == []
    assert found.checks[-1].name == "guest_tables"
    assert found.checks[-1].facts > 100


@pytest.mark.parametrize("case", SHADOW)
@pytest.mark.parametrize(
    ("bit", "said"),
    [
        (PRESENT, "not present"),
        (WRITE, "is writable"),
        (USER, "lets user mode in"),
        (DIRTY, "not dirty"),
        (1 << 12, "gfn"),
    ],
)
def test_difference_is_found(case: str, bit: int, said: str, dumps):
    seen = seen_of(dumps, case)
    guest = Made(seen)
    row = next(
        int(row)
        for row, raw in zip(seen.page[seen.is_leaf], seen.entries.raw[seen.is_leaf], strict=True)
        if not seen.is_direct[row]
        and int(raw) & (bit if bit == USER else WRITE)
        and not seen.pages.column("unsync")[row]
        and seen.pages.level[row] == 1
    )
    guest.tables[int(seen.pages.space[row]), int(seen.pages.gfn[row])] ^= bit
    found = audit(seen.c, guest)
    assert {name for name, _ in found} == {"guest_tables"}
    assert any(said in what for _, what in found), list(found)


def test_page_of_zeros_is_no_memory(dumps):
    seen = seen_of(dumps, "6.1.192/npt0")

    class Zeros:
        def page(self, space: int, gfn: int) -> bytes:
            return bytes(4096)

    found = audit(seen.c, Zeros())
    assert list(found) == []
    assert "not in the source" in found.checks[-1].skipped


def test_source_without_the_process_s_types_says_so(dumps):
    dump = dumps["6.1.192/npt0"]
    with live.open(str(dump.elf), facts=dump.folder) as kernel:
        found = kernel.vms()[0].audit(guest_tables=True)
    assert "mm_struct" in found.checks[-1].skipped
    assert found.verdict == "clean"
