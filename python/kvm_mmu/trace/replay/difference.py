"""Where two replays part: the outputs of two recordings, or of one under two kernels or plans, side by side.

Owns: what each side says, what of it two kernels can both say, and the first place where they differ. A recording under
its own kernel and plans is replayed as it is. Where one side is under another kernel or other plans, both are guest
accesses (`translation`), so that a fault is a difference only where one kernel takes it and the other does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from kvm_mmu.machine.profiles import kernel_profile, with_plans
from kvm_mmu.terminal import escaped
from kvm_mmu.trace.replay.narrator import Narrator
from kvm_mmu.trace.replay.narrator_6x import Narrator6x
from kvm_mmu.trace.replay.narrator_tdp import NarratorTdp
from kvm_mmu.trace.replay.normalise import normalise
from kvm_mmu.trace.replay.replaying import Report
from kvm_mmu.trace.replay.workload import Make, Recording, read_recording
from kvm_mmu.trace.text.source import Traced, is_same
from kvm_mmu.trace.text.spte_words import SpteWords, spte_words
from kvm_mmu.trace.text.wording import wording_of

_CONTEXT = 4
#: Root level of a guest without paging on shadow tables.
_PAE_ROOT_LEVEL = 2
#: What every kernel says. The rest is left out where one side has no such lines.
_COMMON = frozenset(
    {
        "kvm_mmu_get_page",
        "kvm_mmu_prepare_zap_page",
        "mark_mmio_spte",
        "check_mmio_spte",
        "handle_mmio_page_fault",
        "fast_page_fault",
        "zap all",
    }
)
#: One event under two names.
_NAMES = {"kvm_mmu_invalidate_zap_all_pages": "zap all", "kvm_mmu_zap_all_fast": "zap all"}
#: The valid generation, the size of a guest entry and the letter for reading, which only some kernels print.
_PAGE = re.compile(r"(?<=sp )gen \w+ | \d-byte(?= q)|(?<= )[r-](?=[w-][u-][x-] )")
#: What two kernels say alike of an event where they say other things about it otherwise.
_KEPT = {
    "mark_mmio_spte": re.compile(r"gfn \w+"),
    "check_mmio_spte": re.compile(r"valid \d"),
    "handle_mmio_page_fault": re.compile(r"gfn \w+"),
    "fast_page_fault": re.compile(r"vcpu \d+ gva \w+"),
    "zap all": re.compile(r""),
}


class Output(NamedTuple):
    """A line that a side says: what caused it, the event, its text."""

    cause: str
    event: str
    body: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.event}: {self.body}".removesuffix(": ")


class _Narrator(Protocol):
    def tell(self, op: Mapping[str, object], result: Mapping[str, object]) -> Iterator[tuple[str, str]]: ...


@dataclass
class Side:
    """One side: what it is, under which kernel, and what it says."""

    name: str
    kernel: str
    outputs: list[Output]
    notes: list[str] = field(default_factory=list)
    #: The masks of its SPTEs.
    family: str = "npt"
    #: It is the TDP MMU that speaks.
    is_tdp: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.kernel})"

    @property
    def words(self) -> SpteWords:
        """The bits of its SPTEs."""
        return spte_words(self.kernel, self.family)


@dataclass
class ReplayDifference:
    """How two replays compare: how far they agree, and what each says next."""

    names: tuple[str, str]
    counts: tuple[Counter[str], Counter[str]]
    agreed: int
    before: list[str]
    after: tuple[list[str], list[str]]
    #: Kinds that only one side's kernel has lines for, and how many there were.
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Both said the same to the end."""
        return self.after == ([], [])

    def as_json(self) -> dict[str, object]:
        """Plain values; the schema has a version."""
        return {
            "schema": "kvm-mmu/trace-diff/1",
            "files": list(self.names),
            "equal": self.is_equal,
            "agreed": self.agreed,
            "outputs": [sum(counts.values()) for counts in self.counts],
            "kinds": {
                kind: [counts[kind] for counts in self.counts]
                for kind in sorted({*self.counts[0], *self.counts[1]})
            },
            "left_out": dict(self.left_out),
            "before": self.before,
            "after": [list(lines) for lines in self.after],
            "notes": self.notes,
        }

    def as_text(self) -> str:
        """The difference for a person."""
        first, second = self.counts
        lines = [
            f"a: {self.names[0]}, {sum(first.values())} outputs",
            f"b: {self.names[1]}, {sum(second.values())} outputs",
            *(f"note: {note}" for note in self.notes),
        ]
        if self.left_out:
            parts = ", ".join(f"{kind} {count}" for kind, count in sorted(self.left_out.items()))
            lines.append(f"left out, one kernel has no such lines: {parts}")
        lines.extend(
            f"  {kind}: a {first[kind]}, b {second[kind]}"
            for kind in sorted({*first, *second})
            if first[kind] != second[kind]
        )
        if self.is_equal:
            return escaped("\n".join([*lines, f"equal: {self.agreed} outputs"]))
        lines.append(f"the first {self.agreed} outputs are alike; then they part:")
        lines.extend(f"    {text}" for text in self.before)
        for mark, texts in zip("ab", self.after, strict=True):
            lines.extend(f"  {mark} {text}" for text in texts or ["(nothing more)"])
        return escaped("\n".join(lines))


def replayed(report: Report) -> Side:
    """A recording as its replay predicts it; lines count those of the stripped trace."""
    outputs = [Output(f"line {p.line}", p.event, p.body) for p in report.predictions]
    return Side(report.name, report.kernel, outputs, family=report.family, is_tdp=report.is_tdp)


def accessed(recording: Recording, make: Make, kernel: str, plans: Mapping[str, str], vm: int | None) -> Side:
    """A recording's guest under a kernel and plans, up to its recorded teardown."""
    work = recording.workload(kernel, vm, as_accesses=True)
    config = {**work.config, "vcpus": int(work.config.get("vcpus", 1))}
    narrator = _narrator(work.kernel, config)
    engine = make(work.kernel, config, plans)
    outputs = []
    for number, op in enumerate(work.ops):
        told = narrator.tell(op, engine.apply(op))
        outputs += [Output(f"operation {number}, {_op_text(op)}", event, body) for event, body in told]
    words = "".join(f", {event}={plan}" for event, plan in plans.items())
    kernels = "" if recording.kernel == work.kernel else f", recorded on {recording.kernel}"
    name = recording.path + kernels + words
    family = str(config.get("family", "npt"))
    is_tdp = bool(config.get("tdp_mmu"))
    return Side(name, work.kernel, outputs, [*work.notes, *work.changes], family, is_tdp)


def diff(
    a: Traced,
    b: Traced | None,
    make: Make,
    *,
    kernels: tuple[str | None, str | None] = (None, None),
    plans: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    hosts: tuple[Mapping[str, object] | None, ...] = (None, None),
    vm: int | None = None,
) -> ReplayDifference:
    """Replay two recordings, or one twice, and compare what they say.

    Args:
        a: The first recording: a path, an open `Trace`, or lines.
        b: The second recording; None: the first again.
        make: Makes the VMs.
        kernels: For each side the kernel to model.
        plans: For each side its plans by event.
        hosts: For each side facts of the host.
        vm: Which VM, from 1; only where a side is under another kernel or other plans (default: the busiest).

    Raises:
        TraceError: a recording cannot be read. UsageError: an unknown kernel, event, plan or VM.
    """
    is_one = b is None or (is_same(a, b) and hosts[0] == hosts[1])
    first = read_recording(a, hosts[0], make)
    second = first if is_one else read_recording(b or a, hosts[1], make)
    wanted = [
        recording.kernel if kernel is None else kernel_profile(kernel).name
        for recording, kernel in zip((first, second), kernels, strict=True)
    ]
    for kernel, chosen in zip(wanted, plans, strict=True):
        with_plans(kernel_profile(kernel), chosen)
    is_own = wanted == [first.kernel, second.kernel] and not any(plans) and vm is None
    if is_own:
        return compare_sides(replayed(first.report), replayed(second.report))
    sides = [
        accessed(recording, make, kernel, chosen, vm)
        for recording, kernel, chosen in zip((first, second), wanted, plans, strict=True)
    ]
    return compare_sides(*sides)


def compare_sides(one: Side, other: Side) -> ReplayDifference:
    """Compare what two sides say, in order; between kernels only what both can say, without what only one prints."""
    is_plain = (one.kernel, one.family) != (other.kernel, other.family)
    kinds = [(*_kinds_of(side.kernel), side.is_tdp) for side in (one, other)]
    only = _COMMON if kinds[0] != kinds[1] else None
    left_out: Counter[str] = Counter()
    kept: list[list[Output]] = []
    texts: list[list[tuple[str, str]]] = []
    for side in (one, other):
        kept.append([])
        texts.append([])
        words = side.words
        for output in side.outputs:
            event, body = _plain(output, words) if is_plain else _own(output, words)
            if only is not None and event not in only:
                left_out[event] += 1
                continue
            kept[-1].append(output)
            texts[-1].append((event, body))
    agreed = 0
    for mine, theirs in zip(*texts, strict=False):
        if mine != theirs:
            break
        agreed += 1
    counts = [Counter(event for event, _ in said) for said in texts]
    return ReplayDifference(
        (str(one), str(other)),
        (counts[0], counts[1]),
        agreed,
        _lines(kept[0], max(0, agreed - _CONTEXT), agreed),
        (_lines(kept[0], agreed), _lines(kept[1], agreed)),
        dict(left_out),
        _notes(one, other),
    )


def _notes(one: Side, other: Side) -> list[str]:
    both = [note for note in one.notes if note in other.notes]
    return [
        *both,
        *(f"a: {note}" for note in one.notes if note not in both),
        *(f"b: {note}" for note in other.notes if note not in both),
    ]


def _narrator(kernel: str, config: Mapping[str, Any]) -> _Narrator:
    family = str(config.get("family", "npt"))
    level = _PAE_ROOT_LEVEL if family == "shadow" else int(config.get("tdp_level", 4))
    wording = wording_of(kernel)
    if config.get("tdp_mmu"):
        return NarratorTdp(wording, spte_words(kernel, family), level)
    if wording.has_requests:
        return Narrator6x(wording, spte_words(kernel, family), level)
    return Narrator(wording, level)


def _kinds_of(kernel: str) -> tuple[bool, ...]:
    """What tells kernels apart that do not have lines of the same kinds."""
    wording = wording_of(kernel)
    return wording.has_requests, wording.has_leaves


def _own(output: Output, words: SpteWords) -> tuple[str, str]:
    return output.event, normalise(output.event, output.body, words)


def _plain(output: Output, words: SpteWords) -> tuple[str, str]:
    event = _NAMES.get(output.event, output.event)
    kept = _KEPT.get(event)
    if kept is None:
        return event, _PAGE.sub("", normalise(output.event, output.body, words))
    found = kept.search(output.body)
    body = found[0] if found else output.body
    if event == "fast_page_fault":
        body += f" handled {int('fixed 1' in output.body or 'spurious 1' in output.body)}"
    return event, body


def _lines(outputs: Sequence[Output], start: int, end: int | None = None) -> list[str]:
    return [str(output) for output in outputs[start : start + _CONTEXT if end is None else end]]


def _op_text(op: Mapping[str, object]) -> str:
    """An operation in a few words."""
    parts = [str(op["op"])]
    for key, value in op.items():
        if key in ("vcpu", "id", "kind", "flags", "n", "on"):
            parts.append(f"{key} {value}")
        elif key in ("gpa", "size", "start", "end"):
            parts.append(f"{key} {value:#x}" if isinstance(value, int) else f"{key} {value}")
    return " ".join(parts)
