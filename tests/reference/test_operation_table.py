"""The reference's own reading of operations beside the table of operations that the core's side is checked by.

Both are asked the same: every field of every operation left out, and given each of many values, most of which are none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.errors import ScenarioError
from kvm_mmu.reference.common.errors import ScenarioError as ReferenceError
from kvm_mmu.reference.operations import RUN
from kvm_mmu.reference.scenario import OPS_OF_FORMAT, SHADOW_OPS_OF_FORMAT, parse_op
from kvm_mmu.scenario.guest_operations import GUEST_OPERATIONS
from kvm_mmu.scenario.machine_engine import OPERATIONS
from kvm_mmu.scenario.operation_table import (
    FORMATS,
    MAX_NESTING,
    REQUIRED,
    TABLE,
    Field,
    checked_operation,
    fields_of,
    markdown,
)

VCPUS = 3

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
    return {"ops": [], "numbers": [], "bytes": 4, "plan": "merged", "host": None}.get(field.kind, 0)


def whole(name: str, row: dict[str, Field]) -> dict[str, Any]:
    return {"op": name, **{field.name: usual(field) for field in row.values() if field.default is REQUIRED}}


def verdicts(op: Any, format: int = 1, paging: bool = False) -> tuple[bool, bool]:
    """Whether the core's side and the reference take the operation."""
    taken = []
    try:
        checked_operation(op, VCPUS, format, is_paging=paging)
        taken.append(True)
    except ScenarioError as error:
        assert len(str(error)) < 700
        taken.append(False)
    try:
        parse_op(op, VCPUS, format=format, has_guest_tables=paging)
        taken.append(True)
    except ReferenceError as error:
        assert len(str(error)) < 700
        taken.append(False)
    return taken[0], taken[1]


ROWS = [
    pytest.param(format_, paging, name, row, id=f"{format_}-{'paging-' if paging else ''}{name}")
    for format_ in FORMATS
    for paging in (False, True)
    for name, row in fields_of(format_, paging).items()
    if not paging or row != fields_of(format_).get(name)
]
#: The reference's own, by format and whether the guest's tables are shadowed.
REFERENCE_OPS = {False: OPS_OF_FORMAT, True: SHADOW_OPS_OF_FORMAT}


def test_both_have_the_same_operations() -> None:
    for format_ in FORMATS:
        for paging, ops in REFERENCE_OPS.items():
            assert set(fields_of(format_, paging)) == set(ops[format_]), (format_, paging)
    assert {row.name for row in TABLE} == set(OPERATIONS) | set(GUEST_OPERATIONS)
    assert set(RUN) == {name for ops in SHADOW_OPS_OF_FORMAT.values() for name in ops}
    assert set(RUN) == {row.name for row in TABLE}


@pytest.mark.parametrize(("format_", "paging", "name", "row"), ROWS)
def test_both_have_the_same_fields(format_: int, paging: bool, name: str, row: dict[str, Field]) -> None:
    assert list(row) == list(REFERENCE_OPS[paging][format_][name])
    assert verdicts(whole(name, row), format_, paging) == (True, True)
    assert verdicts({**whole(name, row), "vpcu": 1}, format_, paging) == (False, False)
    for field in row.values():
        without = {key: value for key, value in whole(name, row).items() if key != field.name}
        is_free = field.default is not REQUIRED
        assert verdicts(without, format_, paging) == (is_free, is_free), field.name


@pytest.mark.parametrize(("format_", "paging", "name", "row"), ROWS)
def test_both_take_the_same_values(format_: int, paging: bool, name: str, row: dict[str, Field]) -> None:
    for field in row.values():
        for value in VALUES:
            op = {**whole(name, row), field.name: value}
            core, reference = verdicts(op, format_, paging)
            assert core == reference, f"{field.name}={value!r}: core {core}, reference {reference}"


@pytest.mark.parametrize(("format_", "paging", "name", "row"), ROWS)
def test_both_read_the_same_numbers(format_: int, paging: bool, name: str, row: dict[str, Field]) -> None:
    numbers = [field.name for field in row.values() if field.kind in ("number", "flag", "vcpu", "word")]
    for value in ("0x1", 1, 0, None):
        op = whole(name, row)
        if value is not None:
            op |= {field.name: value for field in row.values() if field.kind in ("number", "flag", "vcpu")}
        core = checked_operation(op, VCPUS, format_, is_paging=paging).values
        reference = parse_op(op, VCPUS, format=format_, has_guest_tables=paging)
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
