"""Core against reference (`pytest benches/python --benchmark-enable`): the same operations over both engines.

Groups are named by the row; within a group the backends stand side by side. In the tests each body runs once.
"""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.scenario.language import Scenario, make_engine

PAGES = 256
MMIO = 1 << 40
SLOT = {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": PAGES << 12, "hva": 1 << 33, "flags": 0}


def engine(backend: str) -> Any:
    """A VM with one slot, nothing mapped."""
    made = make_engine(Scenario(kernel="v5.0", config={"family": "ept_ad"}, plans={}), backend=backend)
    made.apply(SLOT)
    return made


def touch(made: Any, first: int, kind: str = "w") -> None:
    for at in range(PAGES):
        made.apply({"op": "access", "vcpu": 0, "gpa": first + (at << 12), "kind": kind})


def mapped(backend: str) -> Any:
    made = engine(backend)
    touch(made, 0)
    return made


def marked(backend: str) -> Any:
    made = engine(backend)
    touch(made, MMIO, "r")
    return made


def run_once(made: Any, op: str) -> None:
    made.apply({"op": op})


@pytest.mark.parametrize("backend", ["core", "reference"])
@pytest.mark.parametrize(
    ("row", "make", "work"),
    [
        ("map", engine, lambda made: touch(made, 0)),
        ("hit", mapped, lambda made: touch(made, 0)),
        ("mmio-first", engine, lambda made: touch(made, MMIO, "r")),
        ("mmio-hit", marked, lambda made: touch(made, MMIO, "r")),
        ("zap-all", mapped, lambda made: run_once(made, "zap_all")),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_row(benchmark: Any, row: str, make: Any, work: Any, backend: str) -> None:
    benchmark.group = row
    made = benchmark.pedantic(work, setup=lambda: ((make(backend),), {}), rounds=3)
    assert made is None
