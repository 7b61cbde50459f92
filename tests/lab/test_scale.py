"""Scaling an input: as many pages as asked for, the same mix and ages, and what cannot be scaled refused."""

from __future__ import annotations

from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.lab.scale import scaled, side_by_side
from kvm_mmu.lab.scale_pattern import pattern_of
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.types import GIB, MIB

SLOT = {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 64 * MIB, "hva": 1 << 33, "flags": 0}


def busy(mmio_last: bool = True) -> Scenario:
    """Thirty tables of RAM and six of MMIO in one slot's neighbourhood."""
    ram = [{"op": "access", "gpa": i * 2 * MIB, "kind": "w"} for i in range(30)]
    mmio = [{"op": "access", "gpa": 2 * GIB + i * 2 * MIB, "kind": "r"} for i in range(6)]
    ops = [*ram, *mmio] if mmio_last else [*mmio, *ram]
    return Scenario(name="busy", kernel="v5.0-seed", config={"family": "npt"}, ops=[dict(SLOT), *ops])


@pytest.mark.parametrize("n", [100, 1000, 5000])
@pytest.mark.parametrize("mmio_last", [True, False])
def test_size_mix_and_age(n: int, mmio_last: bool) -> None:
    made = scaled(busy(mmio_last), n)
    assert n <= made.of_scaled.pages <= n + 50
    assert made.workload.vm.audit() == []
    for side in side_by_side(made)[1:]:
        assert side.within is True, side


def test_a_share_is_kept(tmp_path: Path) -> None:
    made = scaled(busy(), 10_000, mmio_share=0.01)
    assert made.of_scaled.mmio_share == pytest.approx(0.01, abs=0.001)
    assert made.of_scaled.age_mmio == pytest.approx(0.0, abs=0.05)
    even = scaled(busy(), 10_000, mmio_share=0.01, mmio_place="even")
    assert even.of_scaled.age_mmio == pytest.approx(0.5, abs=0.05)
    assert even.of_scaled.mmio_pages == made.of_scaled.mmio_pages


def test_only_what_lives_at_the_end_is_repeated() -> None:
    early = [{"op": "access", "gpa": i * 4096, "kind": "w"} for i in range(5)]
    pattern = pattern_of(
        Scenario(name="x", kernel="v5.0", ops=[dict(SLOT), *early, {"op": "zap_all"}, early[0]])
    )
    assert pattern.gpas == [0]
    # A zap at the very end leaves nothing: the population before it is what is meant.
    pattern = pattern_of(Scenario(name="x", kernel="v5.0", ops=[dict(SLOT), *early, {"op": "zap_all"}]))
    assert len(pattern.gpas) == 5
    assert pattern.of_input is not None and pattern.of_input.pages == 4


def test_growth_of_the_seed_is_quadratic_when_mmio_is_old() -> None:
    found = km.compare(
        busy(mmio_last=False), ["seed", "merged", "indexed"], at="wrap", scale=[500, 1500, 5000]
    )
    fits = {fit["plan"]: fit["fit"] for fit in found.fits if fit["of"] == "nodes_visited"}
    assert fits["seed"].exponent == pytest.approx(2.0, abs=0.05)
    assert fits["seed"].low is not None and fits["seed"].low > 1.8
    assert fits["merged"].exponent == pytest.approx(1.0, abs=0.02)
    assert fits["indexed"].exponent == pytest.approx(1.0, abs=0.02)
    assert len(found.sides) == 3 and len(found.rows) == 9


def test_vcpu_operations_and_smm_stay_in_place() -> None:
    ops = [dict(SLOT), {**SLOT, "as": 1, "hva": 1 << 34}]
    ops += [
        {"op": "access", "gpa": 0, "kind": "w"},
        {"op": "smm", "on": 1},
        {"op": "access", "gpa": 0, "kind": "w"},
    ]
    made = scaled(Scenario(name="smm", kernel="v5.2", ops=ops), 500)
    assert made.of_scaled.pages >= 500
    assert made.of_scaled.levels[4] == 2
    assert made.workload.vm.audit() == []


@pytest.mark.parametrize(
    ("ops", "share", "match"),
    [
        ([dict(SLOT)], None, "nothing in it touches"),
        ([dict(SLOT), {"op": "access", "gpa": 0, "kind": "w"}], 0.1, "caches no MMIO"),
        ([{"op": "set_max_raw", "n": 100}, {"op": "access", "gpa": 0, "kind": "w"}], 0.1, "more than the"),
    ],
)
def test_what_cannot_be_scaled(ops: list[dict[str, object]], share: float | None, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        scaled(Scenario(name="x", kernel="v5.0", ops=ops), 1000, mmio_share=share)
