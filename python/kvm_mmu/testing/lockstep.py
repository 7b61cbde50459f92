"""The judge: two engines run the same operations; after every step everything that can be seen must be equal.

Compared: return value, outcome, nested results, events, counters, work counters both keep, digest and (where the
digest differs) the whole state; and the core's own audit must be clean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from kvm_mmu.errors import KvmMmuError
from kvm_mmu.scenario.language import Engine
from kvm_mmu.scenario.verify import first_difference, plain


class Audited(Protocol):
    """An engine that can look for broken invariants."""

    def audit(self) -> list[tuple[str, str]]:
        """Broken invariants as (name, detail)."""


class LockstepDifference(KvmMmuError, AssertionError):
    """Two engines parted; the message holds the scenario that shows it, ready to be kept as a file."""


class Lockstep:
    """Two engines in lockstep.

    Args:
        one, other: fresh engines of the same kernel and configuration.
        header: the scenario header printed with a difference.
        audit_every: how often the audit of `one` runs, in steps; 0: never.
        expected_findings: invariants that the modelled kernel itself breaks in this configuration.
        state_every: how often the whole state is compared, in steps; what differs in it does not go away.
    """

    def __init__(
        self,
        one: Engine,
        other: Engine,
        header: Mapping[str, Any] | None = None,
        audit_every: int = 1,
        expected_findings: frozenset[str] = frozenset(),
        state_every: int = 1,
    ) -> None:
        self.one = one
        self.other = other
        self.header = dict(header or {})
        self.audit_every = audit_every
        self.expected_findings = expected_findings
        self.state_every = state_every
        self.ops: list[dict[str, Any]] = []

    def apply(self, op: dict[str, Any]) -> dict[str, Any]:
        """Run one operation on both and compare.

        Raises:
            LockstepDifference: with place, both values and the operations that lead there.
        """
        self.ops.append(op)
        a, b = self.one.apply(op), self.other.apply(op)
        found = first_difference(plain(b), plain(a))
        if found is None and len(self.ops) % self.state_every == 0:
            found = self._state()
        if found is None:
            found = self._work()
        if found is not None:
            raise self._difference(f"{found[0]}: the reference says {found[1]}, the core {found[2]}")
        if self.audit_every and len(self.ops) % self.audit_every == 0:
            self.check_audit()
        return a

    def check_audit(self) -> None:
        """The first engine's audit must be clean."""
        audit = getattr(self.one, "audit", None)
        found = audit() if audit is not None else []
        broken = [finding for finding in found if finding[0] not in self.expected_findings]
        if broken:
            raise self._difference(f"the audit found {broken[0][0]}: {broken[0][1]}")

    def run(self, ops: Iterable[dict[str, Any]], count: int) -> int:
        """Run `count` operations; how many were run."""
        for done, op in enumerate(ops, 1):
            self.apply(op)
            if done >= count:
                return done
        return len(self.ops)

    def check_state(self) -> None:
        """The whole state must be equal."""
        found = self._state()
        if found is not None:
            raise self._difference(f"{found[0]}: the reference says {found[1]}, the core {found[2]}")

    def _state(self) -> tuple[str, str, str] | None:
        if self.one.digest() == self.other.digest():
            return None
        found = first_difference(plain(self.other.state()), plain(self.one.state()), "state")
        return found or ("digest", self.other.digest(), self.one.digest())

    def _work(self) -> tuple[str, str, str] | None:
        one, other = getattr(self.one, "work", None), getattr(self.other, "work", None)
        if one is None or other is None:
            return None
        a, b = one(), other()
        for name in sorted(a.keys() & b.keys()):
            if a[name] != b[name]:
                return f"work.{name}", str(b[name]), str(a[name])
        return None

    def _difference(self, text: str) -> LockstepDifference:
        lines = [json.dumps(self.header), *(json.dumps({"op": op}) for op in self.ops)]
        return LockstepDifference(f"after operation {len(self.ops) - 1}: {text}\n" + "\n".join(lines))
