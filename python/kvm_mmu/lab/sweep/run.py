"""`sweep`: run a grid of cells on any executor into one table, the same whoever computed it and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kvm_mmu.errors import KvmMmuError, UsageError
from kvm_mmu.lab.forced_event import Plan
from kvm_mmu.lab.sweep.cells import check_plans, failed_row, run_group
from kvm_mmu.lab.sweep.executors import opened
from kvm_mmu.lab.sweep.grid import OWN, Group, make_grid
from kvm_mmu.lab.sweep.journal import Journal
from kvm_mmu.lab.sweep.table import Sweep
from kvm_mmu.machine.numbers import flag, integer
from kvm_mmu.view.out_folder import OutFolder

Progress = Callable[[str], None]


def sweep(
    inputs: str | Path | Sequence[str | Path],
    plans: Sequence[Plan | str] = (OWN,),
    *,
    kernels: Sequence[str] = (),
    pages: Sequence[int | str] = (),
    mmio: Sequence[float] = (),
    vcpus: Sequence[int] = (),
    seeds: int = 1,
    at: str = "slot-removal",
    contend: int = 0,
    sample: float | None = None,
    executor: str | Executor | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress = lambda _text: None,
) -> Sweep:
    """Run every combination of inputs, kernels, sizes and plans, and put the counts into one table.

    Args:
        inputs: workloads by name (`boot`, `churn`, `migration`, `virtio-mem`, `gpu-bar`), and paths of scenarios,
            recordings and dumps.
        plans: zap plans, their names, functions that zap, `own` for each kernel's own on the page table
            that it serves guests with, or `own-shadow` for its own on shadow pages.
        kernels: rows or releases; default v6.12 for a workload by name, its own kernel for a file.
        pages: sizes in shadow pages, as 1000, `10k`, or `0.1x` of the input's own; default the input as it is.
        mmio: shares of pages that cache MMIO, 0 to 1.
        vcpus: virtual processors of workloads by name.
        seeds: how many seeds of each workload by name, from 1.
        at: the event that is forced at the end.
        contend: every n-th offer of the lock is taken; 0: none.
        sample: the share of a file's gfns that is run, above 0 and up to 1; counts are then estimates for the whole.
        executor: a `concurrent.futures.Executor`, or `processes`, `dask://HOST:PORT` or `module:object`.
        jobs: processes, where no executor is given.
        out: a folder for the table; rows are there as soon as they are finished.
        resume: go on with the sweep in that folder: compute only what is missing.
        progress: told what has been done, at what rate, and the time that is left.

    Returns:
        The table, in the order of the grid. A cell that failed is a row with its error.

    Raises:
        UsageError: an axis, a plan, an executor or the folder is not what it must be.
        KvmMmuError: the executor died; finished cells are in the folder.
    """
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    groups = make_grid(
        [str(name) for name in names],
        [plans] if isinstance(plans, str) else list(plans),
        kernels=[kernels] if isinstance(kernels, str) else list(kernels),
        pages=[str(size) for size in pages],
        mmio=[_share(value) for value in mmio],
        vcpus=[integer("vcpus", count, 1, 64) for count in vcpus],
        seeds=integer("seeds", seeds, 1, 1_000_000),
        at=at,
        contend=integer("contend", contend, 0, 1_000_000_000),
        sample=None if sample is None else _share(sample),
    )
    check_plans(groups)
    resume = flag("resume", resume)
    if resume and out is None:
        raise UsageError("resume: expected the folder of the sweep to go on with (out)")
    with nullcontext() if out is None else OutFolder(out) as folder:
        journal = Journal(None if folder is None else folder.path, resume)
        try:
            _compute(groups, journal, executor, jobs, progress)
        finally:
            journal.close()
        found = Sweep([journal.rows[digest] for group in groups for digest, _, _ in group.cells()])
        if folder is not None:
            found.written = found.write(folder)
    return found


def _share(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise UsageError(f"MMIO share {value!r}: expected 0 to 1")
    return float(value)


def _compute(
    groups: Sequence[Group],
    journal: Journal,
    executor: str | Executor | None,
    jobs: int | None,
    progress: Progress,
) -> None:
    missing = [(group, [d for d, _, _ in group.cells() if d in journal.rows]) for group in groups]
    missing = [(group, known) for group, known in missing if len(known) < len(group.plans)]
    total = sum(len(group.plans) - len(known) for group, known in missing)
    if not missing:
        return
    start, done = time.monotonic(), 0
    with opened(executor, jobs) as pool:
        for group, rows in _finished(pool, missing, total):
            journal.add(rows)
            done += len(rows)
            rate = done / max(time.monotonic() - start, 1e-9)
            left = (total - done) / rate
            progress(
                f"{done:,} of {total:,} cells, {rate:.1f} a second, {left:,.0f} s left: {group.setting.input}"
            )


def _finished(
    pool: Executor, missing: Sequence[tuple[Group, list[str]]], total: int
) -> Iterator[tuple[Group, list[dict[str, Any]]]]:
    """Each group's rows as they finish. Few are handed out at a time where the pool computes at once."""
    futures: dict[Future[list[dict[str, Any]]], tuple[Group, list[str]]] = {}
    done = 0

    def rows_of(future: Future[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        group, known = futures[future]
        try:
            return future.result()
        except BrokenExecutor as error:
            raise KvmMmuError(
                f"the executor died after {done:,} of {total:,} cells ({error or type(error).__name__}); "
                "finished cells are kept where a folder was given: go on with --resume"
            ) from error
        except Exception as error:
            return [
                failed_row(group.setting, digest, name, error)
                for digest, name, _ in group.cells()
                if digest not in known
            ]

    try:
        for group, known in missing:
            try:
                future = pool.submit(run_group, group, known)
            except (BrokenExecutor, RuntimeError) as error:
                raise KvmMmuError(f"the executor takes no more work: {error}") from error
            futures[future] = (group, known)
            if future.done():
                rows = rows_of(future)
                done += len(rows)
                yield group, rows
                del futures[future]
        for future in as_completed(list(futures)):
            rows = rows_of(future)
            done += len(rows)
            yield futures[future][0], rows
    finally:
        for future in futures:
            future.cancel()
