"""Ctrl-C inside a long zap: the call ends, the VM is whole, and a memslot is as it was or as it was to be.

No time is measured. The work is far longer than a test may last, so that only an interrupt can have ended it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import kvm_mmu as km
import numpy as np
import pytest
from kvm_mmu.machine import memory_region

#: Restarting after every zap, each MMIO table zapped costs a walk over all tables of memory: 10^10 visits.
CHILD = """
import signal
# A shell ignores SIGINT for what it starts in the background, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np, kvm_mmu as km
vm = km.Vm(kernel="v5.0-seed", family="npt", events="off", plans={"slot_removal": "seed"})
vm.memslots.create(slot=0, gpa=0, size=1 << 38)
vm.memslots.create(slot=1, gpa=1 << 39, size=1 << 21)
vm.set_nr_mmu_pages(1 << 22)
tables = np.arange(100_000, dtype=np.uint64) << np.uint64(21)
vm.vcpus[0].access_many(tables + np.uint64(1 << 40))
vm.vcpus[0].access_many(tables, "w")
def work(): WORK
try:
    print("ready", flush=True)
    work()
except KeyboardInterrupt:
    assert vm.audit() == [], vm.audit()
    assert vm.core.paused_runs == 0
    assert vm.memslots.get(1).flags == 0
    assert vm.vcpus[0].access(0x1000, "w").outcome == "hit"
    print("whole", vm.stats["used"] > 100_000, flush=True)
    raise
"""


@pytest.mark.parametrize(
    "work",
    [
        "vm.zap('seed')",
        "list(vm.zap_steps(km.ZapPlan(walk='head', only='mmio_cached', restart='on_nonzero', offer='batch:7')))",
        "vm.memslots.delete(1)",
        "vm.memslots.move(1, gpa=1 << 41)",
    ],
    ids=["zap", "steps", "delete", "move"],
)
def test_ctrl_c_inside_one_plan(work: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("WORK", work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline().strip() == "ready"
        child.send_signal(signal.SIGINT)
        said = child.stdout.read(), child.stderr.read()
        status = child.wait(timeout=240)
    assert said[0].split() == ["whole", "True"], said
    assert status in (130, -signal.SIGINT), said
    assert said[1].rstrip().endswith("KeyboardInterrupt"), said


def changed(vm: km.Vm, call: str) -> None:
    if call == "delete":
        vm.memslots.delete(1)
    elif call == "move":
        vm.memslots.move(1, gpa=1 << 41)
    else:
        vm.memslots.set_flags(1, 1)


@pytest.mark.parametrize("call", ["delete", "move", "flags"])
def test_an_interrupt_between_any_two_lines_of_an_update(call: str) -> None:
    """Raised before each line of the update in turn, as a signal may come there."""
    lines = 0
    while True:
        vm = km.Vm(kernel="v5.0-seed", family="npt")
        vm.memslots.create(slot=1, gpa=1 << 39, size=1 << 21)
        vm.vcpus[0].access(1 << 39, "w")
        before = vm.memslots.get(1)
        left = lines
        is_raised = False

        def at_line(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
            nonlocal left, is_raised
            if frame.f_code.co_filename != memory_region.__file__ or is_raised:
                return None
            if event == "line" and frame.f_code.co_name not in ("steps", "check", "_refuse"):
                left -= 1
                if left < 0:
                    is_raised = True
                    raise KeyboardInterrupt
            return at_line

        sys.settrace(at_line)
        try:
            changed(vm, call)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        after = [slot for slot in vm.memslots.of(0) if slot.id == 1]
        assert all(slot.flags & ~1 == 0 for slot in after), (lines, after)
        assert after == [before] or is_done(after, call), (lines, after)
        assert vm.audit() == [], lines
        if not is_raised:
            break
        lines += 1
    assert lines > 20


def is_done(after: list[Any], call: str) -> bool:
    """The whole change: gone, at its new place, or with its log on."""
    return after == [] if call == "delete" else after[0].base == 1 << 29 or after[0].flags == 1


HANDLER = """
import signal
import numpy as np, kvm_mmu as km
vm = km.Vm(kernel="v5.0-seed", family="npt", events="off")
vm.memslots.create(slot=0, gpa=0, size=1 << 38)
vm.set_nr_mmu_pages(1 << 22)
tables = np.arange(100_000, dtype=np.uint64) << np.uint64(21)
vm.vcpus[0].access_many(tables + np.uint64(1 << 40))
vm.vcpus[0].access_many(tables, "w")
def handler(number, frame):
    vm.audit()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01)
try:
    vm.zap("seed")
except km.RunStateError as error:
    print(error)
assert vm.audit() == []
"""


def test_a_signal_handler_cannot_use_the_vm_in_the_middle_of_its_run() -> None:
    done = subprocess.run([sys.executable, "-c", HANDLER], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert "in the middle of a run" in done.stdout


class Stop(Exception):
    """What a hook of the test raises."""


def stop(vm: km.Vm) -> None:
    raise Stop


def populated(kernel: str, **keywords: object) -> km.Vm:
    vm = km.Vm(kernel=kernel, family="npt", **keywords)
    vm.memslots.create(slot=0, gpa=0, size=8 << 21)
    vm.memslots.create(slot=1, gpa=1 << 30, size=8 << 21)
    for base in (0, 1 << 30, 1 << 40):
        vm.vcpus[0].access_many(np.arange(8, dtype=np.uint64) * np.uint64(1 << 21) + np.uint64(base), "w")
    vm.core.set_lock_break(2, 2)
    return vm


@pytest.mark.parametrize("kernel", ["v5.0", "v5.0-seed", "v5.2", "v5.3", "v5.4", "v6.1", "v6.12"])
def test_an_update_that_fails_inside_is_taken_back(kernel: str) -> None:
    vm = populated(kernel)
    before = vm.memslots.get(1)
    calls = (
        lambda: vm.memslots.delete(1),
        lambda: vm.memslots.move(1, gpa=1 << 36),
        lambda: vm.memslots.set_flags(1, 1),
    )
    for call in calls:
        vm.on_lock_break = stop
        try:
            call()
        except Stop:
            assert vm.memslots.get(1) == before
        else:
            assert call is not calls[2]
            break
        vm.on_lock_break = None
        assert vm.audit() == []
        assert vm.core.paused_runs == 0
        assert not any(
            generation & (1 if "v5.0" in kernel else 1 << 63) for generation in vm.memslots.generations
        )
    vm.on_lock_break = None
    for slot in list(vm.memslots.of(0)):
        vm.memslots.delete(slot.id)
    assert vm.audit() == []
    assert all(vm.vcpus[0].access(gpa, "w").outcome == "emulate" for gpa in (0x1000, 1 << 30))


def test_a_wrap_that_fails_leaves_no_mmio_spte_that_looks_fresh() -> None:
    vm = populated("v5.2", plans={"wrap": km.ZapPlan(walk="tail", only="mmio_cached", offer="each_page")})
    vm.core.set_generation(0, (1 << 19) - 2)
    vm.on_lock_break = stop
    with pytest.raises(Stop):
        vm.memslots.touch(0)
    assert not any(page.mmio_cached for page in vm.active_pages())
    assert vm.audit() == []
