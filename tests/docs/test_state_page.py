"""The page on events, counters and state has every one there is, with the fields that it really has."""

from __future__ import annotations

import re
from pathlib import Path

import kvm_mmu as km
from kvm_mmu.view import meanings

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "reference" / "state.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    _, _, after = PAGE.partition(f"## {title}\n")
    return after.partition("\n## ")[0]


def rows(title: str, columns: int = 0) -> list[list[str]]:
    """The rows of a section whose first cell is a name; of tables with so many columns, where that is said."""
    found = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in section(title).splitlines()
        if line.startswith("| `")
    ]
    return [row for row in found if not columns or len(row) == columns]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def written_by(function: str) -> dict[str, int]:
    """Event to number of fields, from the text of a writer in the core."""
    source = (ROOT / "src" / "mmu" / "vm" / "events.rs").read_text(encoding="utf-8")
    _, _, body = source.partition(f"pub fn {function}(")
    found = {}
    for form in re.findall(r'r#"\[(.*?)\]"#', body.partition("pub fn ")[0]):
        name, *fields = form.split(",")
        found[name.strip('"')] = len(fields)
    return found


def test_every_event_has_its_fields() -> None:
    """Against the writers of the list forms, field by field as many."""
    plain = written_by("write_json")
    stepped = written_by("write_json_stepped")
    told = {name: len(names(fields)) for called, fields in rows("Events", 2) for name in names(called)}
    # In the other form, too, an emulated access has the same fields.
    assert told | {"emulate": 3} == stepped
    written = plain
    listed = {}
    for called, fields, _ in rows("Events", 3):
        parts = fields.split(";")
        for at, name in enumerate(names(called)):
            listed[name] = len(names(parts[at] if len(parts) > 1 else parts[0]))
    assert listed == written


def test_a_page_for_a_browser_names_the_same_fields() -> None:
    """As many names for an event as it has fields, in the same words where this page has them in its own table."""
    plain, stepped = written_by("write_json"), written_by("write_json_stepped")
    assert {**plain, **stepped}.keys() == meanings.EVENTS.keys()
    told = {name: fields.split() for name, (fields, _) in meanings.EVENTS.items()}
    others = {name: fields.split() for name, fields in meanings.STEPPED_FIELDS.items()}
    assert {name: len(told[name]) for name in plain} == plain
    assert {name: len(others.get(name, told[name])) for name in stepped} == stepped
    for called, fields, _ in rows("Events", 3):
        parts = fields.split(";")
        for at, name in enumerate(names(called)):
            assert told[name] == names(parts[at] if len(parts) > 1 else parts[0]), name
    for called, fields in rows("Events", 2):
        for name in names(called):
            assert others.get(name, told[name]) == names(fields), name


def test_every_counter_is_there() -> None:
    vm = km.Vm()
    assert {name for cell, *_ in rows("Work") for name in names(cell)} == set(vm.work)
    assert {name for cell, *_ in rows("Statistics") for name in names(cell)} == set(vm.stats)


def test_the_state_has_these_keys() -> None:
    vm = km.Vm(kernel="v5.0", family="npt")
    vm.memslots.create(slot=0, gpa=0, size=km.MIB)
    vm.vcpus[0].access(0, kind="w")
    state = vm.snapshot()
    keys = {name for cell, *_ in rows("State") if "[]" not in cell for name in names(cell)}
    assert keys == set(state) | set(km.Vm(kernel="v6.12", tdp_mmu=True).snapshot())
    (page,) = (row for row in rows("State") if row[0] == "`active[]`")
    assert set(names(page[1].partition("`sptes`")[0])) | {"sptes"} == set(state["active"][0])
    (slot,) = (row for row in rows("State") if row[0] == "`slots[]`")
    assert set(state["as"][0]["slots"][0]) <= set(names(slot[1]))
    assert set(state["vcpus"][0]) <= set(names(rows("State")[-1][1]))
