"""The picture of a guest that pages: what tells tables apart, what is marked, and that nothing runs out of its box."""

from __future__ import annotations

import re

import kvm_mmu as km
from kvm_mmu.view.guest_picture import MAX_ROWS, GuestView, guest_svg


def guest(mode: str) -> km.Vm:
    vm = km.Vm(kernel="v6.12", family="shadow")
    vm.memslots.create(slot=0, gpa=0, size=16 * km.MIB)
    vm.guest.set_mode(mode)
    vm.guest.map(0x40_0000, gpa=0x20_0000, size=12 * km.PAGE_SIZE, flags="rwu")
    vm.guest.access(0x40_0000, "w", user=True)
    return vm


def marked(picture: str) -> list[str]:
    """The rows that are marked."""
    return re.findall(r"<rect [^>]*fill='#ffb74d'/>\s*<text [^>]*>([^<]*)</text>", picture)


def test_parts_of_one_table_are_told_apart() -> None:
    picture = guest("p32").to_svg()
    assert [f"level 2, gfn 0x1, rwux, part {part}<" in picture for part in range(4)] == [True] * 4
    assert ", part" not in guest("long").to_svg()


def test_a_row_is_marked_for_what_it_says_alone() -> None:
    """That a table is unsync now, or stands in two parts, changes none of its rows."""
    vm = guest("p32")
    before = vm.clone()
    vm.guest.map_tables(0x60_0000, pages=16)
    vm.guest.set_entry(0x40_5000, 0x20_6067)
    rows = marked(vm.to_svg(before=before))
    assert rows and not any("0x200200" in row for row in rows)
    assert "unsync" in vm.to_svg(before=before)


def test_rows_keep_their_columns_and_fit() -> None:
    picture = guest("long").to_svg()
    assert "xml:space='preserve'>   0 rwu" in picture
    many = [[page, 511] for page in range(100, 130)]
    slot = {"id": 0, "base": 0, "npages": 1, "rmap": [[1, 0, many]] * (MAX_ROWS + 2), "track": []}
    text = guest_svg(GuestView({"active": [], "as": [{"slots": [slot]}]}, []))
    rows = re.findall(r"xml:space='preserve'>([^<]*)<", text)
    assert len(rows) == MAX_ROWS and all(len(row.replace("&lt;", "<")) <= 52 for row in rows)
    assert "... 2 more" in text
