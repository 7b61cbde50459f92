"""What an audit finds: `Audit`, its findings by the name of the check, and how many facts were compared.

Owns: the verdict. Findings of a VM that was busy are in between, no verdicts: the kernel breaks its rules while it
works, and keeps them when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: Findings of one check that are kept in words; the others are counted.
KEPT = 20


@dataclass
class Check:
    """One check: how many facts it compared, what it found, in words; why it did not look, or ""."""

    name: str
    facts: int = 0
    found: int = 0
    said: list[str] = field(default_factory=list)
    skipped: str = ""

    def compare(self, count: int) -> None:
        """Count facts that were compared."""
        self.facts += int(count)

    def find(self, what: str) -> None:
        """Note a finding."""
        self.found += 1
        if len(self.said) < KEPT:
            self.said.append(what)

    def find_all(self, rows: Any, say: Any) -> None:
        """Note a finding for each of an array of rows; `say` puts one in words."""
        for row in rows[:KEPT].tolist():
            self.find(say(row))
        self.found += max(0, len(rows) - KEPT)


@dataclass
class Audit:
    """The result of an audit.

    Args:
        checks: each check in order.
        busy: what was going on, in words.
        unread: what could not be read, in words: a finding may come from that.
    """

    checks: list[Check]
    busy: list[str]
    unread: list[str]

    @property
    def findings(self) -> list[tuple[str, str]]:
        """Every finding in words, as (name of the check, what was found)."""
        return [(check.name, said) for check in self.checks for said in check.said]

    @property
    def found(self) -> int:
        """How many findings there are, also those that are not kept in words."""
        return sum(check.found for check in self.checks)

    @property
    def facts(self) -> int:
        """How many facts were compared."""
        return sum(check.facts for check in self.checks)

    @property
    def verdict(self) -> str:
        """`clean`, `broken`, `in between` (findings while busy), or `not whole` (something could not be read)."""
        if self.found:
            return "in between" if self.busy else "not whole" if self.unread else "broken"
        return "not whole" if self.unread else "clean"

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.findings)

    def __len__(self) -> int:
        return self.found

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data.

        Returns:
            What JSON can hold.
        """
        return {
            "verdict": self.verdict,
            "busy": self.busy,
            "unread": self.unread,
            "facts": self.facts,
            "checks": [
                {"name": c.name, "facts": c.facts, "found": c.found, "said": c.said, "skipped": c.skipped}
                for c in self.checks
            ],
        }
