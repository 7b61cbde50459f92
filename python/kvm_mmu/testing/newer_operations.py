"""The generator for v5.3 to v6.12: the operations only they have, and plans that a one-bit valid generation allows.

Owns nothing beyond `Generator`'s state; the same seed gives the same operations. A plan that makes pages obsolete and
leaves them is not drawn where the valid generation has one bit: the next step would make them current again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvm_mmu.machine.profiles import kernels
from kvm_mmu.testing.operations import Generator, Op, Universe

ONE_BIT = ("v5.4", "v6.1", "v6.12")
_PLANS = ("merged", "zap-all", "indexed", "v5.4-fast")
_ERROR_CODES = (4, 6, 6, 7, 0xC, 0x14, (1 << 32) | 6, (1 << 33) | 3, (1 << 32) | 7)
_TWO_MIB_GPAS = range(0x1000, 0x40_0000)


def universe(kernel: str, config: dict[str, Any]) -> Universe:
    """What operations choose from: a guest without paging reaches 4 GiB."""
    found = Universe(vcpus=int(config.get("vcpus", 1)))
    if config.get("family") == "shadow":
        found = replace(found, gpas=tuple(gpa for gpa in found.gpas if gpa < 1 << 32))
    if kernel in ONE_BIT:
        found = replace(found, plans=_PLANS, with_made_up_plans=False)
    return found


class NewerGenerator(Generator):
    """Draws operations for a kernel of v5.3 and later."""

    def __init__(self, seed: int, kernel: str, config: dict[str, Any]) -> None:
        super().__init__(seed, universe(kernel, config), kernel)
        if kernels[kernel].facts.logs_silent_calls:
            self._weighted += [
                (8, self.answered_fault),
                (2, self.zap_oldest),
                (3, self.dirty_masked),
                (1, self.manual_protect),
            ]
            self._total = sum(weight for weight, _ in self._weighted)

    def answered_fault(self) -> Op:
        """A fault with the host's answer, or with a lookup that failed."""
        gpa = self._one(self.universe.gpas)
        op: Op = {"op": "fault", "vcpu": self._vcpu(), "gpa": hex(gpa), "err": hex(self._one(_ERROR_CODES))}
        if self.random.randrange(6) == 0:
            return {**op, "host": None}
        first = gpa >> 12 & ~7
        found = self._one((None, [], [first + at for at in range(8)], [first, first + 1, first + 5]))
        level = self._one((1, 1, 1, 1, 1, 2)) if gpa in _TWO_MIB_GPAS else 1
        return {**op, "host": {"level": level, "writable": self._one((0, 1, 1)), "found": found}}

    def zap_oldest(self) -> Op:
        """The oldest pages, as reclaim and the shrinker ask."""
        return {"op": "zap_oldest", "n": self._one((0, 1, 3, 21, 128))}

    def dirty_masked(self) -> Op:
        """64 pages of the log are read or cleared."""
        return {
            "op": "dirty_masked",
            "as": self._as_id(),
            "id": self._one(self.universe.slot_ids),
            "offset": self._one((0, 64, 448, 512)),
            "mask": hex(self._one((1, 0xFF, 1 << 63 | 1, (1 << 64) - 1))),
        }

    def manual_protect(self) -> Op:
        """Manual protection, also with bitmaps that start full."""
        return {"op": "manual_protect", "on": self._one((0, 1, 3))}
