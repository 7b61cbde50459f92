"""Removing the outputs from a recording of the TDP MMU: what differs from `stripping`.

Owns: the flushes that a yield made, which are neither kept nor wanted; the answers that only this MMU needs (which
leaves the processor had used or written when KVM looked, when the recovery of huge pages ran); and that nothing is
prefetched, so that an answer to a request is about one leaf. Goes line by line with a look at the next one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.operations import Operations
from kvm_mmu.trace.replay.stripping import ANSWER, YIELD, Kept, Recorded, completed
from kvm_mmu.trace.text import host as host_facts
from kvm_mmu.trace.text.kinds import FLUSHES
from kvm_mmu.trace.text.line import Line, nanoseconds, parse_line
from kvm_mmu.trace.text.raw_fields import in_kernel_text
from kvm_mmu.trace.text.spte_words import words_of
from kvm_mmu.trace.text.wording import wording_of

#: The thread that recovers huge pages, by the name of its task.
_RECOVERY_TASK = "kvm-nx-"
#: What the replay is told of it.
RECOVERS = "nx_recovery"
#: Two runs of it are so far apart at least, nanoseconds.
_RUN_PAUSE = 10_000_000
#: A period of it so long that it is asleep, milliseconds.
_ASLEEP = 100_000
_CHANGED_EVENT = "kvm_tdp_mmu_spte_changed"
_CHANGE, _TASK_MIN = f": {_CHANGED_EVENT}: ", 16
_CHANGED = re.compile(r"as id (\d{1,3}) gfn ([0-9a-f]{1,16}) level (\d)")
_SET_SPTE = re.compile(r"gfn ([0-9a-f]{1,16}) spte ([0-9a-f]{1,16}) \S+ level (\d)")
_PARAMETER = re.compile(
    r'"op":"host_kvm_param","name":"nx_huge_pages_recovery_(\w{1,32})","value":"(\d{1,18})"'
)
#: What may stand between a question and its answer.
_PASSES = ("cond_resched", "slot_wrprot")


#: Without one of these in the text nothing is said of that thread.
TELL_OF_RECOVERY = (_RECOVERY_TASK.encode(), b'"op":"host_kvm_param"')


@dataclass
class _Asked:
    """A question to the host or the processor, and what the outputs after it say."""

    prefix: str
    #: `set` about a leaf, `young` and `dirty` about leaves that were used or written
    what: str
    host_writable: int
    changed: list[str] = field(default_factory=list)
    writable: int = 1
    was_set: int = 0
    is_open: bool = True

    def note(self, event: str, body: str) -> None:
        """An output that came before the next input."""
        if event == _CHANGED_EVENT:
            found = _CHANGED.match(body)
            if found is not None:
                as_id, gfn, level = found.groups()
                self.changed.append(f"{gfn} {level}" if self.what == "set" else f"{as_id}:{gfn}")
        elif event == "kvm_mmu_set_spte" and self.what == "set" and self.is_open:
            found = _SET_SPTE.match(body.strip())
            if found is not None:
                gfn, value, level = found.groups()
                self.writable = int(bool(int(value, 16) & self.host_writable))
                self.was_set = int(f"{gfn} {level}" in self.changed)
                self.is_open = False

    def line(self) -> Kept:
        """The answer."""
        said = f"{self.what} {','.join(self.changed) or '-'}"
        if self.what == "set":
            said = f"set {self.was_set} writable {self.writable} found -"
        return Kept(f"{self.prefix}{ANSWER}: {said}", 0)


class _Recovery:
    """Whether the thread that recovers huge pages is in the middle of a run."""

    def __init__(self, yields_unseen: bool):
        self._yields_unseen = yields_unseen
        self._runs, self._last_ns = False, 0
        self._ratio = ""

    def pauses(self) -> None:
        """A line of another task."""
        self._runs = False

    def begins(self, line: Line, is_output: bool) -> bool:
        """Whether this line is the first of a run."""
        if not line.task.startswith(_RECOVERY_TASK):
            self._runs = False
            return False
        if self._yields_unseen:
            now = nanoseconds(line.timestamp)
            self._runs = self._runs and now - self._last_ns <= _RUN_PAUSE
            self._last_ns = now
        if not self._runs and is_output:
            self._runs = True
            return True
        if line.event in FLUSHES:
            self._runs = False
        return False

    def ran_silently(self, marker: str) -> bool:
        """An operation sends it to sleep: a run that only took logged tables off its list said nothing."""
        found = _PARAMETER.search(marker)
        if found is None:
            return False
        if found[1] == "ratio":
            self._ratio = found[2]
        return found[1] == "period_ms" and int(found[2]) >= _ASLEEP and self._ratio == "1"


def questions(host: Mapping[str, object], *, answers: bool) -> dict[str, str]:
    """The events behind which an answer is added, and what each asks."""
    asks = {"kvm_mmu_spte_requested": "set", "kvm_age_hva": "young"} if answers else {}
    if host.get("mmu") == "ept" and host.get("pml"):
        asks |= {"slot_clear_dirty": "dirty", "dirty_masked": "dirty"}
    return asks


def strip_tdp_lines(
    lines: Iterable[str],
    host: Mapping[str, object],
    operations: Operations | None,
    *,
    answers: bool,
    outputs: frozenset[str],
) -> Iterator[Kept | Recorded]:
    """The recording line by line, as `stripping.strip_lines` gives it."""
    yield Kept(host_facts.PREFIX + json.dumps(dict(host)), 0)
    kernel = host_facts.kernel_of(host)
    if kernel:
        lines = in_kernel_text(lines, kernel)
    asks = questions(host, answers=answers)
    host_writable, unseen = words_of(host).host_writable, _yields_unseen(kernel)
    recovery = _Recovery(unseen)
    is_collapsing = False
    asked: _Asked | None = None
    held: list[Kept] = []
    for number, (text, following) in enumerate(pairwise(chain(lines, [""])), 1):
        # Most lines are changes of entries, and say at once that they are: what stands before has no other event.
        at = text.find(": ", _TASK_MIN)
        if asked is None and text.startswith(_CHANGE, at) and _RECOVERY_TASK not in text[:_TASK_MIN]:
            recovery.pauses()
            yield Recorded(number, _CHANGED_EVENT, text[at + len(_CHANGE) :])
            continue
        line = parse_line(text)
        if line is None:
            if asked is None:
                yield Kept(text, number)
            else:
                held.append(Kept(text, number))
            continue
        event = line.event
        if unseen:
            is_collapsing = (is_collapsing and event != "tracing_mark_write") or event == "zap_collapsible"
        if event in FLUSHES:
            if unseen and is_collapsing:
                continue
            if _is_of_yield(following):
                yield Recorded(number, YIELD, "")
                continue
            if unseen and line.task.startswith(_RECOVERY_TASK):
                continue
        is_output = event in outputs
        if recovery.begins(line, is_output):
            said = Kept(f"{text[: line.event_at]}{ANSWER}: {RECOVERS}", 0)
            if asked is None:
                yield said
            else:
                held.append(said)
        if is_output:
            if asked is not None:
                asked.note(event, line.body)
            yield Recorded(number, event, line.body)
            continue
        if asked is not None and not event.startswith(_PASSES):
            yield asked.line()
            yield from held
            asked, held = None, []
        if event == "tracing_mark_write":
            # What was left out goes before; then, where its operation put the recovery to sleep, that run; then itself.
            *before, last = (
                completed(text, line.body, line.body_at, operations, number)
                if operations
                else [Kept(text, number)]
            )
            yield from before
            if recovery.ran_silently(last.text[line.body_at :]):
                yield Kept(f"{text[: line.event_at]}{ANSWER}: {RECOVERS}", 0)
            yield last
            continue
        if asked is not None:
            held.append(Kept(text, number))
        else:
            yield Kept(text, number)
        if event in asks:
            if asked is not None:
                yield asked.line()
                yield from held
                held = []
            asked = _Asked(text[: line.event_at], asks[event], host_writable)
    if asked is not None:
        yield asked.line()
        yield from held


def _is_of_yield(following: str) -> bool:
    """The lock was dropped right after a flush."""
    if ": cond_resched" not in following:
        return False
    line = parse_line(following)
    return line is not None and line.event.startswith("cond_resched")


def _yields_unseen(kernel: str) -> bool:
    try:
        return bool(kernel) and wording_of(kernel).yields_unseen
    except TraceError:
        return False
