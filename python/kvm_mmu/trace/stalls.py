"""Stalls: which memslot update, zap-all, dirty-log step or reclaim kept a vCPU from making progress, how long.

Owns: the attribution of a vCPU's waiting time to the MMU work that went on meanwhile, and the numbers per cause. Time
is trace time; on recordings made under software emulation it means nothing, order and attribution do. Every
nanosecond of waiting is counted once: under a cause, or as other. Attribution is by time: a vCPU that was out of the
guest while its VM's MMU was worked on. Why it was out stands beside it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvm_mmu.trace.activity import Activity, Wait, activity, process_of
from kvm_mmu.trace.buffer_header import BufferHeader
from kvm_mmu.trace.mmu_work import CAUSES, Work, disjoint

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
                }
                for stall in self.stalls
            ],
            "notes": self.notes,
        }

    def as_text(self) -> str:
        """The stalls for a person, microseconds."""
        lines = [f"{self.name}: vCPUs waited {self.waits} times, {_us(self.waited_ns)} us in all"]
        lines.append(
            f"  {'cause':<34}{'works':>7}{'stalls':>8}{'total us':>14}{'p50':>11}{'p99':>11}{'max':>11}"
        )
        for cause in self._causes():
            lines.append(_row(cause, f"{self.works.get(cause, 0)}", self.durations(cause)))
            lines.extend(_row(f"  {what}", "", self.durations(cause, what)) for what in self.kinds(cause))
        lines.append(f"  {OTHER + ' (nothing in the trace explains it)':<49}{_us(self.other_ns):>14}")
        most = sorted(self.other_reasons.items(), key=lambda item: (-item[1], item[0]))
        lines.extend(f"    {reason:<47}{_us(length):>14}" for reason, length in most[:_REASONS])
        lines.extend(f"  note: {note}" for note in self.notes)
        longest = sorted(self.stalls, key=lambda stall: (-stall.duration_ns, stall.start_ns))[:_TIMELINE]
        if longest:
            lines.append(f"  the longest {len(longest)}, in order of time:")
        for stall in sorted(longest, key=lambda stall: stall.start_ns):
            work = stall.work
            zapped = f", {work.pages_zapped} pages zapped" if work.pages_zapped else ""
            what = f" ({work.what})" if work.what else ""
            vcpu = f"vCPU {'?' if stall.wait.vcpu is None else stall.wait.vcpu} ({stall.wait.reason})"
            lines.append(
                f"    {stall.start_ns / 1e9:.6f} s  {vcpu} waited {_us(stall.duration_ns)} us for {work.cause}{what} "
                f"by {work.task} (lines {work.first_line}-{work.last_line}{zapped})"
            )
        return "\n".join(lines)

    def _causes(self) -> list[str]:
        return [cause for cause in CAUSES if self.works.get(cause)]


def stalls(lines: Iterable[str], name: str) -> Stalls:
    """Attribute the waiting time of a trace."""
    header = BufferHeader()
    found = activity(header.watch(lines))
    missing = header.missing(found.events + found.other_lines)
    result = Stalls(name, unfinished=found.unfinished, notes=[*missing, *_notes(found)])
    result.is_other_text = found.other_lines > 0 and not found.events
    result.halted_ns = sum(halt.end_ns - halt.start_ns for halt in found.halts)
    for cause in CAUSES:
        result.works[cause] = len({work.operation for work in found.works if work.cause == cause})
    guests = {process_of(wait.task) for wait in found.waits} - {""}
    for process in sorted({process_of(wait.task) for wait in found.waits}):
        waits = [wait for wait in found.waits if process_of(wait.task) == process]
        _attribute(waits, [work for work in found.works if _concerns(work, process, guests)], result)
    busy = dict.fromkeys(CAUSES, 0)
    for start, end, work in disjoint(found.works):
        busy[work.cause] += end - start
    for cause, spans in _stalled_spans(result.stalls).items():
        busy[cause] -= spans
    result.idle_ns = {cause: max(length, 0) for cause, length in busy.items() if result.works[cause]}
    result.stalls.sort(key=lambda stall: (stall.start_ns, stall.wait.line))
    return result


def _concerns(work: Work, process: str, guests: set[str]) -> bool:
    """Work of another VM's process stalls nobody here; that of a kernel thread may."""
    other = process_of(work.task)
    return not process or other == process or other not in guests


def _attribute(waits: Iterable[Wait], works: list[Work], result: Stalls) -> None:
    intervals = list(disjoint(works))
    starts = [start for start, _, _ in intervals]
    for wait in waits:
        length = wait.end_ns - wait.start_ns
        result.waits += 1
        result.waited_ns += length
        at = max(bisect_right(starts, wait.start_ns) - 1, 0)
        used = 0
        while at < len(intervals) and intervals[at][0] < wait.end_ns:
            start, end, work = intervals[at]
            overlap = min(end, wait.end_ns) - max(start, wait.start_ns)
            if overlap > 0:
                result.stalls.append(Stall(wait, work, max(start, wait.start_ns), overlap))
                used += overlap
            at += 1
        if length > used:
            result.other_ns += length - used
            result.other_reasons[wait.reason] = result.other_reasons.get(wait.reason, 0) + length - used


def _stalled_spans(found: list[Stall]) -> dict[str, int]:
    """cause -> time in which at least one vCPU was stalled by it."""
    total: dict[str, int] = {}
    until = 0
    for stall in sorted(found, key=lambda stall: stall.start_ns):
        start, end = max(stall.start_ns, until), stall.start_ns + stall.duration_ns
        if end > start:
            total[stall.work.cause] = total.get(stall.work.cause, 0) + end - start
            until = end
    return total


def _notes(found: Activity) -> list[str]:
    notes = []
    if found.shared_vcpus:
        numbers = ", ".join(str(vcpu) for vcpu in found.shared_vcpus)
        notes.append(
            f"several tasks have a vCPU {numbers}: more than one VM, not told apart (record with options/record-tgid); "
            "a cause may be another VM's"
        )
    if found.cut:
        notes.append(f"{found.cut} times lost events or disorder cut a wait, run or halt: not counted")
    if found.unfinished:
        notes.append(f"{found.unfinished} vCPUs were still out of the guest at the end: not counted")
    if found.waits and not found.has_entries:
        notes.append(
            "no kvm_entry in the trace: a wait ends with the next event of its task that is no MMU work"
        )
    if not found.waits and not found.works:
        notes.append("neither faults nor MMU work in the trace: record with `kvm-mmu trace kit`")
    return notes


def percentile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that at least `percent` of the values do not exceed; 0 of nothing."""
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)] if ordered else 0


def _numbers(lengths: list[int]) -> dict[str, int]:
    return {
        "stalls": len(lengths),
        "total_ns": sum(lengths),
        "p50_ns": percentile(lengths, 50),
        "p99_ns": percentile(lengths, 99),
        "max_ns": lengths[-1] if lengths else 0,
    }


def _row(name: str, works: str, lengths: list[int]) -> str:
    total, p50, p99, most = (_us(value) for key, value in _numbers(lengths).items() if key != "stalls")
    return f"  {name:<34}{works:>7}{len(lengths):>8}{total:>14}{p50:>11}{p99:>11}{most:>11}"


def _us(nanoseconds: int) -> str:
    return f"{nanoseconds / 1000:,.1f}"
