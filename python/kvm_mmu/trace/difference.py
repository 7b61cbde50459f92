"""Where two replays part: the outputs of two traces, or of one trace under two kernels, side by side.

Owns: the pairing of two lists of outputs. Compared are predictions of the model, so that two recordings of
different kernels, or one recording and its replay under another profile, can be held against each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvm_mmu.trace.narrator import Prediction
from kvm_mmu.trace.normalise import alike, normalise
from kvm_mmu.trace.replaying import Report

_CONTEXT = 4
#: The valid generation and the size of a guest entry.
_WORDING = re.compile(r"(?<=sp )gen \w+ | \d-byte(?= q)")


@dataclass
class ReplayDifference:
    """How two replays compare: how far they agree, and what each says next."""

    names: tuple[str, str]
    counts: tuple[Counter[str], Counter[str]]
    agreed: int
    before: list[str]
    after: tuple[list[str], list[str]]

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
            "before": self.before,
            "after": [list(lines) for lines in self.after],
        }

    def as_text(self) -> str:
        """The difference for a person."""
        first, second = self.counts
        lines = [
            f"a: {self.names[0]}, {sum(first.values())} outputs",
            f"b: {self.names[1]}, {sum(second.values())} outputs",
        ]
        lines.extend(
            f"  {kind}: a {first[kind]}, b {second[kind]}"
            for kind in sorted({*first, *second})
            if first[kind] != second[kind]
        )
        if self.is_equal:
            return "\n".join([*lines, f"equal: {self.agreed} outputs"])
        lines.append(f"the first {self.agreed} outputs are alike; then they part:")
        lines.extend(f"    {text}" for text in self.before)
        for mark, texts in zip("ab", self.after, strict=True):
            lines.extend(f"  {mark} {text}" for text in texts or ["(nothing more)"])
        return "\n".join(lines)


def difference(one: Report, other: Report) -> ReplayDifference:
    """Compare the predictions of two replays, in order."""
    plain = one.kernel != other.kernel
    left, right = _said(one, plain), _said(other, plain)
    agreed = 0
    for a, b in zip(left, right, strict=False):
        if not (alike(a, b) or alike(b, a)):
            break
        agreed += 1
    counts = tuple(Counter(event for event, _ in said) for said in (left, right))
    return ReplayDifference(
        (f"{one.name} ({one.kernel})", f"{other.name} ({other.kernel})"),
        (counts[0], counts[1]),
        agreed,
        [_text(p) for p in one.predictions[max(0, agreed - _CONTEXT) : agreed]],
        (_next(one.predictions, agreed), _next(other.predictions, agreed)),
    )


def _said(report: Report, plain: bool) -> list[tuple[str, str]]:
    """What a replay said, comparably; `plain` takes out of page texts what only some kernels print."""
    said = [(p.event, normalise(p.event, p.body, report.kernel)) for p in report.predictions]
    return [(event, _WORDING.sub("", body)) for event, body in said] if plain else said


def _next(predictions: Sequence[Prediction], at: int) -> list[str]:
    return [_text(p) for p in predictions[at : at + _CONTEXT]]


def _text(prediction: Prediction) -> str:
    return f"line {prediction.line}: {prediction.event}: {prediction.body}"
