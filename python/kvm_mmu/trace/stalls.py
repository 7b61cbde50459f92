"""Stalls: which memslot update, zap-all, dirty-log step or reclaim kept a vCPU from making progress, how long.

Owns: the attribution of a vCPU's waiting time to the MMU work that went on meanwhile, and the numbers per cause. Time
is trace time; on recordings made under software emulation it means nothing, order and attribution do. Every
nanosecond of waiting is counted once: under a cause, or as other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvm_mmu.trace.mmu_work import CAUSES, Wait, Work, activity, disjoint

OTHER = "other"
_TIMELINE = 20


@dataclass(frozen=True)
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
    works: dict[str, int] = field(default_factory=dict)
    idle_ns: dict[str, int] = field(default_factory=dict)

    def durations(self, cause: str) -> list[int]:
        """Lengths of the stalls of one cause, sorted."""
        return sorted(stall.duration_ns for stall in self.stalls if stall.work.cause == cause)

    def as_json(self) -> dict[str, object]:
        """Plain values, nanoseconds; the schema has a version."""
        causes: dict[str, object] = {}
        for cause in CAUSES:
            lengths = self.durations(cause)
            if lengths or self.works.get(cause):
                causes[cause] = {
                    "works": self.works.get(cause, 0),
                    "stalls": len(lengths),
                    "total_ns": sum(lengths),
                    "p50_ns": percentile(lengths, 50),
                    "p99_ns": percentile(lengths, 99),
                    "max_ns": lengths[-1] if lengths else 0,
                    "without_a_waiting_vcpu_ns": self.idle_ns.get(cause, 0),
                }
        return {
            "schema": "kvm-mmu/trace-stalls/1",
            "file": self.name,
            "waits": self.waits,
            "waited_ns": self.waited_ns,
            "unfinished_waits": self.unfinished,
            "other_ns": self.other_ns,
            "causes": causes,
            "timeline": [
                {
                    "start_ns": stall.start_ns,
                    "duration_ns": stall.duration_ns,
                    "vcpu": stall.wait.vcpu,
                    "reason": stall.wait.reason,
                    "cause": stall.work.cause,
                    "task": stall.work.task,
                    "lines": [stall.work.first_line, stall.work.last_line],
                    "pages_zapped": stall.work.pages_zapped,
                }
                for stall in self.stalls
            ],
        }

    def as_text(self) -> str:
        """The stalls for a person, microseconds."""
        lines = [f"{self.name}: vCPUs waited {self.waits} times, {_us(self.waited_ns)} us in all"]
        lines.append(
            f"  {'cause':<22}{'works':>7}{'stalls':>8}{'total us':>14}{'p50':>11}{'p99':>11}{'max':>11}"
        )
        for cause in CAUSES:
            lengths = self.durations(cause)
            if lengths or self.works.get(cause):
                row = (
                    sum(lengths),
                    percentile(lengths, 50),
                    percentile(lengths, 99),
                    lengths[-1] if lengths else 0,
                )
                total, p50, p99, most = (_us(value) for value in row)
                works = self.works.get(cause, 0)
                lines.append(
                    f"  {cause:<22}{works:>7}{len(lengths):>8}{total:>14}{p50:>11}{p99:>11}{most:>11}"
                )
        lines.append(f"  {OTHER + ' (not MMU work)':<37}{_us(self.other_ns):>14}")
        longest = sorted(self.stalls, key=lambda stall: (-stall.duration_ns, stall.start_ns))[:_TIMELINE]
        if longest:
            lines.append(f"  the longest {len(longest)}, in order of time:")
        for stall in sorted(longest, key=lambda stall: stall.start_ns):
            work = stall.work
            zapped = f", {work.pages_zapped} pages zapped" if work.pages_zapped else ""
            vcpu = f"vCPU {stall.wait.vcpu} ({stall.wait.reason})"
            lines.append(
                f"    {stall.start_ns / 1e9:.6f} s  {vcpu} waited {_us(stall.duration_ns)} us for {work.cause} by "
                f"{work.task} (lines {work.first_line}-{work.last_line}{zapped})"
            )
        return "\n".join(lines)


def stalls(lines: Iterable[str], name: str) -> Stalls:
    """Attribute every wait of a trace."""
    found = activity(lines)
    result = Stalls(name, unfinished=found.unfinished)
    intervals = list(disjoint(found.works))
    starts = [start for start, _, _ in intervals]
    for work in found.works:
        result.works[work.cause] = result.works.get(work.cause, 0) + 1
    explained: dict[int, int] = {}
    for wait in found.waits:
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
                explained[at] = max(explained.get(at, 0), overlap)
                used += overlap
            at += 1
        result.other_ns += length - used
    for at, (start, end, work) in enumerate(intervals):
        idle = end - start - explained.get(at, 0)
        result.idle_ns[work.cause] = result.idle_ns.get(work.cause, 0) + idle
    return result


def percentile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that at least `percent` of the values do not exceed; 0 of nothing."""
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)] if ordered else 0


def _us(nanoseconds: int) -> str:
    return f"{nanoseconds / 1000:,.1f}"
