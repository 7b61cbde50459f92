"""Who did what when: the MMU work of each task, and when each vCPU was in the guest, halted, or waited.

Owns: what counts as a vCPU that waits, and which vCPUs are of one VM. A vCPU is known by its task and its number, since
several VMs have a vCPU 0; a halted vCPU does not wait. What lost events cut is not counted as anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kvm_mmu.trace.analysis.counters import Counters
from kvm_mmu.trace.analysis.mmu_work import Work, Works, ZapBatch, is_mmu_event
from kvm_mmu.trace.text.line import clean_body, lost_events, nanoseconds, parse_line, process_of
from kvm_mmu.trace.text.slot_changes import SlotChange
from kvm_mmu.trace.text.source import Traced, lines_of
from kvm_mmu.trace.text.window import Window

_VCPU = re.compile(r"\bvcpu(?: |_id=)(\d{1,9})\b")
_REASON = re.compile(r"\breason (?:kvm_)?(\S+)")
_HALTED = frozenset({"hlt", "mwait", "halt"})


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


@dataclass
class Activity:
    """Everything of a trace that takes time. Times in nanoseconds."""

    works: list[Work] = field(default_factory=list)
    batches: list[ZapBatch] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    halts: list[Run] = field(default_factory=list)
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


_Key = tuple[str, int | None]


class _Collector:
    def __init__(self) -> None:
        self.found = Activity()
        self._works = Works()
        self._waiting: dict[_Key, Wait] = {}
        self._halted: dict[_Key, int] = {}
        self._entered: dict[_Key, int] = {}
        self._vcpu_of: dict[str, int] = {}
        self._tasks_of: dict[int, set[str]] = {}
        self._seen = False

    def event(self, number: int, task: str, time: int, event: str, body: str) -> None:
        if not self._seen:
            self._seen, self.found.first_ns = True, time
        self.found.first_ns = min(self.found.first_ns, time)
        self.found.last_ns = max(self.found.last_ns, time)
        self._works.event(number, task, time, event, body)
        self._vcpu(number, task, time, event, body)

    def outside(self, task: str, event: str, body: str) -> None:
        self.found.outside += 1
        self._works.before(task, event, body)

    def lost(self) -> None:
        self._works.lost()
        self.found.cut += len(self._waiting) + len(self._halted) + len(self._entered)
        self._waiting.clear()
        self._halted.clear()
        self._entered.clear()

    def _vcpu(self, number: int, task: str, time: int, event: str, body: str) -> None:
        if event == "kvm_userspace_exit":
            wait = self._waiting.get((task, self._vcpu_of.get(task)))
            if wait is not None:
                wait.reason = "user space"
        if event not in ("kvm_entry", "kvm_exit", "kvm_page_fault"):
            if not self.found.has_entries and not is_mmu_event(event):
                self._resume((task, self._vcpu_of.get(task)), time)
            return
        said = _VCPU.search(body)
        if said is not None:
            # v5.x names the vCPU at its entries only.
            self._vcpu_of[task] = int(said[1])
            self._tasks_of.setdefault(int(said[1]), set()).add(task)
        key = (task, self._vcpu_of.get(task))
        if event == "kvm_entry":
            self.found.has_entries = True
            self._resume(key, time)
            self._run(self.found.halts, key, self._halted.pop(key, None), time)
            # An entry without an exit before it: nothing is known of the time between.
            self._entered[key] = time
            return
        self._run(self.found.runs, key, self._entered.pop(key, None), time)
        if event == "kvm_page_fault" and not self.found.has_entries:
            self._resume(key, time)
        reason = _REASON.search(body)
        if event == "kvm_exit" and reason is not None and reason[1].lower() in _HALTED:
            self._halted[key] = time
            return
        why = reason[1].lower() if event == "kvm_exit" and reason is not None else event.removeprefix("kvm_")
        wait = self._waiting.setdefault(key, Wait(key[1], task, time, time, number, why))
        if event == "kvm_page_fault":
            wait.reason = "page_fault"

    def _run(self, into: list[Run], key: _Key, start: int | None, time: int) -> None:
        if start is None:
            return
        if start > time:
            self.found.cut += 1
            return
        into.append(Run(key[1], key[0], start, time))

    def _resume(self, key: _Key, time: int) -> None:
        wait = self._waiting.pop(key, None)
        if wait is None:
            return
        if wait.start_ns > time:
            self.found.cut += 1
            return
        wait.end_ns = time
        self.found.waits.append(wait)

    def finish(self) -> Activity:
        self._works.finish()
        self.found.works, self.found.batches = self._works.works, self._works.batches
        self.found.changes, self.found.returned = self._works.changes, self._works.returned
        self.found.unfinished = len(self._waiting)
        self.found.waits.sort(key=lambda wait: (wait.start_ns, wait.line))
        self.found.shared_vcpus = sorted(
            vcpu
            for vcpu, tasks in self._tasks_of.items()
            if len(tasks) > 1 and any(not process_of(task) for task in tasks)
        )
        return self.found


def activity(trace: Traced, only: Window | None = None, counters: Counters | None = None) -> Activity:
    """Returns the intervals of a trace: MMU work by task, waits, runs and halts by vCPU.

    A wait ends at the vCPU's next entry; in a trace without entries, at the next event of its task that is no MMU work.

    Args:
        trace: A path, an open `Trace`, or lines.
        only: Which events count; None: all.
        counters: Gets the events too.

    Raises:
        TraceError: the file is missing, damaged or cut.
    """
    collector = _Collector()
    for number, text in enumerate(lines_of(trace), 1):
        line = parse_line(text)
        if line is not None and only is not None and not only.has(line):
            collector.outside(line.task, line.event, clean_body(line.body))
        elif line is not None:
            collector.found.events += 1
            body = clean_body(line.body)
            time = nanoseconds(line.timestamp)
            collector.event(number, line.task, time, line.event, body)
            if counters is not None:
                counters.event(line.task, time, line.event, body)
        elif lost_events(text) is not None:
            collector.lost()
        elif text.strip() and not text.startswith("#"):
            collector.found.other_lines += 1
    return collector.finish()
