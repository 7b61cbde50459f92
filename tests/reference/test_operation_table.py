"""The reference's own reading of operations beside the table of operations that the core's side is checked by.

Both are asked the same: every field of every operation left out, and given each of many values, most of which are none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.errors import ScenarioError
from kvm_mmu.lab.machine_engine import OPERATIONS
from kvm_mmu.lab.operation_table import (
    MAX_NESTING,
    REQUIRED,
    TABLE,
    Field,
    Operation,
    checked_operation,
    markdown,
)
from kvm_mmu.reference.errors import ScenarioError as ReferenceError
from kvm_mmu.reference.operations import RUN
from kvm_mmu.reference.scenario import OPS, parse_op

VCPUS = 3
#: What a scenario of format 1 has.
ROWS = tuple(
    replace(row, fields=tuple(field for field in row.fields if 1 in field.formats))
    for row in TABLE
    if 1 in row.formats
)

#: What a field is given: numbers and their texts, words, and things of the wrong kind.
VALUES: tuple[Any, ...] = (
    *(0, 1, 2, 3, 4, 511, 512, (1 << 15) - 1, 1 << 15, (1 << 40) - 1, 1 << 40, (1 << 64) - 1, 1 << 64, -1),
    *(
        "0",
        "5",
        " 5",
        "5 ",
        "1_000",
        "٣",
        "0x5",
        "0X5",
        "0x",
        "0xg",
        "0x1_0",
        " 0x5",
        "-0x5",
        "+5",
        "0b1",
        "",
    ),
    *(True, False, None, 1.0, 1.5, float("inf"), [], {}, [1], [[]], [[1]], [["dump"]], {"a": 1}),
    *([True], ["5"], ["0x5"], [1 << 64], [[{"op": "dump"}]], [[{"op": "dump", "x": 1}]], [[{"op": "dance"}]]),
    *("r", "w", "R", "rw", "cow", "absent", "zero", "ro", "cow_copy", "fault", "thp", "none", "hugetlb2m"),
    *("set_dirty", "clear_dirty", "write_protect", "flush_shadow_memslot", "merged", "lunch", "walk=up"),
    *("walk=slot,only=slot", "walk=head,only=gfn_range"),
    *(
        {"restart": [[1]]},
        {"restart": 5},
        {"restart": [True]},
        {"restart": ["lunch"]},
        {"offer": ["batch", []]},
    ),
    *(
        {"level": 1},
        {"level": 0},
        {"level": 4},
        {"level": True},
        {"writable": 2},
        {"set": "yes"},
        {"size": 1},
    ),
    *(
        {"found": [1]},
        {"found": [-1]},
        {"found": 1},
        {"found": None},
        {"set": None},
        {"writable": 1, "set": 1},
    ),
)


def usual(field: Field) -> Any:
    """A value that the field takes."""
    if field.words:
        return field.words[0]
    return {"ops": [], "numbers": [], "plan": "merged", "host": None}.get(field.kind, 0)


def whole(row: Operation) -> dict[str, Any]:
    return {"op": row.name, **{field.name: usual(field) for field in row.fields if field.default is REQUIRED}}


def verdicts(op: Any) -> tuple[bool, bool]:
    """Whether the core's side and the reference take the operation."""
    taken = []
    for read, refusal in ((checked_operation, ScenarioError), (parse_op, ReferenceError)):
        try:
            read(op, VCPUS)
        except refusal as error:
            assert len(str(error)) < 700
            taken.append(False)
        else:
            taken.append(True)
    return taken[0], taken[1]


def test_both_have_the_same_operations() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    stepped = {row.name for row in TABLE if 1 not in row.formats}
    assert set(names) == set(OPERATIONS) - stepped == set(OPS) == set(RUN)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_both_have_the_same_fields(row: Operation) -> None:
    assert [field.name for field in row.fields] == list(OPS[row.name])
    assert verdicts(whole(row)) == (True, True)
    assert verdicts({**whole(row), "vpcu": 1}) == (False, False)
    for field in row.fields:
        without = {key: value for key, value in whole(row).items() if key != field.name}
        is_free = field.default is not REQUIRED
        assert verdicts(without) == (is_free, is_free), field.name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_both_take_the_same_values(row: Operation) -> None:
    for field in row.fields:
        for value in VALUES:
            op = {**whole(row), field.name: value}
            core, reference = verdicts(op)
            assert core == reference, f"{field.name}={value!r}: core {core}, reference {reference}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_both_read_the_same_numbers(row: Operation) -> None:
    numbers = [field.name for field in row.fields if field.kind in ("number", "flag", "vcpu", "word")]
    for value in ("0x1", 1, 0, None):
        op = whole(row)
        if value is not None:
            op |= {field.name: value for field in row.fields if field.kind in ("number", "flag", "vcpu")}
        core, reference = checked_operation(op, VCPUS).values, parse_op(op, VCPUS)
        assert {name: core[name] for name in numbers} == {name: reference[name] for name in numbers}


@pytest.mark.parametrize(
    "op", [None, [], "dump", {}, {"op": None}, {"op": 1}, {"op": "dance"}, {"op": ["dump"]}]
)
def test_neither_takes_what_is_no_operation(op: Any) -> None:
    assert verdicts(op) == (False, False)


def test_both_stop_at_the_same_depth() -> None:
    op: dict[str, Any] = {"op": "dump"}
    for depth in range(MAX_NESTING + 2):
        assert verdicts(op) == ((depth <= MAX_NESTING),) * 2
        op = {"op": "lock_break", "do": [[op]]}


def test_a_long_value_is_cut_in_the_error() -> None:
    for op in (
        {"op": "access", "gpa": 0, "kind": "w" * 1_000_000},
        {"op": "w" * 1_000_000},
        {"op": "access", "gpa": 0, "w" * 1_000_000: 0},
        {"op": "clear_dirty_log", "id": 0, "first": 0, "num": 0, "mask": "w" * 1_000_000},
        {"op": "fault", "gpa": 0, "err": 0, "host": {"w" * 1_000_000: 1}},
        {"op": "zap", "plan": "w" * 1_000_000},
        {"op": "zap", "plan": "walk=" + "w" * 1_000_000},
        {"op": "zap", "plan": {"w" * 1_000_000: 1}},
        {"op": "zap", "plan": {"walk": "w" * 1_000_000}},
    ):
        assert verdicts(op) == (False, False)


def test_the_page_has_the_table() -> None:
    root = Path(__file__).resolve().parents[2]
    assert markdown() in (root / "docs" / "reference" / "scenario.md").read_text(encoding="utf-8")


def test_the_values_are_json() -> None:
    assert json.loads(json.dumps(VALUES[:30])) == list(VALUES[:30])
