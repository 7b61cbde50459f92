"""Where the judge kills each planted fault, and which faults it must let pass: they break nothing that is unsound.

A kill is a world under a kernel, so many operations deep, and the property that names the fault there. The worlds
beside those of `kvm_mmu.check` are for one fault each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvm_mmu.check import WORLDS, World
from kvm_mmu.check.worlds import HVA, access, delete, get_log, slot, unmap

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
