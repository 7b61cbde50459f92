"""Core against reference in lockstep on the TDP MMU: small worlds with yields, SMM, several vCPUs and NX huge pages.

Outcome, events and counters after every step, the whole state after some, and the audit. A hundred thousand steps in
`make test`, a million in `make soak`. A difference prints a scenario that can be kept as a file under
tests/data/scenarios.
"""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.scenario.language import Scenario, make_engine
from kvm_mmu.testing.lockstep import Lockstep
from kvm_mmu.testing.tdp_operations import GIB_PLACE, TdpGenerator

KERNELS = ("v6.1.0", "v6.1", "v6.12.0", "v6.12", "v6.18", "v7.1", "v7.2.6", "v7.2", "v7.3")
CONFIGS: dict[str, dict[str, Any]] = {
    "npt": {"family": "npt", "vcpus": 2},
    "npt-nx": {"family": "npt", "vcpus": 2, "nx_huge": 1},
    "npt-5-levels": {"family": "npt", "vcpus": 2, "tdp_level": 5, "phys_bits": 51, "flush_range": 1},
    "npt-52-bits": {"family": "npt", "vcpus": 2, "phys_bits": 52},
    "ept_ad": {"family": "ept_ad", "vcpus": 3},
    "ept_ad-pml": {"family": "ept_ad", "vcpus": 2, "pml": 1, "slot_zap_all": 0},
    "ept_ad-l1tf": {"family": "ept_ad", "vcpus": 2, "phys_bits": 36, "l1tf": 1, "nx_huge": 1},
    "ept_noad": {"family": "ept_noad", "vcpus": 2, "execonly": 0},
    "ept_noad-flush-range": {
        "family": "ept_noad",
        "vcpus": 3,
        "flush_range": 1,
        "lpage_level": 2,
        "eager_split": 0,
    },
}
#: With the ranged hook a kernel leaves what its flushes of a range miss in a TLB.
RANGED_FLUSH_GAPS = frozenset({"tlb_stale"})
CASES = [(kernel, name) for kernel in KERNELS for name in CONFIGS]
#: One run of a case: long enough that the generations wrap, roots come and go and tables fill.
STEPS = 420
RUNS, SOAK_RUNS = 3, 30
#: What a GiB in one page does: a split of all of it has a quarter of a million changes.
GIB_STEPS = 40
GIB_FIRST: list[dict[str, Any]] = [
    {"op": "host_huge", "hva": GIB_PLACE[2], "npages": GIB_PLACE[1] >> 12, "kind": "hugetlb1g"},
    {
        "op": "set_memslot",
        "id": 2,
        "gpa": GIB_PLACE[0],
        "size": GIB_PLACE[1],
        "hva": GIB_PLACE[2],
        "flags": 0,
    },
    {"op": "access", "gpa": GIB_PLACE[0], "kind": "w"},
]


def run(kernel: str, name: str, seed: int, steps: int, with_gib: bool = False) -> None:
    config = {"tdp_mmu": 1, **CONFIGS[name]}
    scenario = Scenario(kernel=kernel, config=config, format=6)
    pair = Lockstep(
        make_engine(scenario, backend="core"),
        make_engine(scenario, backend="reference"),
        {"scenario": "lockstep", "format": 6, "variant": kernel, "config": config, "dump": "all"},
        audit_every=20,
        expected_findings=RANGED_FLUSH_GAPS if config.get("flush_range") else frozenset(),
        state_every=5,
    )
    for op in GIB_FIRST if with_gib else ():
        pair.apply(op)
    pair.run(TdpGenerator(seed, kernel, config, with_gib), steps)
    pair.check_state()
    pair.check_audit()


@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_core_equals_reference(kernel: str, name: str, seed: int) -> None:
    run(kernel, name, seed, STEPS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_core_equals_reference_with_a_gib_in_one_page(kernel: str) -> None:
    for name in ("npt-nx", "ept_ad-pml"):
        run(kernel, name, 2, GIB_STEPS, with_gib=True)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 100 + SOAK_RUNS))
@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_core_equals_reference_for_long(kernel: str, name: str, seed: int) -> None:
    run(kernel, name, seed, STEPS)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 105))
@pytest.mark.parametrize("kernel", KERNELS)
def test_core_equals_reference_with_a_gib_for_long(kernel: str, seed: int) -> None:
    run(kernel, "npt-nx", seed, STEPS // 4, with_gib=True)


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12", "v7.3"])
def test_a_write_tracked_gfn_is_mapped_read_only(kernel: str) -> None:
    """The audit found that the core made such a leaf writable. Each write is emulated, the first one at once."""
    config = {"family": "npt", "tdp_mmu": 1}
    scenario = Scenario(kernel=kernel, config=config)
    pair = Lockstep(
        make_engine(scenario, backend="core"),
        make_engine(scenario, backend="reference"),
        {"scenario": "write_tracked", "format": 1, "variant": kernel, "config": config, "dump": "all"},
    )
    pair.apply({"op": "set_memslot", "id": 0, "gpa": 0, "size": 0x20_0000, "hva": 0x2_0000_0000, "flags": 0})
    pair.apply({"op": "track", "gfn": 0, "on": 1})
    for kind, outcome in (("w", "emulate"), ("r", "hit"), ("w", "emulate")):
        assert pair.apply({"op": "access", "gpa": 0, "kind": kind})["out"]["outcome"] == outcome
    pair.apply({"op": "track", "gfn": 0, "on": 0})
    assert pair.apply({"op": "access", "gpa": 0, "kind": "w"})["out"]["outcome"] == "hit"
