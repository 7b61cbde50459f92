"""Rules that no recorded vector exercises, held against the reference: the tests that kill the mutants vectors miss."""

from __future__ import annotations

import kvm_mmu as km
import pytest
from kvm_mmu.lab.scenario import Scenario, make_engine
from kvm_mmu.testing.lockstep import Lockstep

HVA = 0x2_0000_0000
SLOT = {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 1 << 22, "hva": HVA, "flags": 0}


def lockstep(kernel: str, family: str) -> Lockstep:
    scenario = Scenario(kernel=kernel, config={"family": family}, plans={})
    pair = Lockstep(make_engine(scenario, backend="core"), make_engine(scenario, backend="reference"))
    pair.apply(SLOT)
    return pair


@pytest.mark.parametrize("family", ["npt", "ept_ad"])
def test_a_mapping_that_follows_its_frame_is_read_only(family: str) -> None:
    """kvm_set_pte_rmapp: neither the guest nor the lock-free path may write to the new frame."""
    pair = lockstep("v5.0", family)
    pair.apply({"op": "access", "vcpu": 0, "gpa": 0x1000, "kind": "w"})
    pair.apply({"op": "change_pte", "hva": HVA + 0x1000, "pfn": 0x12345, "write": 0})
    again = pair.apply({"op": "access", "vcpu": 0, "gpa": 0x1000, "kind": "w"})
    assert again["events"], "the write goes through without a fault"


def test_the_shrinker_frees_what_the_fast_invalidate_left() -> None:
    """v5.0: obsolete pages wait on a list of the VM while the lock is dropped; a shrinker scan commits them."""
    pair = lockstep("v5.0", "npt")
    for table in range(2):
        pair.apply({"op": "access", "vcpu": 0, "gpa": table << 21, "kind": "w"})
    for table in range(24):
        pair.apply({"op": "access", "vcpu": 0, "gpa": (1 << 40) + (table << 21), "kind": "r"})
    pair.apply({"op": "lock_break", "cond": 1, "need": 0, "do": [[{"op": "shrink", "n": 8}]]})
    pair.apply({"op": "zap_all"})
    assert pair.one.state()["used"] == pair.other.state()["used"]


@pytest.mark.parametrize(("kernel", "half_lap", "step"), [("v5.0", 0x8_0000, 4)])
def test_half_a_lap_is_no_wrap(kernel: str, half_lap: int, step: int) -> None:
    """The wrap is looked for in all bits an MMIO SPTE is compared by, up to the highest."""

    def zaps_at(generation: int) -> bool:
        vm = km.Vm(kernel=kernel, family="npt", events="all")
        vm.memslots.create(slot=0, gpa=0, size=1 << 21)
        vm.vcpus[0].access(0xFEE0_0000)
        vm.core.set_generation(1, generation - step)
        vm.clear_events()
        vm.memslots.create(slot=0, gpa=0, size=1 << 21, as_id=1)
        assert vm.core.generation(1) == generation
        return any(event[0] == "prepare_zap" for event in vm.events)

    assert not zaps_at(half_lap)
    assert zaps_at(2 * half_lap)
