"""Workloads: how many tables, which of them flagged, where on the list; what a run notes of its guest."""

from __future__ import annotations

import numpy as np
import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.scenario.workload import PLACES, Touch, batches, flagged_tables, mmio_mix, run_scenario_workload


@pytest.mark.parametrize("place", PLACES)
def test_flagged_tables(place: str) -> None:
    chosen = flagged_tables(1000, 0.01, place)
    assert sum(chosen) == 10
    assert chosen == flagged_tables(1000, 0.01, place)
    if place == "head":
        assert chosen[-10:] == [True] * 10
    if place == "tail":
        assert chosen[:10] == [True] * 10


def test_random_places_follow_the_seed() -> None:
    assert flagged_tables(100, 0.1, "random", 1) != flagged_tables(100, 0.1, "random", 2)


@pytest.mark.parametrize(
    ("tables", "share", "place"), [(0, 0.1, "head"), (10, 1.5, "head"), (10, 0.5, "middle")]
)
def test_flagged_tables_refuses(tables: int, share: float, place: str) -> None:
    with pytest.raises(UsageError):
        flagged_tables(tables, share, place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kernel", ["v5.0", "v5.0-seed", "v5.2"])
def test_a_mix_has_the_population_that_it_says(place: str, kernel: str) -> None:
    workload = mmio_mix(600, 0.05, place, kernel=kernel)
    found = workload.population()
    assert found.levels[1] == 600 and found.mmio_pages == 30
    assert found.pages == workload.vm.core.nr_active_pages
    assert workload.vm.audit() == []
    assert found.age_mmio is not None
    low, high = {"head": (0, 0.05), "tail": (0.95, 1), "random": (0.3, 0.7), "even": (0.45, 0.55)}[place]
    assert low <= found.age_mmio <= high


def test_a_mix_without_mmio_and_one_of_nothing_else() -> None:
    assert mmio_mix(10, 0.0).population().mmio_pages == 0
    assert mmio_mix(10, 1.0).population().mmio_pages == 10


def test_neighbours_go_together() -> None:
    touches = [Touch(0, 0, "r"), Touch(0, 4096, "r"), Touch(0, 0, "w"), Touch(1, 0, "w")]
    found = batches(touches)
    assert [(b.vcpu, b.kind, b.gpas.tolist()) for b in found] == [
        (0, "r", [0, 4096]),
        (0, "w", [0]),
        (1, "w", [0]),
    ]
    assert found[0].gpas.dtype == np.uint64
    assert batches([]) == []


def test_nested_accesses_are_noted_once() -> None:
    slot = {
        "op": "set_memslot",
        "as": 0,
        "id": 0,
        "gpa": "0x0",
        "size": "0x200000",
        "hva": "0x200000000",
        "flags": 0,
    }
    scenario = Scenario(
        name="nested",
        kernel="v5.0",
        ops=[
            {**slot, "during": [[{"op": "access", "gpa": "0x1234", "kind": "w"}]]},
            {"op": "access", "gpa": "0x1000", "kind": "w"},
            {"op": "fault", "gpa": "0x5000", "err": 4},
        ],
    )
    workload = run_scenario_workload(scenario)
    assert [(b.kind, b.gpas.tolist()) for b in workload.touches] == [("w", [0x1000]), ("r", [0x5000])]


def test_a_scenario_without_kernel() -> None:
    with pytest.raises(UsageError, match="no kernel"):
        run_scenario_workload(Scenario(ops=[{"op": "dump"}]))
