"""The GIL and Ctrl-C: long calls can be interrupted, other threads make progress, a shared VM stays correct."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import kvm_mmu as km
import numpy as np

#: Ten million faults on addresses without a slot, over and over; the child says when it was interrupted.
CHILD = """
import signal, sys, time, threading
# A shell ignores SIGINT for what it starts in the background, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np, kvm_mmu as km
vm = km.Vm(family="npt", events="off")
vm.memslots.create(slot=0, gpa=0, size=1 << 20)
vm.set_nr_mmu_pages(1 << 20)
gpas = np.arange(10_000_000, dtype=np.uint64) % 4096 * 4096 + (1 << 32)
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.001)
threading.Thread(target=tick, daemon=True).start()
print("ready", flush=True)
try:
    while True:
        vm.vcpus[0].access_many(gpas)
except KeyboardInterrupt:
    assert vm.audit() == [], vm.audit()
    assert vm.vcpus[0].access(0x1000, "w").outcome == "hit"
    print("interrupted", ticks, flush=True)
"""


def test_ctrl_c_during_many_faults_and_another_thread_meanwhile():
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "ready"
        time.sleep(0.5)
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        word, ticks = child.stdout.readline().split()
        waited = time.monotonic() - sent
        assert child.wait(timeout=60) == 0
    assert word == "interrupted"
    assert int(ticks) > 0, "another thread made no progress"
    assert waited < 10, "not a speed test: an interrupt that waits for the end of the call takes far longer"


def test_a_vm_shared_by_threads_stays_correct():
    vm = km.Vm(family="npt", vcpus=4, events="off")
    vm.memslots.create(slot=0, gpa=0, size=64 << 20)
    vm.set_nr_mmu_pages(4096)
    stop = threading.Event()
    errors: list[BaseException] = []

    def guest(index: int) -> None:
        gpas = (np.arange(4000, dtype=np.uint64) * np.uint64(7 + index) % np.uint64(16384)) * np.uint64(4096)
        try:
            while not stop.is_set():
                vm.vcpus[index].access_many(gpas, "w" if index % 2 else "r")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guest, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for i in range(40):
        vm.memslots.create(slot=1, gpa=1 << 32, size=1 << 20)
        vm.memslots.delete(slot=1)
        if i % 8 == 0:
            vm.zap("merged")
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors
    assert vm.audit() == []
