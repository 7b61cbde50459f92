"""What occupied the MMU: the pieces of work that stalls and timelines are made of.

Owns: which events begin, continue and end a piece of MMU work of a task. Pieces of one task never overlap: a whole-MMU
zap inside a memslot update is a piece of its own, and what follows it is the update again; together they last as long
as the update. An update begins with the marker of a recorder or the probe on its ioctl, where the trace has one. A
piece ends with the return of what began it where the trace has that (`..._ret`), else with the last event that belongs
to it; a task that was silent for long does something new. Memory grows with the number of pieces, not with the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from kvm_mmu.trace.analysis.tdp_changes import RECOVERY_TASK, fault_kind
from kvm_mmu.trace.text.line import process_of
from kvm_mmu.trace.text.slot_changes import CHANGES, SlotChange, SlotTables

UPDATE, ZAP_ALL, DIRTY, RECLAIM = "memslot update", "zap-all", "dirty log", "reclaim"
NOTIFIER, TEARDOWN = "host memory notifier", "VM teardown"
#: A root that was zapped while in use, freed by its last user.
ROOT_FREED = "obsolete root freed"
#: Pages zapped in a vCPU's fault, where no probe says that it is reclaim.
FAULT_ZAP = "zap in a page fault"
#: Pages zapped outside all that; without probes also those of memslot updates and reclaim.
LONE_ZAP = "zap, cause not shown"
#: Tables of huge pages that were split for instruction fetches, taken away again.
NX_RECOVERY = "recovery of NX huge pages"
#: A fault takes a large leaf apart.
FAULT_SPLIT = "huge page split in a page fault"
CAUSES = (
    ZAP_ALL, UPDATE, DIRTY, RECLAIM, NOTIFIER, NX_RECOVERY, TEARDOWN, ROOT_FREED, FAULT_SPLIT, FAULT_ZAP, LONE_ZAP,
)  # fmt: skip
#: event -> the work it begins or goes on with, and what of it
_BEGINS = {
    "set_memory_region": (UPDATE, ""),
    "set_memslot": (UPDATE, ""),
    "swap_memslots": (UPDATE, ""),
    "memslots_updated": (UPDATE, ""),
    "zap_all_fast_enter": (ZAP_ALL, ""),
    "kvm_mmu_zap_all_fast": (ZAP_ALL, ""),
    "kvm_mmu_invalidate_zap_all_pages": (ZAP_ALL, ""),
    "slot_wrprot": (DIRTY, "slot write-protected"),
    "slot_clear_dirty": (DIRTY, "dirty bits cleared"),
    "zap_collapsible": (DIRTY, "log off: small pages zapped"),
    "dirty_masked": (DIRTY, "log read"),
    "zap_oldest": (RECLAIM, ""),
    "kvm_unmap_hva_range": (NOTIFIER, "unmap"),
    "kvm_set_spte_hva": (NOTIFIER, "change"),
    "kvm_age_hva": (NOTIFIER, "age"),
}
_CHANGE = re.compile(r"\bchange=(\d)")
#: Events of a memslot update that do not begin one: after a zap inside it, the update goes on.
_OF_UPDATE = frozenset({"flush_shadow_memslot", "invalidate_mmio", "change_mmu_pages"})
_REMOVES = "flush_shadow_memslot"
_CHANGED = "kvm_tdp_mmu_spte_changed"
_CHANGE_OF = re.compile(r" level (\d) old_spte ([0-9a-f]{1,16}) ")
_PRESENT, _LARGE = 1 << 11, 1 << 7
#: Events that belong to whatever work their task does.
_CONTINUES = _OF_UPDATE | {
    "kvm_mmu_prepare_zap_page",
    "kvm_mmu_sync_page",
    "page_zap_pte",
    "commit_zap",
    "flush_remote_tlbs",
    "flush_remote_tlbs_range",
    "cond_resched_wr",
    "cond_resched_wr_ret",
    "kvm_mmu_split_huge_page",
    "kvm_tdp_mmu_spte_changed",
}
#: Probes on the return of a function -> the event that began it: it is over, and gives back to what surrounded it.
_ENDS = {
    "set_memory_region_ret": "set_memory_region",
    "zap_oldest_ret": "zap_oldest",
    "set_memslot_ret": "set_memslot",
    "zap_all_fast_ret": "zap_all_fast_enter",
    "slot_wrprot_ret": "slot_wrprot",
    "zap_collapsible_ret": "zap_collapsible",
}
#: How the names of events begin that show that a task went on to something else; any other event (a timer, the
#: scheduler) says nothing.
_ELSEWHERE = (
    "kvm_", "tracing_mark_write", "fast_page_fault", "mark_mmio", "check_mmio", "handle_mmio", "vcpu_match", "mmu_load",
    "mmu_unload", "free_", "reset_context", "new_pgd", "sync_roots",
)  # fmt: skip
_NOT_ELSEWHERE = ("kvm_mmu_prepare", "kvm_mmu_sync_page")
_OF_FAULT = (
    "kvm_mmu_", "fast_", "kvm_tdp_", "mark_mmio", "check_mmio", "handle_mmio", "make_mmio", "try_unsync",
)  # fmt: skip
#: How a marker of a recorder is called that says an update, and how its return begins where the recorder writes one.
_UPDATE_MARK, _RETURNING_MARK = "memslot marker", '{"i":'
_RETURN_OF_MARK = ',"ev":"set_memslot_ret"'
_UPDATE_RETURNS = re.compile(rf"{re.escape(_RETURNING_MARK)}\d{{1,15}}{re.escape(_RETURN_OF_MARK)}")
_MARK = re.compile(r'"op": ?"(\w+)"')
#: What tells one root from another: where it stands and what it maps.
_ROOT = re.compile(r"(gfn \w{1,16} l\d).* root (\d{1,10}) ")
#: What a recorder says it does next -> the cause of pages zapped then.
_MARKED = {
    "set_memslot": UPDATE, "memslot": UPDATE, "get_dirty_log": DIRTY, "clear_dirty_log": DIRTY,
    "set_nr_mmu_pages": RECLAIM, "drop_caches": RECLAIM, "end": TEARDOWN, "destroy_vm": TEARDOWN,
}  # fmt: skip
#: Operations that zap no page, and zaps that have no operation: a page zapped then is a work of its own.
_NO_ZAPS = frozenset({NOTIFIER, DIRTY, ROOT_FREED, FAULT_ZAP, LONE_ZAP})
_MAY_HOLD = {UPDATE: frozenset({ZAP_ALL, DIRTY, RECLAIM}), DIRTY: frozenset({RECLAIM})}
#: A task that was silent for longer does something new, in nanoseconds; reads of a dirty log come at once.
_SILENCE, _BURST = 100_000_000, 1_000_000
#: The last thing that an update does is to compute the page limit.
_SILENCE_AFTER = {"change_mmu_pages": 100_000}
#: The recovery thread sleeps longer between two runs.
_BETWEEN_RECOVERIES = 10_000_000
#: Pairs of events between which a task may be silent: it waits for readers of the old array, or walks a slot.
_WAITS = {
    ("set_memslot", "swap_memslots"),
    ("swap_memslots", "memslots_updated"),
    ("slot_wrprot", "flush_remote_tlbs"),
}


@dataclass(slots=True)
class Work:
    """A piece of MMU work. Times in nanoseconds, lines from 1, both ends included; `what` is its kind, if known."""

    cause: str
    task: str
    start_ns: int
    end_ns: int
    first_line: int
    last_line: int
    pages_zapped: int = 0
    #: Entries that the TDP MMU changed.
    entries: int = 0
    what: str = ""
    #: Pieces of one operation have one number.
    operation: int = 0
    #: The operation that it was part of, its own where nothing surrounded it.
    within: int = 0
    #: The operation that made it necessary and was over by then (a root that it left in use), 0: none.
    caused_by: int = 0


@dataclass(slots=True)
class ZapBatch:
    """Pages zapped in a row: from the first one to the flush that frees them, inside one piece of work."""

    task: str
    start_ns: int
    end_ns: int
    first_line: int
    pages: int = 0


@dataclass
class _Operation:
    """Something a task is in the middle of; `piece` is what of it is not yet a finished work, `events` what happened
    to it, "" for an operation inside it."""

    cause: str
    piece: Work
    events: list[str] = field(default_factory=list)


class _Task:
    """One task's operations, the outermost first."""

    def __init__(self) -> None:
        self.stack: list[_Operation] = []
        self.last_ns = 0
        self.last_event = ""
        self.marked = ""
        self.in_fault = False
        #: What the fault is for, in words, where its line says so.
        self.fault_kind = ""
        self.batch: ZapBatch | None = None


def names(counted: Iterable[str] = ()) -> dict[str, object]:
    """What the names of events mean here, for the reader that picks those which work is made of.

    Args:
        counted: Events that somebody wants besides.
    """
    return {
        "begins": list(_BEGINS),
        "continues": sorted(_CONTINUES),
        "returns": list(_ENDS.items()),
        "elsewhere": list(_ELSEWHERE),
        "not_elsewhere": list(_NOT_ELSEWHERE),
        "of_fault": list(_OF_FAULT),
        "counted": list(counted),
        "returning_mark": _RETURNING_MARK,
        "return_of_mark": _RETURN_OF_MARK,
        "ends": [f'"{mark}"' for mark, cause in _MARKED.items() if cause == TEARDOWN],
        "recovery_task": RECOVERY_TASK,
    }


class Works:
    """Collects the works and zap batches of a trace, event by event; those that change nothing may be left out."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.batches: list[ZapBatch] = []
        #: Memslot updates by their number: which slot, as far as the trace says.
        self.changes: dict[int, SlotChange] = {}
        #: Numbers of the memslot updates of which the trace has the end.
        self.returned: set[int] = set()
        self._slots = SlotTables()
        #: The trace shows when a slot is removed.
        self._removes = False
        #: What zapped a root in use, by process and root; what invalidated everything last, by process.
        self._left: dict[tuple[str, str], int] = {}
        self._last_zap_all: dict[str, int] = {}
        self._tasks: dict[str, _Task] = {}
        self._returns: set[str] = set()
        self._operations = 0

    def event(self, number: int, name: str, time: int, event: str, body: str, *, is_ept: bool) -> None:
        """Take in an event of the task `name`.

        Args:
            is_ept: The host is an Intel one, as far as is known by then: a fault's line has the exit's qualification.
        """
        begun_by = _ENDS.get(event)
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = _Task()
        if begun_by is not None:
            self._returns.add(begun_by)
            self._end(task, name, begun_by, number, time, body)
        elif event == "tracing_mark_write" and _UPDATE_RETURNS.match(body):
            self._end(task, name, _UPDATE_MARK, number, time, body)
            task.marked = ""
        elif event == "tracing_mark_write" and (change := self._slots.announced(name, event, body)):
            self._announce(task, name, number, time, change, body)
        elif event in _BEGINS:
            self._begin(task, name, number, time, event, body)
        elif event in _CONTINUES:
            self._continue(task, name, number, time, event, body)
        elif event == "kvm_mmu_get_page" and task.stack and task.stack[-1].cause == DIRTY:
            self._note(task, number, time, event)
        elif event.startswith(_ELSEWHERE) and not event.startswith(_NOT_ELSEWHERE):
            if not self._says_when(task):
                self._close(task)
            if event in ("kvm_page_fault", "kvm_entry", "kvm_exit", "tracing_mark_write"):
                task.in_fault = event == "kvm_page_fault"
                if task.in_fault:
                    task.fault_kind = fault_kind(body, is_qualification=is_ept)
            if event == "tracing_mark_write" and (found := _MARK.search(body)):
                task.marked = _MARKED.get(found[1], "")

    def before(self, name: str, event: str, body: str) -> None:
        """Take in an event of which only what it says of memslots counts."""
        if event in ("tracing_mark_write", "set_memory_region"):
            self._slots.announced(name, event, body)
        elif event == "set_memory_region_ret":
            self._slots.refused(name, body)

    def lost(self) -> None:
        """Events were lost: what every task was doing ends with its last event."""
        for task in self._tasks.values():
            self._close(task)

    def finish(self) -> None:
        """The trace ends."""
        self.lost()
        for change in self.changes.values():
            if self._removes and not change.change:
                change.change = "create or flags"  # nothing of it was removed
        self.works.sort(key=lambda work: (work.start_ns, work.first_line))

    def _announce(
        self, task: _Task, name: str, number: int, time: int, change: SlotChange, body: str
    ) -> None:
        """A recorder says that it updates a memslot now."""
        self._close(task)
        task.marked, task.in_fault = UPDATE, False
        if body.startswith(_RETURNING_MARK):
            self._returns.add(_UPDATE_MARK)
        self._open(task, Work(UPDATE, name, time, time, number, number, what=change.what))
        self.changes[task.stack[-1].piece.operation] = change
        task.stack[-1].events.append(_UPDATE_MARK)
        self._note(task, number, time, _UPDATE_MARK)

    def _begin(self, task: _Task, name: str, number: int, time: int, event: str, body: str) -> None:
        cause, what = _BEGINS[event]
        if event == "set_memslot" and (found := _CHANGE.search(body)):
            what = CHANGES.get(found[1], "")
        self._after_silence(task, time, event)
        self._back_to(task, cause, number, time)
        top = task.stack[-1] if task.stack else None
        if top is not None and top.cause == cause and not _is_new(top, event, time - task.last_ns):
            if cause == UPDATE:
                self._learn(top.piece, name, event, body, what)
            self._note(task, number, time, event)
            return
        if top is not None and len(task.stack) > 1 and cause in _MAY_HOLD.get(task.stack[-2].cause, ()):
            self._leave(task, number, time)  # one after the other, inside the same operation
            top = task.stack[-1]
        if top is not None and cause in _MAY_HOLD.get(top.cause, ()):
            self._suspend(task, number, time)
        else:
            self._close(task)
        self._open(task, Work(cause, name, time, time, number, number, what=what))
        piece = task.stack[-1].piece
        if cause == UPDATE:
            change = self._slots.announced(name, event, body) if event == "set_memory_region" else None
            self.changes[piece.operation] = change = change or SlotChange(what)
            piece.what = change.what
        elif cause == ZAP_ALL:
            self._last_zap_all[process_of(name)] = piece.within
        self._note(task, number, time, event)

    def _learn(self, piece: Work, name: str, event: str, body: str, what: str) -> None:
        """An event inside an update may say more of it than what began it."""
        change = self.changes.get(piece.operation, SlotChange())
        if event == "set_memory_region" and change.slot is None:
            change = self._slots.announced(name, event, body) or change
        change.change = what or change.change
        self.changes[piece.operation], piece.what = change, change.what

    def _continue(self, task: _Task, name: str, number: int, time: int, event: str, body: str) -> None:
        self._after_silence(task, time, event)
        if event in _OF_UPDATE:
            self._back_to(task, UPDATE, number, time)
            if event == _REMOVES and task.stack and task.stack[-1].cause == UPDATE:
                self._removes = True
                change = self.changes.setdefault(task.stack[-1].piece.operation, SlotChange())
                change.change = change.change or "delete or move"
        is_zap = event == "kvm_mmu_prepare_zap_page"
        if is_zap and (not task.stack or _zaps_no_page(task.stack[-1])):
            cause = _of_lone_zap(task, name, body)
            if not task.stack or task.stack[-1].cause != cause:
                self._close(task)
                self._open(task, Work(cause, name, time, time, number, number))
        if not task.stack and event == _CHANGED and (cause := _of_lone_change(task, name, body)):
            what = task.fault_kind if cause == FAULT_SPLIT else ""
            self._open(task, Work(cause, name, time, time, number, number, what=what))
        if not task.stack:
            return
        self._note(task, number, time, event)
        task.stack[-1].piece.entries += event == _CHANGED
        if is_zap:
            self._root(task.stack[-1].piece, process_of(name), body)
            task.stack[-1].piece.pages_zapped += 1
            if task.batch is None:
                task.batch = ZapBatch(name, time, time, number)
            task.batch.pages += 1
        if task.batch is not None:
            task.batch.end_ns = max(time, task.batch.start_ns)
            if event == "commit_zap":
                self._flush(task)

    def _root(self, piece: Work, process: str, body: str) -> None:
        """A zapped root that is in use is freed later, at the account of what zapped it."""
        found = _ROOT.search(body)
        if found is None:
            return
        if int(found[2]):
            self._left[process, found[1]] = piece.within
        elif piece.cause == ROOT_FREED:
            zapped_by = self._left.pop((process, found[1]), None)
            piece.caused_by = zapped_by or piece.caused_by or self._last_zap_all.get(process, 0)

    def _open(self, task: _Task, piece: Work) -> None:
        self._operations += 1
        piece.operation = self._operations
        piece.within = task.stack[0].piece.operation if task.stack else piece.operation
        task.stack.append(_Operation(piece.cause, piece))

    def _note(self, task: _Task, number: int, time: int, event: str) -> None:
        top = task.stack[-1]
        if event in _BEGINS or event in _OF_UPDATE or event == "flush_remote_tlbs":
            top.events.append(event)
        top.piece.end_ns, top.piece.last_line = max(time, top.piece.start_ns), number
        task.last_ns, task.last_event = time, event

    def _says_when(self, task: _Task) -> bool:
        """A probe on the return says when something that the task does is over."""
        return any(operation.events[:1] and operation.events[0] in self._returns for operation in task.stack)

    def _end(self, task: _Task, name: str, begun_by: str, number: int, time: int, body: str) -> None:
        """The function that this event began returned, and with it what it called."""
        at = next((i for i, operation in enumerate(task.stack) if operation.events[:1] == [begun_by]), None)
        if at == 0 and (change := self.changes.get(task.stack[0].piece.operation)) is not None:
            self.returned.add(task.stack[0].piece.operation)
            if begun_by != "set_memslot" and self._slots.refused(name, body):
                change.is_refused = True
                task.stack[0].piece.what = change.what
        while at is not None and len(task.stack) > at:
            self._leave(task, number + 1, time)

    def _back_to(self, task: _Task, cause: str, number: int, time: int) -> None:
        """An event of the surrounding operation: what was inside it is over."""
        while len(task.stack) > 1 and task.stack[-1].cause != cause and task.stack[-2].cause == cause:
            self._leave(task, number, time)

    def _leave(self, task: _Task, number: int, time: int) -> None:
        """The innermost operation is over; what surrounds it goes on from here."""
        self._suspend(task, number, time)
        task.stack.pop()
        task.last_ns = time
        if task.stack:
            top = task.stack[-1]
            top.events.append("")
            top.piece = replace(
                top.piece,
                start_ns=time,
                end_ns=time,
                first_line=number,
                last_line=0,
                pages_zapped=0,
                entries=0,
            )

    def _suspend(self, task: _Task, number: int, time: int) -> None:
        """The piece of the innermost operation lasted until now, to the line before this one."""
        piece = task.stack[-1].piece
        is_nothing = not piece.last_line and time <= piece.start_ns  # between two operations inside it
        piece.end_ns, piece.last_line = max(time, piece.start_ns), max(number - 1, piece.first_line)
        self._flush(task)
        if not is_nothing:
            self.works.append(piece)

    def _after_silence(self, task: _Task, time: int, event: str) -> None:
        limit = _SILENCE_AFTER.get(task.last_event, _SILENCE)
        if task.stack and task.stack[-1].cause == NX_RECOVERY:
            limit = _BETWEEN_RECOVERIES
        is_silent = task.stack and time - task.last_ns > limit and (task.last_event, event) not in _WAITS
        if is_silent and not self._says_when(task):
            self._close(task)

    def _close(self, task: _Task) -> None:
        """Whatever the task did ended with its last event."""
        if not task.stack:
            return
        self._flush(task)
        if task.stack[-1].piece.last_line:  # else nothing came after what was inside it
            self.works.append(task.stack[-1].piece)
        task.stack.clear()

    def _flush(self, task: _Task) -> None:
        if task.batch is not None:
            self.batches.append(task.batch)
            task.batch = None


def _zaps_no_page(operation: _Operation) -> bool:
    # With the log off the TDP MMU replaces tables by large leaves.
    return operation.cause in _NO_ZAPS and operation.events[:1] != ["zap_collapsible"]


def _of_lone_change(task: _Task, name: str, body: str) -> str:
    """The cause of a change of a TDP entry outside all operations; none for what a fault maps."""
    if name.startswith(RECOVERY_TASK):
        return NX_RECOVERY
    if task.marked == TEARDOWN:
        return TEARDOWN
    found = _CHANGE_OF.search(body)
    if task.in_fault and found is not None and found[1] != "1":
        old = int(found[2], 16)
        return FAULT_SPLIT if old & _PRESENT and old & _LARGE else ""
    return ""


def _of_lone_zap(task: _Task, name: str, body: str) -> str:
    if name.startswith(RECOVERY_TASK):
        return NX_RECOVERY
    if task.marked:
        return task.marked
    if " invalid " in body and " root 0 " in body:
        return ROOT_FREED
    return FAULT_ZAP if task.in_fault else LONE_ZAP


def _is_new(top: _Operation, event: str, silence: int) -> bool:
    """Whether an event of the same cause begins another operation."""
    if top.cause in (RECLAIM, NOTIFIER):
        return True
    if top.cause == UPDATE:
        if event in ("set_memory_region", "set_memslot"):
            return event in top.events or top.events[0] not in (_UPDATE_MARK, "set_memory_region")
        if top.events[0] in (_UPDATE_MARK, "set_memory_region"):
            return False
        # Two arrays are installed for a slot that goes away, with a zap between; else each is an update of its own.
        installed = "memslots_updated" in top.events
        return (
            installed
            and top.events[0] != "set_memslot"
            and top.events[-1] in ("memslots_updated", "invalidate_mmio")
        )
    if top.cause == ZAP_ALL:
        return not (event == "kvm_mmu_zap_all_fast" and top.events == ["zap_all_fast_enter"])
    return event != "dirty_masked" or "flush_remote_tlbs" in top.events or silence > _BURST


def disjoint(works: Iterable[Work]) -> Iterator[tuple[int, int, Work]]:
    """The works as intervals that do not overlap: where two tasks' works do, the earlier one keeps the time."""
    free_from = 0
    for work in works:
        start = max(work.start_ns, free_from)
        if start < work.end_ns:
            yield start, work.end_ns, work
            free_from = work.end_ns


def is_mmu_event(event: str) -> bool:
    """An event of MMU work, or of the part of a fault that handles the MMU."""
    return event in _CONTINUES or event in _BEGINS or event in _ENDS or event.startswith(_OF_FAULT)
