"""The audit of live VMs: silent on real memory, and loud on each corruption of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kvm_mmu import live
from kvm_mmu.live.audit import CHECKS

pytest.importorskip("drgn", reason="drgn has no wheel for this platform: the extra `live` is not installed")
from memory_of import Changeable
from mutants import MUTANTS, Mutant


def test_real_memory_is_sound(dump):
    with live.open(str(dump.elf), facts=dump.folder) as kernel:
        for vm in kernel.vms():
            found = vm.audit()
            assert (list(found), found.verdict, found.unread) == ([], "clean", [])
            assert found.facts > 80
            assert [check.name for check in found.checks] == list(CHECKS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_noticed(mutant: Mutant, dumps):
    dump = dumps[mutant.case]
    memory = Changeable(dump.elf, dump.folder)
    mutant.change(memory)
    assert memory.changes, "nothing was changed"
    found = memory.changed_vm().audit()
    assert mutant.check in {name for name, _ in found}, list(found)


def test_every_check_has_a_mutant():
    assert len(MUTANTS) >= 38
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)


def test_other_vm_is_not_touched_by_a_mutant(dumps):
    dump = dumps["6.1.192/npt0"]
    memory = Changeable(dump.elf, dump.folder)
    memory.write(memory.kvm("active"), 8, 0x1234)
    first, second = memory.changed().vms()
    assert first.faults
    assert list(second.audit()) == []


@pytest.mark.parametrize("case", ["6.1.192/npt0", "6.12.117/npt1tdp0"])
def test_findings_while_busy_are_in_between(case: str, dumps):
    dump = dumps[case]
    memory = Changeable(dump.elf, dump.folder)
    memory.add(memory.kvm("used"), 8, 1)
    assert memory.changed_vm().audit().verdict == "broken"
    memory.write(memory.kvm("mmu_rwlock"), 4, 0xFF)
    vm = memory.changed_vm()
    assert vm.busy == ["mmu_lock is held"]
    assert vm.audit().verdict == "in between"


@pytest.mark.parametrize(("key", "value", "said"), [
    ("slots_lock", 0xFFFF888000001000, "slots_lock is held"),
    ("active_invalidate", 1, "the host takes memory back"),
    ("invalidate_in_progress", 1, "the host takes memory back"),
])  # fmt: skip
def test_what_is_going_on_is_said(key: str, value: int, said: str, dumps):
    dump = dumps["6.1.192/npt1tdp1"]
    memory = Changeable(dump.elf, dump.folder)
    memory.write(memory.kvm(key), 8, value)
    assert memory.changed_vm().busy == [said]


def test_update_in_flight_makes_nothing_fresh(dumps):
    dump = dumps["6.1.192/npt1tdp0"]
    memory = Changeable(dump.elf, dump.folder)
    before = int(memory.vm.mmio_sptes()["fresh"].sum())
    memslots = memory.read(memory.kvm("memslots"), 8)
    memory.add(memslots + memory.field("memslots.generation").offset, 8, 1 << 63)
    vm = memory.changed_vm()
    assert vm.busy == ["an update of address space 0 is in flight"]
    assert before > int(vm.mmio_sptes()["fresh"].sum())


def test_vcpu_that_walks_without_the_lock_is_busy(dumps):
    dump = dumps["6.1.192/npt0"]
    memory = Changeable(dump.elf, dump.folder)
    memory.write(memory.vcpu(1, "mode"), 4, 3)
    assert memory.changed_vm().busy == ["vCPU 1 walks without the lock"]


def test_command_ends_with_the_verdict(dumps, tmp_path: Path):
    dump = dumps["6.1.192/npt1tdp0"]
    words = [sys.executable, "-m", "kvm_mmu", "live"]
    rest = ["--facts", str(dump.folder), "--vm", "1352", "audit"]
    done = subprocess.run([*words, str(dump.elf), *rest], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "clean" in done.stdout
    # The same dump with one leaf above the width of the host.
    memory = Changeable(dump.elf, dump.folder)
    at = memory.entries("leaf", 1)[0]
    memory.write(memory.sptep(at), 8, memory.raw(at) | 1 << 45)
    broken = tmp_path / "broken.elf"
    broken.write_bytes(memory.elf())
    done = subprocess.run([*words, str(broken), *rest], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "spte_bits" in done.stdout
