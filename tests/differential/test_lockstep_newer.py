"""Core against reference in lockstep for v5.3, v5.4, v6.1 and v6.12: every step, everything that can be seen."""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.scenario.language import Scenario, make_engine
from kvm_mmu.testing.lockstep import Lockstep
from kvm_mmu.testing.newer_operations import NewerGenerator

CONFIGS: dict[str, dict[str, Any]] = {
    "npt": {"family": "npt", "vcpus": 2},
    "npt-5-levels": {"family": "npt", "vcpus": 2, "tdp_level": 5, "phys_bits": 52},
    "npt-flush-range": {"family": "npt", "vcpus": 2, "flush_range": 1},
    "npt-l1tf": {"family": "npt", "vcpus": 3, "l1tf": 1, "phys_bits": 36},
    "npt-no-l1tf": {"family": "npt", "vcpus": 2, "l1tf": 0, "phys_bits": 40},
    "ept_ad": {"family": "ept_ad", "vcpus": 2},
    "ept_ad-pml": {"family": "ept_ad", "vcpus": 2, "pml": 1},
    "ept_noad": {"family": "ept_noad", "vcpus": 2, "execonly": 0},
}
V6_CONFIGS: dict[str, dict[str, Any]] = {
    "nx-huge-pages": {"family": "npt", "vcpus": 2, "nx_huge_pages": 1, "phys_bits": 40},
    "no-mmio-caching": {"family": "npt", "vcpus": 2, "mmio_caching": 0},
    "no-paging": {"family": "shadow", "guest_paging": 0, "vcpus": 2},
}
CASES = [
    (kernel, name)
    for kernel, names in (
        ("v5.3", CONFIGS),
        ("v5.4", CONFIGS),
        ("v6.1", {**CONFIGS, **V6_CONFIGS}),
        ("v6.12", {**CONFIGS, **V6_CONFIGS}),
    )
    for name in names
]
#: As in test_lockstep: with the ranged hook the kernels themselves leave a TLB entry behind.
RANGED_FLUSH_GAPS = frozenset({"tlb_stale"})
STEPS, SOAK_STEPS = 120, 12_000


def run(kernel: str, name: str, seed: int, steps: int) -> None:
    config = {**CONFIGS, **V6_CONFIGS}[name]
    scenario = Scenario(kernel=kernel, config=config)
    pair = Lockstep(
        make_engine(scenario, backend="core"),
        make_engine(scenario, backend="reference"),
        {"scenario": "lockstep", "format": 1, "variant": kernel, "config": config, "dump": "all"},
        5,
        RANGED_FLUSH_GAPS if config.get("flush_range") else frozenset(),
    )
    pair.apply(
        {"op": "set_memslot", "id": 0, "gpa": "0x0", "size": "0x400000", "hva": "0x200000000", "flags": 0}
    )
    pair.run(NewerGenerator(seed, kernel, config), steps)
    pair.check_audit()


@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_core_equals_reference(kernel, name):
    run(kernel, name, 1, STEPS)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SOAK_STEPS // 200))
@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_core_equals_reference_for_long(kernel, name, seed):
    run(kernel, name, 100 + seed, 200)
