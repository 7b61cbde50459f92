"""Who did what when: the MMU work of each task, and when each vCPU was in the guest, halted, or waited.

Owns: the way from a trace to these. The core reads the text, follows the vCPUs and picks the events of which pieces of
work are made (`mmu_work` says which); with several threads it splits the lines, and takes in what they say in their
order, so that the result is the same. A vCPU is known by its task and its number, since several VMs have a vCPU 0; a
halted vCPU does not wait. What lost events cut is not counted as anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from kvm_mmu import _core
from kvm_mmu.trace.analysis.counters import EVENTS, Counters
from kvm_mmu.trace.analysis.mmu_work import Work, Works, ZapBatch, names
from kvm_mmu.trace.text.buffer_header import BufferHeader, header_in
from kvm_mmu.trace.text.line import clean_body, process_of
from kvm_mmu.trace.text.slot_changes import SlotChange
from kvm_mmu.trace.text.source import Traced, chunks_of
from kvm_mmu.trace.text.window import Window

_OUTSIDE, _LOST, _COUNTED_ONLY, _IS_EPT = 1, 2, 4, 8
_COUNTED = frozenset(EVENTS)
#: How much of the text is read at once, in bytes.
_CHUNK = 1 << 20
#: How much of the beginning is looked at for what it says of the ring buffer.
_HEAD_BYTES = 4096


@dataclass(slots=True)
class Wait:
    """A vCPU out of the guest: from its exit (or fault) to its next entry. `vcpu` is None where no event names it."""

    vcpu: int | None
    task: str
    start_ns: int
    end_ns: int
    line: int
    reason: str


@dataclass(slots=True)
class Run:
    """A vCPU in the guest, or halted."""

    vcpu: int | None
    task: str
    start_ns: int
    end_ns: int


_Span = TypeVar("_Span")
_Columns = dict[str, npt.NDArray[Any]]


class Spans(Sequence[_Span], Generic[_Span]):
    """Waits or runs in order, kept as columns: a row is made when it is asked for.

    Args:
        columns: `vcpu` (-1: no event names it), `task` and `reason` by number, `start_ns`, `end_ns`, `line`.
        tasks: The names of the tasks.
        make: Makes a row of vCPU, task, columns and place.
    """

    def __init__(
        self,
        columns: _Columns,
        tasks: Sequence[str],
        make: Callable[[int | None, str, _Columns, int], _Span],
    ) -> None:
        self.columns = columns
        self.tasks = tasks
        self._make = make

    def __len__(self) -> int:
        return len(self.columns["line"])

    @overload
    def __getitem__(self, at: int) -> _Span: ...
    @overload
    def __getitem__(self, at: slice) -> list[_Span]: ...
    def __getitem__(self, at: int | slice) -> _Span | list[_Span]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        vcpu = int(self.columns["vcpu"][at])
        task = self.tasks[int(self.columns["task"][at])]
        return self._make(None if vcpu < 0 else vcpu, task, self.columns, at)

    def __iter__(self) -> Iterator[_Span]:
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def length_ns(self) -> int:
        """All of them together, nanoseconds."""
        return int((self.columns["end_ns"] - self.columns["start_ns"]).sum())


def _run(vcpu: int | None, task: str, columns: _Columns, at: int) -> Run:
    return Run(vcpu, task, int(columns["start_ns"][at]), int(columns["end_ns"][at]))


def _spans(found: dict[str, Any], name: str) -> Spans[Run]:
    return Spans(found[name], found["tasks"], _run)


def _waits(found: dict[str, Any]) -> Spans[Wait]:
    reasons: list[str] = found["reasons"]

    def make(vcpu: int | None, task: str, columns: _Columns, at: int) -> Wait:
        start_ns, end_ns, line = (int(columns[name][at]) for name in ("start_ns", "end_ns", "line"))
        return Wait(vcpu, task, start_ns, end_ns, line, reasons[int(columns["reason"][at])])

    return Spans(found["waits"], found["tasks"], make)


_NO_SPANS: dict[str, Any] = {
    name: np.zeros(0, np.int64) for name in ("vcpu", "task", "start_ns", "end_ns", "line", "reason")
}


def _no_waits() -> Spans[Wait]:
    return _waits({"waits": _NO_SPANS, "tasks": [], "reasons": []})


def _no_runs() -> Spans[Run]:
    return Spans(_NO_SPANS, [], _run)


@dataclass
class Activity:
    """Everything of a trace that takes time. Times in nanoseconds."""

    works: list[Work] = field(default_factory=list)
    batches: list[ZapBatch] = field(default_factory=list)
    waits: Spans[Wait] = field(default_factory=_no_waits)
    runs: Spans[Run] = field(default_factory=_no_runs)
    halts: Spans[Run] = field(default_factory=_no_runs)
    #: Why vCPUs were out of the guest, by the number that the waits have.
    reasons: list[str] = field(default_factory=list)
    #: Every task of the text.
    tasks: list[str] = field(default_factory=list)
    first_ns: int = 0
    last_ns: int = 0
    #: vCPUs that were out of the guest when the trace ended: how long they waited is not known.
    unfinished: int = 0
    #: Waits, runs and halts that lost events cut, or of which the end comes before the beginning.
    cut: int = 0
    #: The trace has entries to the guest; without them a wait ends with the next event of its task.
    has_entries: bool = False
    #: vCPU numbers that several tasks have, without the processes: more than one VM, not told apart.
    shared_vcpus: list[int] = field(default_factory=list)
    #: Lines that are events, and lines that are neither these nor comments.
    events: int = 0
    other_lines: int = 0
    #: Events that were left out because they are not inside the window.
    outside: int = 0
    #: Of the memslot updates, by the number of their operation: which slot, and whether the trace has their end.
    changes: dict[int, SlotChange] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)
    #: What the head of the text says of the ring buffer.
    header: BufferHeader = field(default_factory=BufferHeader, compare=False)


_Events = list[tuple[int, int, str, int, str, str]]


def activity(
    trace: Traced, only: Window | None = None, counters: Counters | None = None, jobs: int = 1
) -> Activity:
    """Returns the intervals of a trace: MMU work by task, waits, runs and halts by vCPU.

    A wait ends at the vCPU's next entry; in a trace without entries, at the next event of its task that is no MMU work.

    Args:
        trace: A path, an open `Trace`, or lines.
        only: Which events count; None: all.
        counters: Gets the events too.
        jobs: How many threads read the text. The result is the same.

    Raises:
        TraceError: the file is missing, damaged or cut.
    """
    reader = _core.TraceActivity(
        names=names(EVENTS if counters is not None else ()), only=None if only is None else only.as_numbers()
    )
    works, head = Works(), b""
    for chunk in chunks_of(trace, max(jobs, 1) * _CHUNK):
        if len(head) < _HEAD_BYTES:
            head += chunk[:_HEAD_BYTES]
        _take_in(reader.feed(chunk, jobs), works, counters)
    _take_in(reader.finish(), works, counters)
    works.finish()
    found = reader.result()
    first_ns, last_ns = found["span_ns"] or (0, 0)
    tasks: list[str] = found["tasks"]
    return Activity(
        works=works.works,
        batches=works.batches,
        waits=_waits(found),
        runs=_spans(found, "runs"),
        halts=_spans(found, "halts"),
        reasons=found["reasons"],
        tasks=tasks,
        first_ns=first_ns,
        last_ns=last_ns,
        unfinished=found["unfinished"],
        cut=found["cut"],
        has_entries=found["has_entries"],
        shared_vcpus=[
            vcpu
            for vcpu, having in found["tasks_of"]
            if len(having) > 1 and any(not process_of(tasks[task]) for task in having)
        ],
        events=found["events"],
        other_lines=found["other_lines"],
        outside=found["outside"],
        changes=works.changes,
        returned=works.returned,
        header=header_in(head),
    )


def _take_in(events: _Events, works: Works, counters: Counters | None) -> None:
    for flags, number, task, time, event, text in events:
        if flags & _LOST:
            works.lost()
            continue
        body = clean_body(text)
        if flags & _OUTSIDE:
            works.before(task, event, body)
            continue
        if not flags & _COUNTED_ONLY:
            works.event(number, task, time, event, body, is_ept=bool(flags & _IS_EPT))
        if counters is not None and event in _COUNTED:
            counters.event(task, time, event, body)
