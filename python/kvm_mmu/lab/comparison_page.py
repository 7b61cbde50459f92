"""A comparison as a page for a browser: what was found, the figure, the tables, and the runs to travel in.

Owns how much of a run a report holds: the last steps of a small workload, the state at the event, and the state after
each plan. What is left out is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kvm_mmu.lab import forced_event
from kvm_mmu.lab.forced_event import Plan
from kvm_mmu.lab.time_travel import steps_of
from kvm_mmu.machine.vm import GLANCE_SLOT_PAGES
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.scenario.workload import Workload, live_pages
from kvm_mmu.view.document import definitions, document, figure, table, text
from kvm_mmu.view.meanings import COLUMNS, COUNTERS
from kvm_mmu.view.time_travel import MOST_DRAWN, Frame, glossary, travel

if TYPE_CHECKING:
    from kvm_mmu.lab.comparison import Comparison

#: Runs of a report, steps of the workload of each, plans of each, and characters of all of them.
MOST_RUNS, MOST_STEPS, MOST_PLANS, MOST_TEXT = 6, 24, 12, 3_000_000
#: Operations of a scenario that are run once more for the sake of its last steps.
MOST_REPEATED = 20_000
#: What decides, of all columns.
_DECIDES = (
    *("nodes_visited", "pages_zapped", "longest_hold", "shared_units", "tables_rebuilt", "faults_again"),
    "sound",
)


class Run(NamedTuple):
    """A workload that was compared on, for its steps.

    Attributes:
        workload: the workload; its VM is never changed.
        scenario: what made it; None where no operations did.
        at: the event.
        plans: what was forced on it.
        contend: every n-th offer of the lock is taken.
    """

    workload: Workload
    scenario: Scenario | None
    at: str
    plans: Sequence[Plan]
    contend: int


def is_shown(workload: Workload) -> bool:
    """Whether a report can show the steps of a workload: it is small enough for a picture.

    Args:
        workload: the workload.

    Returns:
        True if it is.
    """
    vm = workload.vm
    return live_pages(vm) <= MOST_DRAWN and vm.core.total_slot_pages() <= GLANCE_SLOT_PAGES


def page(found: Comparison, picture: str | None) -> str:
    """Write a comparison as one page.

    Args:
        found: the comparison.
        picture: its figure as SVG text; None where there is none.

    Returns:
        The text of an HTML file.
    """
    names = found.names
    frames, runs = _runs(found)
    varying = [
        name
        for name in ("input", "kernel", "mmu", "pages", "mmio_pages")
        if len({row[name] for row in found.rows}) > 1
    ]
    decides = {name: found.column(name) for name in (*varying, "plan", *_DECIDES)}
    if not any(decides["shared_units"]):
        del decides["shared_units"]
    shared = ", ".join(
        f"{name.replace('_', ' ')} {found.rows[0][name]}"
        for name in ("input", "kernel", "mmu", "pages", "mmio_pages")
        if found.rows and name not in varying
    )
    at = found.rows[0]["at"] if found.rows else "end"
    whole = {name: found.column(name) for name in names}
    parts = [
        f"<p>The event at the end of each workload: {text(at)}. The same everywhere: {text(shared)}.</p>",
        *(f"<p class='bad'>{text(line)}</p>" for line in found.finding_lines()),
        "" if picture is None else figure(picture, "the longest hold of mmu_lock, in work units"),
        table(decides, "what decides", COLUMNS),
        f"<details><summary>all {len(names)} columns</summary>{table(whole, 'every column', COLUMNS)}</details>",
        _growth(found),
        "<h2>Notes</h2>" if found.notes else "",
        *(f"<p>{text(note)}</p>" for note in found.notes),
        "<h2>Plans</h2>",
        table({key: [plan[key] for plan in found.plans] for key in ("name", "spec")}, "plans in words"),
        *runs,
        definitions("Columns", {name: COLUMNS[name] for name in names}, "column"),
        *glossary(frames),
    ]
    return document(f"Zap plans compared, at {at}", parts)


def _growth(found: Comparison) -> str:
    if not found.fits:
        return ""
    columns: dict[str, list[Any]] = {
        key: [fit[key] for fit in found.fits] for key in ("input", "kernel", "plan", "of")
    }
    columns["grows as"] = [str(fit["fit"]) for fit in found.fits]
    return "<h2>Growth</h2>" + table(columns, "growth with the live pages, 95 % interval")


def _runs(found: Comparison) -> tuple[list[Frame], list[str]]:
    """The frames of all runs that are shown, and their HTML."""
    every: list[Frame] = []
    parts: list[str] = []
    size = 0
    shown = 0
    for run in found.runs[:MOST_RUNS]:
        frames = _frames(run)
        vm = run.workload.vm
        title = f"{run.workload.name}, kernel {vm.kernel}{', the TDP MMU' if vm.tdp_mmu else ''}"
        event = next(at for at, frame in enumerate(frames) if frame.name)
        written = travel(frames, title, f"run-{shown + 1}-", event)
        if size + len(written) > MOST_TEXT:
            break
        size += len(written)
        shown += 1
        every += frames
        parts += [f"<h3>{text(title)}</h3>" + _hidden(run), written]
    missing = len(found.workloads) - shown
    if missing:
        why = f"too many, or more than {MOST_DRAWN} pages live"
        parts.append(f"<p>Without steps: {missing:,} of {len(found.workloads):,} workloads ({why}).</p>")
    return every, ["<h2>Step by step</h2>", *parts] if parts else []


def _hidden(run: Run) -> str:
    hidden = run.workload.ran - MOST_STEPS
    said = []
    if run.workload.ran > MOST_REPEATED or run.scenario is None:
        said.append("the operations of the workload are not shown")
    elif hidden > 0:
        said.append(f"{hidden:,} operations before these are not shown")
    if len(run.plans) > MOST_PLANS:
        said.append(f"{len(run.plans) - MOST_PLANS} plans are not shown")
    return f"<p>{'; '.join(said)}.</p>" if said else ""


def _frames(run: Run) -> list[Frame]:
    """The last steps of the workload, the state at the event, and the state after each plan."""
    frames: list[Frame] = []
    vm, ran = run.workload.vm, run.workload.ran
    if run.scenario is not None and 0 < ran <= MOST_REPEATED:
        engine = MachineEngine(vm.profile.name, run.scenario.config, run.scenario.plans)
        frames += steps_of(run.scenario, engine, max(0, ran - MOST_STEPS), ran)
    before = vm.clone()
    forced_event.prepare(before, run.at)
    state = before.snapshot()
    event = "after the workload" if run.at == "end" else f"the {run.at}, before any plan"
    frames.append(Frame(-1, {}, {}, (), {}, state, tuple(before.audit()), name=event))
    for plan in run.plans[:MOST_PLANS]:
        twin = before.clone()
        twin.clear_events()
        stats = twin.stats
        done = forced_event.force(twin, run.at, plan, run.contend, 0, run.workload.removed)
        counters = {
            name: value - stats[name]
            for name, value in twin.stats.items()
            if name in COUNTERS and value != stats[name]
        }
        frames.append(
            Frame(
                -1,
                {},
                {"outcome": done.outcome, "longest hold": done.longest_hold, "lock breaks": done.lock_breaks},
                twin.events,
                counters,
                twin.snapshot(),
                tuple(twin.audit()),
                name=f"after {forced_event.plan_name(plan)}",
                work=done.work,
                since=state,
            )
        )
    return frames
