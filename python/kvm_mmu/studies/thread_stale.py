"""The seed thread, S9: the walk's cached next page leaves the list; how small a scenario shows it.

Direct pages have no children that leave with them, so only somebody else can take the next page: in a lock break of a
plan that offers the lock and does not restart. The smallest scenario is found by trying all smaller ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.studies.gallery import Answer, Line, count, facts_digest

#: What may happen before the walk, one operation each.
SETUP: tuple[dict[str, Any], ...] = (
    {"op": "load"},
    {"op": "unload"},
    {"op": "smm", "on": 1},
    {"op": "access", "gpa": "0x0"},
)
#: What may happen in the lock break.
MEANWHILE: tuple[dict[str, Any], ...] = (
    {"op": "shrink", "n": 1},
    {"op": "unload"},
    {"op": "enter"},
    {"op": "change_mmu_pages", "n": 0},
    {"op": "access", "gpa": "0x0"},
)
PLAN = "walk=head,only=all,offer=each_page"
FIRST: dict[str, Any] = {"op": "set_max_raw", "n": 64}


def smallest_ops() -> list[dict[str, Any]]:
    """The smallest scenario, kept as a file of the tests."""
    return [
        FIRST,
        {"op": "load"},
        {"op": "smm", "on": 1},
        {"op": "load"},
        {"op": "lock_break", "cond": 1, "do": [[{"op": "shrink", "n": 1}]]},
        {"op": "zap", "plan": PLAN},
    ]


def run_ops(ops: list[dict[str, Any]], kernel: str = "v5.2") -> tuple[MachineEngine, dict[str, Any]]:
    """Run operations; the engine and the result of the last one."""
    engine = MachineEngine(kernel, {"family": "npt"})
    result: dict[str, Any] = {}
    for op in ops:
        result = engine.apply(op)
    return engine, result


@dataclass(frozen=True)
class Found:
    """A scenario that ends as stale_next, and how many shadow pages lived when its walk began."""

    pages: int
    ops: list[dict[str, Any]]


def search(longest: int = 3) -> tuple[int, list[Found]]:
    """Try every setup up to `longest` operations with every single interruption.

    Returns:
        How many scenarios were tried, and those that end as stale_next: fewest pages first, then fewest operations.
    """
    tried = 0
    found: list[Found] = []
    for length in range(longest + 1):
        for setup in itertools.product(SETUP, repeat=length):
            engine, _ = run_ops([FIRST, *setup])
            live = engine.vm.core.nr_active_pages
            for other in MEANWHILE:
                tried += 1
                ops = [
                    FIRST,
                    *setup,
                    {"op": "lock_break", "cond": 1, "do": [[other]]},
                    {"op": "zap", "plan": PLAN},
                ]
                _, result = run_ops(ops)
                if result["out"]["outcome"] == "stale_next":
                    found.append(Found(live, ops))
    return tried, sorted(found, key=lambda one: (one.pages, len(one.ops)))


def s9() -> Answer:
    """A cached next that leaves the list ends a run by name."""
    tried, found = search()
    kept, result = run_ops(smallest_ops())
    out = result["out"]
    lines = [
        Line(
            f"the kept scenario, {len(smallest_ops())} operations: {out['outcome']}"
            + (
                f", page {out['page']}, which is no longer where visit {out['step']} looks for it"
                if "page" in out
                else ""
            ),
            facts_digest({"state": kept.digest(), "out": out}),
        ),
        Line(
            f"{count(tried)} scenarios tried, {len(found)} end so; fewest pages: {found[0].pages if found else '-'} "
            f"(one page has no next), in {len(found[0].ops) if found else '-'} operations: "
            + (", ".join(op["op"] for op in found[0].ops) if found else "none"),
            facts_digest({"tried": tried, "found": [(one.pages, one.ops) for one in found]}),
        ),
    ]
    if found:
        shortest = min(found, key=lambda one: len(one.ops))
        engine, last = run_ops(shortest.ops)
        lines.append(
            Line(
                f"fewest operations: {len(shortest.ops)}, with {shortest.pages} pages: "
                + ", ".join(op["op"] for op in shortest.ops),
                facts_digest({"state": engine.digest(), "out": last["out"]}),
            )
        )
    stale = out["outcome"] == "stale_next"
    return Answer(
        "S9",
        "the next entry may be gone",
        "the next entry in the list could be modified when zapping a child.",
        lines=lines,
        verdict=(
            "It can, and it has a name here: a plan that never restarts ends as stale_next with page "
            "and visit, never "
            "silently. With direct pages it takes a lock break; children that leave with their parent "
            "come with shadow "
            "paging."
            if stale
            else "The kept scenario no longer shows it."
        ),
    )
