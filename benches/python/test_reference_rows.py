"""The speed table's rows on the reference, and that table, rows and figures name the same things."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
_SPEC = importlib.util.spec_from_file_location("reference_rows", HERE / "reference_rows.py")
assert _SPEC is not None
assert _SPEC.loader is not None
reference_rows = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference_rows)

ROWS = reference_rows.rows()
FIGURES = json.loads((HERE.parent / "kernel_speed.json").read_text(encoding="utf-8"))
NAMES = {f"{row['row']}/{case['case']}" for row in FIGURES["rows"] for case in row["cases"]}
OURS = {row["row"] for row in FIGURES["ours"]}


def test_rows_are_rows_of_the_table() -> None:
    assert {name for name in ROWS if name.partition("/")[0] not in OURS} <= NAMES


@pytest.mark.parametrize(
    "name",
    [
        "map/1 GiB",
        "mmio-hit/random",
        "mmio-stale/",
        "rmap/",
        "pte-list-add/chain of 4",
        "shadow-sync/16 tables",
    ],
)
def test_reference(benchmark: Any, name: str) -> None:
    benchmark.group = name
    assert benchmark(ROWS[name]) > 0
