"""Published figures beside ours: built as the same situation in the model, with the error and the digest of the run.

Counts must match. Times of other people's machines are reproduced through a named cost model at best, and then only as
a ratio; the gap is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.view.tables import Columns, cell, text_table

SCHEMA = "kvm-mmu/figures/1"


@dataclass(frozen=True)
class Point:
    """One number: what, published, ours, digest of the run behind ours. Texts are compared as they are."""

    what: str
    published: float | str
    ours: float | str
    digest: str

    @property
    def error(self) -> str:
        """Relative error, or whether two texts agree."""
        if self.published == "-":
            return ""
        if isinstance(self.published, str) or isinstance(self.ours, str):
            return "agrees" if self.published == self.ours else "differs"
        if self.published == 0:
            return "0 %" if self.ours == 0 else "not zero"
        return f"{100 * (self.ours - self.published) / self.published:+.1f} %"


@dataclass
class Figure:
    """A published figure and what the model says."""

    number: int
    title: str
    source: str
    setting: str
    points: list[Point] = field(default_factory=list)
    gap: str = ""

    def columns(self) -> Columns:
        """The points as a table."""
        return {
            "what": [p.what for p in self.points],
            "published": [cell(p.published) for p in self.points],
            "ours": [cell(p.ours) for p in self.points],
            "error": [p.error for p in self.points],
            "digest": [p.digest for p in self.points],
        }

    def to_text(self) -> str:
        """For a terminal."""
        parts = [f"figure {self.number}: {self.title}", f"  {self.setting} ({self.source})"]
        parts.append(text_table(self.columns(), indent="    "))
        if self.gap:
            parts.append(f"  gap: {self.gap}")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        points = [
            {"what": p.what, "published": p.published, "ours": p.ours, "error": p.error, "digest": p.digest}
            for p in self.points
        ]
        return {
            "figure": self.number,
            "title": self.title,
            "source": self.source,
            "setting": self.setting,
            "points": points,
            "gap": self.gap,
        }


def figures(
    numbers: Sequence[int] = (), progress: Callable[[str], None] = lambda _text: None
) -> Iterator[Figure]:
    """The figures asked for, all without numbers, in order.

    Raises:
        UsageError: a number that is not reproduced here.
    """
    from kvm_mmu.studies import figures_counts, figures_tdp, figures_times

    makers: dict[int, Callable[[], Figure]] = {
        **figures_counts.FIGURES,
        **figures_times.FIGURES,
        **figures_tdp.FIGURES,
    }
    for number in numbers:
        if number not in makers:
            raise UsageError(f"figure {number}: expected one of {', '.join(map(str, sorted(makers)))}")
    for number in sorted(numbers or makers):
        progress(f"figure {number}")
        yield makers[number]()
