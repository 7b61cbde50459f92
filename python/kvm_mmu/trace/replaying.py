"""Replay of a recording: the inputs drive the model, the model predicts the outputs.

Owns: preparing the trace (strip it unless it is stripped), choosing kernel and host facts, running the
translator of the recording's family, and the comparison with the recording's own outputs. Outputs are never
read before the model has made its predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.trace import host as host_facts
from kvm_mmu.trace.engine import EngineFactory
from kvm_mmu.trace.host import HostFacts
from kvm_mmu.trace.inputs import Input, Marker, read_inputs
from kvm_mmu.trace.kinds import switched_on
from kvm_mmu.trace.markers import number
from kvm_mmu.trace.narrator import Prediction
from kvm_mmu.trace.normalise import alike, normalise
from kvm_mmu.trace.recorder_5x import Recorder5x
from kvm_mmu.trace.recorder_6x import Recorder6x, count_vcpus, read_events
from kvm_mmu.trace.source import display_name, read_lines
from kvm_mmu.trace.stripping import Recorded, Stripped, is_stripped, operations_beside, strip, wants_answers

_KERNELS = ("v5.0", "v5.0-seed", "v5.2", "v5.3", "v5.4", "v6.1", "v6.12")
_CONTEXT = 6
_MAX_VCPUS = 256
#: A marker's beginning stands within this many characters of its line.
_MARK_BEFORE = 160


@dataclass
class Divergence:
    """The first difference: the recorded output (None: none was left), the predicted one, and lines
    around."""

    recorded: Recorded | None
    predicted: Prediction | None
    agreed: int
    surroundings: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What a replay found out."""

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

    @property
    def is_equal(self) -> bool:
        """No difference was found."""
        return self.divergence is None

    def as_json(self) -> dict[str, object]:
        """The report as JSON values; the schema has a version."""
        kinds = {
            kind: {"equal": self.equal[kind], "recorded": n} for kind, n in sorted(self.recorded.items())
        }
        found = self.divergence
        return {
            "schema": "kvm-mmu/trace-replay/1",
            "file": self.name,
            "kernel": self.kernel,
            "predicted": len(self.predictions),
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
            "host_answers_used": self.host_answers,
            "ignored_operations": self.ignored_operations,
        }

    def as_text(self) -> str:
        """The report for a person."""
        lines = [f"{self.name}: kernel {self.kernel}"]
        for key, value in self.inferred.items():
            lines.append(f"  inferred: {key} = {value} (not in the trace)")
        lines.append(f"  host answers used: {self.host_answers}")
        for name, count in self.ignored_operations.items():
            lines.append(f"  operation {name!r} has no effect on the model and was passed over {count} times")
        if not self.compared:
            return "\n".join(
                [*lines, f"  {len(self.predictions)} outputs predicted; the trace has none to compare"]
            )
        lines.extend(
            f"  {kind}: {self.equal[kind]} of {count}" for kind, count in sorted(self.recorded.items())
        )
        total = sum(self.recorded.values())
        agreed = total if self.divergence is None else self.divergence.agreed
        lines.append(f"  {agreed} of {total} outputs equal, in order")
        if self.divergence is not None:
            lines.extend(_explain(self.divergence))
        return "\n".join(lines)


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
    path: str | Path,
    factory: EngineFactory,
    *,
    kernel: str | None = None,
    host: Mapping[str, object] | None = None,
    operations: Mapping[int, str] | None = None,
) -> Report:
    """Replay one trace, stripped or not.

    Args:
        kernel: the profile; without it the kernel of the host facts.
        host: facts given by the user; they win over the trace's own line and over `host.json` beside it.
        operations: full operation texts; without them an `ops.jsonl` beside the trace.

    Raises:
        TraceError: the trace cannot be read or replayed, or the kernel is unknown.
    """
    name = display_name(path)
    lines = read_lines(path)
    if not lines:
        raise TraceError(f"{name}: empty: expected ftrace text")
    facts, recording = _prepare(path, name, lines, host, operations)
    profile = kernel or _kernel_of(facts, name)
    if profile not in _KERNELS:
        raise TraceError(f"kernel {profile!r}: replay knows {', '.join(_KERNELS)}")
    predictions: list[Prediction] = []
    _check_recorder(name, profile, recording.lines)
    drive = _drive_5x if profile.startswith("v5") else _drive_6x
    ignored = drive(factory, profile, facts, recording, name, predictions)
    report = Report(name, profile, predictions, inferred=facts.inferred, ignored_operations=ignored)
    report.host_answers = sum(1 for text in recording.lines if ": replay_host_answer: " in text[:512])
    if recording.recorded:
        _compare(report, recording, lines, str(facts.values.get("release") or profile))
    return report


def _drive_5x(
    factory: EngineFactory,
    profile: str,
    facts: HostFacts,
    recording: Stripped,
    name: str,
    out: list[Prediction],
) -> dict[str, int]:
    inputs = list(read_inputs(recording.lines, name))
    if not inputs:
        raise TraceError(f"{name}: no operation and no page fault in it: nothing to replay")
    translator = Recorder5x(factory, profile, facts, out.append)
    translator.vcpus_needed = _vcpus(inputs, name)
    for item in inputs:
        translator.feed(item, f"{name}:{item.line}")
    if translator.quiet_updates:
        facts.inferred["memslot flag updates without a marker"] = translator.quiet_updates
    return translator.ignored


def _drive_6x(
    factory: EngineFactory,
    profile: str,
    facts: HostFacts,
    recording: Stripped,
    name: str,
    out: list[Prediction],
) -> dict[str, int]:
    events = read_events(recording.lines, name)
    if not events:
        raise TraceError(f"{name}: no operation and no page fault in it: nothing to replay")
    names = frozenset(event.name for event in events)
    translator = Recorder6x(factory, profile, facts, names, out.append)
    translator.vcpus_needed = count_vcpus(events, name)
    for event in events:
        translator.feed(event, f"{name}:{event.line}")
    translator.finish()
    return translator.ignored


def _prepare(
    path: str | Path,
    name: str,
    lines: list[str],
    host: Mapping[str, object] | None,
    operations: Mapping[int, str] | None,
) -> tuple[HostFacts, Stripped]:
    if is_stripped(lines):
        given = host_facts.parse_facts(lines[0][len(host_facts.PREFIX) :], f"{name}:1")
        return HostFacts({**given, **(host or {})}), Stripped(lines, list(range(1, len(lines) + 1)))
    values = {**(host_facts.beside(path) or {}), **(host or {})}
    known = operations
    if known is None and not str(values.get("kernel", "")).removeprefix("v").startswith("5"):
        known = operations_beside(path)
    return HostFacts(values), strip(lines, values, known, answers=wants_answers(values, lines))


def _kernel_of(facts: HostFacts, name: str) -> str:
    release = facts.values.get("kernel") or facts.values.get("release")
    if not isinstance(release, str) or not release:
        raise TraceError(
            f"{name}: which kernel made this trace is not known: give --kernel (or a host file that says so)"
        )
    return host_facts.kernel_name(release)


def _check_recorder(name: str, profile: str, lines: list[str]) -> None:
    """A recording is replayed with the rules of the kernels it was made on; others take it as a workload."""
    marks, made_on = (
        ('_mark_write: {"i":', "6.x") if profile.startswith("v5") else ("_mark_write: OP ", "5.x")
    )
    if any(marks in text[:_MARK_BEFORE] for text in lines):
        raise TraceError(
            f"{name}: recorded on {made_on}, so it cannot be replayed as {profile}; "
            "`kvm-mmu compare` takes it as a workload for other kernels"
        )


def _vcpus(inputs: Sequence[Input], name: str) -> int:
    """How many vCPUs the busiest VM of the recording gets."""
    most = 1
    for item in inputs:
        if isinstance(item, Marker) and item.operation.get("op") in ("add_vcpu", "use_vcpu"):
            most = max(most, number(item.operation, "n", f"{name}:{item.line}") + 1)
    if most > _MAX_VCPUS:
        raise TraceError(f"{name}: vCPU number {most - 1}: at most {_MAX_VCPUS} vCPUs are modelled")
    return most


def _compare(report: Report, recording: Stripped, lines: list[str], release: str) -> None:
    """Hold the predictions against the recording's outputs."""
    enabled = switched_on(release, recording.names)
    recorded = [(r.event, normalise(r.event, r.body, release)) for r in recording.recorded]
    kept = [p for p in report.predictions if p.event in enabled]
    predicted = [(p.event, normalise(p.event, p.body, release)) for p in kept]
    agreed = 0
    for mine, theirs in zip(predicted, recorded, strict=False):
        if not alike(theirs, mine):
            break
        agreed += 1
    report.compared = True
    report.recorded.update(event for event, _ in recorded)
    report.equal.update(event for event, _ in recorded[:agreed])
    if agreed == len(recorded) == len(predicted):
        return
    at = recording.recorded[agreed] if agreed < len(recorded) else None
    mine_at = kept[agreed] if agreed < len(kept) else None
    line = at.line if at is not None else (recording.origin[mine_at.line - 1] if mine_at else len(lines))
    around = [
        f"{n}: {lines[n - 1][:200]}"
        for n in range(max(1, line - _CONTEXT), min(len(lines), line + _CONTEXT) + 1)
    ]
    report.divergence = Divergence(at, mine_at, agreed, around)
