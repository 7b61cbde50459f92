"""Workloads by name: guests as published descriptions have them, made to a size, each ending where its event is forced.

`pages` are tables of level 1: each maps 2 MiB of guest memory, of which the guest touches a few 4-KiB pages. A share of
the tables caches MMIO instead. The same arguments give the same guest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import flag, integer
from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.workload import TABLE_SPAN, Batch, Gpas, Workload, flagged_tables
from kvm_mmu.types import KIB, MIB, PAGE_SIZE, AccessKind

#: Tables that a workload has where nobody says how many: 6 GiB of guest memory.
DEFAULT_PAGES = 3072
#: 4-KiB pages that a guest touches in each table.
LEAVES = 8
# Host memory stands for its own frames: within the 46 physical bits of a VM that says nothing else.
_HVA = 0x2_0000_0000
_LOG, _READ_ONLY = 1, 2
_ROM, _ROM_SIZE = 0xC_0000, 128 * KIB
_ROM_SLOT, _RAM_SLOT, _ABOVE_SLOT = 1, 0, 2


@dataclass(frozen=True)
class Made:
    """What a workload is made of.

    Args:
        tables: level-1 tables, MMIO-caching ones among them.
        share: of them, how many cache MMIO, 0 to 1.
        vcpus: virtual processors, which share the touches in turn.
        seed: of which tables cache MMIO, and of the order of random touches.
        kernel: the kernel that is modelled.
        tdp_mmu: the TDP MMU serves the guest, not shadow pages.
    """

    tables: int
    share: float
    vcpus: int
    seed: int
    kernel: str
    tdp_mmu: bool


@dataclass(frozen=True)
class NamedWorkload:
    """A guest by name.

    Attributes:
        name: as commands take it.
        about: what it does, in a sentence.
        source: the published description that it follows.
    """

    name: str
    about: str
    source: str
    make: Callable[[Made], Workload]


def named_workload(
    name: str,
    *,
    pages: int = DEFAULT_PAGES,
    mmio_share: float = 0.0,
    vcpus: int = 2,
    seed: int = 1,
    kernel: str = "v6.12",
    tdp_mmu: bool = False,
) -> Workload:
    """Make a workload by its name.

    Args:
        name: one of `WORKLOADS`.
        pages: level-1 tables, 64 or more.
        mmio_share: how many of them cache MMIO, 0 to 0.9.
        vcpus: virtual processors, 1 to 64.
        seed: chooses the tables that cache MMIO, and the order of touches that are random.
        kernel: the kernel that is modelled.
        tdp_mmu: the TDP MMU serves the guest, not shadow pages.

    Returns:
        The guest before its event, and what it touched.

    Raises:
        UsageError: no such name, or a number out of range.
    """
    if name not in WORKLOADS:
        raise UsageError(f"workload {name!r}: expected one of {', '.join(WORKLOADS)}")
    pages = integer("pages", pages, 64, 1 << 22)
    if not 0.0 <= mmio_share <= 0.9:
        raise UsageError(f"MMIO share {mmio_share}: expected 0 to 0.9")
    vcpus = integer("vcpus", vcpus, 1, 64)
    made = Made(
        pages, mmio_share, vcpus, integer("seed", seed, 0, (1 << 63) - 1), kernel, flag("tdp_mmu", tdp_mmu)
    )
    workload = WORKLOADS[name].make(made)
    workload.name = name
    workload.size = pages
    return workload


class _Guest:
    """A VM with its slots, and what it touched so far."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.vm = Vm(kernel=made.kernel, family="npt", vcpus=made.vcpus, events="off", tdp_mmu=made.tdp_mmu)
        self.vm.set_nr_mmu_pages(2 * made.tables + 4096)
        flagged = np.array(flagged_tables(made.tables, made.share, "random", made.seed))
        self.is_mmio = flagged
        self.ram_tables = int((~flagged).sum())
        self.touches: list[Batch] = []

    def touch(self, gpas: Gpas, kind: AccessKind = "w") -> None:
        """Let the vCPUs touch addresses in turn, each a run of them."""
        for vcpu, part in enumerate(np.array_split(gpas.astype(np.uint64), self.made.vcpus)):
            if part.size:
                self.vm.vcpus[vcpu].access_many(part, kind)
                self.touches.append(Batch(vcpu, kind, part))

    def ram(self, first: int, tables: int, leaves: int = LEAVES) -> Gpas:
        """The addresses of some pages in each of these tables of RAM."""
        bases = (np.arange(tables, dtype=np.uint64) + np.uint64(first)) * np.uint64(TABLE_SPAN)
        pages = np.arange(leaves, dtype=np.uint64) * np.uint64(TABLE_SPAN // leaves)
        return (bases[:, None] + pages[None, :]).ravel()

    def mmio(self, first: int) -> Gpas:
        """One address in each MMIO table, from a table number on."""
        count = self.made.tables - self.ram_tables
        return (np.arange(count, dtype=np.uint64) + np.uint64(first)) * np.uint64(TABLE_SPAN)

    def done(self, removed: int) -> Workload:
        """The workload; `removed` is the slot that a forced removal takes."""
        self.vm.clear_events()
        return Workload("", self.vm, self.touches, removed=(0, removed))


def _two_slots(guest: _Guest, flags: int = 0) -> None:
    """RAM in one slot, a ROM of 128 KiB above it as a slot of its own."""
    size = guest.ram_tables * TABLE_SPAN
    guest.vm.memslots.create(slot=_RAM_SLOT, gpa=0, size=size, hva=_HVA, flags=flags)
    guest.vm.memslots.create(
        slot=_ROM_SLOT, gpa=size + TABLE_SPAN + _ROM, size=_ROM_SIZE, hva=_HVA + size + TABLE_SPAN
    )


def _rom(guest: _Guest) -> Gpas:
    start = guest.ram_tables * TABLE_SPAN + TABLE_SPAN + _ROM
    return np.arange(start, start + _ROM_SIZE, PAGE_SIZE, dtype=np.uint64)


def _boot(made: Made) -> Workload:
    guest = _Guest(made)
    _two_slots(guest)
    guest.touch(guest.ram(0, guest.ram_tables))
    guest.touch(guest.mmio(guest.ram_tables + 8), "r")
    guest.touch(_rom(guest), "r")
    return guest.done(_ROM_SLOT)


def _churn(made: Made) -> Workload:
    guest = _Guest(made)
    _two_slots(guest)
    rom, memslots = _rom(guest), guest.vm.memslots
    steps = 8
    for step in range(steps):
        first, last = (guest.ram_tables * n // steps for n in (step, step + 1))
        guest.touch(guest.ram(first, last - first))
        guest.touch(rom, "r")
        memslots.delete(slot=_ROM_SLOT)
        memslots.create(slot=_ROM_SLOT, gpa=int(rom[0]), size=_ROM_SIZE, hva=_HVA + int(rom[0]))
    guest.touch(guest.ram(0, guest.ram_tables))
    guest.touch(guest.mmio(guest.ram_tables + 8), "r")
    guest.touch(rom, "r")
    return guest.done(_ROM_SLOT)


def _migration(made: Made) -> Workload:
    guest = _Guest(made)
    _two_slots(guest)
    guest.touch(guest.ram(0, guest.ram_tables))
    guest.touch(guest.mmio(guest.ram_tables + 8), "r")
    guest.touch(_rom(guest), "r")
    guest.vm.memslots.set_flags(slot=_RAM_SLOT, flags=_LOG)
    dice = random.Random(made.seed)
    tables = np.array(sorted(range(guest.ram_tables), key=lambda _: dice.random()), dtype=np.uint64)
    for share in (2, 4, 8):  # each round of pre-copy finds less that was written since the last one
        dirtied = tables[: max(1, guest.ram_tables // share)]
        pages = np.arange(LEAVES, dtype=np.uint64) * np.uint64(TABLE_SPAN // LEAVES)
        guest.touch((dirtied[:, None] * np.uint64(TABLE_SPAN) + pages[None, :]).ravel())
        guest.vm.get_dirty_log(_RAM_SLOT)
    return guest.done(_RAM_SLOT)


def _virtio_mem(made: Made) -> Workload:
    guest = _Guest(made)
    per_slot = 128 * MIB // TABLE_SPAN
    for slot, first in enumerate(range(0, guest.ram_tables, per_slot)):
        size = min(per_slot, guest.ram_tables - first) * TABLE_SPAN
        gpa = first * TABLE_SPAN
        guest.vm.memslots.create(slot=slot, gpa=gpa, size=size, hva=_HVA + gpa)
    guest.touch(guest.ram(0, guest.ram_tables))
    guest.touch(guest.mmio(guest.ram_tables + 8), "r")
    return guest.done(max(0, (guest.ram_tables - 1) // per_slot - 1))


def _gpu_bar(made: Made) -> Workload:
    guest = _Guest(made)
    bar_tables = max(1, guest.ram_tables // 4)
    ram_tables = max(1, guest.ram_tables - bar_tables)
    bar = (ram_tables + 512) * TABLE_SPAN
    memslots = guest.vm.memslots
    memslots.create(slot=_RAM_SLOT, gpa=0, size=ram_tables * TABLE_SPAN, hva=_HVA)
    memslots.create(slot=_ABOVE_SLOT, gpa=bar, size=bar_tables * TABLE_SPAN, hva=_HVA + bar)
    guest.touch(guest.ram(0, ram_tables))
    guest.touch(guest.ram(ram_tables + 512, bar_tables))
    guest.touch(guest.mmio(guest.ram_tables + 1024), "r")
    return guest.done(_ABOVE_SLOT)


WORKLOADS: dict[str, NamedWorkload] = {
    one.name: one
    for one in (
        NamedWorkload(
            "boot",
            "a guest touches its memory once; a ROM of 128 KiB, a slot of its own, goes",
            "series KVM_CAP_MEMSLOT_ZAP_CONTROL: what a slot removal costs at boot",
            _boot,
        ),
        NamedWorkload(
            "churn",
            "while a guest touches its memory, a ROM of 128 KiB is unmapped and mapped eight times; then it goes",
            "series KVM_CAP_MEMSLOT_ZAP_CONTROL: VMs with many slot removals",
            _churn,
        ),
        NamedWorkload(
            "migration",
            "dirty logging over all memory, three rounds that write a half, a quarter and an eighth; the memory goes",
            "QEMU commit 1931076077: downtime in the zap at the end of a migration",
            _migration,
        ),
        NamedWorkload(
            "virtio-mem",
            "memory in slots of 128 MiB, all of it touched; one slot is unplugged",
            "Firecracker issues 5348 and 5522: memory that is plugged by slots",
            _virtio_mem,
        ),
        NamedWorkload(
            "gpu-bar",
            "a quarter of the memory is a device's BAR, mapped as a slot; the BAR goes",
            "commit d012a06ab1d2 (2019): guests with an assigned GPU, for whose sake removals zapped everything again",
            _gpu_bar,
        ),
    )
}
