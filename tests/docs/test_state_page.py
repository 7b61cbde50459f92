"""The page on events, counters and state has every one there is, with the fields that it really has."""

from __future__ import annotations

import re
from pathlib import Path

import kvm_mmu as km

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "reference" / "state.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    _, _, after = PAGE.partition(f"## {title}\n")
    return after.partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in section(title).splitlines()
        if line.startswith("| `")
    ]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_event_has_its_fields() -> None:
    """Against the one writer of the list form, field by field as many."""
    source = (ROOT / "src" / "mmu" / "events.rs").read_text(encoding="utf-8")
    body = source[source.index("pub fn write_json(") : source.index("pub fn write_json_rich(")]
    written = {}
    for form in re.findall(r'r#"\[(.*?)\]"#', body):
        name, *fields = form.split(",")
        written[name.strip('"')] = len(fields)
    listed = {}
    for called, fields, _ in rows("Events"):
        parts = fields.split(";")
        for at, name in enumerate(names(called)):
            listed[name] = len(names(parts[at] if len(parts) > 1 else parts[0]))
    assert listed == written


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
    assert keys == set(state)
    (page,) = (row for row in rows("State") if row[0] == "`active[]`")
    assert set(names(page[1].partition("`sptes`")[0])) | {"sptes"} == set(state["active"][0])
    (slot,) = (row for row in rows("State") if row[0] == "`slots[]`")
    assert set(state["as"][0]["slots"][0]) <= set(names(slot[1]))
    assert set(state["vcpus"][0]) <= set(names(rows("State")[-1][1]))
