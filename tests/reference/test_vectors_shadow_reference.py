"""Core and reference against the vectors of shadow paging: each result, event, counter, digest and state.

The files that come with the project are in tests/vectors/equal.txt. This test takes the shared ones besides, where
they are: every eighth in the short run, all of them in a long one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.errors import ScenarioError
from kvm_mmu.scenario.language import read_scenario, run_scenario
from kvm_mmu.scenario.verify import verify_file

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {"v5.0": "v5.0", "seed": "v5.0-seed", "v5.2": "v5.2", "v6.1": "v6.1", "v6.12": "v6.12"}
SHARED = Path(os.environ.get("KVM_MMU_SHARED", ROOT.parent / "shared")) / "vectors"
FILES = sorted(path for variant in KERNELS for path in (SHARED / variant).glob("*.shadow.*jsonl*"))
IN_SHORT_RUN = 8


def cases() -> list[Any]:
    if not FILES:
        return [
            pytest.param(None, marks=pytest.mark.skip("no vectors here: set KVM_MMU_SHARED to run this test"))
        ]
    return [
        pytest.param(
            path,
            id=f"{path.parent.name}/{path.name.split('.jsonl')[0]}",
            marks=[] if number % IN_SHORT_RUN == 0 else [pytest.mark.soak],
        )
        for number, path in enumerate(FILES)
    ]


@pytest.mark.parametrize("backend", ["core", "reference"])
@pytest.mark.parametrize("path", cases())
def test_every_step_is_equal(path: Path, backend: str) -> None:
    verdict = verify_file(str(path), KERNELS[path.parent.name], backend)
    assert verdict.equal, str(verdict)


OURS = ROOT / "tests" / "data" / "vectors" / "v5.0"


@pytest.mark.parametrize("backend", ["core", "reference"])
def test_a_bug_of_the_kernel_ends_the_run(backend: str) -> None:
    scenario = read_scenario(next(OURS.glob("sx_rsvd_long.shadow.*")))
    *_, before, last = run_scenario(scenario, backend=backend)
    assert before["ret"] == 0
    assert last["bug"] == "mmu.c:1060 gfn != kvm_mmu_page_get_gfn(sp, index)"
    assert set(last) == {"i", "op", "bug"}


@pytest.mark.parametrize("kernel", ["v5.3", "v5.10", "v6.12.0"])
def test_the_core_names_a_kernel_that_it_does_not_shadow_for(kernel: str) -> None:
    scenario = read_scenario(next(OURS.glob("shadow_basic.shadow.*")))
    with pytest.raises(ScenarioError, match="a kernel whose shadow paging is modelled"):
        next(run_scenario(scenario, kernel))


@pytest.mark.parametrize("kernel", ["v5.3", "v5.10", "v6.12.0"])
def test_the_reference_names_a_kernel_that_it_does_not_shadow_for(kernel: str) -> None:
    scenario = read_scenario(next(OURS.glob("shadow_basic.shadow.*")))
    with pytest.raises(ScenarioError, match=f"page tables of their own are not modelled for {kernel}"):
        next(run_scenario(scenario, kernel, "reference"))
