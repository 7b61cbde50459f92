"""Tables, SVG, HTML and whole files: escaped, capped, the same for the same numbers, never half written."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.view.html import MAX_CHARS, table_html
from kvm_mmu.view.out_folder import write_all
from kvm_mmu.view.tables import csv_text, markdown_table, records, text_table
from kvm_mmu.view.whole_file import write_whole

COLUMNS = {"plan": ["seed", "merged"], "visits": [1_000_000, 24], "share": [0.5, None]}


def test_text_table() -> None:
    lines = text_table(COLUMNS).splitlines()
    assert lines[0].split() == ["plan", "visits", "share"]
    assert lines[2].split() == ["seed", "1,000,000", "0.5"]
    assert lines[3].split() == ["merged", "24", "-"]
    assert "and 1 rows more" in text_table(COLUMNS, limit=1)


def test_markdown_escapes_bars() -> None:
    assert markdown_table({"a|b": ["x|y"]}).splitlines()[-1] == "| x\\|y |"


def test_csv_and_records() -> None:
    assert csv_text(COLUMNS) == "plan,visits,share\nseed,1000000,0.5\nmerged,24,\n"
    assert records(COLUMNS)[1] == {"plan": "merged", "visits": 24, "share": None}


def test_html_is_escaped_and_capped() -> None:
    evil = "<script>alert(1)</script>" + "x" * 200
    page = table_html({evil: [evil] * 200}, caption=evil)
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "and 150 rows more" in page
    body = page.split("<tbody>")[1]
    assert max(len(cell) for cell in body.split("</td>")) < 2 * MAX_CHARS + 100


def test_a_picture_shows_no_control_character() -> None:
    vm = km.Vm(kernel="v5.0", family="npt")
    picture = vm.to_svg("\x1b[31m\0\ufffe & <b>\n")
    assert "\\x1b[31m\\x00\\ufffe &amp; &lt;b&gt;\\x0a" in ElementTree.tostring(
        ElementTree.fromstring(picture), encoding="unicode"
    )


def test_files_are_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    target.parent.mkdir()
    write_whole(target, "one\n")
    with pytest.raises(ZeroDivisionError):
        write_whole(target, lambda stream: stream.write(b"half") / 0)
    assert target.read_text() == "one\n"
    assert write_whole(target, "half a character: \ud800").read_text() == "half a character: \\ud800"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]
    assert [path.name for path in write_all(tmp_path, {"b": "x", "c": "y"})] == ["b", "c"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        write_whole(tmp_path / "file" / "a.txt", "")


def test_a_guest_that_pages_is_drawn_in_three_columns() -> None:
    """Its tables, their shadow, the reverse map; before and after a step what differs is marked, and only that."""
    vm = km.Vm(kernel="v6.12", family="shadow")
    vm.memslots.create(0, gpa=0, size=16 * km.MIB)
    vm.guest.map(0x400000, 0x200000, 12 * km.PAGE_SIZE, "rwu")
    vm.guest.access(0x400000, "w", user=True)
    svg = vm.to_svg("one <moment>")
    ElementTree.fromstring(svg)
    for text in (
        "one &lt;moment&gt;",
        "guest tables",
        "shadow tables",
        "reverse map",
        "gfn 0x200 &lt;- page 4[0]",
    ):
        assert text in svg
    assert "#ffb74d" not in svg and "... 4 more" in svg and "gfn 0x4 is a table" not in svg
    before = vm.clone()
    assert "#ffb74d" not in vm.to_svg(before=before)
    vm.guest.access(0x401000, "r", user=True)
    both = vm.to_svg(before=before)
    ElementTree.fromstring(both)
    assert ">before</text>" in both and ">after</text>" in both
    # The entry's accessed bit changed (a row of each moment); the new leaf and its reverse map are in the later one.
    assert both.count("#ffb74d") == 4 and both.count("gfn 0x201 &lt;- page 4[1]") == 1
    with pytest.raises(km.UsageError, match="before is for a VM that shadows"):
        km.Vm().to_svg(before=before)
    with pytest.raises(km.UsageError, match="before is for a VM that shadows"):
        vm.to_svg(before=km.Vm())
    assert "guest tables" in vm._repr_html_()
