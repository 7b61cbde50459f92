"""Stalls: which memslot operation, dirty-log step or reclaim kept a vCPU from making progress, how long.

Owns: the attribution of a vCPU's waiting time to the MMU work that went on meanwhile, and the numbers per cause; those
per operation are in `operation_table`. Time is trace time; on recordings made under software emulation it means
nothing, order and attribution do. Every nanosecond of waiting is counted once: under a cause, or as other. Attribution
is by time: a vCPU that was out of the guest while its VM's MMU was worked on. Why it was out stands beside it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvm_mmu.terminal import escaped, folded
from kvm_mmu.trace.analysis.activity import Activity, Wait, activity
from kvm_mmu.trace.analysis.mmu_work import (
    CAUSES,
    FAULT_SPLIT,
    NX_RECOVERY,
    UPDATE,
    Work,
    disjoint,
)
from kvm_mmu.trace.analysis.operation_table import Row, Waited, as_lines, percentile, table, us
from kvm_mmu.trace.text.line import process_of
from kvm_mmu.trace.text.slot_changes import SlotChange
from kvm_mmu.trace.text.source import Traced, name_of
from kvm_mmu.trace.text.window import Processes, Window

OTHER = "other"
_TIMELINE = 20
_REASONS = 6


@dataclass(frozen=True, slots=True)
class Stall:
    """A wait, or the part of one, that a piece of work explains."""

    wait: Wait
    work: Work
    start_ns: int
    duration_ns: int


@dataclass
class Stalls:
    """All stalls of a trace and the waiting time that nothing in the trace explains."""

    name: str
    stalls: list[Stall] = field(default_factory=list)
    waits: int = 0
    waited_ns: int = 0
    unfinished: int = 0
    other_ns: int = 0
    #: Why the vCPU was out of the guest -> how much of `other_ns`.
    other_reasons: dict[str, int] = field(default_factory=dict)
    halted_ns: int = 0
    #: cause -> operations of it
    works: dict[str, int] = field(default_factory=dict)
    #: cause -> time of its work while no vCPU waited
    idle_ns: dict[str, int] = field(default_factory=dict)
    #: One row a kind of operation, memslot operations first.
    operations: list[Row] = field(default_factory=list)
    #: Of the memslot updates, by the number of their operation: which slot.
    changes: dict[int, SlotChange] = field(default_factory=dict)
    #: Huge pages that faults took apart, and recoveries of them, in order of time.
    nx_huge_pages: list[Work] = field(default_factory=list)
    #: There was text, but no event in it.
    is_other_text: bool = False
    #: Sentences about what the numbers cannot say.
    notes: list[str] = field(default_factory=list)

    def durations(self, cause: str, what: str | None = None) -> list[int]:
        """Lengths of the stalls of one cause (and of one kind of it), sorted."""
        return sorted(
            stall.duration_ns
            for stall in self.stalls
            if stall.work.cause == cause and what in (None, stall.work.what)
        )

    def kinds(self, cause: str) -> list[str]:
        """What of a cause stalled a vCPU, as far as the trace says."""
        return sorted(
            {stall.work.what for stall in self.stalls if stall.work.cause == cause and stall.work.what}
        )

    def as_json(self) -> dict[str, object]:
        """Plain values, nanoseconds; the schema has a version."""
        return {
            "schema": "kvm-mmu/trace-stalls/1",
            "file": self.name,
            "waits": self.waits,
            "waited_ns": self.waited_ns,
            "halted_ns": self.halted_ns,
            "unfinished_waits": self.unfinished,
            "other_ns": self.other_ns,
            "other_reasons": dict(sorted(self.other_reasons.items())),
            "operations": [row.as_json() for row in self.operations],
            "causes": {
                cause: {
                    "works": self.works.get(cause, 0),
                    **_numbers(self.durations(cause)),
                    "without_a_waiting_vcpu_ns": self.idle_ns.get(cause, 0),
                    "kinds": {what: _numbers(self.durations(cause, what)) for what in self.kinds(cause)},
                }
                for cause in self._causes()
            },
            "timeline": [
                {
                    "start_ns": stall.start_ns,
                    "duration_ns": stall.duration_ns,
                    "vcpu": stall.wait.vcpu,
                    "vcpu_task": stall.wait.task,
                    "reason": stall.wait.reason,
                    "cause": stall.work.cause,
                    "what": stall.work.what,
                    "task": stall.work.task,
                    "lines": [stall.work.first_line, stall.work.last_line],
                    "pages_zapped": stall.work.pages_zapped,
                    "entries_changed": stall.work.entries,
                }
                for stall in self.stalls
            ],
            "nx_huge_pages": [
                {
                    "what": "split" if work.cause == FAULT_SPLIT else "recovery",
                    "fault": work.what,
                    "start_ns": work.start_ns,
                    "duration_ns": work.end_ns - work.start_ns,
                    "task": work.task,
                    "lines": [work.first_line, work.last_line],
                    "tables_removed": work.pages_zapped,
                    "entries_changed": work.entries,
                }
                for work in self.nx_huge_pages
            ],
            "notes": self.notes,
        }

    def as_text(self) -> str:
        """The stalls for a person, microseconds."""
        lines = [f"{self.name}: vCPUs waited {_times(self.waits)}, {us(self.waited_ns)} us in all"]
        updates = [row for row in self.operations if row.is_memslot]
        if updates:
            counts = sum(len(row.lengths) for row in updates)
            took = us(sum(sum(row.lengths) for row in updates))
            lines.append(f"  {_many(counts, 'memslot operation')} took {took} us from beginning to return")
        rows = as_lines(self.operations) if self.operations else []
        lines.extend(rows)
        lines.append(
            f"  waited for {OTHER} things (nothing in the trace explains it): {us(self.other_ns)} us"
        )
        most = sorted(self.other_reasons.items(), key=lambda item: (-item[1], item[0]))
        lines.extend(f"    {reason:<24}{us(length):>14} us" for reason, length in most[:_REASONS])
        lines.extend(self._nx_lines())
        lines.extend(f"  note: {note}" for note in self.notes)
        longest = sorted(self.stalls, key=lambda stall: (-stall.duration_ns, stall.start_ns))[:_TIMELINE]
        if longest:
            lines.append(f"  the longest {len(longest)}, in order of time:")
        for stall in sorted(longest, key=lambda stall: stall.start_ns):
            work = stall.work
            zapped = f", {_many(work.pages_zapped, 'page')} zapped" if work.pages_zapped else ""
            zapped += f", {_entries(work.entries)} changed" if work.entries else ""
            what = (f" ({work.what})" if work.what else "") + self._whose(work)
            vcpu = f"vCPU {'?' if stall.wait.vcpu is None else stall.wait.vcpu} ({stall.wait.reason})"
            lines.append(
                f"    {stall.start_ns / 1e9:.6f} s  {vcpu} waited {us(stall.duration_ns)} us for {work.cause}{what} "
                f"by {work.task} (lines {work.first_line}-{work.last_line}{zapped})"
            )
        return "\n".join(escaped(line) if line in rows else folded(line, _hanging(line)) for line in lines)

    def _nx_lines(self) -> list[str]:
        if not self.nx_huge_pages:
            return []
        splits = sum(work.cause == FAULT_SPLIT for work in self.nx_huge_pages)
        recoveries = len(self.nx_huge_pages) - splits
        lines = [f"  huge pages split by faults: {splits}; recoveries of NX huge pages: {recoveries}"]
        for work in self.nx_huge_pages[:_TIMELINE]:
            did = (
                f"split by a fault{f' ({work.what})' if work.what else ''}"
                if work.cause == FAULT_SPLIT
                else f"recovery: {_many(work.pages_zapped, 'table')} removed, {_entries(work.entries)} changed"
            )
            lines.append(
                f"    {work.start_ns / 1e9:.6f} s  {did} by {work.task} (lines {work.first_line}-{work.last_line})"
            )
        if len(self.nx_huge_pages) > _TIMELINE:
            lines.append(f"    and {len(self.nx_huge_pages) - _TIMELINE} more")
        return lines

    def _whose(self, work: Work) -> str:
        """The memslot operation that a piece of work belongs to."""
        change = self.changes.get(work.caused_by or work.within)
        if change is None:
            return ""
        slot = "" if change.slot is None else f" of slot {change.slot}"
        return slot if work.cause == UPDATE else f" of memslot {change.what or 'update'}{slot}"

    def _causes(self) -> list[str]:
        return [cause for cause in CAUSES if self.works.get(cause)]


def stalls(
    trace: Traced, name: str | None = None, only: Window | None = None, sort: str = "total", jobs: int = 1
) -> Stalls:
    """Returns which MMU work kept the vCPUs of a trace waiting, by operation and by cause.

    Args:
        trace: A path, an open `Trace`, or lines.
        name: What the report calls it; None: as the file is called.
        only: Which events count; None: all.
        sort: The largest first of `total`, `count`, `p50`, `p99`, `max`, `zapped`, `waited` or `nobody`; or `name`.
        jobs: How many threads read the text. The result is the same.

    Raises:
        TraceError: the file is missing, damaged or cut.
        UsageError: there is no such order.
    """
    name = name_of(trace) if name is None else name
    found = activity(trace, only, jobs=jobs)
    result = attributed(found, name, sort)
    missing = found.header.missing(found.events + found.outside + found.other_lines)
    processes = Processes(only)
    processes.see(found.tasks)
    result.notes = [*processes.absent(), *missing, *_notes(found)]
    if only is not None:
        result.notes.insert(0, f"{only}: what began or ended outside is cut")
    result.is_other_text = found.other_lines > 0 and not found.events and not found.outside
    return result


def attributed(found: Activity, name: str, sort: str = "total") -> Stalls:
    """Returns the stalls among what was found in a trace, without notes."""
    result = Stalls(name, unfinished=found.unfinished)
    result.halted_ns = found.halts.length_ns()
    for cause in CAUSES:
        result.works[cause] = len({work.operation for work in found.works if work.cause == cause})
    processes = [process_of(task) for task in found.tasks]
    task = found.waits.columns["task"]
    waiting = {processes[at] for at in np.unique(task).tolist()}
    for process in sorted(waiting):
        of_process = np.isin(task, [at for at, one in enumerate(processes) if one == process])
        works = [work for work in found.works if _concerns(work, process, waiting - {""})]
        _attribute(found, np.flatnonzero(of_process), works, result)
    result.stalls.sort(key=lambda stall: (stall.start_ns, stall.wait.line))
    cost = _cost(found.works, result.stalls)
    result.idle_ns = {cause: 0 for cause in CAUSES if result.works[cause]}
    for work in found.works:
        result.idle_ns[work.cause] += cost[id(work)].nobody_ns
    result.changes = found.changes
    result.nx_huge_pages = [work for work in found.works if work.cause in (FAULT_SPLIT, NX_RECOVERY)]
    result.operations = table(found.works, found.changes, cost, sort)
    return result


def _concerns(work: Work, process: str, guests: set[str]) -> bool:
    """Work of another VM's process stalls nobody here; that of a kernel thread may."""
    other = process_of(work.task)
    return not process or other == process or other not in guests


def _attribute(found: Activity, rows: npt.NDArray[np.intp], works: list[Work], result: Stalls) -> None:
    """Put these waits to the account of the works; one that no work overlaps is never made an object of."""
    intervals = list(disjoint(works))
    starts = [start for start, _, _ in intervals]
    columns = found.waits.columns
    begun, ended = (columns[name][rows].astype(np.int64) for name in ("start_ns", "end_ns"))
    result.waits += len(rows)
    result.waited_ns += int((ended - begun).sum())
    others: dict[int, int] = {}
    meets = _meets(intervals, begun, ended)
    for reason, length in _by_reason(columns["reason"][rows[~meets]], (ended - begun)[~meets]):
        others[reason] = others.get(reason, 0) + length
    for row in rows[meets].tolist():
        wait = found.waits[row]
        at = max(bisect_right(starts, wait.start_ns) - 1, 0)
        used = 0
        while at < len(intervals) and intervals[at][0] < wait.end_ns:
            start, end, work = intervals[at]
            overlap = min(end, wait.end_ns) - max(start, wait.start_ns)
            if overlap > 0:
                result.stalls.append(Stall(wait, work, max(start, wait.start_ns), overlap))
                used += overlap
            at += 1
        reason = int(columns["reason"][row])
        others[reason] = others.get(reason, 0) + wait.end_ns - wait.start_ns - used
    for reason, length in others.items():
        if length:
            name = found.reasons[reason]
            result.other_ns += length
            result.other_reasons[name] = result.other_reasons.get(name, 0) + length


_Column = npt.NDArray[np.int64]


def _meets(intervals: list[tuple[int, int, Work]], begun: _Column, ended: _Column) -> npt.NDArray[np.bool_]:
    """Which waits overlap an interval: the first one that ends behind the wait's beginning starts before its end."""
    if not intervals:
        return np.zeros(len(begun), np.bool_)
    starts, ends = (np.array([one[at] for one in intervals], np.int64) for at in (0, 1))
    first = np.searchsorted(ends, begun, side="right")
    beyond = first == len(starts)
    meets: npt.NDArray[np.bool_] = ~beyond & (starts[np.where(beyond, 0, first)] < ended)
    return meets


def _by_reason(reasons: npt.NDArray[np.uint32], lengths: _Column) -> Iterator[tuple[int, int]]:
    for reason in np.unique(reasons).tolist():
        yield reason, int(lengths[reasons == reason].sum())


def _cost(works: list[Work], found: list[Stall]) -> dict[int, Waited]:
    """Of each piece of work, by its `id`: who waited for it, how long, and its time in which nobody did.

    Time that two tasks' works share counts for the earlier one. The stalls are in order of time.
    """
    cost = {id(work): Waited() for work in works}
    for start, end, work in disjoint(works):
        cost[id(work)].nobody_ns += end - start
    until: dict[int, int] = {}
    for stall in found:
        one, key = cost[id(stall.work)], id(stall.work)
        end = stall.start_ns + stall.duration_ns
        one.vcpus.add((stall.wait.vcpu, stall.wait.task))
        one.waited_ns += stall.duration_ns
        one.nobody_ns = max(one.nobody_ns - max(end - max(stall.start_ns, until.get(key, 0)), 0), 0)
        until[key] = max(until.get(key, 0), end)
    return cost


def _notes(found: Activity) -> list[str]:
    notes = []
    if found.shared_vcpus:
        numbers = ", ".join(str(vcpu) for vcpu in found.shared_vcpus)
        notes.append(
            f"several tasks have a vCPU {numbers}: more than one VM, not told apart (record with options/record-tgid); "
            "a cause may be another VM's"
        )
    if found.cut:
        were = "wait, run or halt was" if found.cut == 1 else "waits, runs or halts were"
        notes.append(f"{found.cut} {were} cut by lost events or disorder: not counted")
    if found.unfinished:
        were = "vCPU was" if found.unfinished == 1 else "vCPUs were"
        notes.append(f"{found.unfinished} {were} still out of the guest at the end: not counted")
    if open_ended := len(found.changes) - len(found.returned):
        notes.append(
            f"the trace has no return of {_many(open_ended, 'memslot operation')}: counted to the last event"
        )
    if found.waits and not found.has_entries:
        notes.append(
            "no kvm_entry in the trace: a wait ends with the next event of its task that is no MMU work"
        )
    if not found.waits and not found.works:
        notes.append("neither faults nor MMU work in the trace: record with `kvm-mmu trace kit`")
    return notes


def _hanging(line: str) -> str:
    """What a line goes on with below itself: four columns more than it begins with."""
    return " " * (len(line) - len(line.lstrip()) + 4)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _numbers(lengths: list[int]) -> dict[str, int]:
    return {
        "stalls": len(lengths),
        "total_ns": sum(lengths),
        "p50_ns": percentile(lengths, 50),
        "p99_ns": percentile(lengths, 99),
        "max_ns": lengths[-1] if lengths else 0,
    }
