"""Core against reference in lockstep for guests with page tables of their own: everything that can be seen."""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.errors import ScenarioError
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.scenario.language import Scenario, kernel_bug, make_engine
from kvm_mmu.testing.lockstep import Lockstep
from kvm_mmu.testing.paging_operations import MODES, PagingGenerator

#: Rows and the format of their scenarios; those whose access has a read bit and whose roles say SMEP come last.
KERNELS = {
    "v5.0": 1,
    "v5.0-seed": 1,
    "v5.2": 1,
    "v6.1": 6,
    "v6.12": 6,
    "v6.18": 6,
    "v7.1": 6,
    "v7.2": 6,
    "v7.3": 6,
    # The other side of each repair of 2026, as far as no row above has it.
    "v6.12:mmio_over_leaf=overwrite:child_reuse=gfn:max_parents=2": 6,
    "v5.2:child_reuse=gfn_role:max_parents=3:walk_bound=template": 1,
}
CASES = [(kernel, mode) for kernel in KERNELS for mode in MODES]
STEPS = 2000
#: What both say of an operation that no kernel of the row survives.
CRASH = "this kernel crashes"
#: Of 500 steps: ten million in all.
SOAK_PARTS, SOAK_RUNS = 8, 46
STATE_EVERY = 10
assert len(CASES) * STEPS >= 10**5 and len(CASES) * SOAK_PARTS * SOAK_RUNS * 500 >= 10**7


def expected_findings(kernel: str) -> frozenset[str]:
    """What the kernel itself breaks: a list names what is no leaf, a leaf stands at another gfn's place."""
    rules = kernel_profile(kernel).facts
    found: set[str] = set()
    if rules["mmio_over_leaf"] == "overwrite":
        found |= {"rmap_leaf", "leaf_rmap"}
    if rules["child_reuse"] in ("any", "gfn"):
        found |= {"leaf_gfn"}
    return frozenset(found)


def run(kernel: str, mode: str, seed: int, steps: int) -> int:
    """How many steps were run: a kernel that stops with a BUG must stop in both."""
    config: dict[str, Any] = {"family": "shadow", "vcpus": 2 + (mode == "mixed")}
    if KERNELS[kernel] == 6:
        config["tdp_mmu"] = 0
    scenario = Scenario(kernel=kernel, config=config, format=KERNELS[kernel])
    pair = Lockstep(
        make_engine(scenario, backend="core"),
        make_engine(scenario, backend="reference"),
        {
            "scenario": "lockstep",
            "format": KERNELS[kernel],
            "variant": kernel,
            "config": config,
            "dump": "all",
        },
        audit_every=STATE_EVERY,
        expected_findings=expected_findings(kernel),
        state_every=STATE_EVERY,
    )
    # In every other run vCPUs enter SMM, where the rules are such that tables of one space are tables in the other.
    with_smm = seed % 2 == 1 and bool(kernel_profile(kernel).facts["track_all_spaces"])
    ops = PagingGenerator(seed, kernel, config, mode, with_smm=with_smm)
    for op in ops.beginning():
        pair.apply(op)
    for done in range(steps):
        op = next(ops)
        try:
            pair.apply(op)
        except (ScenarioError, ValueError) as error:
            if CRASH in str(error):
                with pytest.raises(ValueError, match=CRASH):
                    pair.other.apply(op)
                return done
            bug = kernel_bug(error)
            assert bug is not None, f"seed {seed}, step {done}: {op}: {error}"
            with pytest.raises(ValueError, match="BUG") as other:
                pair.other.apply(op)
            assert kernel_bug(other.value) == bug
            return done
    pair.check_state()
    return steps


@pytest.mark.parametrize(("kernel", "mode"), CASES)
def test_core_equals_reference(kernel: str, mode: str) -> None:
    seed, left = 1, STEPS
    while left > 0:
        left -= run(kernel, mode, seed, min(left, 250)) + 1
        seed += 1


@pytest.mark.soak
@pytest.mark.parametrize("part", range(SOAK_PARTS))
@pytest.mark.parametrize(("kernel", "mode"), CASES)
def test_core_equals_reference_for_long(kernel: str, mode: str, part: int) -> None:
    for seed in range(SOAK_RUNS):
        run(kernel, mode, 1000 + part * SOAK_RUNS + seed, 500)
