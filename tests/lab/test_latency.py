"""Latency: small cases computed by hand, the livelock of the thread, and the same rows whoever computes them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.cli import main
from kvm_mmu.lab.cost import MODELS
from kvm_mmu.lab.latency.interleaving import INTERLEAVINGS, MOST_HITS, guest_of
from kvm_mmu.lab.latency.percentiles import percentiles
from kvm_mmu.lab.latency.simulated import Simulated, simulate
from kvm_mmu.lab.latency.table import ROW
from kvm_mmu.scenario.workload import Batch, Touch, Workload, mmio_mix

MODEL = MODELS["kernel-c-5.0"]
VISIT, PAGE, SPTE, FAULT = (MODEL.coefficients[i] for i in (0, 3, 5, 6))


def four_tables() -> Workload:
    """Two vCPUs; from the newest: RAM, MMIO, RAM, MMIO, and the three tables above them, the root in use."""
    vm = km.Vm(kernel="v5.0", family="npt", vcpus=2, events="off")
    return mmio_mix(4, 0.5, "even", kernel="v5.0", vm=vm)


def run(
    plan: str, interleaving: str = "adversarial", every: int = 1, made: Workload | None = None
) -> Simulated:
    made = made or four_tables()
    vm = made.vm.clone()
    guest = guest_of(interleaving, vm, made.touches, 1)
    return simulate(vm, km.ZapPlan.parse(plan), guest, every=every, model=MODEL)


def test_percentiles_are_samples() -> None:
    hundred = list(range(100, 0, -1))
    assert percentiles(hundred) == {"p50": 50, "p99": 99, "p999": 100, "max": 100}
    assert percentiles([7]) == {"p50": 7, "p99": 7, "p999": 7, "max": 7}
    assert percentiles([1, 2]) == {"p50": 1, "p99": 2, "p999": 2, "max": 2}
    assert set(percentiles([]).values()) == {None}


def test_a_zap_that_never_offers_the_lock_stops_everybody_for_its_whole_length() -> None:
    found = run("walk=head,only=all")
    # Seven pages looked at and zapped, six of them freed; four leaves, two in the reverse map; six links; a flush.
    units = 7 + 7 * 8 + 6 * 4 + 4 + 2 + 6 + 16
    length = 7 * VISIT + 7 * PAGE + 4 * SPTE
    assert found.holds == [(units, pytest.approx(length))] and found.lock_breaks == 0
    assert found.end is not None and found.end.units == units
    assert [wait.ns for wait in found.waits[0]] == pytest.approx([length])
    # The second of the queue waits for the fault of the first, too, who lets go of the old root: one page more.
    assert [wait.ns for wait in found.waits[1]] == pytest.approx([length + FAULT + PAGE])
    assert [one.ns for one in found.progress] == pytest.approx(
        [length + FAULT + PAGE, length + 2 * FAULT + PAGE]
    )


def test_a_zap_that_offers_the_lock_is_served_last() -> None:
    found = run("walk=head,only=mmio_cached,offer=each_page")
    # Each of the two MMIO tables is the second page that is looked at; three pages without any are left.
    part = 2 * VISIT + PAGE + SPTE
    assert [hold.ns for hold in found.holds] == pytest.approx([part, part, 3 * VISIT])
    # At first both ask at time 0; later each has waited for a part and for the other's fault.
    last = 3 * VISIT + FAULT
    assert [wait.ns for wait in found.waits[0]] == pytest.approx([part, part + FAULT, last])
    assert [wait.ns for wait in found.waits[1]] == pytest.approx([part + FAULT, part + FAULT, last])
    assert found.end is not None and found.end.ns == pytest.approx(2 * part + 4 * FAULT + 3 * VISIT)
    assert found.verdict == "ends" and found.lock_breaks == 2


def test_a_lock_that_few_want_is_dropped_less_often() -> None:
    found = run("walk=head,only=mmio_cached,offer=each_page", every=2)
    assert found.lock_breaks == 1 and len(found.holds) == 2
    assert found.holds[0].ns == pytest.approx(4 * VISIT + 2 * PAGE + 2 * SPTE)


def test_a_guest_in_order_lets_nobody_overtake() -> None:
    touches = [Batch(vcpu, "r", four_tables().touches[0].gpas[:1]) for vcpu in (0, 0, 1, 0, 1)]
    vm = four_tables().vm
    made: list[int] = []

    def faults(touch: Touch) -> bool:
        made.append(touch.vcpu)
        return True

    guest = guest_of("recorded", vm, touches, 1)
    rounds = []
    for _ in range(4):
        made.clear()
        guest.go_on(faults)
        rounds.append(list(made))
    assert rounds == [[0], [0, 1], [0, 1], [0]]


def test_a_guest_that_hits_goes_on_for_a_while_and_draws_its_order() -> None:
    made = four_tables()
    seen: list[list[int]] = []
    for seed in (1, 1, 2):
        asked: list[int] = []

        def hits(touch: Touch, asked: list[int] = asked) -> bool:
            asked.append(touch.gpa)
            return False

        guest_of("round-robin", made.vm, made.touches, seed).go_on(hits)
        assert len(asked) == MOST_HITS and len(set(asked)) == 4
        seen.append(asked)
    assert seen[0] == seen[1] != seen[2]


def test_the_livelock_of_the_thread() -> None:
    """At the wrap of v5.0 the fast invalidate ends; a zap of everything in its place, and the merged walk, do not."""
    found = km.latency(
        "boot",
        ["own", "zap-all", "merged", "seed"],
        kernels=["v5.0"],
        pages=[128],
        mmio=[0.1],
        vcpus=[2],
        interleaving="adversarial",
        jobs=1,
    )
    verdict = {row["plan"]: row["verdict"] for row in found.rows}
    assert verdict == {"own": "ends", "zap-all": "livelock", "merged": "livelock", "seed": "ends"}
    rows = {row["plan"]: row for row in found.rows}
    assert rows["zap-all"]["end_samples"] == 0 and rows["zap-all"]["modelled_end_us_max"] is None
    assert rows["own"]["lock_breaks"] < 40 and rows["seed"]["hold_samples"] == 1
    # What never lets go holds the lock longest, and makes vCPUs wait longest.
    assert rows["seed"]["modelled_wait_us_max"] > 10 * rows["merged"]["modelled_wait_us_max"]
    assert [row["plan"] for row in found.livelocks] == ["zap-all", "merged"]
    # Nobody who adds nothing new keeps the merged walk from its end.
    calm = km.latency("boot", ["merged"], kernels=["v5.0"], pages=[256], interleaving="recorded", jobs=1)
    assert calm.rows[0]["verdict"] == "ends"


def test_the_same_rows_on_any_executor() -> None:
    args = {"kernels": ["v5.0", "v5.2"], "pages": [64], "mmio": [0.1], "runs": 2, "vcpus": [1, 3]}
    alone = km.latency(["boot", "churn"], ["own", "merged"], **args, jobs=1)
    with ThreadPoolExecutor(2) as pool:
        other = km.latency(["boot", "churn"], ["own", "merged"], **args, executor=pool)
    assert alone.to_dict() == other.to_dict() and not alone.failed
    assert all(tuple(row) == ROW for row in alone.rows)
    row = next(row for row in alone.rows if row["plan"] == "merged" and row["vcpus"] == 3)
    assert row["runs"] == 2 and row["end_samples"] == 2
    assert (
        km.latency("boot", ["own"], kernels=["v5.0"], pages=[64], seed=2, jobs=1).rows[0]["first_seed"] == 2
    )


def test_the_tdp_mmu_has_work_units_only_and_nobody_waits_beside_a_shared_zap() -> None:
    found = km.latency("boot", ["own", "tdp-all"], kernels=["v6.12"], pages=[64], jobs=1)
    shared, alone = found.rows
    assert shared["mmu"] == alone["mmu"] == "tdp" and shared["cost_model"] is None
    assert shared["modelled_hold_us_max"] is None and alone["modelled_hold_us_max"] is None
    assert shared["wait_units_max"] == shared["hold_units_max"] < alone["wait_units_max"]
    assert shared["shared_units"] > 0 and shared["end_units_max"] >= shared["shared_units"]
    assert "work units only" in found.to_text().replace("\n  ", " ")
    slot = km.latency("boot", ["own"], kernels=["v5.2"], pages=[64], at="slot-removal", jobs=1).rows[0]
    assert slot["cost_model"] is None and slot["hold_units_max"] > 0  # nothing of such a walk was timed


def test_simulated_and_measured_time_share_no_column() -> None:
    found = km.latency("boot", kernels=["v5.0"], pages=[64], jobs=1)
    assert not any("measured" in name for name in found.columns)
    assert [name for name in found.columns if "us" in name.split("_")] == [
        name for name in found.columns if name.startswith("modelled_")
    ]
    assert "measured" not in found.to_text().partition("note:")[0]
    assert "measured wall seconds" in found.to_text(measured=True)
    assert "measured_rows" not in found.to_dict()
    other = km.latency("boot", kernels=["v5.0"], pages=[64], cost_model="kernel-c-5.0-epyc", jobs=1)
    assert other.rows[0]["hold_units_max"] == found.rows[0]["hold_units_max"]
    assert other.rows[0]["modelled_hold_us_max"] > found.rows[0]["modelled_hold_us_max"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"interleaving": "random"}, f"expected one of {', '.join(INTERLEAVINGS)}"),
        ({"at": "teardown"}, "no vCPU runs any more"),
        ({"cost_model": "guess"}, "kernel-c-5.0-epyc"),
        ({"every": 0}, "every"),
        ({"runs": 0}, "runs"),
        ({"plans": [print]}, "a function has no lock breaks"),
    ],
)
def test_what_is_no_simulation_is_refused(more: dict[str, object], said: str) -> None:
    with pytest.raises(km.UsageError, match=said):
        km.latency("boot", **{"pages": [64], "jobs": 1, **more})


def test_the_command_says_so_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "latency boot --kernels v5.0 --plans own,zap-all --pages 64 --interleaving adversarial".split()
    assert main([*words, "-o", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert max(map(len, said.partition("written:")[0].splitlines())) <= 80
    assert "livelock" in said and "modelled us" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("hold.svg", "latency.csv", "progress.svg", "report.html", "wait.svg")
    ]
    assert main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["schema"] == "kvm-mmu/latency/1"
