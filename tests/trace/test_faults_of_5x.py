"""Every page fault of the 5.x recordings is one that the modelled tables give: the processor's walk over them fails
with the recorded error code.

No output of a replay shows which leaves there are; a fault on a leaf that the model has, or of another kind than the
model's entry gives, does. This is how the huge pages behind two of the recorder's small slots were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.recorders import recorder_5x
from kvm_mmu.reference.common.hardware import hardware_walk
from kvm_mmu.trace.replay.replaying import replay

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
RECORDINGS = [
    f"{kernel}/{d.name}" for kernel in ("5.0.1-npt", "5.2.1-npt") for d in sorted((TRACES / kernel).iterdir())
]
PRESENT, WRITE, RESERVED, FETCH = 1 << 0, 1 << 1, 1 << 3, 1 << 4


class Watched(reference.Engine):
    """Compares each fault with the walk that must have failed before it."""

    differences: list[str]
    faults: int

    def apply(self, op: Mapping[str, Any]) -> dict[str, Any]:
        if op["op"] == "fault":
            self.watch(op)
        return super().apply(op)

    def watch(self, op: Mapping[str, Any]) -> None:
        code = op["err"]
        kind = "w" if code & WRITE else "x" if code & FETCH else "r"
        failed = hardware_walk(self.kvm, self.kvm.vcpus[op["vcpu"]], op["gpa"], kind)
        given = None if failed is None else failed.error_code & 0xFFFFFFFF
        if given is not None and given & RESERVED:
            given &= ~PRESENT  # QEMU's emulation reports a reserved bit without it
        type(self).faults += 1
        if given != code:
            type(self).differences.append(f"{op['gpa']:#x}: recorded {code:#x}, the tables give {given}")


def watched(name: str) -> tuple[int, list[str]]:
    Watched.differences, Watched.faults = [], 0
    report = replay(TRACES / name / "trace.txt.xz", lambda kernel, config: Watched(kernel, dict(config)))
    assert report.is_equal
    return Watched.faults, Watched.differences


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_tables_give_every_fault(name: str) -> None:
    faults, differences = watched(name)
    assert faults > 0 and differences == []


def test_small_pages_behind_the_mixed_scenario_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_5x, "_MIXED_HUGE", {})
    _, differences = watched("5.0.1-npt/mix003")
    assert differences == ["0x2301b000: recorded 0x6, the tables give None"]
