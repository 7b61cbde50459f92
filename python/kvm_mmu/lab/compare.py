"""`compare`: one workload, many zap plans, each on a clone of the same state; counts are exact and repeatable.

The workload runs once a kernel and page table: plans that walk roots are of the TDP MMU, all others of shadow pages.
For each plan a clone gets the event (`forced_event`), is asked what is left of what the event needs gone (`soundness`),
then the guest's distinct accesses are repeated on it and on an untouched clone (`collateral`). With `scale` the same is
done at several sizes (`scale`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from kvm_mmu.errors import UsageError
from kvm_mmu.lab import comparison_page, forced_event, page_tables, soundness
from kvm_mmu.lab.collateral import Repeated, repeat
from kvm_mmu.lab.comparison import Comparison
from kvm_mmu.lab.cost import CostModel, cost_model, is_fitted_to
from kvm_mmu.lab.fit import fit_power
from kvm_mmu.lab.forced_event import EventRun, Plan
from kvm_mmu.lab.input_names import InputNames
from kvm_mmu.lab.inputs import open_input, recorded_scenario
from kvm_mmu.lab.live_input import is_dump, live_workload
from kvm_mmu.lab.sampling import Sample, estimated, sampled
from kvm_mmu.lab.scale import Scaled, scaled, side_by_side
from kvm_mmu.machine.profiles import as_plan, kernel_profile
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.zap_plan import ZapPlan, plans
from kvm_mmu.scenario.language import Scenario, in_header
from kvm_mmu.scenario.workload import Workload, live_pages, run_scenario_workload

if TYPE_CHECKING:
    from kvm_mmu.trace.replay.workload import Recording

Input: TypeAlias = "str | Path | Scenario | Workload | Recording"
#: Live pages up to which a digest is that of the whole state.
DIGEST_WHOLE = 20_000
#: What growth is fitted for.
FITTED = ("nodes_visited", "longest_hold")


class _Setting(NamedTuple):
    """What rows share: every `contend`-th offer of the lock is taken, `added` tables are built then, the cost model,
    and which share of the input's memory was run.
    """

    contend: int
    added: int
    cost: CostModel | None = None
    sample: Sample | None = None


def state_digest(vm: Vm) -> str:
    """The digest of the state; of very many pages the hash of which pages live, in list order, and of the counters."""
    if live_pages(vm) <= DIGEST_WHOLE:
        return vm.digest()
    tables = [table for table, _, _ in vm.core.tdp_tables()]
    pages = np.array([*vm.core.active_page_ids(), *tables], dtype="<u8").tobytes()
    facts = json.dumps([vm.stats, vm.memslots.generations], sort_keys=True)
    return hashlib.sha256(pages + facts.encode()).hexdigest()[:16]


def run_digest(vm: Vm, run: EventRun) -> str:
    """First 16 hex digits of a hash over the state after a run and the run's own counts: it changes when the plan is
    another one or is turned off, also where the final state is the same."""
    facts = {"state": state_digest(vm), "outcome": run.outcome, "hold": run.longest_hold, "work": run.work}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_plans(chosen: Iterable[Plan | str | dict[str, object]] | None) -> list[Plan] | None:
    """Plans from plans, names, texts, dicts or functions that zap; None: each kernel's own."""
    if chosen is None:
        return None
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
    tables = [table for table, _, _ in vm.core.tdp_tables()]
    last_page = max([*vm.core.active_page_ids(), *tables], default=0)
    slot = workload.removed or forced_event.largest_slot(vm)
    forced_event.prepare(vm, at)
    to_go = soundness.to_go(vm, at, slot, last_page)
    start = time.perf_counter()
    run = forced_event.force(vm, at, plan, setting.contend, setting.added, slot)
    seconds = time.perf_counter() - start
    digest = run_digest(vm, run)
    did_something = forced_event.is_exercised(run)
    left = sound = None
    if at != "end" and run.outcome in ("done", "no slot"):
        left = soundness.to_go(vm, at, slot, last_page)
        sound = soundness.verdict(to_go, left, did_something)
    again = None
    if at != "teardown":
        again = repeat(vm, workload.touches).beyond(untouched)
    outcome = run.outcome if did_something or run.outcome != "done" else "not exercised"
    if outcome == "no slot":
        outcome = "not exercised"
    if outcome == "stale_next":
        outcome = f"stale_next: page {run.page} at visit {run.step}"
    updates = forced_event.updates_per_event(vm, at)
    work = run.work
    row = {
        "input": workload.name,
        "kernel": vm.kernel,
        "mmu": page_tables.name_of(vm),
        "at": at,
        "plan": forced_event.plan_name(plan),
        "pages": population[0],
        "mmio_pages": population[1],
        "outcome": outcome,
        "sound": sound,
        "to_go": None if at == "end" else to_go,
        "left_over": left,
        "nodes_visited": work["walk_visited"],
        "restarts": work["restarts"],
        "pages_zapped": work["pages_zapped"],
        "sptes_cleared": work["sptes_cleared"],
        "sptes_changed": work["sptes_changed"],
        "rmap_steps": work["rmap_steps"],
        "parent_steps": work["parent_steps"],
        "flushes": work["flushes"],
        "lock_breaks": run.lock_breaks,
        "longest_hold": run.longest_hold,
        "shared_units": run.shared_units,
        "longest_shared_hold": run.longest_shared_hold,
        "work_units": work["units"],
        "tables_rebuilt": None if again is None else again.tables,
        "faults_again": None if again is None else again.faults,
        "updates_per_event": updates,
        "units_per_update": work["units"] / updates,
        "tables_per_update": None if again is None else again.tables / updates,
        "faults_per_update": None if again is None else again.faults / updates,
        "digest": digest,
    }
    if setting.sample is not None:
        row = estimated(row, work, workload.vm, setting.sample, _is_of_marked(plan))
    if setting.cost is not None:
        modelled = None if not is_fitted_to(vm, plan) else setting.cost.nanoseconds(work, population[0]) / 1e6
        row |= {
            "cost_model": setting.cost.name,
            "modelled_ms": modelled,
            "modelled_ms_per_update": None if modelled is None else modelled / updates,
        }
    return row, seconds


def _is_of_marked(plan: Plan) -> bool:
    return isinstance(plan, ZapPlan) and plan.only == "mmio_cached"


def _marks(chosen: Sequence[Plan], kernel: str) -> list[str]:
    """Plans that go by marks which the kernel does not keep."""
    if kernel_profile(kernel).facts.has_mmio_cached:
        return []
    going = [
        forced_event.plan_name(plan)
        for plan in chosen
        if isinstance(plan, ZapPlan) and plan.only == "mmio_cached"
    ]
    goes, keeps = ("goes" if len(going) == 1 else "go"), "keeps no mmio_cached marks on its shadow pages"
    return [f"{kernel} {keeps}: {', '.join(going)} {goes} by marks that the model adds"] if going else []


def _compare_one(
    result: Comparison,
    workload: Workload,
    at: str,
    chosen: Sequence[Plan],
    setting: _Setting,
    progress: Callable[[str], None],
    source: Scenario | None = None,
) -> None:
    base = workload.vm.clone()
    forced_event.prepare(base, at)
    untouched = repeat(base, workload.touches) if at != "teardown" else Repeated(0, 0)
    del base
    counted = workload.population()
    is_kept = len(result.runs) < comparison_page.MOST_RUNS and not setting.added
    if is_kept and comparison_page.is_shown(workload):
        result.runs.append(comparison_page.Run(workload, source, at, chosen, setting.contend))
    result.workloads.append(
        {
            "input": workload.name,
            "kernel": workload.vm.kernel,
            "mmu": page_tables.name_of(workload.vm),
            "accesses": sum(int(batch.gpas.size) for batch in workload.touches),
            "pages_made": workload.made,
            "pages_zapped": workload.zapped,
            "pages": counted.pages,
            "mmio_pages": counted.mmio_pages,
            "size": workload.size,
        }
    )
    notes = [*workload.notes, *_marks(chosen, workload.vm.kernel)]
    result.notes += [note for note in notes if note not in result.notes]
    result.own_events[workload.name, workload.vm.kernel] = workload.own_events.get(at, 0)
    for plan in chosen:
        progress(f"{workload.name}: {forced_event.plan_name(plan)}")
        try:
            row, seconds = _row(workload, at, plan, setting, untouched, (counted.pages, counted.mmio_pages))
        except UsageError as error:
            raise UsageError(f"{workload.name}, kernel {workload.vm.kernel}: {error}") from error
        result.rows.append(row)
        if row["to_go"] == 0:
            note = f"{workload.name} had no {soundness.NEEDS[at]}: no run of it shows that a plan is sound"
            result.notes += [note] if note not in result.notes else []
        if row["left_over"]:
            note = (
                f"{row['plan']} left {row['left_over']:,} {soundness.NEEDS[at]} of {workload.name}: "
                f"no way to do a {at} with it alone"
            )
            result.notes += [note] if note not in result.notes else []
        result.measured_rows.append(
            {
                "input": workload.name,
                "kernel": workload.vm.kernel,
                "mmu": row["mmu"],
                "pages": counted.pages,
                "plan": row["plan"],
                "measured_wall_seconds": round(seconds, 6),
            }
        )


def _fit(result: Comparison, name: str, rows: Sequence[dict[str, Any]]) -> None:
    for plan in dict.fromkeys(row["plan"] for row in rows):
        mine = [row for row in rows if row["plan"] == plan]
        for of in FITTED:
            found = fit_power([row["pages"] for row in mine], [row[of] for row in mine])
            if found is not None:
                kernel = mine[0]["kernel"]
                result.fits.append({"input": name, "kernel": kernel, "plan": plan, "of": of, "fit": found})


class _Asked(NamedTuple):
    """What is run: an input for one kernel on one page table, and the plans that zap there."""

    source: Scenario | Workload
    kernel: str | None
    mmu: str
    plans: list[Plan]


def _of_workload(
    source: Workload,
    chosen: Sequence[Plan] | None,
    at: str,
    left_out: dict[tuple[tuple[Plan, ...], str], list[str]],
) -> Iterator[_Asked]:
    """A workload that is made, with the plans of its own page table."""
    if chosen is None and not source.vm.tdp_mmu:
        chosen = [getattr(source.vm.profile, page_tables.OWN[at])]
    for mmu, mine in page_tables.plans_by_mmu(chosen, source.vm.profile, at, source.vm.family):
        if mmu == page_tables.name_of(source.vm):
            yield _Asked(source, None, mmu, mine)
        else:
            why = f"made on {page_tables.WORDS[page_tables.name_of(source.vm)]}"
            left_out.setdefault((tuple(mine), why), []).append(source.name)


def _asked(
    one: Input,
    names: InputNames,
    kernels: Sequence[str | None],
    chosen: Sequence[Plan] | None,
    at: str,
    host: dict[str, object] | None,
    vm: int | None,
    left_out: dict[tuple[tuple[Plan, ...], str], list[str]],
) -> Iterator[_Asked]:
    """An input for each kernel and page table that there are plans for (kernel None: its own).

    `left_out` gets the plans that are not run, why, and where.
    """
    if isinstance(one, str | Path) and is_dump(one):
        for kernel in kernels:
            real = live_workload(one, kernel, vm)
            real.name = names.give(one, real.name)
            yield from _of_workload(real, chosen, at, left_out)
        return
    source = open_input(one, host, vm) if isinstance(one, str | Path) else one
    if isinstance(source, Workload):
        yield from _of_workload(source, chosen, at, left_out)
        return
    name = ""
    for kernel in kernels:
        found = source if isinstance(source, Scenario) else recorded_scenario(source, kernel, vm)
        name = name or names.give(one, found.name)
        try:
            profile = kernel_profile(kernel or found.kernel or page_tables.NEEDED)
        except UsageError as error:
            raise in_header(found, error) from error
        family = str(found.config.get("family", "ept_ad"))
        for mmu, mine in page_tables.plans_by_mmu(chosen, profile, at, family):
            why = page_tables.why_not(mmu, profile, family)
            if why:
                where = left_out.setdefault((tuple(mine), why), [])
                where += [] if profile.name in where else [profile.name]
                continue
            is_other = int(bool(found.config.get("tdp_mmu", 0))) != int(mmu == "tdp")
            taken = found
            if is_other and not isinstance(source, Scenario):
                # Faults of the one page table are none of the other: their accesses are.
                taken = recorded_scenario(source, kernel, vm, as_accesses=True)
                before = page_tables.WORDS["tdp" if mmu == "shadow" else "shadow"]
                taken.notes.append(f"recorded on {before}, run on {page_tables.WORDS[mmu]}")
            config = {**taken.config, "tdp_mmu": int(mmu == "tdp")}
            if not config["tdp_mmu"] and not profile.facts["has_tdp_mmu"]:
                del config["tdp_mmu"]
            yield _Asked(replace(taken, name=name, config=config), kernel, mmu, mine)


def compare(
    inputs: Input | Sequence[Input],
    plans: Iterable[Plan | str | dict[str, object]] | None = None,
    *,
    at: str = "end",
    scale: Sequence[int] = (),
    kernel: str | Sequence[str] | None = None,
    host: dict[str, object] | None = None,
    vm: int | None = None,
    moment: str | None = None,
    mmio_share: float | None = None,
    mmio_place: str = "input",
    contend: int = 0,
    added: int = 0,
    cost: str | None = None,
    sample: float | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """Compare zap plans on what a guest did.

    Args:
        inputs: scenarios, recordings, workloads, or paths of scenario files, result files and recordings; one or
            several.
        plans: plans, their names or texts, or functions that take a `Vm` and zap through `Vm.zap_batch`. Plans that
            walk roots are run on the TDP MMU of kernels that have one, all others on shadow pages. None: each kernel's
            own plan for the event (for `end`: for the wrap) on its own page table, which is the TDP MMU from v6.1 on.
        at: the event forced at the end of the workload (`end`, just the plan; `wrap`, `slot-removal`, `teardown`).
        scale: numbers of live shadow pages to repeat the input's operations to.
        kernel: the kernel to model, or several; default the input's own. A recording is taken as it is under the
            kernel
            that it was made on; for another one its faults become guest accesses, and notes say what changed.
        host: facts of a recording's host that the recording does not hold.
        vm: which VM of a recording, from 1; default the one with the most operations.
        moment: when the event is forced: `end` (of a recording: before the recorded teardown) or `peak`, when the
            most
            shadow pages lived; default `end`, of a recording at whose end none lives `peak`.
        mmio_share: with `scale`, the share of MMIO-caching pages, 0 to 1; default the input's own.
        mmio_place: with `scale`, `input` keeps the age order of the input, `even` spreads MMIO over all ages.
        contend: every n-th offer of the lock is taken (0: none).
        added: MMIO tables that a running vCPU adds in each of those lock breaks.
        cost: name of a cost model that turns counts into modelled time, in columns of its own.
        sample: run only this share of the gfns that the guest comes to, above 0 and up to 1, and scale the counts to
            all of them: estimates, for huge inputs.
        progress: told what is being done.

    Returns:
        A row for each input, kernel, size and plan; see `Comparison`.

    Raises:
        UsageError: an unknown event, plan or kernel, or a plan in Python that raised.
        ScenarioError: a scenario that cannot be read.
        TraceError: a recording that cannot be read.
    """
    event = forced_event.as_event(at)
    chosen = as_plans(plans)
    kernels = _kernels(kernel)
    sizes = list(scale)
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
        raise UsageError(f"scale {sizes}: expected numbers of pages, 1 or more")
    if moment not in (None, "end", "peak"):
        raise UsageError(f"moment {moment!r}: expected end or peak")
    if moment is not None and sizes:
        raise UsageError(f"moment {moment!r}: not with scale, which repeats the last population of an input")
    if mmio_share is not None and not 0.0 <= mmio_share <= 1.0:
        raise UsageError(f"MMIO share {mmio_share}: expected 0 to 1")
    if contend < 0:
        raise UsageError(f"contend={contend}: expected 0 (nobody wants the lock) or every n-th offer")
    if added < 0 or (added and not contend):
        raise UsageError(f"added={added}: expected 0, or contend with it: pages are added in lock breaks")
    if sample is not None and (sizes or cost is not None):
        raise UsageError(
            "sample: not with scale, which repeats an input, nor with a cost model: its lists are short"
        )
    model = None if cost is None else cost_model(cost)
    setting = _Setting(contend, added, model)
    result = Comparison([])
    described: dict[str, dict[str, Any]] = {}
    left_out: dict[tuple[tuple[Plan, ...], str], list[str]] = {}
    several: list[Input] = (
        list(inputs) if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
    )
    names = InputNames(several)
    changed: list[tuple[Scenario, str]] = []
    for one in several:
        progress(f"reading {one}")
        for source, target, _, mine in _asked(one, names, kernels, chosen, event, host, vm, left_out):
            described |= {forced_event.plan_name(plan): forced_event.describe(plan) for plan in mine}
            if isinstance(source, Scenario):
                changed += [(source, text) for text in source.changes]
            if isinstance(source, Workload):
                if sizes or sample is not None:
                    done = "scaled" if sizes else "sampled"
                    raise UsageError(
                        f"{source.name}: a workload that was made to a size is not {done}; make others"
                    )
                _compare_one(result, source, event, mine, setting, progress)
                continue
            progress(f"running {source.name}")
            if not sizes:
                run, here = source, setting
                if sample is not None:
                    run, kept = sampled(source, sample)
                    here = setting._replace(sample=kept)
                workload = run_scenario_workload(run, target, moment=moment)
                _compare_one(result, workload, event, mine, here, progress, run)
                continue
            first = len(result.rows)
            for n in sizes:
                progress(f"{source.name}: repeating it until {n:,} pages live")
                grown = scaled(source, n, target, mmio_share, mmio_place)
                _compare_one(result, grown.workload, event, mine, setting, progress)
                result.sides[_side_name(result, grown)] = side_by_side(grown)
            _fit(result, source.name, result.rows[first:])
    not_run = [page_tables.left_out(mine, where, why) for (mine, why), where in left_out.items()]
    if not result.rows:
        raise UsageError("; ".join(["nothing to compare", *not_run]))
    result.notes += not_run
    result.plans = list(described.values())
    result.notes += _changes(changed)
    if model is not None:
        result.notes.append(f"modelled time, not measured: {model}")
        if any(row["modelled_ms"] is None for row in result.rows):
            result.notes.append(
                f"{model.name} was fitted to walks of lists of shadow pages: none for the TDP MMU and walks over a slot"
            )
    return result


def compare_made(
    workload: Workload, plan: Plan, at: str, contend: int = 0, sample: Sample | None = None
) -> dict[str, Any]:
    """The row of one plan on a workload that is made.

    Args:
        workload: the guest.
        plan: what zaps.
        at: the event.
        contend: every n-th offer of the lock is taken (0: none).
        sample: what of the input was run to make the workload; the row then has estimates.

    Raises:
        UsageError: a plan in Python raised, or the plan is of the other page table.
    """
    if sample is None:
        return compare(workload, [plan], at=at, contend=contend).rows[0]
    result = Comparison([])
    _compare_one(result, workload, at, [plan], _Setting(contend, 0, sample=sample), lambda _text: None)
    return result.rows[0]


def _kernels(kernel: str | Sequence[str] | None) -> list[str | None]:
    """The kernels to model, each once; None: the input's own."""
    if kernel is None:
        return [None]
    found = [kernel_profile(name).name for name in ([kernel] if isinstance(kernel, str) else kernel)]
    if not found:
        raise UsageError("no kernel to model: give names, or leave it out for the input's own")
    return list(dict.fromkeys(found))


def _changes(changed: Sequence[tuple[Scenario, str]]) -> list[str]:
    """What was changed for other kernels than a recording's, kernels with the same changes together."""
    found: dict[tuple[str, str | None, str], list[str]] = {}
    for source, text in changed:
        found.setdefault((source.name, source.recorded_on, text), []).append(str(source.kernel))
    return [f"{n}: recorded on {k}, run as {', '.join(of)}: {text}" for (n, k, text), of in found.items()]


def _side_name(result: Comparison, grown: Scaled) -> str:
    name = grown.workload.name
    return f"{name}, kernel {grown.workload.vm.kernel}" if name in result.sides else name
