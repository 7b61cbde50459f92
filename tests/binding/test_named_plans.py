"""Every named plan can be forced on every event, as the demo does: one that cannot run is not on the list."""

from __future__ import annotations

import kvm_mmu as km
import pytest
from kvm_mmu.lab import forced_event


@pytest.mark.parametrize("at", ["wrap", "slot-removal", "teardown"])
@pytest.mark.parametrize("name", km.plans)
def test_a_named_plan_runs_for_an_event(name: str, at: str) -> None:
    kernel = "v6.12" if km.plans[name].is_of_roots else "v5.0-seed"
    vm = km.Vm(kernel=kernel, family="npt")
    vm.memslots.create(slot=0, gpa=0, size=4 * km.MIB)
    vm.vcpus[0].access(0x1000, kind="w")
    vm.vcpus[0].access(0xFEE0_0000)
    forced_event.prepare(vm, at)
    assert forced_event.force(vm, at, km.plans[name], 0).outcome == "done"
    assert vm.audit() == []
