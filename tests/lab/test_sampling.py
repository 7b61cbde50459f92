"""Sampling: the same gfns everywhere, estimates whose error shrinks with the sample, and nothing sampled in silence."""

from __future__ import annotations

import json
import random
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.cli import main
from kvm_mmu.lab.inputs import read_input
from kvm_mmu.lab.sampling import compared, gfn_hash, sampled
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.types import MIB, PAGE_SIZE


def guest(tables: int, leaves: int, mmio: float) -> Scenario:
    """Tables of some random leaves each; of a share of them there is no slot."""
    dice = random.Random(7)
    ops: list[dict[str, object]] = [
        {"op": "set_memslot", "id": 0, "gpa": 0, "size": tables * 2 * MIB, "hva": 1 << 33}
    ]
    for table in range(tables):
        if dice.random() < mmio:
            ops.append({"op": "access", "vcpu": 0, "gpa": (tables + 1 + table) * 2 * MIB, "kind": "r"})
            continue
        for leaf in sorted(range(512), key=lambda _: dice.random())[:leaves]:
            gpa = table * 2 * MIB + leaf * PAGE_SIZE
            ops.append({"op": "access", "vcpu": 0, "gpa": gpa, "kind": "w"})
    return Scenario(name="made", kernel="v5.2", config={}, plans={}, ops=ops, path="made")


def test_all_of_it_is_no_estimate() -> None:
    one = guest(40, 3, 0.2)
    full = km.compare(one, ["merged", "seed", "zap-all"], at="wrap")
    whole = km.compare(one, ["merged", "seed", "zap-all"], at="wrap", sample=1.0)
    assert whole.names == (*full.names, "sample_share", "sample_gfns", "sample_kept")
    for row, estimate in zip(full.rows, whole.rows, strict=True):
        assert {key: estimate[key] for key in row} == row
        assert estimate["sample_gfns"] == estimate["sample_kept"]
    assert not any(compared(full.rows, whole.rows)["error"])


@pytest.mark.parametrize(("tables", "leaves", "share"), [(1024, 1, 0.5), (1024, 1, 0.2), (128, 24, 0.2)])
def test_estimates_are_near_the_full_run(tables: int, leaves: int, share: float) -> None:
    """Sparse and dense tables, walks that grow with the list and one that grows with its square."""
    one = guest(tables, leaves, 0.2)
    plans = ["zap-all", "merged", "seed"]
    full = km.compare(one, plans, at="wrap")
    part = km.compare(one, plans, at="wrap", sample=share)
    found = compared(full.rows, part.rows)
    kept = part.rows[0]["sample_kept"]
    assert kept < 1.2 * share * part.rows[0]["sample_gfns"]
    marked = full.rows[0]["mmio_pages"] * share
    for plan, count, error in zip(found["plan"], found["count"], found["error"], strict=True):
        # Four standard deviations of how many of the pages that decide are in the sample; twice that for a square.
        bound = 4 / (marked if plan != "zap-all" else kept) ** 0.5 * (2 if plan == "seed" else 1)
        assert abs(error) < bound, (plan, count, error)


def test_the_same_gfns_are_in_every_sample() -> None:
    one = guest(64, 4, 0.1)
    some, sample = sampled(one, 0.3)
    more, _ = sampled(one, 0.6)
    kept = {str(op) for op in some.ops}
    assert kept < {str(op) for op in more.ops} and some.ops[0] == one.ops[0]
    assert sample.kept == len(some.ops) - 1 and sample.gfns == len(one.ops) - 1
    assert len({gfn_hash(gfn) for gfn in range(10_000)}) == 10_000
    assert abs(sum(gfn_hash(gfn) < 1 << 63 for gfn in range(10_000)) - 5_000) < 200


def test_a_recording_is_sampled(root: Path) -> None:
    path = root / "tests" / "data" / "traces" / "5.0.1-npt" / "basic" / "trace.txt.xz"
    full = km.compare(path, ["zap-all"]).rows[0]
    found = km.compare(path, ["zap-all"], sample=0.5)
    assert found.rows[0]["sample_kept"] < found.rows[0]["sample_gfns"]
    assert abs(found.rows[0]["faults_again"] - full["faults_again"]) < 0.6 * full["faults_again"]
    assert any("counts are estimates" in note for note in found.notes)
    assert len(sampled(read_input(path), 0.5)[0].ops) < len(read_input(path).ops)
    row = km.sweep([path], ["zap-all"], at="end", sample=0.5, jobs=1).rows[0]
    assert row["sample"] == 0.5 and row["faults_again"] == found.rows[0]["faults_again"]
    plain = km.sweep([path], ["zap-all"], at="end", jobs=1).rows[0]
    assert plain["sample"] is None and plain["cell"] != row["cell"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sample": 0.0}, "expected a share above 0"),
        ({"sample": True}, "expected a share above 0"),
        ({"sample": 1e-9}, "holds none of its"),
        ({"sample": 0.5, "scale": [100]}, "not with scale"),
        ({"sample": 0.5, "cost": "kernel-c-5.0"}, "nor with a cost model"),
    ],
)
def test_what_is_no_sample_is_refused(more: dict[str, object], said: str) -> None:
    with pytest.raises(km.UsageError, match=said):
        km.compare(guest(8, 1, 0.0), ["zap-all"], **more)
    with pytest.raises(km.UsageError, match="a sample is of a file's own memory"):
        km.sweep(["boot"], pages=["64"], sample=0.5)


def test_the_command_prints_the_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(root / "tests" / "data" / "traces" / "5.0.1-npt" / "basic" / "trace.txt.xz")
    words = ["compare", path, "--plan", "zap-all", "--sample", "50%", "--against-full"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "estimates against the full run" in said and "faults_again" in said
    assert main([*words, "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert {row["count"] for row in read["sampling_error"]} >= {"pages", "faults_again"}
