"""What the TDP MMU bought: the same guest on shadow pages and on the TDP MMU, counted side by side.

Both MMUs are of one kernel (v6.12), so that nothing but the page table's own bookkeeping differs; older kernels stand
beside them where the history matters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvm_mmu.machine.vm import Vm
from kvm_mmu.studies.gallery import Answer, Table, facts_digest
from kvm_mmu.studies.study import Study
from kvm_mmu.types import GIB, KVM_MEM_LOG_DIRTY_PAGES, MIB, PAGE_SIZE

#: Memory of the guest, and what it is called.
SIZE, MEMORY = 256 * MIB, "256 MiB"
#: Kernel, whether it has the TDP MMU on, and what it is called.
SIDES = (("v5.4", False, "v5.4"), ("v6.12", False, "v6.12, tdp_mmu=N"), ("v6.12", True, "v6.12, TDP MMU"))


def guest(kernel: str, tdp_mmu: bool, size: int = SIZE) -> Vm:
    """A guest that wrote every page of its memory, each in a host page of 4 KiB.

    Args:
        kernel: the kernel.
        tdp_mmu: the TDP MMU serves it.
        size: bytes of memory.

    Returns:
        The VM.
    """
    vm = Vm(kernel=kernel, family="ept_ad", vcpus=4, events="off", tdp_mmu=tdp_mmu)
    vm.memslots.create(slot=0, gpa=0, size=size)
    if not tdp_mmu:
        vm.set_nr_mmu_pages(1 << 20)
    vm.vcpus[0].access_many(np.arange(0, size, PAGE_SIZE, dtype=np.uint64), "w")
    return vm


def _side_by_side(of: Callable[[Vm], dict[str, object]]) -> dict[str, list[object]]:
    """A row for each side: what is asked of a fresh guest, and the digest of everything it did."""
    rows: dict[str, list[object]] = {"kernel": []}
    for kernel, tdp_mmu, name in SIDES:
        vm = guest(kernel, tdp_mmu)
        found = of(vm)
        found["digest"] = facts_digest({"found": found, "work": vm.work, "stats": vm.stats})
        rows["kernel"].append(name)
        for key, value in found.items():
            rows.setdefault(key, []).append(value)
    return rows


def t1() -> Answer:
    """What a mapping costs."""

    def mapped(vm: Vm) -> dict[str, object]:
        pages = SIZE // PAGE_SIZE
        work = vm.work
        return {
            "tables": vm.core.nr_active_pages + sum(vm.core.nr_tdp_tables),
            "on the active list": vm.core.nr_active_pages,
            "hash probes": work["hash_probes"],
            "reverse-map entries": work["rmap_steps"],
            "of them a page": round(work["rmap_steps"] / pages, 3),
            "parent entries": work["parent_steps"],
        }

    return Answer(
        "T1",
        "what stands around the tables",
        "the tables are the same; the TDP MMU does without the active list, the hash and the reverse map",
        tables=[Table(f"A guest that wrote each page of {MEMORY}", _side_by_side(mapped))],
        verdict="No reverse map: what maps a frame is found by walking the tables, which for two-dimensional paging "
        "know each frame in one place.",
    )


def t2() -> Answer:
    """Who waits while everything is zapped."""

    def zapped(vm: Vm) -> dict[str, object]:
        plan = "tdp-fast" if vm.tdp_mmu else "v5.4-fast"
        # A vCPU that waits for the lock gets it at the first offer.
        run = vm.zap(plan)
        return {
            "plan": plan,
            "work units": run.work["units"],
            "longest hold for writing": run.longest_hold,
            "beside faults": run.shared_units,
            "entries reported": run.work["sptes_changed"],
            "flushes": run.work["flushes"],
        }

    return Answer(
        "T2",
        "who waits while everything is zapped",
        "the roots become invalid under the lock held for writing; they are taken apart under it held for reading, "
        "while vCPUs already build new ones",
        tables=[Table(f"The fast zap of a guest of {MEMORY}", _side_by_side(zapped))],
        verdict="It does not do less work, it does it beside the faults: nothing of it is done while they are kept "
        "out.",
        command="kvm-mmu compare scenario.jsonl --kernel v6.12 --plan v5.4-fast --plan tdp-fast --at wrap",
    )


def t3() -> Answer:
    """What dirty logging costs."""

    def logged(vm: Vm) -> dict[str, object]:
        before = vm.work
        vm.memslots.set_flags(0, KVM_MEM_LOG_DIRTY_PAGES)
        begun = {name: value - before[name] for name, value in vm.work.items()}
        before = vm.work
        vm.get_dirty_log(0)
        vm.vcpus[0].access_many(np.arange(0, SIZE // 8, PAGE_SIZE, dtype=np.uint64), "w")
        vm.get_dirty_log(0)
        round_of = {name: value - before[name] for name, value in vm.work.items()}
        return {
            "heads at the start": begun["heads_visited"],
            "reverse-map steps": begun["rmap_steps"],
            "entries reported": begun["sptes_changed"],
            "units of a round": round_of["units"],
            "faults of a round": round_of["faults"],
        }

    return Answer(
        "T3",
        "what a dirty log costs",
        "shadow pages find what to protect through the reverse map, the TDP MMU walks its tables",
        tables=[
            Table(
                f"{MEMORY} of 4 KiB pages: the log goes on; a round in which the guest writes an eighth again",
                _side_by_side(logged),
            )
        ],
        verdict="The walk over tables needs no head for each frame; what must be written is the same.",
    )


def t4() -> Answer:
    """How it grows."""
    rows: dict[str, list[object]] = {
        name: [] for name in ("memory", "kernel", "longest hold for writing", "beside faults", "digest")
    }
    for size in (64 * MIB, 256 * MIB, GIB):
        for kernel, tdp_mmu, name in SIDES:
            vm = guest(kernel, tdp_mmu, size)
            run = vm.zap("tdp-fast" if tdp_mmu else "v5.4-fast")
            digest = facts_digest({"work": run.work, "stats": vm.stats})
            values = (f"{size // MIB:,} MiB", name, run.longest_hold, run.shared_units, digest)
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
    return Answer(
        "T4",
        "does it grow with the guest?",
        "a zap of 24 GB of small pages at the end of a migration took 300 ms, and no vCPU ran",
        tables=[Table("The fast zap, by memory", rows)],
        verdict="The hold on shadow pages grows in step with the memory; under the TDP MMU it is zero at every size.",
        command="kvm-mmu gallery figures 15",
    )


STUDY = Study(
    "tdp",
    "What the TDP MMU bought",
    "the same guest on shadow pages and on the TDP MMU, counted side by side",
    """
Since 5.15 a guest that is not nested is mapped by the TDP MMU. Its page tables are those that the processor
walks, as before; what changed is everything around them: which lists they are on, who holds `mmu_lock` how, and
how a frame is found. Here one guest of 4 vCPUs is run under v5.4, under v6.12 with the TDP MMU switched off,
and under v6.12 as it comes. Which page table serves which guest, and how the same is done in Python, is on [the
same guest under both MMUs](../two-mmus.md).
""",
    {"T1": t1, "T2": t2, "T3": t3, "T4": t4},
)
