"""The quirk of 6.12: does the removal of one memslot take everything away, or only that slot?

Since 5.3 a removal zaps the whole MMU. 6.12 lets user space say that only the slot goes (KVM_X86_QUIRK_SLOT_ZAP_ALL
off). What that saves others, and what it costs, is counted on workloads by name and on a guest of one's own.
"""

from __future__ import annotations

from kvm_mmu.lab.sweep.run import sweep
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.machine.vm import Vm
from kvm_mmu.studies.gallery import Answer, Line, Table, facts_digest
from kvm_mmu.studies.study import ROWS, Study
from kvm_mmu.types import GIB, MIB, PAGE_SIZE

#: Workloads and sizes of the first table.
WORKLOADS, SIZES = ("boot", "virtio-mem", "churn"), ("256", "1024")
#: What stands for either side of the quirk, by page table.
SIDES = {"tdp": ("tdp-fast", "tdp-slot"), "shadow": ("v5.4-fast", "v6.12-slot")}


def q1() -> Answer:
    """Which kernel takes away what."""
    rows: dict[str, list[object]] = {
        name: [] for name in ("kernels", "release", "shadow pages", "TDP MMU", "can choose")
    }
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name in ROWS:
        profile = kernel_profile(name)
        tdp = profile.tdp_plans.get("slot_removal")
        key = (
            str(profile.slot_removal),
            "-" if tdp is None else str(tdp),
            "yes" if profile.facts["has_slot_zap_all_quirk"] else "no",
        )
        groups.setdefault(key, []).append(name)
    for (shadow, tdp_plan, can), names in groups.items():
        releases = [kernel_profile(name).release for name in names]
        values = (", ".join(names), f"{releases[0]} to {releases[-1]}", shadow, tdp_plan, can)
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return Answer(
        "Q1",
        "who takes away what",
        "a removal zaps only the slot in 5.1 and 5.2, everything before and after; from 6.12 on user space chooses",
        tables=[
            Table(
                "The plan of a slot removal, from the rows of the kernels (`kvm-mmu plans` has them in words)",
                rows,
            )
        ],
        command="kvm-mmu kernels",
    )


def q2() -> Answer:
    """What others lose."""
    rows: dict[str, list[object]] = {
        name: []
        for name in (
            "workload",
            "pages",
            "plan",
            "zapped",
            "faults again",
            "tables again",
            "work units",
            "digest",
        )
    }
    found = sweep(list(WORKLOADS), SIDES["tdp"], kernels=["v6.12"], pages=SIZES, jobs=1)
    least: list[float] = []
    by_plan: dict[tuple[str, str], dict[str, int]] = {}
    for row in found.rows:
        values = (
            row["input"], row["pages"], row["plan"], row["pages_zapped"], row["faults_again"], row["tables_rebuilt"],
            row["work_units"], row["digest"],
        )  # fmt: skip
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
        by_plan.setdefault((row["input"], row["pages_asked"]), {})[row["plan"]] = row["faults_again"]
    for both in by_plan.values():
        everything, only = both[SIDES["tdp"][0]], both[SIDES["tdp"][1]]
        least.append(100 * (everything - only) / everything if everything else 0.0)
    return Answer(
        "Q2",
        "what the others lose",
        "everybody pays for the removal of one small slot: what was mapped must be faulted in again",
        tables=[Table("One slot goes; then the guest repeats its accesses (v6.12, TDP MMU)", rows)],
        verdict=f"Zapping only the slot spares {min(least):.0f} % of the faults at least.",
        command=f"kvm-mmu sweep {' '.join(WORKLOADS)} --plans {','.join(SIDES['tdp'])} --kernels v6.12 "
        f"--pages {','.join(SIZES)}",
    )


def _guest(tdp_mmu: bool, quirk: bool, size: int = 256 * MIB) -> Vm:
    """A guest whose memory is mapped, and a slot of 2 MiB beside it that is mapped, too."""
    vm = Vm(kernel="v6.12", family="ept_ad", events="off", tdp_mmu=tdp_mmu)
    vm.set_slot_zap_all(quirk)
    vm.memslots.create(slot=0, gpa=0, size=size)
    vm.memslots.create(slot=1, gpa=GIB, size=2 * MIB)
    for first, length in ((0, size), (GIB, 2 * MIB)):
        vm.vcpus[0].access_many(range(first, first + length, PAGE_SIZE), "w")
    return vm


def q3() -> Answer:
    """Both sides on both page tables, for a slot that is small and for one that is everything."""
    rows: dict[str, list[object]] = {
        name: []
        for name in (
            "MMU",
            "removed",
            "quirk",
            "longest hold",
            "beside faults",
            "flushes",
            "faults again",
            "digest",
        )
    }
    for tdp_mmu in (True, False):
        for slot, what in ((1, "2 MiB of 258"), (0, "256 MiB of 258")):
            for quirk in (True, False):
                vm = _guest(tdp_mmu, quirk)
                before = vm.work
                vm.memslots.delete(slot)
                work = {name: value - before[name] for name, value in vm.work.items()}
                held = _held(vm, quirk, slot)
                kept = range(0, 256 * MIB, PAGE_SIZE) if slot == 1 else range(GIB, GIB + 2 * MIB, PAGE_SIZE)
                faults = vm.work["faults"]
                vm.vcpus[0].access_many(kept, "w")
                again = vm.work["faults"] - faults
                digest = facts_digest({"work": work, "stats": vm.stats, "held": held})
                values = (
                    "TDP" if tdp_mmu else "shadow", what, "on" if quirk else "off", *held, work["flushes"],
                    again, digest,
                )  # fmt: skip
                for name, value in zip(rows, values, strict=True):
                    rows[name].append(value)
    return Answer(
        "Q3",
        "what it costs the one who removes",
        "the removal of only the slot looks at every entry of the slot, under the lock held for writing",
        tables=[Table("A guest of 258 MiB, every page of 4 KiB mapped, removes a slot (v6.12)", rows)],
        verdict="The quirk on frees the writer's lock at once under the TDP MMU and pays in faults of everybody; off, "
        "the remover holds the lock for the slot's own entries, and the others keep theirs.",
    )


def _held(vm: Vm, quirk: bool, slot: int) -> tuple[int, int]:
    """The longest hold of the lock for writing and the work under the lock held for reading, of that removal's plan."""
    twin = _guest(vm.tdp_mmu, quirk)
    plan = SIDES["tdp" if vm.tdp_mmu else "shadow"][0 if quirk else 1]
    run = twin.zap(plan, slot=None if quirk else (0, slot))
    return run.longest_hold, run.shared_units


def q4() -> Answer:
    """What was published."""
    from kvm_mmu.studies.figures_tdp import figure_14

    figure = figure_14()
    rows = figure.columns()
    return Answer(
        "Q4",
        "against what was published",
        "a boot in 6 GB takes 14 % fewer violations with huge pages and 7 % without, one with many removals in "
        "32 GB 50 %",
        lines=[Line(figure.gap, figure.points[-1].digest)],
        tables=[Table(figure.setting, rows)],
        command="kvm-mmu gallery figures 14",
    )


STUDY = Study(
    "quirk",
    "The quirk of 6.12",
    "what KVM_X86_QUIRK_SLOT_ZAP_ALL costs those who keep their memory",
    """
To remove a memslot is to take away what maps it. Which entries those are is hard to know on shadow pages of a
guest that pages, and easy elsewhere; KVM has gone back and forth. 5.1 and 5.2 removed only the slot's own pages
(4e103134b862); 5.3 went back to zapping everything (d012a06ab1d2). In 6.12 the choice went to user space: with
`KVM_X86_QUIRK_SLOT_ZAP_ALL` switched off only the slot's leaves go.

Whoever plugs memory, maps a BAR or moves a slot at run time pays for it with the mappings of the whole guest.
From Python: `Vm(kernel="v6.12")` and `vm.set_slot_zap_all(False)`.
""",
    {"Q1": q1, "Q2": q2, "Q3": q3, "Q4": q4},
)
