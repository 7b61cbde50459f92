"""The native memory of a VM is back when its last reference goes; nothing waits for Python's cyclic collector."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.scenario.workload import mmio_mix

GIB = 1 << 30
#: Twice this fits the smallest laptop that somebody would try the demonstration on.
DEMO_PEAK = 2 * GIB


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def used() -> km.Vm:
    """A VM with a slot and some mappings, of which every part has been looked at."""
    vm = km.Vm(vcpus=2)
    vm.memslots.create(0, 0, GIB)
    vm.vcpus[1].access_many(range(0, 64 << 21, 1 << 21), "w")
    assert [repr(vm), repr(vm.memslots), repr(vm.vcpus[0]), repr(vm.zap_batch()), list(vm.active_pages())]
    return vm


def made() -> km.Vm:
    return used()


def cloned() -> km.Vm:
    return used().clone()


def read_back() -> km.Vm:
    return km.Vm.from_bytes(used().to_bytes())


def zapped() -> km.Vm:
    twin = used().clone()
    twin.zap("v5.0-fast")
    for _pause in twin.zap_steps("zap-all"):
        pass
    twin.memslots.delete(0)
    return twin


def destroyed() -> km.Vm:
    with used() as vm:
        pass
    return vm


@pytest.mark.parametrize("make", [made, cloned, read_back, zapped, destroyed])
def test_a_dropped_vm_is_gone_at_once(make: Callable[[], km.Vm]) -> None:
    vm = make()
    watch = weakref.ref(vm)
    del vm
    assert watch() is None


def test_a_dropped_engine_takes_its_vm_along() -> None:
    engine = MachineEngine("v5.0")
    twin = engine.clone()
    watched = [weakref.ref(engine.vm), weakref.ref(twin.vm)]
    del engine, twin
    assert [watch() for watch in watched] == [None, None]


def test_a_workload_is_gone_with_its_name() -> None:
    workload = mmio_mix(200, 0.1, "random")
    watch = weakref.ref(workload.vm)
    del workload
    assert watch() is None


def test_the_hook_of_an_engine_is_called_after_its_clone_is_gone() -> None:
    engine = MachineEngine("v5.0")
    engine.clone()
    seen: list[int] = []
    engine._lock_break = lambda: seen.append(1)  # type: ignore[method-assign]
    assert engine.vm.on_lock_break is not None
    engine.vm.on_lock_break(engine.vm)
    assert seen == [1]


def test_parts_of_a_temporary_work() -> None:
    assert km.Vm().vcpus[0].load() == -28 and km.Vm().vcpus[0].fault(0, 0) == 1
    assert km.Vm().memslots.create(3, 0, GIB).id == 3
    vcpu, memslots = km.Vm(vcpus=2).vcpus[1], km.Vm().memslots
    assert vcpu.index == 1 and vcpu.state["root"] is None and vcpu.fault(0, 0) == 1
    assert memslots.create(0, 0, GIB).npages == GIB >> 12 and len(memslots) == 1


def test_vcpu_and_memslots_are_those_of_the_vm() -> None:
    vm = km.Vm()
    slots = vm.memslots
    vm.memslots.create(0, 0, GIB)
    assert len(slots) == len(vm.memslots) == 1
    assert vm.vcpus[0] is vm.vcpus[0]
    assert vm.vcpus[0].access(0, "w").faults == 1 and vm.vcpus[0].access(0, "w").outcome == "hit"


def test_clones_in_a_loop_stay_flat() -> None:
    """The README's own loop; each clone weighs about as much as the VM."""
    vm = km.Vm()
    vm.memslots.create(0, 0, 32 * GIB)
    vm.vcpus[0].access_many(range(0, 8 * GIB, 1 << 21), "w")
    one = sum(vm.memory.values())
    for _ in range(3):
        vm.clone().zap("zap-all")
    before = resident()
    for _ in range(20):
        vm.clone().zap("zap-all")
    assert resident() - before < 5 * one


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


#: What runs in the child. Not `ru_maxrss`: a child begins with that of the process that started it.
CHILD = """
import pathlib, sys
from kvm_mmu.cli import main
status = main(["demo", "-o", sys.argv[1]])
lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
print("peak", *(line.split()[1] for line in lines if line.startswith("VmHWM:")))
sys.exit(status)
"""


def test_the_demonstration_peaks_below_two_gib(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], check=True, capture_output=True, text=True
    )
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "peak" and "nothing is missing" in done.stdout
    peak = int(last[1]) << 10
    assert peak < DEMO_PEAK, f"{peak / GIB:.2f} GiB"
