"""Rules that no recorded vector exercises, held against the reference: the tests that kill the mutants vectors miss."""

from __future__ import annotations

import kvm_mmu as km
import pytest
from kvm_mmu.scenario.language import Scenario, make_engine
from kvm_mmu.testing.lockstep import Lockstep

HVA = 0x2_0000_0000
SLOT = {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 1 << 22, "hva": HVA, "flags": 0}


def lockstep(kernel: str, family: str, vcpus: int = 1) -> Lockstep:
    scenario = Scenario(kernel=kernel, config={"family": family, "vcpus": vcpus}, plans={})
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


def write(pair: Lockstep, gpa: int, vcpu: int = 0) -> None:
    pair.apply({"op": "access", "vcpu": vcpu, "gpa": gpa, "kind": "w"})


def test_a_root_that_was_zapped_does_not_come_to_life_again() -> None:
    """v5.4: after two steps of one bit a root in use has the VM's generation, and only its being invalid tells."""
    pair = lockstep("v5.4", "npt", vcpus=2)
    write(pair, 0x1000, vcpu=0)
    write(pair, 0x1000, vcpu=1)
    for _ in range(2):
        pair.apply({"op": "zap", "plan": "v5.4-fast"})
        write(pair, 0x1000, vcpu=0)
    assert pair.one.state() == pair.other.state()


def test_v5_4_counts_only_what_made_the_list_unstable() -> None:
    """Direct pages have no unsync children, so the fast zap of v5.4 never comes to its ten and offers no lock."""
    pair = lockstep("v5.4", "npt")
    for table in range(24):
        write(pair, (1 << 40) + (table << 21))
    pair.apply({"op": "lock_break", "cond": 1, "need": 0, "do": [[{"op": "shrink", "n": 8}]]})
    line = pair.apply({"op": "zap", "plan": "v5.4-fast"})
    assert "cond_resched" not in line["ctr"]


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_nothing_obsolete_is_left_by_a_run_that_is_given_up(kernel: str) -> None:
    """With one bit of generation it would look valid after the next step."""
    vm = km.Vm(kernel=kernel, family="npt")
    vm.set_nr_mmu_pages(1024)
    for table in range(40):
        vm.vcpus[0].access((1 << 40) + (table << 21))
    vm.core.set_lock_break(1, 0)
    for _ in vm.zap_steps("v5.4-fast"):
        assert any(page.obsolete for page in vm.active_pages())
        break
    assert [page for page in vm.active_pages() if page.obsolete] == []
    assert vm.audit() == []


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_a_vcpu_asked_to_reload_keeps_a_root_that_is_valid(kernel: str) -> None:
    pair = lockstep(kernel, "npt", vcpus=2)
    for vcpu in range(2):
        write(pair, 0x1000, vcpu)
    pair.apply({"op": "zap", "plan": "v5.4-fast"})
    pair.apply({"op": "unload", "vcpu": 1})
    pair.apply({"op": "load", "vcpu": 1})
    line = pair.apply({"op": "enter", "vcpu": 1})
    assert line["events"] == []


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_a_write_fault_on_a_writable_entry_ends_at_once(kernel: str) -> None:
    """The lock-free path calls it spurious; nothing is looked up."""
    pair = lockstep(kernel, "npt")
    write(pair, 0x1000)
    line = pair.apply({"op": "fault", "vcpu": 0, "gpa": 0x1000, "err": 0x7})
    assert [event[0] for event in line["events"]] == ["fast_pf"]


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_a_leaf_that_does_not_change_brings_no_neighbours(kernel: str) -> None:
    pair = lockstep(kernel, "npt")
    neighbours = {"op": "host_state", "hva": HVA + 0x1000, "npages": 7}
    pair.apply({**neighbours, "state": "fault"})
    write(pair, 0)
    pair.apply({"op": "fault", "vcpu": 0, "gpa": 0, "err": 0x4})  # the first rewrite takes D away
    pair.apply({**neighbours, "state": "rw"})
    line = pair.apply({"op": "fault", "vcpu": 0, "gpa": 0, "err": 0x4})
    assert [event[0] for event in line["events"] if event[0] == "set_spte"] == []


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_the_neighbours_up_to_the_end_of_the_eight_are_mapped(kernel: str) -> None:
    pair = lockstep(kernel, "npt")
    line = pair.apply({"op": "access", "vcpu": 0, "gpa": 0x3000, "kind": "w"})
    mapped = [event[2] for event in line["events"] if event[0] == "set_spte"]
    assert mapped == [3, 0, 1, 2, 4, 5, 6, 7]


def test_a_walk_of_valid_roots_passes_over_one_that_a_vcpu_still_holds() -> None:
    vm = km.Vm(kernel="v6.12", family="npt", vcpus=2, tdp_mmu=True)
    vm.memslots.create(slot=0, gpa=0, size=1 << 22)
    for vcpu in vm.vcpus:
        vcpu.access(0x1000, "w")
    vm.zap(vm.profile.wrap)
    vm.vcpus[0].enter()
    before = vm.stats["tdp_walks"]
    vm.slot_walk(0, 0, "remove_write_access")
    assert vm.stats["tdp_walks"] - before == 1
