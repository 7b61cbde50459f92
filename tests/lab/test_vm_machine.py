"""The state machine for test suites of users: sound kernels pass, an unsound plan or policy is found and shrunk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kvm_mmu as km
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from kvm_mmu.testing import Unsound, VmMachine

FEW = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def machine(**attributes: object) -> type[VmMachine]:
    return type("Mine", (VmMachine,), attributes)


#: The vCPU's MMIO cache goes by space 0, and tracking protects in its own space only (CVE-2026-99082, 0f38453cdb2e).
OLD = frozenset({"mmio_cache_space", "stale_mmio", "tracked_all_spaces", "tracked_write"})


@pytest.mark.parametrize(
    ("kernel", "config", "expected"),
    [
        ("v5.0", {"family": "npt"}, OLD),
        ("v5.2", {"family": "ept_ad"}, OLD),
        ("6.12.117", {"family": "npt"}, frozenset()),
        ("7.3.4", {"family": "ept_ad"}, frozenset()),
    ],
)
def test_a_kernel_with_its_own_plans_is_sound(
    kernel: str, config: dict[str, str], expected: frozenset[str]
) -> None:
    drawn = machine(kernel=kernel, config=config, expected_findings=expected)
    run_state_machine_as_test(drawn, settings=FEW)


def test_the_judge_takes_part() -> None:
    """The vCPU's MMIO cache of v5.2 in system-management mode: four operations, and it would answer for RAM."""
    drawn = machine(kernel="v5.2")()
    drawn.start((0, 4))
    drawn.smm(0, 1)
    drawn.access(0, 1, "r")
    with pytest.raises(Unsound, match="mmio_cache_space"):
        drawn.smm(0, 0)


def test_a_removal_plan_that_takes_nothing_is_found_and_shrunk(tmp_path: Path) -> None:
    found = settings(FEW, max_examples=200, phases=[Phase.generate, Phase.shrink])
    with pytest.raises(Unsound) as caught:
        run_state_machine_as_test(machine(plans={"slot_removal": "seed"}), settings=found)
    text = str(caught.value).split("Failing test case")[0].strip()
    name, _, scenario = text.partition("\n")
    assert name.startswith("leaf_rmap: ")
    operations = [json.loads(line)["op"]["op"] for line in scenario.splitlines()[1:]]
    assert operations == ["set_memslot", "access", "set_memslot"]
    path = tmp_path / "found.jsonl"
    path.write_text(scenario + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "run", str(path)], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 4
    vm = km.Vm(kernel="v6.12", family="npt", tdp_mmu=False, plans={"slot_removal": "seed"})
    vm.memslots.create(slot=0, gpa=0, size=0x4000)
    vm.vcpus[0].access(0, "r")
    vm.memslots.delete(slot=0)
    assert [finding[0] for finding in vm.audit()] == ["leaf_rmap"]


class WrapUnseen(km.SteppedGeneration):
    def is_wrap(self, generation: int) -> bool:
        return False


@pytest.mark.parametrize(
    ("policy", "sound"), [(km.SteppedGeneration(bits=3), True), (WrapUnseen(bits=3), False)]
)
def test_a_policy_that_misses_its_wrap_takes_ram_for_mmio(policy: km.GenerationPolicy, sound: bool) -> None:
    drawn = machine(
        generation=policy, expected_findings=frozenset() if sound else frozenset({"mmio_place"})
    )()
    drawn.start((0, 4))
    drawn.delete_memslot(0)  # two publications
    drawn.access(0, 1, "r")  # marked as MMIO
    drawn.create_memslot(0, 1, (0x200, 2), 0)
    drawn.change_logging(0)
    drawn.change_logging(0)
    drawn.create_memslot(0, 0, (0, 4), 0)  # four publications later the three bits are the same
    if sound:
        drawn.access(1, 1, "r")
    else:
        with pytest.raises(Unsound, match="stale_mmio: gfn 0x1 of space 0 is"):
            drawn.access(1, 1, "r")


def test_an_import_of_the_package_needs_no_hypothesis() -> None:
    code = "import sys, kvm_mmu.testing; assert 'hypothesis' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
