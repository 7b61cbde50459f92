"""Galleries: claims and figures answered by runs of the model; every line carries the digest of the run behind it.

Nothing here depends on a clock: a gallery is the same text on every run and on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvm_mmu.view.tables import Columns, cell, markdown_table, records, text_table

SCHEMA = "kvm-mmu/gallery/1"


@dataclass(frozen=True)
class Line:
    """A sentence with numbers in it, and the digest of the run they come from."""

    text: str
    digest: str


@dataclass(frozen=True)
class Table:
    """Numbers of several runs; the column `digest` names the run of each row."""

    caption: str
    columns: Columns


@dataclass
class Answer:
    """One claim and what the model says to it.

    Attributes:
        claim: its number.
        title: what it is about.
        said: the claim, or the question.
        lines: sentences with numbers.
        tables: numbers of several runs.
        verdict: the answer in a sentence.
        command: what gives the same numbers with the general commands; "": none of them does.
    """

    claim: str
    title: str
    said: str
    lines: list[Line] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    verdict: str = ""
    command: str = ""

    def to_text(self) -> str:
        """For a terminal."""
        parts = [f"{self.claim}  {self.title}", f"    said: {self.said}"]
        parts += [f"    {line.text}  [{line.digest}]" for line in self.lines]
        for table in self.tables:
            parts += [f"    {table.caption}", text_table(table.columns, indent="      ")]
        if self.verdict:
            parts.append(f"    answer: {self.verdict}")
        if self.command:
            parts.append(f"    by hand: {self.command}")
        return "\n".join(parts)

    def to_markdown(self) -> str:
        """For a page."""
        parts = [f"## {self.claim}: {self.title}", f"> {self.said}"]
        if self.verdict:
            parts.append(f"**{self.verdict}**")
        if self.lines:
            parts.append("\n".join(f"- {line.text} `{line.digest}`" for line in self.lines))
        for table in self.tables:
            parts += [f"{table.caption}:", markdown_table(table.columns)]
        if self.command:
            parts.append(f"By hand: `{self.command}`.")
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "claim": self.claim,
            "title": self.title,
            "said": self.said,
            "lines": [{"text": line.text, "digest": line.digest} for line in self.lines],
            "tables": [{"caption": table.caption, "rows": records(table.columns)} for table in self.tables],
            "answer": self.verdict,
            **({"command": self.command} if self.command else {}),
        }


def facts_digest(facts: object) -> str:
    """First 16 hex digits of a hash over the plain facts of a run."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rows_to_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows with equal keys as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def count(value: float) -> str:
    """A count inside a sentence."""
    return cell(value)


#: A gallery's sections: each runs when called, and is told where to report progress.
Section = Callable[[], Answer]
