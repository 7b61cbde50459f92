"""A trace as Chrome trace JSON, for Perfetto: lanes per vCPU and per task that works on the MMU, counters, arrows.

Owns: the lanes and the nesting. Slices of one lane never cross: a vCPU is in the guest, halted or waits; a task's
memslot update holds the zap-all inside it, and a work holds its zap batches. An arrow leads from the work to each vCPU
that it keeps waiting. Times are microseconds of trace time, so that they are those of other records of the same clock;
the events of a lane come in order of time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvm_mmu.trace.analysis.activity import Activity, activity
from kvm_mmu.trace.analysis.counters import Counters
from kvm_mmu.trace.analysis.mmu_work import (
    DIRTY,
    FAULT_SPLIT,
    FAULT_ZAP,
    LONE_ZAP,
    NOTIFIER,
    NX_RECOVERY,
    RECLAIM,
    ROOT_FREED,
    TEARDOWN,
    UPDATE,
    ZAP_ALL,
)
from kvm_mmu.trace.analysis.stalls import attributed
from kvm_mmu.trace.text.slot_changes import SlotChange
from kvm_mmu.trace.text.source import Traced

_VCPUS, _WORK = 1, 2
_VCPU_CATEGORY, _STALL_CATEGORY, _BATCH_CATEGORY = "vcpu", "stall", "zap"
#: What a viewer can filter by.
_CATEGORIES = {
    UPDATE: "memslot",
    ZAP_ALL: "zap",
    FAULT_ZAP: "zap",
    LONE_ZAP: "zap",
    ROOT_FREED: "zap",
    DIRTY: "dirty-log",
    RECLAIM: "reclaim",
    NOTIFIER: "notifier",
    TEARDOWN: "teardown",
    NX_RECOVERY: "nx-huge-pages",
    FAULT_SPLIT: "nx-huge-pages",
}


class _Slice(NamedTuple):
    """Sorts as a lane must be read: what holds others before them."""

    start_ns: int
    minus_length: int
    depth: int
    name: str
    about: dict[str, int | str]
    category: str


def chrome_trace(trace: Traced) -> dict[str, object]:
    """Returns the whole document, ready for `json.dump`.

    Args:
        trace: A path, an open `Trace`, or lines.

    Raises:
        TraceError: the file is missing, damaged or cut.
    """
    counters = Counters()
    found = activity(trace, counters=counters)
    about = {
        "clock": "trace time, the clock of the recording (CLOCK_MONOTONIC where the kit recorded it)",
        "first_ns": found.first_ns,
        "last_ns": found.last_ns,
    }
    events = [*_events(found), *_counter_events(counters)]
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}


def _events(found: Activity) -> Iterator[dict[str, object]]:
    yield _name("process_name", _VCPUS, 0, "vCPUs")
    yield _name("process_name", _WORK, 0, "mmu_lock work")
    vcpus = _vcpu_lanes(found)
    tasks_of: dict[int | None, set[str]] = {}
    for vcpu, task in vcpus:
        tasks_of.setdefault(vcpu, set()).add(task)
    lanes: dict[tuple[int | None, str], int] = {}
    for lane, ((vcpu, task), slices) in enumerate(sorted(vcpus.items(), key=_lane_order)):
        lanes[vcpu, task] = lane
        called = f"vCPU {'?' if vcpu is None else vcpu}"
        if vcpu is None or len(tasks_of[vcpu]) > 1:
            called += f" of {task}"
        yield _name("thread_name", _VCPUS, lane, called)
        yield from (_event(one, _VCPUS, lane) for one in _in_order(slices))
    tasks: dict[str, int] = {}
    for lane, (task, slices) in enumerate(sorted(_work_lanes(found).items())):
        tasks[task] = lane
        yield _name("thread_name", _WORK, lane, task or "(no name)")
        yield from (_event(one, _WORK, lane) for one in _in_order(slices))
    yield from _flows(found, lanes, tasks)


def _flows(
    found: Activity, vcpus: dict[tuple[int | None, str], int], tasks: dict[str, int]
) -> Iterator[dict[str, object]]:
    """An arrow from a piece of work to each wait that it explains: once for the pieces of one operation."""
    drawn: set[tuple[int, int]] = set()
    for stall in attributed(found, "").stalls:
        work, wait = stall.work, stall.wait
        pair = (work.operation, wait.line)
        if pair in drawn:
            continue
        drawn.add(pair)
        arrow = {
            "name": "keeps waiting",
            "cat": _STALL_CATEGORY,
            "id": len(drawn),
            "ts": stall.start_ns / 1000,
        }
        yield {**arrow, "ph": "s", "pid": _WORK, "tid": tasks[work.task]}
        yield {**arrow, "ph": "f", "bp": "e", "pid": _VCPUS, "tid": vcpus[wait.vcpu, wait.task]}


def _counter_events(counters: Counters) -> Iterator[dict[str, object]]:
    for name, process, samples in counters.series():
        called = f"{name} of process {process}" if process else name
        for time, value in samples:
            yield {
                "name": called,
                "cat": "counter",
                "ph": "C",
                "pid": _WORK,
                "ts": time / 1000,
                "args": {name: value},
            }


def _vcpu_lanes(found: Activity) -> dict[tuple[int | None, str], list[_Slice]]:
    lanes: dict[tuple[int | None, str], list[_Slice]] = {}
    for name, runs in (("guest", found.runs), ("halted", found.halts)):
        for run in runs:
            one = _Slice(run.start_ns, run.start_ns - run.end_ns, 0, name, {}, _VCPU_CATEGORY)
            lanes.setdefault((run.vcpu, run.task), []).append(one)
    for wait in found.waits:
        one = _Slice(
            wait.start_ns,
            wait.start_ns - wait.end_ns,
            0,
            f"wait ({wait.reason})",
            {"line": wait.line},
            _VCPU_CATEGORY,
        )
        lanes.setdefault((wait.vcpu, wait.task), []).append(one)
    return lanes


def _work_lanes(found: Activity) -> dict[str, list[_Slice]]:
    """A slice an operation, from its first piece to its last: what happened inside it stands between them."""
    operations: dict[int, _Slice] = {}
    task_of: dict[int, str] = {}
    for work in found.works:
        before = operations.get(work.operation)
        start, end = work.start_ns, work.end_ns
        if before is not None:
            start, end = min(start, before.start_ns), max(end, before.start_ns - before.minus_length)
        pages = work.pages_zapped + (0 if before is None else int(before.about["pages zapped"]))
        first = work.first_line if before is None else before.about["first line"]
        about: dict[str, int | str] = {
            "first line": first,
            "last line": work.last_line,
            "pages zapped": pages,
        }
        entries = work.entries + (0 if before is None else int(before.about.get("entries changed", 0)))
        if entries:
            about["entries changed"] = entries
        change = found.changes.get(work.operation)
        if change is not None:
            about |= _slot(change)
        name = f"{work.cause} ({work.what})" if work.what else work.cause
        operations[work.operation] = _Slice(start, start - end, 0, name, about, _CATEGORIES[work.cause])
        task_of[work.operation] = work.task
    lanes: dict[str, list[_Slice]] = {}
    for operation, one in operations.items():
        lanes.setdefault(task_of[operation], []).append(one)
    for batch in found.batches:
        one = _Slice(
            batch.start_ns,
            batch.start_ns - batch.end_ns,
            1,
            "zap batch",
            {"first line": batch.first_line, "pages": batch.pages},
            _BATCH_CATEGORY,
        )
        lanes.setdefault(batch.task, []).append(one)
    return lanes


def _slot(change: SlotChange) -> dict[str, int | str]:
    """What the trace says of the slot, addresses as they are read."""
    said: dict[str, int | str] = {}
    if change.slot is not None:
        said["slot"] = change.slot
        said["address space"] = change.as_id or 0
    for name, value in (("gpa", change.gpa), ("size", change.size), ("flags", change.flags)):
        if value is not None:
            said[name] = hex(value)
    return said


def _lane_order(item: tuple[tuple[int | None, str], list[_Slice]]) -> tuple[int, str]:
    vcpu, task = item[0]
    return (-1 if vcpu is None else vcpu, task)


def _in_order(slices: list[_Slice]) -> Iterator[_Slice]:
    """The slices of a lane in order; one that would cross its holder, in a trace out of order, ends with it."""
    holders: list[int] = []
    for one in sorted(slices, key=lambda s: s[:4]):
        while holders and holders[-1] <= one.start_ns and one.minus_length < 0:
            holders.pop()
        end = one.start_ns - one.minus_length
        if holders and end > holders[-1]:
            end = max(holders[-1], one.start_ns)
        holders.append(end)
        yield one._replace(minus_length=one.start_ns - end)


def _event(one: _Slice, process: int, lane: int) -> dict[str, object]:
    lane_of = {"name": one.name, "cat": one.category, "ph": "X", "pid": process, "tid": lane}
    times = {"ts": one.start_ns / 1000, "dur": -one.minus_length / 1000}
    return {**lane_of, **times, "args": one.about}


def _name(what: str, process: int, lane: int, name: str) -> dict[str, object]:
    return {"name": what, "ph": "M", "pid": process, "tid": lane, "args": {"name": name}}
