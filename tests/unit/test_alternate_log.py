"""Many updates of a slot's log made at once: the same VM as by one update after the other."""

from __future__ import annotations

import kvm_mmu as km
import pytest

SIZE = 64 << 12


def made(kernel: str, **config: object) -> km.Vm:
    vm = km.Vm(kernel=kernel, events="all", **config)  # type: ignore[arg-type]
    vm.memslots.create(slot=0, gpa=0, size=SIZE)
    vm.memslots.create(slot=3, gpa=1 << 30, size=SIZE, flags=1)
    for gpa in range(0, SIZE, 0x3000):
        vm.vcpus[0].access(gpa, "w")
        vm.vcpus[0].access((1 << 30) + gpa, "w")
    vm.vcpus[0].access(1 << 33, "r")
    vm.clear_events()
    return vm


@pytest.mark.parametrize("kernel", ["v5.0", "v5.2", "v6.1", "v6.12", "v7.3"])
@pytest.mark.parametrize("family", ["npt", "ept_ad"])
@pytest.mark.parametrize("slot", [0, 3])
@pytest.mark.parametrize("updates", [0, 1, 2, 7])
def test_the_same_state_and_events(kernel: str, family: str, slot: int, updates: int) -> None:
    at_once, one_by_one = made(kernel, family=family), made(kernel, family=family)
    found = at_once.memslots.alternate_log(slot, updates)
    for _ in range(updates):
        one_by_one.memslots.set_flags(slot, one_by_one.memslots.get(slot).flags ^ 1)
    assert found == one_by_one.memslots.get(slot)
    assert at_once.digest() == one_by_one.digest()
    assert at_once.events == one_by_one.events
    assert at_once.stats == one_by_one.stats


@pytest.mark.parametrize("before", [1, 2, 3, 10])
def test_a_wrap_is_met_as_ever(before: int) -> None:
    at_once, one_by_one = made("v6.1"), made("v6.1")
    for vm in (at_once, one_by_one):
        vm.core.set_generation(0, (1 << 19) - 2 * before)
    at_once.memslots.alternate_log(0, 12)
    for _ in range(12):
        one_by_one.memslots.set_flags(0, one_by_one.memslots.get(0).flags ^ 1)
    assert at_once.digest() == one_by_one.digest()
    assert at_once.events == one_by_one.events
    assert any(event[0] == "zap_all_fast" for event in at_once.events)


def test_a_policy_that_steps_otherwise_is_asked_each_time() -> None:
    from kvm_mmu.machine.generation import GenerationV61

    class Slow(GenerationV61):
        def next(self, generation: int) -> int:
            return super().next(generation) + 2

    assert Slow().even_updates(0) == 0
    assert GenerationV61().even_updates(0) == (1 << 18) - 1
    assert GenerationV61().even_updates((1 << 19) - 2) == 0


def test_no_such_slot() -> None:
    with pytest.raises(km.MemslotError, match="no such slot"):
        made("v6.1").memslots.alternate_log(9, 2)
