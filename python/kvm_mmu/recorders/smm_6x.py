"""When a vCPU of the 6.x recorder is in system management mode, where the recording has no event that says so.

Owns the rule. An SMI that an operation asks for is taken at the next entry; the handler is one page of code that runs
to its end in that entry. It has ended when the vCPU drops its roots once more after it loaded those of SMM, when it
faults somewhere else, and at the next operation at the latest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Instruction pointers of the handler, from the base of its segment.
_HANDLER = range(0x8000, 0x9000)


@dataclass
class SmmWatch:
    """vCPUs with an SMI asked for, and those in the handler: whether they have loaded roots there."""

    _asked: set[int] = field(default_factory=set)
    _inside: dict[int, bool] = field(default_factory=dict)

    def ask(self, vcpu: int) -> None:
        """An operation asks for an SMI."""
        self._asked.add(vcpu)

    def enters(self, vcpu: int) -> bool:
        """The vCPU enters the guest: whether it takes an SMI."""
        if vcpu not in self._asked:
            return False
        self._asked.remove(vcpu)
        self._inside[vcpu] = False
        return True

    def load(self, vcpu: int) -> None:
        """The vCPU loads roots."""
        if vcpu in self._inside:
            self._inside[vcpu] = True

    def leaves_with_roots(self, vcpu: int) -> bool:
        """The vCPU drops its roots: whether that is the end of the handler."""
        return bool(self._inside.get(vcpu)) and self._leave(vcpu)

    def leaves_at_fault(self, vcpu: int, rip: int) -> bool:
        """The vCPU faults there: whether the handler has ended."""
        return rip not in _HANDLER and self._leave(vcpu)

    def leaves_at_operation(self) -> list[int]:
        """The next operation begins: every handler has ended."""
        ended = sorted(self._inside)
        self._inside.clear()
        return ended

    def _leave(self, vcpu: int) -> bool:
        return self._inside.pop(vcpu, None) is not None
