"""A recorded trace asked two questions: which plan would have zapped less, and which is cheapest for a wrap now.

    python examples/recorded_trace.py [TRACE]

The recording's guest runs again once for each plan: its memslots are deleted and moved as they were, and each removal
zaps by that plan. Under the plan of its own kernel the counts are those of the recording. The guest accesses are those
that faulted when it was recorded: a plan that zaps more than the kernel did may look better than it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import kvm_mmu as km
from kvm_mmu.lab.inputs import recorded_scenario
from kvm_mmu.scenario.workload import run_scenario_workload
from kvm_mmu.trace.replay.workload import read_recording

#: A real 5.0.1 that deletes and moves slots.
DEFAULT = (
    Path(__file__).resolve().parent.parent
    / "tests"
    / "data"
    / "traces"
    / "5.0.1-npt"
    / "mix001"
    / "trace.txt.xz"
)
#: Plans of shadow pages, which these recordings are of.
SHADOW = {name: plan for name, plan in km.plans.items() if not plan.is_of_roots}


class Life(NamedTuple):
    """What a guest's whole life cost under one plan for slot removals."""

    plan: str
    made: int
    zapped: int
    faults: int


def lives(path: str) -> list[Life]:
    """One life for each plan that is enough for a slot removal, the cheapest first."""
    recording = read_recording(path)
    found = []
    for name, plan in SHADOW.items():
        if plan.only in ("slot", "indirect", "all") or plan.bump_valid_gen:
            scenario = recorded_scenario(recording, as_accesses=True, plans={"slot_removal": name})
            guest = run_scenario_workload(scenario, moment="end")
            found.append(Life(name, guest.made, guest.zapped, guest.vm.work["faults"]))
    return sorted(found, key=lambda life: (life.zapped, life.faults))


def _cost(row: dict[str, Any]) -> tuple[int, int]:
    return row["pages_zapped"] + row["tables_rebuilt"], row["nodes_visited"]


def main(argv: list[str] | None = None) -> tuple[list[Life], object]:
    """Answer both; returns the lives and the `Comparison`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", nargs="?", default=str(DEFAULT))
    args = parser.parse_args(argv)

    found = lives(args.trace)
    print(f"slot removals of {args.trace}: pages zapped, tables made, faults taken")
    for life in found:
        print(f"  {life.plan:<12} {life.zapped:>7,} {life.made:>7,} {life.faults:>7,}")

    wrap = km.compare(args.trace, list(SHADOW), at="wrap")
    sound = [row for row in wrap.rows if row["sound"] == "yes"]
    best = min(sound, key=_cost, default=None)
    if best is not None:
        print(f"a wrap now, {best['pages']} pages live: least is lost with {best['plan']}")
    else:
        print("a wrap now: there is no stale MMIO SPTE to take, so no plan shows what it can")
    for note in wrap.notes:
        print(f"  note: {note}")
    return found, wrap


if __name__ == "__main__":
    main()
