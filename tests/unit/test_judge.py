"""The judge of a VM: it changes nothing, is silent on sound kernels, and names what is not sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import UsageError, Vm
from kvm_mmu.scenario.language import make_engine, open_scenario
from kvm_mmu.scenario.machine_engine import MachineEngine

SLOT: dict[str, Any] = {
    "op": "set_memslot",
    "as": 0,
    "id": 0,
    "gpa": 0,
    "size": 0x1000,
    "hva": 0x10000000,
    "flags": 0,
}


def judged(kernel: str, *ops: dict[str, Any], **config: Any) -> list[str]:
    """The names of what the judge finds after some operations."""
    engine = MachineEngine(kernel, {"family": "npt", **config})
    engine.vm.set_judged()
    for op in ops:
        engine.apply(op)
    return [name for name, _ in engine.vm.judge()]


@pytest.mark.parametrize(
    "name",
    ["v5.0/smm_stale_vcpu_mmio_cache.npt", "v6.12/zap_all_active_roots.npt.tdp1", "v6.1/aging.ept_ad.tdp1"],
)
def test_a_ghost_changes_nothing(data: Path, name: str) -> None:
    with open_scenario(data / "vectors" / f"{name}.jsonl.xz") as (scenario, steps):
        engine, plain = make_engine(scenario), make_engine(scenario)
        engine.vm.set_judged()
        for _, op in steps:
            assert engine.apply(op) == plain.apply(op)
            assert engine.digest() == plain.digest()


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_vectors_of_fixed_kernels_are_sound(data: Path, kernel: str) -> None:
    files = [path for path in sorted((data / "vectors" / kernel).glob("*.xz")) if ".shadow" not in path.name]
    assert len(files) > 20
    for path in files[::7]:
        with open_scenario(path) as (scenario, steps):
            engine = make_engine(scenario)
            engine.vm.set_judged()
            for _, op in steps:
                engine.apply(op)
                assert engine.vm.judge() == [], (path.name, op)


def test_the_mmio_cache_of_another_space_is_found_and_not_in_a_kernel_that_has_the_fix() -> None:
    ops = (
        SLOT,
        {"op": "smm", "vcpu": 0, "on": 1},
        {"op": "access", "vcpu": 0, "gpa": 0x5000, "kind": "r"},
        {**SLOT, "as": 1, "id": 1, "gpa": 0x5000},
        {"op": "access", "vcpu": 0, "gpa": 0x5000, "kind": "r"},
    )
    assert "stale_mmio" in judged("v5.2", *ops)
    assert judged("v6.12", *ops) == []
    assert "stale_mmio" in judged("v6.12:mmio_cache_space=zero", *ops)


def test_a_tracked_gfn_is_not_written_through_another_space() -> None:
    ops = (
        SLOT,
        {**SLOT, "as": 1, "hva": 0x10000000},
        {"op": "track", "as": 0, "gfn": 0, "on": 1},
        {"op": "smm", "vcpu": 0, "on": 1},
        {"op": "access", "vcpu": 0, "gpa": 0, "kind": "w"},
    )
    assert {"tracked_all_spaces", "tracked_write"} <= set(judged("v5.2", *ops))
    assert judged("v6.12", *ops) == []


def test_the_wrap_of_v5_0_that_never_comes() -> None:
    ops = (
        SLOT,
        {"op": "set_generation", "as": 0, "gen": 2},
        {"op": "access", "vcpu": 0, "gpa": 0x5000, "kind": "r"},
        {"op": "set_generation", "as": 0, "gen": 0xFFFFE},
        {**SLOT, "id": 1, "gpa": 0x5000},
        {"op": "access", "vcpu": 0, "gpa": 0x5000, "kind": "r"},
    )
    assert "stale_mmio" in judged("v5.0", *ops)


def test_a_vm_that_nobody_judges_says_so() -> None:
    with pytest.raises(UsageError, match="set_judged"):
        Vm(kernel="v6.12").judge()


def test_a_judged_vm_is_judged_from_now_on() -> None:
    vm = Vm(kernel="v6.12", family="npt")
    vm.memslots.create(slot=0, gpa=0, size=1 << 20)
    vm.vcpus[0].access(0)
    vm.set_judged()
    vm.memslots.delete(0)
    assert vm.judge() == []
    twin = vm.clone()
    assert twin.judge() == []
