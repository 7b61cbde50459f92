"""`compare`: one workload, many zap plans, each on a clone of the same state; counts are exact and repeatable.

The workload runs once. For each plan a clone gets the event (`forced_event`), then the guest's distinct accesses are
repeated on it and on an untouched clone (`collateral`). With `scale` the same is done at several sizes (`scale`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvm_mmu.errors import UsageError
from kvm_mmu.lab import forced_event
from kvm_mmu.lab.collateral import Repeated, repeat
from kvm_mmu.lab.comparison import Comparison
from kvm_mmu.lab.cost import CostModel, cost_model
from kvm_mmu.lab.fit import fit_power
from kvm_mmu.lab.forced_event import EventRun, Plan
from kvm_mmu.lab.inputs import read_input
from kvm_mmu.lab.scale import scaled, side_by_side
from kvm_mmu.lab.scenario import Scenario
from kvm_mmu.lab.workload import Workload, run_scenario_workload
from kvm_mmu.machine.profiles import as_plan, kernel_profile
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.zap_plan import ZapPlan, plans

Input = str | Path | Scenario | Workload
#: Live pages up to which a digest is that of the whole state.
DIGEST_WHOLE = 20_000
#: What growth is fitted for.
FITTED = ("nodes_visited", "longest_hold")


class _Setting(NamedTuple):
    """What rows share: every `contend`-th offer of the lock is taken, `added` tables are built then, the cost model."""

    contend: int
    added: int
    cost: CostModel | None = None


def state_digest(vm: Vm) -> str:
    """The digest of the state; of very many pages the hash of which pages live, in list order, and of the counters."""
    if vm.core.nr_active_pages <= DIGEST_WHOLE:
        return vm.digest()
    pages = np.array(vm.core.active_page_ids(), dtype="<u8").tobytes()
    facts = json.dumps([vm.stats, vm.memslots.generations], sort_keys=True)
    return hashlib.sha256(pages + facts.encode()).hexdigest()[:16]


def run_digest(vm: Vm, run: EventRun) -> str:
    """First 16 hex digits of a hash over the state after a run and the run's own counts: it changes when the plan is
    another one or is turned off, also where the final state is the same."""
    facts = {"state": state_digest(vm), "outcome": run.outcome, "hold": run.longest_hold, "work": run.work}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_plans(chosen: Iterable[Plan | str | dict[str, object]]) -> list[Plan]:
    """Plans from plans, names, texts, dicts or functions that zap."""
    found: list[Plan] = []
    for one in chosen:
        found.append(as_plan(one) if isinstance(one, ZapPlan | str | dict) else one)
    if not found:
        raise UsageError(f"no plan to compare: give names of {', '.join(plans)}, or plans")
    return found


def _row(
    workload: Workload,
    at: str,
    plan: Plan,
    setting: _Setting,
    untouched: Repeated,
    population: tuple[int, int],
) -> tuple[dict[str, Any], float]:
    vm = workload.vm.clone()
    forced_event.prepare(vm, at)
    start = time.perf_counter()
    run = forced_event.force(vm, at, plan, setting.contend, setting.added)
    seconds = time.perf_counter() - start
    digest = run_digest(vm, run)
    again = None
    if at != "teardown":
        again = repeat(vm, workload.touches).beyond(untouched)
    outcome = run.outcome if forced_event.is_exercised(run) or run.outcome != "done" else "not exercised"
    if outcome == "no slot":
        outcome = "not exercised"
    if outcome == "stale_next":
        outcome = f"stale_next: page {run.page} at visit {run.step}"
    updates = forced_event.updates_per_event(vm, at)
    work = run.work
    row = {
        "input": workload.name,
        "kernel": vm.kernel,
        "at": at,
        "plan": forced_event.plan_name(plan),
        "pages": population[0],
        "mmio_pages": population[1],
        "outcome": outcome,
        "nodes_visited": work["walk_visited"],
        "restarts": work["restarts"],
        "pages_zapped": work["pages_zapped"],
        "sptes_cleared": work["sptes_cleared"],
        "rmap_steps": work["rmap_steps"],
        "parent_steps": work["parent_steps"],
        "flushes": work["flushes"],
        "lock_breaks": run.lock_breaks,
        "longest_hold": run.longest_hold,
        "work_units": work["units"],
        "tables_rebuilt": None if again is None else again.tables,
        "faults_again": None if again is None else again.faults,
        "updates_per_event": updates,
        "units_per_update": work["units"] / updates,
        "tables_per_update": None if again is None else again.tables / updates,
        "faults_per_update": None if again is None else again.faults / updates,
        "digest": digest,
    }
    if setting.cost is not None:
        modelled = setting.cost.nanoseconds(work, population[0]) / 1e6
        row |= {
            "cost_model": setting.cost.name,
            "modelled_ms": modelled,
            "modelled_ms_per_update": modelled / updates,
        }
    return row, seconds


def _compare_one(
    result: Comparison,
    workload: Workload,
    at: str,
    chosen: Sequence[Plan],
    setting: _Setting,
    progress: Callable[[str], None],
) -> None:
    base = workload.vm.clone()
    forced_event.prepare(base, at)
    untouched = repeat(base, workload.touches) if at != "teardown" else Repeated(0, 0)
    del base
    counted = workload.population()
    for plan in chosen:
        progress(f"{workload.name}: {forced_event.plan_name(plan)}")
        row, seconds = _row(workload, at, plan, setting, untouched, (counted.pages, counted.mmio_pages))
        result.rows.append(row)
        result.measured_rows.append(
            {
                "input": workload.name,
                "pages": counted.pages,
                "plan": forced_event.plan_name(plan),
                "measured_wall_seconds": round(seconds, 6),
            }
        )


def _fit(result: Comparison, name: str, rows: Sequence[dict[str, Any]]) -> None:
    for plan in dict.fromkeys(row["plan"] for row in rows):
        mine = [row for row in rows if row["plan"] == plan]
        for of in FITTED:
            found = fit_power([row["pages"] for row in mine], [row[of] for row in mine])
            if found is not None:
                result.fits.append({"input": name, "plan": plan, "of": of, "fit": found})


def compare(
    inputs: Input | Sequence[Input],
    plans: Iterable[Plan | str | dict[str, object]],
    *,
    at: str = "end",
    scale: Sequence[int] = (),
    kernel: str | None = None,
    host: dict[str, object] | None = None,
    mmio_share: float | None = None,
    mmio_place: str = "input",
    contend: int = 0,
    added: int = 0,
    cost: str | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """Compare zap plans on what a guest did.

    Args:
        inputs: scenarios, workloads, or paths of scenario files, result files and recordings; one or several.
        plans: plans, their names or texts, or functions that take a `Vm` and zap through `Vm.zap_batch`.
        at: the event forced at the end of the workload: `end` (just the plan), `wrap`, `slot-removal`, `teardown`.
        scale: numbers of live shadow pages to repeat the input's operations to.
        kernel: the kernel to model; default the input's own.
        host: facts of a recording's host that the recording does not hold.
        mmio_share: with `scale`: the share of MMIO-caching pages, 0 to 1; default the input's own.
        mmio_place: with `scale`: `input` keeps the age order of the input, `even` spreads MMIO over all ages.
        contend: every n-th offer of the lock is taken (0: none).
        added: MMIO tables that a running vCPU adds in each of those lock breaks.
        cost: name of a cost model that turns counts into modelled time, in columns of its own.
        progress: told what is being done.

    Returns:
        A row for each input, size and plan; see `Comparison`.

    Raises:
        UsageError: an unknown event, plan or kernel. ScenarioError, TraceError: an input that cannot be read.
    """
    event = forced_event.as_event(at)
    chosen = as_plans(plans)
    if kernel is not None:
        kernel_profile(kernel)
    sizes = list(scale)
    if any(not isinstance(n, int) or n < 1 for n in sizes):
        raise UsageError(f"scale {sizes}: expected numbers of pages, 1 or more")
    if mmio_share is not None and not 0.0 <= mmio_share <= 1.0:
        raise UsageError(f"MMIO share {mmio_share}: expected 0 to 1")
    if contend < 0:
        raise UsageError(f"contend={contend}: expected 0 (nobody wants the lock) or every n-th offer")
    if added < 0 or (added and not contend):
        raise UsageError(f"added={added}: expected 0, or contend with it: pages are added in lock breaks")
    model = None if cost is None else cost_model(cost)
    setting = _Setting(contend, added, model)
    result = Comparison([], plans=[forced_event.describe(plan) for plan in chosen])
    for one in [inputs] if isinstance(inputs, str | Path | Scenario | Workload) else list(inputs):
        source = read_input(one, kernel, host) if isinstance(one, str | Path) else one
        if isinstance(source, Workload):
            if sizes:
                raise UsageError(
                    f"{source.name}: a workload that was made to a size is not scaled; make others"
                )
            _compare_one(result, source, event, chosen, setting, progress)
            result.notes += [n for n in source.notes if n not in result.notes]
            continue
        progress(f"running {source.name}")
        if not sizes:
            _compare_one(result, run_scenario_workload(source, kernel), event, chosen, setting, progress)
            continue
        first = len(result.rows)
        for n in sizes:
            progress(f"{source.name}: repeating it until {n:,} pages live")
            grown = scaled(source, n, kernel, mmio_share, mmio_place)
            _compare_one(result, grown.workload, event, chosen, setting, progress)
            result.sides[grown.workload.name] = side_by_side(grown)
            result.notes += [note for note in grown.workload.notes if note not in result.notes]
        _fit(result, source.name, result.rows[first:])
    if model is not None:
        result.notes.append(f"modelled time, not measured: {model}")
    for plan in chosen:
        left = forced_event.left_behind(plan, event)
        if left:
            result.notes.append(
                f"{forced_event.plan_name(plan)} leaves {left}: no way to do a {event} with it alone"
            )
    return result
