"""The audit of TLBs in a lock break, where prepared pages wait and a flush is owed.

Without a ghost it says nothing of them there, since a TLB may lag behind; with one it says what no debt accounts for.
The stale translation is a kernel's own: v5.10 writes an MMIO SPTE over a leaf, flushes nothing and leaves the reverse
map as it was (`mmio.fault.7`).
"""

from __future__ import annotations

from typing import Any

import kvm_mmu as km
import pytest
from kvm_mmu.types import KVM_MEMSLOT_INVALID

M2 = 2 * km.MIB


def overwrite(vm: km.Vm) -> None:
    """An MMIO SPTE over the leaf at gpa 0, whose slot is on its way out."""
    slot, generation = vm.memslots.get(0), vm.memslots.generations[0]
    vm.install_slot(0, generation + 2, (slot.id, slot.base, slot.npages, slot.hva, KVM_MEMSLOT_INVALID))
    vm.vcpus[0].fault(0, 4)


def vm_of(kernel: str, is_judged: bool) -> km.Vm:
    vm = km.Vm(kernel=kernel, family="npt", tdp_mmu=False, vcpus=2)
    vm.core.set_max_raw(1000)
    vm.set_judged(is_judged)
    vm.memslots.create(slot=0, gpa=0, size=M2)
    vm.memslots.create(slot=1, gpa=64 * M2, size=64 * M2)
    vm.vcpus[0].access(0, kind="w")
    for at in range(40):
        vm.vcpus[1].access((64 + at) * M2, kind="w")
    return vm


def found_in_a_break(vm: km.Vm, act: Any) -> list[str]:
    vm.core.set_lock_break(2, 3)
    for _ in vm.zap_steps("walk=tail,only=gfn_range,offer=each_page", gfn_range=(64 * 512, 80 * 512)):
        act(vm)
        return [name for name, _ in vm.audit()]
    raise AssertionError("the run took no break")


@pytest.mark.parametrize(("is_judged", "names"), [(False, ["rmap_leaf"]), (True, ["rmap_leaf", "tlb_stale"])])
def test_a_stale_translation_is_told_in_a_break_where_a_ghost_listens(
    is_judged: bool, names: list[str]
) -> None:
    assert found_in_a_break(vm_of("v5.10", is_judged), overwrite) == names


@pytest.mark.parametrize("kernel", ["v5.10", "v6.12", "v7.3"])
def test_what_is_owed_is_not_called_stale(kernel: str) -> None:
    """Pages are prepared and not flushed: their translations are somebody's debt."""
    assert found_in_a_break(vm_of(kernel, True), lambda vm: None) == []
