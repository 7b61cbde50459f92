"""The rows of the speed table on the pure-Python reference: the same work at sizes a person waits for.

Owns what is timed and how large; every function gives nanoseconds an operation, for the case names of
`kernel_speed.json`. Rows whose size is part of the case are measured at the smallest size only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from kvm_mmu.reference import Engine
from kvm_mmu.reference.common.kernels import kernel
from kvm_mmu.reference.common.page_table import kvm_mmu_page_get_gfn
from kvm_mmu.reference.common.pte_list import PteList, pte_list_add, pte_list_remove
from kvm_mmu.reference.common.role import role_level
from kvm_mmu.reference.common.state import Kvm, ShadowPage
from kvm_mmu.reference.common.zap_plan import parse_plans
from kvm_mmu.reference.shadow.page import kvm_mmu_get_page
from kvm_mmu.reference.shadow.rmap import rmap_add, rmap_remove
from kvm_mmu.reference.verbs.dirty_log import kvm_mmu_slot_remove_write_access
from kvm_mmu.reference.verbs.fault import kvm_mmu_page_fault
from kvm_mmu.reference.verbs.zap_run import run_zap_plan

TABLE = 512
HOLE = 1 << 28
FINAL = 1 << 32
READ, WRITE, WRITE_PRESENT, RSVD = FINAL | 4, FINAL | 2, FINAL | 3, 8
PAGES = 4096


class NoEvents(list[Any]):
    """Events are off, as in the core's benches."""

    def append(self, _event: Any) -> None:
        return


def vm(kernel: str, npages: int, flags: int = 0) -> Kvm:
    """A VM with one slot from gfn 0, its vCPU entered."""
    engine = Engine(kernel, {"family": "ept_ad"})
    engine.apply(
        {"op": "set_memslot", "id": 0, "gpa": 0, "size": npages << 12, "hva": 1 << 36, "flags": flags}
    )
    engine.apply({"op": "enter", "vcpu": 0})
    engine.kvm.n_max_mmu_pages = 1 << 30
    engine.kvm.events = NoEvents()
    return engine.kvm


def fault(kvm: Kvm, gfn: int, error_code: int) -> None:
    kvm_mmu_page_fault(kvm, kvm.vcpus[0], gfn << 12, error_code)


def is_mapped(kvm: Kvm, gfn: int) -> bool:
    """Whether a write to the page needs no fault any more."""
    page_id = kvm.vcpus[0].roots[0]
    for level in (4, 3, 2, 1):
        spte = kvm.pages[page_id].sptes.get(gfn >> 9 * (level - 1) & 511, 0)
        if not spte & 7:
            return False
        page_id = spte >> 12 & ((1 << 40) - 1)
    return spte & 7 == 7


def touch(kvm: Kvm, gfn: int) -> None:
    if not is_mapped(kvm, gfn):
        fault(kvm, gfn, WRITE)


def timed(count: int, work: Callable[[], object]) -> float:
    """Nanoseconds of this thread's processor time an operation."""
    start = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - start) / count


def each(gfns: Iterable[int], what: Callable[[Kvm, int], None], kvm: Kvm) -> None:
    for gfn in gfns:
        what(kvm, gfn)


def map_row(kernel: str, order: str, flags: int) -> float:
    kvm = vm(kernel, PAGES, flags)
    gfns = list(range(PAGES))
    if order == "random":
        random.Random(1).shuffle(gfns)
    elif order == "descending":
        gfns.reverse()
    return timed(PAGES, lambda: each(gfns, touch, kvm))


def marked(kernel: str) -> Kvm:
    kvm = vm(kernel, TABLE)
    each(range(HOLE, HOLE + PAGES), lambda kvm, gfn: fault(kvm, gfn, READ), kvm)
    return kvm


def mmio_first(kernel: str) -> float:
    kvm = vm(kernel, TABLE)
    return timed(PAGES, lambda: each(range(HOLE, HOLE + PAGES), lambda k, g: fault(k, g, READ), kvm))


def mmio_hit(kernel: str, order: str) -> float:
    kvm = marked(kernel)
    gfns = list(range(HOLE, HOLE + PAGES))
    if order == "random":
        random.Random(1).shuffle(gfns)
    return timed(PAGES, lambda: each(gfns, lambda k, g: fault(k, g, RSVD), kvm))


def mmio_cached(kernel: str) -> float:
    kvm = vm(kernel, TABLE)
    fault(kvm, HOLE, READ)
    return timed(PAGES, lambda: each([HOLE] * PAGES, lambda k, g: fault(k, g, RSVD), kvm))


def mmio_stale(kernel: str) -> float:
    kvm = marked(kernel)
    kvm.memslots[0].generation = 6
    return timed(PAGES, lambda: each(range(HOLE, HOLE + PAGES), lambda k, g: fault(k, g, RSVD), kvm))


def tables(kernel: str, nr_tables: int, leaves: int) -> Kvm:
    kvm = vm(kernel, nr_tables * TABLE)
    for table in range(nr_tables):
        for at in range(leaves):
            fault(kvm, table * TABLE + at, WRITE)
    return kvm


def zap_row(kernel: str, nr_tables: int, leaves: int) -> float:
    kvm = tables(kernel, nr_tables, leaves)
    return timed(nr_tables, lambda: run_zap_plan(kvm, kvm.plans["flush_all"]))


def wrap_row(kernel: str, percent: int, plan: str) -> float:
    kvm = vm(kernel, 1000 * TABLE)
    for table in range(1000):
        if table % (100 // percent) == 0:
            fault(kvm, HOLE + table * TABLE, READ)
        else:
            fault(kvm, table * TABLE, WRITE)
    chosen = parse_plans({"wrap": plan}, dict(kvm.plans))["wrap"]
    return timed(1, lambda: run_zap_plan(kvm, chosen))


def write_protect(kernel: str, rounds: int) -> float:
    kvm = tables(kernel, PAGES // TABLE, TABLE)
    slot = kvm.memslots[0].memslots[0]
    spent = 0.0
    for _ in range(rounds):
        spent = timed(PAGES, lambda: kvm_mmu_slot_remove_write_access(kvm, slot))
    return spent


def fast_page_fault(kernel: str) -> float:
    kvm = tables(kernel, PAGES // TABLE, TABLE)
    kvm_mmu_slot_remove_write_access(kvm, kvm.memslots[0].memslots[0])
    return timed(PAGES, lambda: each(range(PAGES), lambda k, g: fault(k, g, WRITE_PRESENT), kvm))


def rmap_row(kernel: str) -> float:
    kvm = tables(kernel, PAGES // TABLE, TABLE)
    leaves = [
        (sp, index) for sp in kvm.pages.values() if role_level(sp.role) == 1 for index in list(sp.sptes)
    ]

    def cycle() -> None:
        for sp, index in leaves:
            rmap_remove(kvm, sp, index)
            rmap_add(kvm, sp, index, kvm_mmu_page_get_gfn(sp, index))

    return timed(len(leaves), cycle)


def pte_list(length: int) -> tuple[float, float]:
    heads = [PteList() for _ in range(PAGES // length)]
    rules = kernel("v5.0")
    entries = [(head, (at, n & 511)) for at in range(length) for n, head in enumerate(heads)]
    add = timed(len(entries), lambda: [pte_list_add(rules, head, sptep) for head, sptep in entries])
    remove = timed(len(entries), lambda: [pte_list_remove(rules, head, sptep) for head, sptep in entries])
    return add, remove


def get_page(kernel: str) -> float:
    kvm = tables(kernel, 1000, 1)
    choose = random.Random(7)
    gfns = [choose.randrange(1000) * TABLE for _ in range(PAGES)]

    def find() -> list[ShadowPage]:
        return [kvm_mmu_get_page(kvm, kvm.vcpus[0], gfn, 1) for gfn in gfns]

    return timed(PAGES, find)


ENTRY, ROOTS, DATA, OWN, LEAVES = 0x67, (0x1000, 0x5000, 0x6000, 0x7000), 1 << 20, 1 << 30, 0x10000


class Guest:
    """A guest in long mode with one last-level table full of pages from address 0 on, and that table at 1 GiB.

    Args:
        kernel: Whose rules.
    """

    def __init__(self, kernel: str):
        self.engine = Engine(kernel, {"family": "shadow"})
        self.do("set_memslot", id=0, gpa=0, size=1 << 24, hva=1 << 36, flags=0)
        entries = [(root, 0x2000) for root in ROOTS] + [(0x2000, 0x3000), (0x2008, 0x4000), (0x3000, LEAVES)]
        entries += [(0x4000, 0x8000), (0x8000, LEAVES)]
        entries += [(LEAVES + 8 * page, DATA + (page << 12)) for page in range(TABLE)]
        for at, to in entries:
            self.do("poke", vcpu=0, gpa=at, val=to | ENTRY)
        self.engine.kvm.n_max_mmu_pages = 1 << 30
        self.engine.kvm.events = NoEvents()

    def do(self, op: str, **given: object) -> dict[str, Any]:
        return self.engine.apply({"op": op, **given})

    def touch(self, gva: int) -> None:
        self.do("vaccess", vcpu=0, gva=gva, kind="w", user=1)

    def touch_all(self) -> None:
        for page in range(TABLE):
            self.touch(page << 12)


def shadow_fault(kernel: str) -> float:
    guest = Guest(kernel)
    return timed(TABLE, guest.touch_all)


def shadow_sync(kernel: str) -> float:
    guest = Guest(kernel)
    guest.touch_all()

    def rounds() -> None:
        for page in range(64):
            guest.touch(OWN)
            guest.do("poke", vcpu=0, gpa=LEAVES + 8 * page, val=DATA + ((page ^ 1) << 12) | ENTRY)
            guest.do("set_cr3", vcpu=0, cr3=ROOTS[0])

    return timed(64, rounds)


def shadow_switch(kernel: str) -> float:
    guest = Guest(kernel)

    def switch() -> None:
        for root in ROOTS:
            guest.do("set_cr3", vcpu=0, cr3=root)
            guest.do("enter", vcpu=0)

    for _ in range(2):
        switch()
    return timed(256 * len(ROOTS), lambda: [switch() for _ in range(256)])


def shadow_emulated(kernel: str) -> float:
    guest = Guest(kernel)
    guest.touch_all()

    def writes() -> None:
        for page in range(TABLE):
            value = DATA + ((page ^ 1) << 12) | ENTRY
            guest.do("emul_write", vcpu=0, gpa=LEAVES + 8 * page, val=value)

    return timed(TABLE, writes)


def rows() -> dict[str, Callable[[], float]]:
    """Case name -> what measures it, v5.0 (the reference's speed does not depend on the kernel)."""
    kernel = "v5.0"
    found: dict[str, Callable[[], float]] = {
        "map/1 GiB": lambda: map_row(kernel, "ascending", 0),
        "map-no-prefetch/1 GiB": lambda: map_row(kernel, "ascending", 1),
        "map-random/1 GiB": lambda: map_row(kernel, "random", 1),
        "map-descending/1 GiB": lambda: map_row(kernel, "descending", 0),
        "mmio-first/": lambda: mmio_first(kernel),
        "mmio-hit/sequential": lambda: mmio_hit(kernel, "sequential"),
        "mmio-hit/random": lambda: mmio_hit(kernel, "random"),
        "mmio-cached/": lambda: mmio_cached(kernel),
        "mmio-stale/": lambda: mmio_stale(kernel),
        "zap-full/1k": lambda: zap_row(kernel, 20, TABLE),
        "zap-sparse/1k": lambda: zap_row(kernel, 1000, 1),
        "wrap-1k/1 %": lambda: wrap_row("v5.2", 1, "merged"),
        "wrap-1k/10 %": lambda: wrap_row("v5.2", 10, "merged"),
        "write-protect/writable": lambda: write_protect(kernel, 1),
        "write-protect/again": lambda: write_protect(kernel, 2),
        "fast-page-fault/": lambda: fast_page_fault(kernel),
        "rmap/": lambda: rmap_row(kernel),
        "get-page/1k": lambda: get_page(kernel),
    }
    found |= {
        "shadow-fault/64 tables": lambda: shadow_fault(kernel),
        "shadow-sync/16 tables": lambda: shadow_sync(kernel),
        "shadow-switch/four roots": lambda: shadow_switch(kernel),
        "shadow-emulated/last level": lambda: shadow_emulated(kernel),
    }
    for length in (1, 4, 16, 64, 256):
        found[f"pte-list-add/chain of {length}"] = lambda length=length: pte_list(length)[0]
        found[f"pte-list-remove/chain of {length}"] = lambda length=length: pte_list(length)[1]
    return found
