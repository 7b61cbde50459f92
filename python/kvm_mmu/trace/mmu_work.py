"""What occupied the MMU, and when vCPUs waited: the intervals that stalls and timelines are made of.

Owns: which events begin, continue and end a piece of MMU work of a task, and what counts as a vCPU that waits. Works of
one task never overlap: a whole-MMU zap inside a memslot update is a piece of its own. Memory grows with the number of
intervals, not with the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kvm_mmu.trace.line import parse_line

#: event -> the work it begins
_BEGINS = {
    "set_memslot": "memslot update",
    "swap_memslots": "memslot update",
    "memslots_updated": "memslot update",
    "zap_all_fast_enter": "zap-all",
    "kvm_mmu_zap_all_fast": "zap-all",
    "kvm_mmu_invalidate_zap_all_pages": "zap-all",
    "slot_wrprot": "dirty log",
    "slot_clear_dirty": "dirty log",
    "zap_collapsible": "dirty log",
    "dirty_masked": "dirty log",
    "zap_oldest": "reclaim",
    "kvm_unmap_hva_range": "host memory notifier",
    "kvm_set_spte_hva": "host memory notifier",
    "kvm_age_hva": "host memory notifier",
}
#: Events that belong to whatever work their task does.
_CONTINUES = frozenset(
    {
        "kvm_mmu_prepare_zap_page",
        "kvm_mmu_sync_page",
        "page_zap_pte",
        "commit_zap",
        "flush_remote_tlbs",
        "flush_remote_tlbs_range",
        "cond_resched_wr",
        "cond_resched_wr_ret",
        "flush_shadow_memslot",
        "invalidate_mmio",
        "change_mmu_pages",
        "zap_oldest_ret",
        "kvm_mmu_split_huge_page",
    }
)
#: Work that ends with this event and gives back to what surrounded it.
_ENDS = {"zap_oldest_ret": "reclaim"}
_VCPU = re.compile(r"vcpu(?: |_id=)(\d{1,9})\b")
#: Pages zapped outside all that: a root's last user left, or the VM ended.
LONE_ZAP = "root or VM freed"
_NO_ZAPS = frozenset({"host memory notifier", "dirty log"})
CAUSES = ("zap-all", "memslot update", "dirty log", "reclaim", "host memory notifier", LONE_ZAP)


@dataclass
class Work:
    """A piece of MMU work. Times in nanoseconds, lines from 1, both ends included."""

    cause: str
    task: str
    start_ns: int
    end_ns: int
    first_line: int
    last_line: int
    pages_zapped: int = 0


@dataclass
class Batch:
    """Pages zapped in a row: from the first one to the flush that frees them, inside one piece of work."""

    task: str
    start_ns: int
    end_ns: int
    first_line: int
    pages: int = 0


@dataclass
class Wait:
    """A vCPU out of the guest: from its exit (or fault) to its next entry."""

    vcpu: int
    task: str
    start_ns: int
    end_ns: int
    line: int
    reason: str


@dataclass
class Run:
    """A vCPU in the guest."""

    vcpu: int
    start_ns: int
    end_ns: int


@dataclass
class Activity:
    """Everything of a trace that takes time."""

    works: list[Work] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    first_ns: int = 0
    last_ns: int = 0
    #: vCPUs that were out of the guest when the trace ended: how long they waited is not known.
    unfinished: int = 0


class _Collector:
    def __init__(self) -> None:
        self.found = Activity()
        self._open: dict[str, Work] = {}
        self._batches: dict[str, Batch] = {}
        self._waiting: dict[int, Wait] = {}
        self._entered: dict[int, int] = {}
        self._vcpu_of: dict[str, int] = {}
        self._has_entries = False
        self._seen = False

    def event(self, number: int, task: str, time: int, event: str, body: str) -> None:
        if not self._seen:
            self._seen, self.found.first_ns = True, time
        self.found.last_ns = max(self.found.last_ns, time)
        self._work(number, task, time, event)
        self._wait(number, task, time, event, body)

    def _work(self, number: int, task: str, time: int, event: str) -> None:
        current = self._open.get(task)
        cause = _BEGINS.get(event)
        if event == "kvm_mmu_prepare_zap_page" and (current is None or current.cause in _NO_ZAPS):
            cause = LONE_ZAP
        if cause is not None and (current is None or current.cause != cause):
            self._close(task, time)
            current = self._open[task] = Work(cause, task, time, time, number, number)
        elif current is None:
            return
        elif cause is None and event not in _CONTINUES:
            self._close(task)
            return
        current.end_ns, current.last_line = time, number
        self._batch(number, task, time, event)
        current.pages_zapped += event == "kvm_mmu_prepare_zap_page"
        if _ENDS.get(event) == current.cause:
            self._close(task)

    def _close(self, task: str, until: int | None = None) -> None:
        """End the open work of a task; when the next work follows at once, it lasted until then."""
        work = self._open.pop(task, None)
        if work is None:
            return
        if until is not None:
            work.end_ns = until
        self._flush(task)
        self.found.works.append(work)

    def _batch(self, number: int, task: str, time: int, event: str) -> None:
        if event == "kvm_mmu_prepare_zap_page":
            batch = self._batches.setdefault(task, Batch(task, time, time, number))
            batch.pages += 1
        elif task not in self._batches:
            return
        self._batches[task].end_ns = time
        if event == "commit_zap":
            self._flush(task)

    def _flush(self, task: str) -> None:
        batch = self._batches.pop(task, None)
        if batch is not None:
            self.found.batches.append(batch)

    def _wait(self, number: int, task: str, time: int, event: str, body: str) -> None:
        if event == "kvm_userspace_exit" and self._vcpu_of.get(task, -1) in self._waiting:
            self._waiting[self._vcpu_of[task]].reason = "user space"
        if event not in ("kvm_entry", "kvm_exit", "kvm_page_fault"):
            if (
                not self._has_entries
                and event not in _CONTINUES
                and not event.startswith(("kvm_mmu_", "fast_"))
            ):
                self._resume(self._vcpu_of.get(task, -1), time)
            return
        said = _VCPU.search(body)
        vcpu = int(said[1]) if said else 0
        self._vcpu_of[task] = vcpu
        if event == "kvm_entry":
            self._has_entries = True
            self._resume(vcpu, time)
            self._entered[vcpu] = time
            return
        if vcpu in self._entered:
            self.found.runs.append(Run(vcpu, self._entered.pop(vcpu), time))
        if event == "kvm_page_fault" and not self._has_entries:
            self._resume(vcpu, time)
        waiting = self._waiting.setdefault(
            vcpu, Wait(vcpu, task, time, time, number, event.removeprefix("kvm_"))
        )
        if event == "kvm_page_fault":
            waiting.reason = "page_fault"

    def _resume(self, vcpu: int, time: int) -> None:
        wait = self._waiting.pop(vcpu, None)
        if wait is not None:
            wait.end_ns = time
            self.found.waits.append(wait)

    def finish(self) -> Activity:
        for task in list(self._open):
            self._close(task)
        self.found.unfinished = len(self._waiting)
        self.found.works.sort(key=lambda work: (work.start_ns, work.first_line))
        self.found.waits.sort(key=lambda wait: (wait.start_ns, wait.line))
        return self.found


def activity(lines: Iterable[str]) -> Activity:
    """The intervals of a trace: MMU work by task, waits and runs by vCPU.

    A wait ends at the vCPU's next entry; in a trace without entries, at the next event of its task that is no MMU work.
    """
    collector = _Collector()
    for number, text in enumerate(lines, 1):
        line = parse_line(text)
        if line is not None:
            collector.event(number, line.task, nanoseconds(line.timestamp), line.event, line.body)
    return collector.finish()


def nanoseconds(timestamp: str) -> int:
    """`seconds.fraction` of a trace line in nanoseconds."""
    seconds, _, fraction = timestamp.partition(".")
    return int(seconds[:12]) * 1_000_000_000 + int((fraction + "000000000")[:9])


def disjoint(works: Iterable[Work]) -> Iterator[tuple[int, int, Work]]:
    """The works as intervals that do not overlap: where two tasks' works do, the earlier one keeps the time."""
    free_from = 0
    for work in works:
        start = max(work.start_ns, free_from)
        if start < work.end_ns:
            yield start, work.end_ns, work
            free_from = work.end_ns
