"""Every kept scenario file: its recorded results on both backends, and both in lockstep with the audit after each step.

The files are what the random lockstep found, shrunk, one wrong rule each; the header's `note` says which. `audit` in a
header names invariants that the modelled kernel itself breaks there: the audit must then find exactly these. Files
without results are inputs of other tests; they run in lockstep too, those without a kernel on every kernel.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.scenario.language import Scenario, make_engine, read_scenario
from kvm_mmu.scenario.verify import verify_file
from kvm_mmu.testing.lockstep import Lockstep, LockstepDifference
from kvm_mmu.testing.shrink import shrink, with_ops

KERNELS = ("v5.0", "v5.0-seed", "v5.2", "v5.3", "v5.4", "v6.1", "v6.12")


def header_of(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as stream:
        header: dict[str, Any] = json.loads(stream.readline())
    return header


FILES = sorted((Path(__file__).resolve().parents[1] / "data" / "scenarios").glob("*.jsonl"))

RECORDED = [path for path in FILES if "ret" in read_scenario(path).expected[0]]
RUNS = [
    (path, kernel) for path in FILES for kernel in KERNELS if read_scenario(path).kernel in (None, kernel)
]


def pair_of(scenario: Scenario, expected: frozenset[str] = frozenset()) -> Lockstep:
    core, reference = (make_engine(scenario, backend=backend) for backend in ("core", "reference"))
    return Lockstep(core, reference, {"scenario": scenario.name}, 1, expected)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@pytest.mark.parametrize("backend", ["core", "reference"])
def test_the_recorded_results_are_equal(path, backend):
    verdict = verify_file(str(path), None, backend)
    assert verdict.equal, str(verdict)
    assert verdict.steps == len(read_scenario(path))


@pytest.mark.parametrize(("path", "kernel"), RUNS, ids=lambda value: getattr(value, "stem", value))
def test_both_agree_and_the_audit_finds_what_the_header_says(path, kernel):
    expected = frozenset(header_of(path).get("audit", ()))
    scenario = replace(read_scenario(path), kernel=kernel)
    pair = pair_of(scenario, expected)
    found: set[str] = set()
    for op in scenario.ops:
        pair.apply(op)
        found |= {name for name, _ in pair.one.audit()}
    assert found == expected


def test_a_file_for_each_kernel():
    assert {read_scenario(path).kernel for path in RECORDED} == set(KERNELS)


def parts(scenario: Scenario, at_most: int) -> bool:
    """A difference to shrink: a judge that does not accept a counter above a number."""
    engine = make_engine(scenario, backend="core")
    flushes = 0
    for op in scenario.ops:
        flushes += engine.apply(op)["ctr"].get("flush", 0)
    return flushes > at_most


def test_a_scenario_is_shrunk_to_what_matters():
    path = next(path for path in FILES if path.stem == "restart_witness")
    scenario = replace(read_scenario(path), kernel="v5.2")
    small = shrink(scenario, lambda candidate: parts(candidate, 0))
    assert parts(small, 0)
    assert len(small) < len(scenario)
    assert all(
        not parts(with_ops(small, small.ops[:at] + small.ops[at + 1 :]), 0)
        for at in range(len(small))
        if len(small) > 1
    )


def test_nested_operations_are_shrunk_too():
    slot = {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 1 << 20, "hva": 1 << 33, "flags": 0}
    access = {"op": "access", "vcpu": 0, "gpa": 0x1000, "kind": "w"}
    idle = {"op": "clear_mmio_info", "vcpu": 0}
    ops = [idle, {**slot, "during": [[idle, access, idle], [idle]]}, idle, access, idle]

    def nests_a_fault(scenario: Scenario) -> bool:
        engine = make_engine(scenario, backend="core")
        return any(
            nested["op"]["op"] == "access"
            for op in scenario.ops
            for nested in engine.apply(op).get("nested", ())
        )

    small = shrink(Scenario(kernel="v5.2", config={"family": "npt"}, ops=ops), nests_a_fault)
    assert small.ops == [{**slot, "during": [[access]]}]


def test_what_does_not_show_it_is_not_shrunk():
    scenario = Scenario(kernel="v5.0", config={"family": "npt"}, ops=[{"op": "dump"}])
    with pytest.raises(ValueError, match="does not show"):
        shrink(scenario, lambda candidate: False)


def test_a_difference_prints_a_scenario_that_reads_back():
    scenario = Scenario(kernel="v5.0", config={"family": "npt"})
    pair = pair_of(scenario)
    pair.other = make_engine(Scenario(kernel="v5.2", config={"family": "npt"}), backend="reference")
    with pytest.raises(LockstepDifference) as caught:
        pair.apply({"op": "dump"})
    assert read_scenario(str(caught.value).splitlines()[1:], "printed").ops == [{"op": "dump"}]
