"""Where the judge kills each planted fault, and which faults it must let pass: they break nothing that is unsound.

A kill is a world under a kernel, so many operations deep, and the property that names the fault there. The worlds
beside those of `kvm_mmu.check` are for one fault each. `PLANTED` are faults that need no build of their own: a fact of
the row, a plan or a generation policy that is wrong.

`python judged.py NAME` searches for a fault of the build (the one that KVM_MMU_MUTANT chose) and prints what was found.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace

from kvm_mmu.check import WORLDS, World, check
from kvm_mmu.check.engine import Subject
from kvm_mmu.check.worlds import HVA, access, delete, get_log, slot, smm, unmap
from kvm_mmu.machine.generation import GenerationV61
from kvm_mmu.machine.profiles import as_plan

READ_ONLY = World(
    "read-only",
    "host memory that may not be written",
    (
        access(0),
        access(0, "w"),
        slot(0, 0),
        {"op": "host_state", "hva": HVA, "npages": 1, "state": "cow"},
        {"op": "change_pte", "hva": HVA, "pfn": 0x99999, "write": 0},
        delete(0),
    ),
)
TWO_PAGES = World(
    "two pages",
    "a slot of two pages, logged and unmapped",
    (
        access(0, "w"),
        access(0x1000, "w"),
        slot(0, 0, 0x2000),
        slot(0, 0, 0x2000, 1),
        get_log(0),
        unmap(0, 0x2000),
    ),
)
PML = World(
    "pml",
    "the processor logs dirty pages",
    (access(0, "w"), access(0), slot(0, 0), slot(0, 0, flags=1), get_log(0)),
    config={"family": "ept_ad", "pml": 1},
)

SPACE_ONE = World(
    "space 1",
    "updates and MMIO in the address space of SMM",
    (
        access(0x5000),
        access(0x9000),
        slot(0, 0, as_id=1),
        slot(0, 0, flags=1, as_id=1),
        slot(1, 0x5000, as_id=1),
        delete(1, as_id=1),
    ),
    start=(smm(1),),
)

RANGED = replace(WORLDS["W6"], name="W6 with ranged flushes", config={"flush_range": 1})


@dataclass(frozen=True)
class Kill:
    """Where a fault is found: the kernel, the world, how deep, and the property."""

    kernel: str
    world: World
    depth: int
    name: str


W = WORLDS

#: The fault -> where the judge names it.
KILLS: dict[str, Kill] = {
    "flag-on-parent-table": Kill("v6.12", W["W1"], 3, "mmio_flag"),
    "flag-cleared-on-overwrite": Kill("v5.0", W["W1"], 6, "mmio_flag"),
    "parent-entry-kept": Kill("v5.2", W["W2"], 4, "freed_reachable"),
    "flush-skipped": Kill("v5.2", W["W2"], 4, "freed_reachable"),
    "in-use-root-freed": Kill("v6.12", W["W1"], 4, "freed_reachable"),
    "root-count-kept": Kill("v6.12", W["W4"], 4, "root_count"),
    "reload-forgotten": Kill("v6.12", W["T1"], 3, "debt_overdue"),
    "dirty-log-without-flush": Kill("v6.12", W["W2"], 4, "debt_overdue"),
    "pml-not-logged": Kill("v6.12", PML, 5, "unlogged_write"),
    "fast-fault-not-logged": Kill("v5.2", W["W2"], 5, "unlogged_write"),
    "unmap-without-flush": Kill("v6.12", W["W1"], 4, "debt_overdue"),
    "changed-pte-writable": Kill("v5.2", READ_ONLY, 4, "readonly_write"),
    "tracked-stays-writable": Kill("v6.12", W["W4"], 4, "tracked_all_spaces"),
    "track-without-veto": Kill("v6.12", W["W6"], 4, "tracked_all_spaces"),
    "track-without-flush": Kill("v6.12", W["W4"], 4, "debt_overdue"),
    "walk-forgets-flush": Kill("v5.2", W["W3"], 4, "debt_overdue"),
    "stale-mmio-accepted": Kill("v6.12", W["W2"], 5, "stale_mmio"),
    "large-veto-ignored": Kill("v6.12", W["W6"], 4, "tracked_all_spaces"),
    "valid-gen-counts": Kill("v6.12", W["W1"], 5, "valid_gen"),
    "invalid-not-obsolete": Kill("v6.12", W["W1"], 5, "no_page_under_invalid"),
    "dead-root-stays-listed": Kill("v6.12", W["W1"], 4, "active_valid"),
    "mmio-cache-space-zero": Kill("v6.12", W["W4"], 4, "mmio_cache_space"),
    "fast-fault-through-log": Kill("v6.12", W["W6"], 4, "unlogged_write"),
    "large-leaf-executable": Kill("v6.12", W["W6"], 4, "nx_exec"),
    "rmap-entry-kept": Kill("v6.12", W["W6"], 4, "rmap_leaf"),
    "invalidation-not-tested": Kill("v6.12", W["W3"], 4, "host_taken"),
    "unmap-first-space-only": Kill("v6.12", W["W5"], 5, "host_taken"),
    "unmap-rounds-down": Kill("v6.12", TWO_PAGES, 4, "host_taken"),
    "read-only-mapped-writable": Kill("v6.12", READ_ONLY, 4, "readonly_write"),
    "dirty-log-flush-first": Kill("v6.12", RANGED, 4, "debt_overdue"),
    "log-keeps-writable": Kill("v6.12", W["W2"], 5, "unlogged_write"),
    "root-without-smm": Kill("v6.12", W["W4"], 4, "root_role"),
    "tdp-nx-mark-kept": Kill("v6.12", W["T1"], 4, "tdp_nx_list"),
    "tdp-root-reference-lost": Kill("v6.12", W["T1"], 3, "tdp_refs"),
    "tdp-frozen-left": Kill("v6.12", W["T1"], 4, "tdp_shape"),
}

#: Faults that break nothing that is unsound: another order, other counts, more work. The judge must let them pass.
SOUND = (
    "new-page-at-tail",
    "batch-reset-without-drop",
    "newest-reclaimed",
    "age-keeps-accessed",
    "accessed-dirty-lost",
    "batch-counts-all",
    "mmio-without-caching-mapped",
    "spurious-not-seen",
    "stale-mmio-not-writable",
    "prefetch-after-unchanged",
    "last-run-not-mapped",
    "tdp-dirty-lost",
)
#: What must pass under each of them.
SILENT = "tests/mutants/test_judged.py::test_small_worlds_are_sound"


class NeverWraps(GenerationV61):
    """No wrap is found."""

    def is_wrap(self, generation: int) -> bool:
        return False


class WrapMaskWide(GenerationV61):
    """One bit more counts for the wrap than is kept: every second lap has none."""

    def is_wrap(self, generation: int) -> bool:
        return generation & ((2 << self.layout.width) - 1) & ~1 == 0


class EverySecondLap(GenerationV61):
    """Every second wrap is passed over."""

    def is_wrap(self, generation: int) -> bool:
        return super().is_wrap(generation) and (generation >> self.layout.width) % 2 == 0


class WrapOfSpaceZero(GenerationV61):
    """The wrap is looked for in address space 0 only."""

    def is_wrap(self, generation: int) -> bool:
        return generation & 1 == 0 and super().is_wrap(generation)


class SpaceBitCounts(GenerationV61):
    """The bit that tells the address spaces apart counts for the wrap."""

    def is_wrap(self, generation: int) -> bool:
        return self.kept(generation) == 0


class StandsStill(GenerationV61):
    """An update leaves the generation as it was."""

    def next(self, generation: int) -> int:
        return generation & ~self.layout.in_progress


class StepsBack(GenerationV61):
    """Every third update goes back to the generation before."""

    def next(self, generation: int) -> int:
        after = super().next(generation)
        return after - 4 if (after >> 1) % 3 == 0 and after > 4 else after


class StepsTwice(GenerationV61):
    """An update steps twice: half a ring, and nothing that is unsound."""

    def next(self, generation: int) -> int:
        return super().next(super().begin(super().next(generation)))


@dataclass(frozen=True)
class Planted:
    """A fault that needs no build.

    Args:
        subject: the kernel with the fault in it.
        world: where the judge finds it.
        depth: how deep.
        name: the property that names it; None: it breaks nothing that is unsound.
        fault: what was planted.
    """

    subject: Subject
    world: World
    depth: int
    name: str | None
    fault: str = field(default="")


def _fact(text: str, world: str, depth: int, name: str) -> Planted:
    return Planted(Subject(f"v6.12:{text}"), W[world], depth, name, f"fact {text}")


def _policy(policy: type[GenerationV61], world: World, depth: int, name: str | None) -> Planted:
    said = (policy.__doc__ or "").rstrip(".")
    return Planted(Subject("v6.12", policy=policy), world, depth, name, f"policy: {said}")


def _plan(text: str, event: str, world: str, depth: int, name: str | None) -> Planted:
    return Planted(Subject("v6.12", as_plan(text), event), W[world], depth, name, f"plan {text} at {event}")


#: The walk of `zap-all`, to which one wrong word is added.
_ALL = "walk=head,skip=invalid_in_use,restart=on_lock_drop+on_unstable,offer=each_page"
_FAST = (
    "walk=tail,only=obsolete,stop=first_not_obsolete,skip=invalid_in_use,"
    "restart=on_lock_drop+on_unstable,offer=batch:10,reload_roots=before"
)

#: Fault -> where the judge names it, or lets it pass.
PLANTED: dict[str, Planted] = {
    "mmio-cache-of-space-zero": _fact("mmio_cache_space=zero", "W4", 3, "mmio_cache_space"),
    "collapse-by-table": _fact("collapse=by_table", "W6", 4, "slot_bounds"),
    "track-own-space": _fact("track_all_spaces=no", "W4", 5, "tracked_all_spaces"),
    "reclaim-takes-roots": _fact("reclaim_skips_roots=no", "R1", 2, "progress"),
    "invalid-is-not-obsolete": _fact("obsolete_if_invalid=no", "W1", 5, "no_page_under_invalid"),
    "log-without-its-walk": _fact("walk_on_log_change=no", "W2", 3, "debt_overdue"),
    "never-wraps": _policy(NeverWraps, W["W2"], 6, "mmio_place"),
    "wrap-mask-wide": _policy(WrapMaskWide, W["W2"], 6, "mmio_place"),
    "every-second-lap": _policy(EverySecondLap, W["W2"], 6, "mmio_place"),
    "wrap-of-space-zero": _policy(WrapOfSpaceZero, SPACE_ONE, 6, "mmio_place"),
    "space-bit-counts": _policy(SpaceBitCounts, SPACE_ONE, 6, "mmio_place"),
    "stands-still": _policy(StandsStill, W["W2"], 3, "mmio_cache_space"),
    "steps-back": _policy(StepsBack, W["W2"], 4, "mmio_place"),
    "removal-of-mmio-pages-only": _plan("merged", "slot_removal", "W1", 3, "leaf_rmap"),
    "removal-of-shadows-only": _plan(f"{_ALL},only=indirect", "slot_removal", "W1", 3, "mmio_as_ram"),
    "removal-without-a-new-generation": _plan(_FAST, "slot_removal", "W1", 3, "mmio_as_ram"),
    "removal-ends-too-soon": _plan(f"{_ALL},stop=first_not_obsolete", "slot_removal", "W1", 3, "mmio_as_ram"),
    "wrap-takes-shadows-only": _plan(f"{_ALL},only=indirect", "wrap", "W2", 6, "mmio_place"),
    "wrap-without-a-new-generation": _plan(_FAST, "wrap", "W2", 6, "mmio_place"),
    "steps-twice": _policy(StepsTwice, W["W2"], 20, None),
    "removal-from-the-tail": _plan(_ALL.replace("head", "tail"), "slot_removal", "W1", 20, None),
    "removal-looks-at-invalid-pages": _plan(
        _ALL.replace("skip=invalid_in_use", "skip=none"), "slot_removal", "W1", 20, None
    ),
}


def found_in(subject: Subject, world: World, depth: int) -> list[tuple[str, int]]:
    """The properties that a search finds broken, and after how many operations each."""
    result = check(subject, world, depth=depth, keep=True)
    return [(finding.name, finding.operations) for finding in result.found]


def main() -> None:
    """Search for a fault of the build: where it is to be named, or in the small worlds where it is to pass."""
    name = sys.argv[1]
    if name in KILLS:
        kill = KILLS[name]
        found = found_in(Subject(kill.kernel), kill.world, kill.depth)
    else:
        found = [one for world in ("W1", "W2") for one in found_in(Subject("v6.12"), W[world], 64)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
