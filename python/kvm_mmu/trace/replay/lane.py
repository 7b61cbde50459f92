"""A recording replayed by the core at the speed of its reader: no line of it becomes text in Python.

Owns: the two passes in which the core reads the recording, what of the rules follows from the kernel and the host, and
the report of a recording whose every output was predicted. Anything else (an output that differs, a text that no
kernel prints, an error) is left to the slow way, which says the same of an equal recording and more of every other.
What a recorder's operations do stays with the recorder; the lane stops at them and asks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from kvm_mmu import _core
from kvm_mmu.errors import KvmMmuError
from kvm_mmu.trace.replay.opened import Opened
from kvm_mmu.trace.replay.recorder import Survey, Unreplayable, recorder_of
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.kinds import OUTPUTS, TDP_OUTPUTS, TELLING, switched_on
from kvm_mmu.trace.text.source import Source, iter_chunks
from kvm_mmu.trace.text.spte_words import SpteWords, spte_words, words_of
from kvm_mmu.trace.text.wording import Wording, wording_of

#: Bytes that are kept between the two passes; a longer text is read twice.
_KEPT_MAX = 1 << 23
#: Operations of a file longer than this are left to the slow way, which reads them in step.
_OPERATIONS_MAX = 1 << 23
#: Outputs that the lane compares: all that a model of direct pages says.
_COMPARED = OUTPUTS - {
    "kvm_mmu_sync_page",
    "kvm_mmu_unsync_page",
    "kvm_mmu_set_accessed_bit",
    "kvm_mmu_set_dirty_bit",
    "kvm_mmu_walker_error",
    "kvm_mmu_split_huge_page",
    "unprotect_page_ret",
}

#: The same of a model of the TDP MMU.
_COMPARED_TDP = _COMPARED | (TDP_OUTPUTS - OUTPUTS) | {"kvm_mmu_split_huge_page"}

Rules = dict[str, Any]


class Unsure(Exception):
    """The lane leaves a recording to the slow way; the text says why."""


class LaneStop(NamedTuple):
    """Why the lane stopped: `operation`, `numbers`, `input`, `fault` or `quiet`; the event, its text, its numbers.

    `numbers` is the operation that the driver's rules name under `numeric`, its fields in the order given there.
    """

    what: str
    name: str
    body: str
    numbers: Sequence[int]


class LaneDriver(Protocol):
    """A recorder's half of a lane."""

    #: Operations that have no effect on the model, and how many there were.
    ignored: dict[str, int]

    @property
    def rules(self) -> Rules:
        """What each event is, which operations it wants to hear of, and how it makes its guest enter."""

    @property
    def core(self) -> _core.Mmu:
        """The model of the VM there is now."""

    def begin(self, lane: _core.ReplayLane) -> None:
        """Be given the lane, before its first line."""

    def hear(self, stop: LaneStop) -> None:
        """Deal with what the lane stopped at."""

    def finish(self) -> None:
        """Do what is left at the end of the recording."""


@runtime_checkable
class LaneRecorder(Protocol):
    """A recorder whose recordings the lane can read."""

    #: Its markers are `OP n ...`; False: JSON objects.
    is_numbered: bool

    def lane(self, kernel: str, host: HostFacts, survey: Survey) -> LaneDriver | None:
        """The recorder's half; None: the host or the recording needs the slow way."""


class LaneResult(NamedTuple):
    """What a lane found of a recording whose every output was predicted, in order.

    Attributes:
        equal: event to how many outputs the recording has, and the model said.
        predicted: outputs that the model said, also those that the recording had not switched on.
        answers: lines that said what host memory answered.
        ignored: operations without an effect on the model.
        inferred: facts that nobody gave.
    """

    equal: Mapping[str, int]
    predicted: int
    answers: int
    ignored: Mapping[str, int]
    inferred: Mapping[str, object]


def replay_in_lane(opened: Opened, kernel: str) -> LaneResult | None:
    """Replays a recording in the core.

    Args:
        opened: the recording.
        kernel: the row it is replayed under.

    Returns:
        The counts of a recording that is equal to the last output; None: the slow way must look.
    """
    recorder = recorder_of(kernel)
    if opened.is_stripped or not isinstance(recorder, LaneRecorder) or isinstance(opened.operations, Mapping):
        return None
    facts = copy.deepcopy(opened.facts)
    is_tdp = bool(facts.number("tdp_mmu"))
    try:
        passes = _Passes(opened.source, opened.operations)
        survey, names = passes.survey(recorder.is_numbered, opened.outputs, is_tdp=is_tdp)
        driver = recorder.lane(kernel, facts, survey)
        if driver is None:
            return None
        rules = {
            **_rules(kernel, opened, facts, names, is_tdp=is_tdp),
            "numbered": recorder.is_numbered,
            "tasks": list(survey.tasks.items()),
        }
        own = driver.rules
        rules["deeds"] = [*rules["deeds"], *own.pop("deeds")]
        lane = passes.drive(driver, rules | own)
        equal = dict(lane.equal_outputs())
    except (Unsure, Unreplayable, _core.Unsure, KvmMmuError, ValueError):
        return None
    return LaneResult(equal, lane.predicted, lane.answers, driver.ignored, facts.inferred)


class _Passes:
    """The bytes of a recording, read twice or kept."""

    def __init__(self, source: Source, operations: Source | None):
        self._source = source
        self._kept: list[bytes] | None = []
        self._operations = None if operations is None else _whole(operations)

    def survey(
        self, is_numbered: bool, outputs: frozenset[str], *, is_tdp: bool
    ) -> tuple[Survey, frozenset[str]]:
        """What must be known beforehand, and the names of the events that occur."""
        survey = _core.ReplaySurvey(numbered=is_numbered, operations=self._operations, tdp=is_tdp)
        for chunk in self._chunks():
            survey.feed(chunk)
        survey.finish()
        names = frozenset(survey.events)
        inputs = names - outputs
        return Survey(survey.highest_vcpu + 1, inputs, dict(survey.tasks)), names

    def drive(self, driver: LaneDriver, rules: Rules) -> _core.ReplayLane:
        """Both sides to their ends."""
        lane = _core.ReplayLane(rules, self._operations)
        driver.begin(lane)
        for chunk in self._chunks():
            lane.feed(chunk)
            _go(lane, driver)
        lane.finish()
        _go(lane, driver)
        driver.finish()
        return lane

    def _chunks(self) -> Iterator[bytes]:
        if self._kept:
            yield from self._kept
            return
        size = 0
        for chunk in iter_chunks(self._source):
            size += len(chunk)
            if self._kept is not None:
                self._kept.append(chunk)
                if size > _KEPT_MAX:
                    self._kept = None
            yield chunk


def _go(lane: _core.ReplayLane, driver: LaneDriver) -> None:
    while True:
        what, name, body, numbers = lane.run(driver.core)
        if what in ("text", "ended"):
            return
        text = "" if body is None else body.decode("utf-8", "replace")
        driver.hear(LaneStop(what, name, text, numbers))


def _whole(source: Source) -> bytes:
    chunks, size = [], 0
    for chunk in iter_chunks(source):
        chunks.append(chunk)
        size += len(chunk)
        if size > _OPERATIONS_MAX:
            raise Unsure("the operations are long")
    return b"".join(chunks)


def _rules(kernel: str, opened: Opened, facts: HostFacts, names: frozenset[str], *, is_tdp: bool) -> Rules:
    """What follows from the kernel, the host and the events that occur."""
    wording, compared = wording_of(kernel), _COMPARED_TDP if is_tdp else _COMPARED
    enabled = switched_on(wording, names & TELLING, is_tdp=is_tdp)
    deeds = [(name, "output") for name in opened.outputs & compared]
    # The model of direct pages says none of these: one of them that is compared is a difference.
    deeds += [(name, "foreign") for name in (opened.outputs & enabled) - compared]
    return {
        "deeds": [*deeds, ("tracing_mark_write", "marker")],
        "compared": list(enabled & compared),
        "is_tdp": is_tdp,
        "answers": opened.answers,
        "answer_words": _words(words_of(opened.facts.values)),
        "words": _words(spte_words(kernel, facts.family)),
        "wording": _wording(wording),
    }


def _words(words: SpteWords) -> Rules:
    return {
        "accessed": words.accessed,
        "dirty": words.dirty,
        "host_writable": words.host_writable,
        "mmio": words.mmio,
        "executable": words.executable,
        "user": words.user,
    }


def _wording(wording: Wording) -> Rules:
    return {
        "has_gen": wording.gen is not None,
        "gpte_bytes": wording.gpte_bytes,
        "bit4_is_four": wording.bit4_is_four,
        "access": list(wording.access),
        "invalid": wording.invalid,
        "flags": list(wording.flags),
        "error_mask": wording.error_mask,
        "try_unsync_inverted": wording.try_unsync_inverted,
        "says_places": wording.has_requests,
        "fast_by_writable": not wording.has_requests,
    }
