"""A trace as Chrome trace JSON, for Perfetto: lanes per vCPU and per task that works on the MMU.

Owns: the lanes and the nesting. Slices of one lane never cross: a vCPU is in the guest or waits, the works of a task
follow one another, and a batch of zapped pages lies inside its work. Times are microseconds from the beginning of the
trace, as that format wants them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvm_mmu.trace.mmu_work import Activity, activity

_VCPUS, _WORK = 1, 2


def chrome_trace(lines: Iterable[str]) -> dict[str, object]:
    """The whole document, ready for `json.dump`."""
    return {"traceEvents": list(_events(activity(lines))), "displayTimeUnit": "ns"}


def _events(found: Activity) -> Iterator[dict[str, object]]:
    yield _name("process_name", _VCPUS, 0, "vCPUs")
    yield _name("process_name", _WORK, 0, "MMU work")
    for vcpu in sorted({wait.vcpu for wait in found.waits} | {run.vcpu for run in found.runs}):
        yield _name("thread_name", _VCPUS, vcpu, f"vCPU {vcpu}")
    tasks = sorted({work.task for work in found.works})
    for number, task in enumerate(tasks):
        yield _name("thread_name", _WORK, number, task)
    for run in found.runs:
        yield _slice("guest", _VCPUS, run.vcpu, run.start_ns - found.first_ns, run.end_ns - run.start_ns, {})
    for wait in found.waits:
        start, length = wait.start_ns - found.first_ns, wait.end_ns - wait.start_ns
        yield _slice(f"wait ({wait.reason})", _VCPUS, wait.vcpu, start, length, {"line": wait.line})
    for work in found.works:
        start, length = work.start_ns - found.first_ns, work.end_ns - work.start_ns
        about = {
            "first line": work.first_line,
            "last line": work.last_line,
            "pages zapped": work.pages_zapped,
        }
        yield _slice(work.cause, _WORK, tasks.index(work.task), start, length, about)
    for batch in found.batches:
        start, length = batch.start_ns - found.first_ns, batch.end_ns - batch.start_ns
        about = {"first line": batch.first_line, "pages": batch.pages}
        yield _slice("zap batch", _WORK, tasks.index(batch.task), start, length, about)


def _slice(
    name: str, process: int, lane: int, start_ns: int, length_ns: int, about: dict[str, int]
) -> dict[str, object]:
    lane_of = {"name": name, "ph": "X", "pid": process, "tid": lane}
    return {**lane_of, "ts": start_ns / 1000, "dur": length_ns / 1000, "args": about}


def _name(what: str, process: int, lane: int, name: str) -> dict[str, object]:
    return {"name": what, "ph": "M", "pid": process, "tid": lane, "args": {"name": name}}
