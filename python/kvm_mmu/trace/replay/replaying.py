"""Replay of a recording: the inputs drive the model, the model predicts the outputs.

Owns: the passes over the trace (look for what must be known beforehand, such as how many vCPUs there are; drive the
model), the choice of the kernel, and the report. The model never sees an output of the recording. Memory does not
grow with the trace, but for predictions that are asked for as a list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import kernels
from kvm_mmu.terminal import escaped
from kvm_mmu.trace.replay.comparing import Comparison, Divergence, surroundings
from kvm_mmu.trace.replay.comparing_tdp import TdpComparison
from kvm_mmu.trace.replay.engine import EngineFactory, engine_factory
from kvm_mmu.trace.replay.lane import LaneResult, replay_in_lane
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.opened import Opened, open_recording
from kvm_mmu.trace.replay.recorder import Recorder, Session, Unreplayable, others, recorder_of
from kvm_mmu.trace.replay.replayable import INSTEAD, replayable
from kvm_mmu.trace.replay.stripping import ANSWER, Kept, Recorded
from kvm_mmu.trace.text import host as host_facts
from kvm_mmu.trace.text.buffer_header import missing_from
from kvm_mmu.trace.text.kinds import TELLING, switched_on
from kvm_mmu.trace.text.line import parse_line
from kvm_mmu.trace.text.source import Traced
from kvm_mmu.trace.text.spte_words import spte_words
from kvm_mmu.trace.text.wording import wording_of

__all__ = ["Divergence", "Report", "replay"]

#: A marker's beginning stands within this many characters of its line.
_MARK_BEFORE = 160


@dataclass
class Report:
    """What a replay found out.

    Attributes:
        name: the trace.
        kernel: the profile it was replayed under.
        predictions: the outputs that were predicted, unless they were given away one by one.
        recorded: event to how many outputs the recording has.
        equal: event to how many of them were predicted, in order.
        divergence: the first difference; None: none.
        compared: the trace had outputs to compare with.
        inferred: facts that nobody gave, with the values taken.
        host_answers: lines that said what host memory answered.
        ignored_operations: operations without an effect on the model.
        predicted: how many predictions there were.
        notes: sentences about what of the VM is not in the text.
        shown: of the inferred facts those that the trace itself shows; the others are assumed.
        family: the masks that the host used.
        is_tdp: whether the VM used the TDP MMU.
    """

    name: str
    kernel: str
    predictions: list[Prediction]
    recorded: Counter[str] = field(default_factory=Counter)
    equal: Counter[str] = field(default_factory=Counter)
    divergence: Divergence | None = None
    compared: bool = False
    inferred: dict[str, object] = field(default_factory=dict)
    host_answers: int = 0
    ignored_operations: dict[str, int] = field(default_factory=dict)
    predicted: int = 0
    notes: list[str] = field(default_factory=list)
    shown: Mapping[str, object] = field(default_factory=dict)
    #: The masks of its SPTEs.
    family: str = "npt"
    #: The VM used the TDP MMU.
    is_tdp: bool = False

    @property
    def is_equal(self) -> bool:
        """True if no difference was found."""
        return self.divergence is None

    def how_known(self, key: str) -> str:
        """Say how a fact that nobody gave is known.

        Args:
            key: the fact.

        Returns:
            `inferred` if something in the trace says it, else `assumed`.
        """
        return "assumed" if key in host_facts.ASSUMED and key not in self.shown else "inferred"

    def take(self, found: LaneResult) -> None:
        """Take what the core found of a recording that is equal.

        Args:
            found: its counts.
        """
        self.predicted, self.host_answers = found.predicted, found.answers
        self.inferred.update(found.inferred)
        self.ignored_operations = dict(found.ignored)
        self.compared = bool(found.equal)
        self.recorded.update(found.equal)
        self.equal.update(found.equal)

    def as_json(self) -> dict[str, object]:
        """Turn the report into JSON values; the schema has a version.

        Returns:
            The keys of the page on JSON.
        """
        kinds = {
            kind: {"equal": self.equal[kind], "recorded": n} for kind, n in sorted(self.recorded.items())
        }
        found = self.divergence
        return {
            "schema": "kvm-mmu/trace-replay/1",
            "file": self.name,
            "kernel": self.kernel,
            "predicted": self.predicted,
            "compared": self.compared,
            "equal": self.is_equal,
            "kinds": kinds,
            "divergence": None
            if found is None
            else {
                "agreed": found.agreed,
                "recorded": None if found.recorded is None else list(found.recorded),
                "predicted": None if found.predicted is None else list(found.predicted),
                "surroundings": found.surroundings,
            },
            "inferred": self.inferred,
            "assumed": [key for key in self.inferred if self.how_known(key) == "assumed"],
            "host_answers_used": self.host_answers,
            "ignored_operations": self.ignored_operations,
            "notes": self.notes,
        }

    def as_text(self) -> str:
        """Write the report for a person.

        Returns:
            Text of several lines.
        """
        lines = [f"{self.name}: kernel {self.kernel}"]
        if self.is_equal:
            lines.extend(f"  note: {note}" for note in self.notes)
        for key, value in self.inferred.items():
            where = "not in the trace" if self.how_known(key) == "assumed" else "shown by the trace"
            lines.append(f"  {self.how_known(key)}: {key} = {value} ({where})")
        lines.append(f"  host answers used: {self.host_answers}")
        for name, count in self.ignored_operations.items():
            lines.append(
                f"  operation {shown(name)} has no effect on the model and was passed over {count} times"
            )
        if not self.compared:
            return escaped(
                "\n".join([*lines, f"  {self.predicted} outputs predicted; the trace has none to compare"])
            )
        lines.extend(
            f"  {kind}: {self.equal[kind]} of {count}" for kind, count in sorted(self.recorded.items())
        )
        total = sum(self.recorded.values())
        agreed = total if self.divergence is None else self.divergence.agreed
        lines.append(f"  {agreed} of {total} outputs equal, in order")
        if self.divergence is not None:
            lines.extend(_explain(self.divergence))
            lines.extend(f"  note: {note}" for note in self.notes)
        return escaped("\n".join(lines))


def _explain(found: Divergence) -> list[str]:
    recorded, predicted = found.recorded, found.predicted
    lines = [f"first divergence after {found.agreed} equal outputs:"]
    lines.append(
        "  recorded:  nothing more"
        if recorded is None
        else f"  recorded:  line {recorded.line}: {recorded.event}: {recorded.body}"
    )
    lines.append(
        "  predicted: nothing more"
        if predicted is None
        else f"  predicted: {predicted.event}: {predicted.body} (caused by stripped line {predicted.line})"
    )
    return [*lines, *(f"  | {text}" for text in found.surroundings)]


def replay(
    trace: Traced,
    factory: EngineFactory | None = None,
    *,
    kernel: str | None = None,
    host: Mapping[str, object] | str | Path | None = None,
    backend: str = "auto",
    operations: Mapping[int, str] | str | Path | None = None,
    emit: Callable[[Prediction], None] | None = None,
    keep: bool = True,
) -> Report:
    """Replays one trace, stripped or not; stdin (`-`) and pipes are copied to a temporary file first.

    Args:
        trace: A path, an open `Trace`, or lines.
        factory: Makes a VM of `(kernel, config)`; None: that of `backend`.
        kernel: The profile; None: the kernel of the host facts.
        host: Facts of the host, or the file or JSON text that has them; they win over the trace's own line and over
            `host.json` beside it.
        backend: The model that is driven, `core` or `reference`; `auto` is the core.
        operations: Full operation texts or the file that has them; None: an `ops.jsonl` beside the trace.
        emit: Gets each prediction as it is made; None: they are kept, in `Report.predictions`.
        keep: False: predictions are neither kept nor given away. The core then compares typed events where it can, much
            faster, and the report says the same.

    Returns:
        The report; `is_equal` says whether every output was predicted, in order.

    Raises:
        TraceError: the trace cannot be read or replayed, or the kernel is unknown.
        UsageError: there is no such backend.
    """
    may_take_lane = factory is None and backend != "reference" and emit is None and not keep
    factory = engine_factory(backend) if factory is None else factory
    if isinstance(host, str | Path):
        host = host_facts.facts_from(str(host))
    with open_recording(trace, host, operations) as opened:
        profile = host_facts.kernel_name(kernel) if kernel else _kernel_of(opened)
        if profile not in kernels:
            key = "kernel" if opened.facts.values.get("kernel") else "release"
            who = (
                ""
                if kernel
                else opened.said_by(key) or (" (the given host facts say so)" if key in (host or {}) else "")
            )
            raise TraceError(
                f"{opened.name}: kernel {shown(kernel or profile)}{who}: replay knows {', '.join(kernels)}; {INSTEAD}"
            )
        report = Report(opened.name, profile, [], inferred=opened.facts.inferred, shown=opened.facts.likely)
        report.family, report.is_tdp = opened.facts.family, opened.is_tdp
        report.notes.extend(missing_from(opened.source))
        found = replay_in_lane(opened, profile) if may_take_lane else None
        if found is not None:
            report.take(found)
            return report
        if emit is None:
            emit = report.predictions.append if keep else _forget
        _Replay(opened, report, factory, emit).run()
        return report


def _forget(_: Prediction) -> None:
    """A prediction that nobody asked for."""


class _Replay:
    """The two passes: over the inputs alone, then through the model."""

    def __init__(
        self, opened: Opened, report: Report, factory: EngineFactory, emit: Callable[[Prediction], None]
    ):
        self._opened, self._report, self._factory, self._emit = opened, report, factory, emit
        self._profile, self._name = report.kernel, report.name
        self._comparison: Comparison | None = None
        #: The line that was read last: its number in the stripped text, and in the recording (0: an added one).
        self._at = self._origin = 0

    def run(self) -> None:
        """Both passes; an error names the line of the recording, where it has one."""
        try:
            self._run()
        except TraceError as err:
            raise TraceError("; ".join([self._placed(str(err)), *self._report.notes])) from err

    def _placed(self, message: str) -> str:
        where = f"{self._name}:{self._at}:"
        if self._opened.is_stripped or not message.startswith(where):
            return message
        place = f"{self._name}:{self._origin}:" if self._origin else f"{self._name}, stripped, {self._at}:"
        return place + message.removeprefix(where)

    def _run(self) -> None:
        report, opened = self._report, self._opened
        names: set[str] = set()
        recorder = recorder_of(self._profile)
        texts = replayable(
            _of_recorder(recorder, self._profile, self._name, self._first_pass(names)), self._name
        )
        survey = recorder.survey(texts, self._name)
        if survey is None:
            raise TraceError(f"{self._name}: no operation and no page fault in it: nothing to replay")
        session = Session(self._factory, self._profile, opened.facts, self._name, self._predict, self._note)
        try:
            report.ignored_operations = dict(recorder.drive(survey, self._second_pass(names), session))
        except Unreplayable as err:
            raise TraceError(f"{self._name}: {err}{opened.said_by('mmu')}; {INSTEAD}") from err
        self._finish(opened)

    def _note(self, sentence: str) -> None:
        """A sentence for the report; `{}` in it is the line that was read last."""
        self._report.notes.append(sentence.format(self._origin or self._at))

    def _first_pass(self, names: set[str]) -> Iterator[str]:
        """The stripped text; `names` gets the events that tell what the recording had switched on."""
        if self._opened.is_stripped:
            yield from self._opened.lines()
            return
        for item in self._items():
            if isinstance(item, Recorded):
                names.update(TELLING & {item.event})
                continue
            line = parse_line(item.text)
            if line is not None:
                names.update(TELLING & {line.event})
            yield item.text

    def _items(self) -> Iterator[Kept | Recorded]:
        self._at = 0
        for item in self._opened.items():
            if isinstance(item, Kept):
                self._at, self._origin = self._at + 1, item.origin
            yield item

    def _second_pass(self, names: set[str]) -> Iterator[str]:
        """The stripped text; outputs of the recording go to the comparison."""
        if not self._opened.is_stripped:
            words = spte_words(self._profile, self._opened.facts.family)
            is_tdp = self._opened.is_tdp
            present = switched_on(wording_of(self._profile), names, is_tdp=is_tdp)
            self._comparison = (TdpComparison if is_tdp else Comparison)(words, present)
        for item in self._items():
            if isinstance(item, Kept):
                self._report.host_answers += f": {ANSWER}: " in item.text[:512]
                yield item.text
            elif self._comparison is not None:
                self._comparison.add_recorded(item)

    def _predict(self, prediction: Prediction) -> None:
        self._report.predicted += 1
        self._emit(prediction)
        if self._comparison is not None:
            self._comparison.add_predicted(prediction)

    def _finish(self, opened: Opened) -> None:
        comparison, report = self._comparison, self._report
        if comparison is None or not comparison.recorded:
            return
        comparison.finish()
        report.compared = True
        report.recorded, report.equal = comparison.recorded, comparison.equal
        report.divergence = found = comparison.divergence
        if found is not None:
            line = found.recorded.line if found.recorded is not None else 0
            if found.recorded is None and found.predicted is not None:
                line = _origin(opened, found.predicted.line)
            found.surroundings = surroundings(opened.lines(), line)


def _origin(opened: Opened, line: int) -> int:
    """The line of the recording that a line of the stripped text came from."""
    kept = (item for item in opened.items() if isinstance(item, Kept))
    return next((item.origin for at, item in enumerate(kept, 1) if at == line), 0)


def _kernel_of(opened: Opened) -> str:
    facts, name = opened.facts, opened.name
    kernel = host_facts.kernel_of(facts.values)
    if not kernel:
        for _ in replayable(opened.lines(), name):
            pass  # What no kernel name would help is said first.
        raise TraceError(
            f"{name}: which kernel made this trace is not known: give --kernel (or a host file that says so)"
        )
    return kernel


def _of_recorder(recorder: Recorder, profile: str, name: str, lines: Iterable[str]) -> Iterator[str]:
    """A recording is replayed with the rules of the kernels it was made on; others take it as a workload."""
    foreign = others(recorder)
    for text in lines:
        head = text[:_MARK_BEFORE]
        for other in foreign:
            if other.mark in head:
                raise TraceError(
                    f"{name}: recorded on {other.made_on}, so it cannot be replayed as {profile}; "
                    "`kvm-mmu compare` takes it as a workload for other kernels"
                )
        yield text
