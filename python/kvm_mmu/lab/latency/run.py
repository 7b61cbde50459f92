"""`latency`: how long zaps hold `mmu_lock` and vCPUs wait for it, simulated, as distributions; exact for a seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvm_mmu.errors import KvmMmuError, UsageError
from kvm_mmu.lab import forced_event, page_tables
from kvm_mmu.lab.cost import CostModel, is_fitted_to
from kvm_mmu.lab.cost import cost_model as model_named
from kvm_mmu.lab.forced_event import Plan
from kvm_mmu.lab.latency.interleaving import INTERLEAVINGS, guest_of
from kvm_mmu.lab.latency.percentiles import percentiles
from kvm_mmu.lab.latency.simulated import Simulated, Span, simulate
from kvm_mmu.lab.latency.table import MEASURES, ROW, Latency
from kvm_mmu.lab.sweep.cells import check_plans, made_for, placed
from kvm_mmu.lab.sweep.executors import opened
from kvm_mmu.lab.sweep.grid import OWN, Group, Setting, make_grid
from kvm_mmu.machine.numbers import integer
from kvm_mmu.machine.zap_plan import ZapPlan
from kvm_mmu.scenario.workload import Workload
from kvm_mmu.view.out_folder import OutFolder

#: The cost model where nobody names one.
DEFAULT_MODEL = "kernel-c-5.0"


@dataclass(frozen=True)
class Asked:
    """What every row of a simulation shares."""

    interleaving: str
    model: CostModel
    every: int
    first_seed: int
    runs: int


def latency(
    inputs: str | Path | Sequence[str | Path],
    plans: Sequence[Plan | str] = (OWN,),
    *,
    kernels: Sequence[str] = (),
    interleaving: str = "round-robin",
    cost_model: str = DEFAULT_MODEL,
    pages: Sequence[int | str] = (),
    mmio: Sequence[float] = (),
    vcpus: Sequence[int] = (),
    runs: int = 1,
    seed: int = 1,
    at: str = "wrap",
    every: int = 1,
    executor: str | Executor | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Latency:
    """Simulate zaps beside running vCPUs, and tell how long the lock was held and waited for.

    Args:
        inputs: workloads by name, and paths of scenarios and recordings.
        plans: zap plans or their names, `own` for each kernel's own, or `own-shadow`; no functions.
        kernels: rows or releases; default v6.12 for a workload by name, its own kernel for a file.
        interleaving: what the vCPUs do meanwhile: `round-robin`, `adversarial` or `recorded`.
        cost_model: what turns work into modelled time; there is none for the TDP MMU, whose rows have work units only.
        pages: sizes in shadow pages, as 1000, `10k`, or `0.1x` of the input's own.
        mmio: shares of pages that cache MMIO, 0 to 1.
        vcpus: virtual processors of workloads by name.
        runs: how often, each run with a seed of its own; 1 where nothing is drawn.
        seed: that of the first run.
        at: the event: `wrap`, `slot-removal`, or `end` for the plan alone.
        every: the lock is dropped at every n-th offer, 1 or more.
        executor: who computes, as `sweep` takes it.
        jobs: processes, where no executor is given.
        out: a folder for the rows and a page.
        progress: told what has been done.

    Returns:
        A row for each plan in its place.

    Raises:
        UsageError: an axis, a plan, a word or a number is not what it must be.
        KvmMmuError: the executor died.
    """
    if interleaving not in INTERLEAVINGS:
        raise UsageError(f"interleaving {interleaving!r}: expected one of {', '.join(INTERLEAVINGS)}")
    if forced_event.as_event(at) == "teardown":
        raise UsageError("latency at teardown: no vCPU runs any more; expected wrap, slot-removal or end")
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    groups = make_grid(
        [str(name) for name in names],
        [plans] if isinstance(plans, str) else list(plans),
        kernels=[kernels] if isinstance(kernels, str) else list(kernels),
        pages=[str(size) for size in pages],
        mmio=list(mmio),
        vcpus=[integer("vcpus", count, 1, 64) for count in vcpus],
        seeds=1,
        at=at,
        contend=0,
    )
    check_plans(groups)
    for name, plan in groups[0].plans:
        if not isinstance(plan, ZapPlan | str):
            raise UsageError(f"plan {name}: a function has no lock breaks; give a plan of words")
    asked = Asked(
        interleaving,
        model_named(cost_model),
        integer("every", every, 1, 1_000_000_000),
        integer("seed", seed, 0, 1 << 62),
        integer("runs", runs, 1, 100_000),
    )
    with nullcontext() if out is None else OutFolder(out) as folder:
        found = _computed(groups, asked, executor, jobs, progress)
        found.notes += _notes(found, asked)
        if folder is not None:
            found.written = found.write(folder)
    return found


def _computed(
    groups: Sequence[Group],
    asked: Asked,
    executor: str | Executor | None,
    jobs: int | None,
    progress: Callable[[str], None],
) -> Latency:
    found = Latency([])
    if executor is None and jobs is None and len(groups) == 1:
        jobs = 1
    start = time.monotonic()
    with opened(executor, jobs) as pool:
        futures = [pool.submit(run_group, group, asked) for group in groups]
        for done, (group, future) in enumerate(zip(groups, futures, strict=True), 1):
            try:
                results = future.result()
            except BrokenExecutor as error:
                raise KvmMmuError(f"the executor died: {error or type(error).__name__}") from error
            for row, seconds in results:
                found.rows.append(row)
                found.measured_rows.append(
                    {
                        "input": row["input"],
                        "kernel": row["kernel"],
                        "plan": row["plan"],
                        "measured_wall_seconds": seconds,
                    }
                )
            rate = done / max(time.monotonic() - start, 1e-9)
            left = (len(groups) - done) / rate
            progress(
                f"{done:,} of {len(groups):,} settings, {rate:.1f} a second, {left:,.0f} s left: "
                f"{group.setting.input}"
            )
    return found


def run_group(group: Group, asked: Asked) -> list[tuple[dict[str, Any], float]]:
    """Simulate the plans of a setting.

    Args:
        group: the setting and its plans.
        asked: what all share.

    Returns:
        A row for each plan, and the wall seconds that it took; a plan that failed has its error in its row.
    """
    rows = []
    for _, name, plan in group.cells():
        start = time.perf_counter()
        try:
            row = _row(group.setting, name, plan, asked)
        except (KvmMmuError, MemoryError) as error:
            place = {"input": group.setting.input, "kernel": group.setting.kernel, "plan": name}
            row = {**dict.fromkeys(ROW), **place, "livelocks": 0, "error": str(error) or type(error).__name__}
        rows.append((row, round(time.perf_counter() - start, 6)))
    return rows


def _row(setting: Setting, name: str, plan: Plan | str, asked: Asked) -> dict[str, Any]:
    mmu, chosen = placed(plan, setting)
    assert isinstance(chosen, ZapPlan)
    is_drawn = setting.seed is not None or asked.interleaving == "round-robin"
    runs, made = [], None
    for seed in range(asked.first_seed, asked.first_seed + (asked.runs if is_drawn else 1)):
        if made is None or setting.seed is not None:
            here = setting if setting.seed is None else replace(setting, seed=seed)
            made, _ = made_for(here, mmu)
        runs.append(_simulated(made, setting.at, chosen, asked, seed))
    assert made is not None
    return {
        **dict.fromkeys(ROW),
        "input": setting.input,
        "kernel": made.vm.kernel,
        "mmu": page_tables.name_of(made.vm),
        "at": setting.at,
        "plan": name,
        "interleaving": asked.interleaving,
        "pages_asked": setting.pages or None,
        "mmio_asked": setting.mmio,
        "vcpus": len(made.vm.vcpus),
        "pages": made.population().pages,
        "first_seed": asked.first_seed,
        "every": asked.every,
        **_of_runs(runs, asked.model if is_fitted_to(made.vm, chosen) else None),
        "error": "",
    }


def _simulated(made: Workload, at: str, plan: ZapPlan, asked: Asked, seed: int) -> Simulated:
    vm = made.vm.clone()
    slot = (made.removed or forced_event.largest_slot(vm)) if plan.needs_slot else None
    if plan.needs_slot and slot is None:
        raise UsageError(f"plan {plan}: {made.name} has no slot")
    forced_event.prepare(vm, at)
    guest = guest_of(asked.interleaving, vm, made.touches, seed)
    model = asked.model if is_fitted_to(vm, plan) else None
    return simulate(vm, plan, guest, slot=slot, every=asked.every, model=model)


def _of_runs(runs: Sequence[Simulated], model: CostModel | None) -> dict[str, Any]:
    samples: dict[str, list[Span]] = {
        "hold": [span for run in runs for span in run.holds],
        "wait": [_longest(waits) for run in runs for waits in run.waits.values()],
        "progress": [span for run in runs for span in run.progress],
        "end": [run.end for run in runs if run.end is not None],
    }
    livelocks = sum(run.verdict == "livelock" for run in runs)
    ended = sum(run.verdict == "ends" for run in runs)
    found: dict[str, Any] = {
        "runs": len(runs),
        "verdict": "livelock" if livelocks else "ends" if ended == len(runs) else "not ended",
        "ended": ended,
        "livelocks": livelocks,
        "lock_breaks": sum(run.lock_breaks for run in runs),
        "shared_units": sum(run.shared_units for run in runs),
        "cost_model": None if model is None else model.name,
    }
    for of in MEASURES:
        found[f"{of}_samples"] = len(samples[of])
        for rank, value in percentiles([span.units for span in samples[of]]).items():
            found[f"{of}_units_{rank}"] = value
        if model is not None:
            for rank, value in percentiles([span.ns for span in samples[of]]).items():
                # To the picosecond: sums of the same numbers in another order differ behind it.
                found[f"modelled_{of}_us_{rank}"] = None if value is None else round(value / 1000, 6)
    return found


def _longest(waits: Sequence[Span]) -> Span:
    return Span(max(span.units for span in waits), max(span.ns for span in waits))


def _notes(found: Latency, asked: Asked) -> list[str]:
    notes = [
        f"{asked.interleaving}: {INTERLEAVINGS[asked.interleaving]}; the lock is dropped at every offer"
        + (f" whose number {asked.every:,} divides" if asked.every > 1 else "")
    ]
    if any(row["cost_model"] for row in found.rows):
        notes.append(f"modelled time, not measured: {asked.model}")
    if any(not row["cost_model"] and not row["error"] for row in found.rows):
        notes.append(
            f"{asked.model.name} was fitted to walks of lists of shadow pages: the TDP MMU and walks over a slot have "
            "work units only"
        )
    if any(row["shared_units"] for row in found.rows):
        notes.append(
            "a zap that holds the lock for reading stops no fault: only what it does alone is a hold; a fault of the "
            "TDP MMU counts no work units"
        )
    if any(row["verdict"] == "livelock" for row in found.rows):
        notes.append("livelock: over as many lock breaks as there were pages, none of the old pages went")
    if any(row["verdict"] == "not ended" for row in found.rows):
        notes.append("not ended: given up after four lock breaks a page, while old pages were still going")
    return notes
