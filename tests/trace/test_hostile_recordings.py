"""Replay of damaged recordings: whatever a stranger sends ends in predictions or in an error of this package."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import KvmMmuError
from kvm_mmu.lab.inputs import recorded_scenario
from kvm_mmu.scenario.workload import run_scenario_workload
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.replay.workload import read_recording
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
NAMES = [
    "5.0.1-npt/mix001",
    "5.2.1-npt/vcpus",
    "6.1/npt1tdp0_smm",
    "6.12/npt1tdp0_huge_thp",
    "6.1/npt0_multi_vcpu_flat",
]
ROUNDS = 300 if os.environ.get("KVM_MMU_SOAK", "") not in ("", "0") else 12
HEX = "0123456789abcdef"


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def damaged(lines: list[str], chance: random.Random) -> list[str]:
    """The recording with some lines dropped, doubled, swapped, cut, and with other digits in them."""
    lines = list(lines)
    for _ in range(chance.randrange(1, 12)):
        at = chance.randrange(1, len(lines))
        text = lines[at]
        match chance.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(chance.randrange(1, len(lines)), text)
            case 2:
                lines[at] = text[: chance.randrange(len(text) + 1)]
            case 3 | 4:
                digits = [i for i, letter in enumerate(text) if letter in HEX and i > 40]
                for i in chance.sample(digits, min(len(digits), 3)):
                    text = text[:i] + chance.choice(HEX) + text[i + 1 :]
                lines[at] = text
            case _:
                other = chance.randrange(1, len(lines))
                lines[at], lines[other] = lines[other], lines[at]
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_damaged_recordings(name: str, tmp_path: Path):
    folder = TRACES / name
    lines = read_lines(folder / "trace.txt.xz")[:1500]
    (tmp_path / "host.json").write_text((folder / "host.json").read_text())
    path = tmp_path / "trace.txt"
    outcomes = {"replayed": 0, "refused": 0}
    for seed in range(ROUNDS):
        path.write_text("\n".join(damaged(lines, random.Random(f"{name} {seed}"))))
        try:
            report = replay(path, engine)
            assert all(p.line > 0 for p in report.predictions)
            outcomes["replayed"] += 1
        except KvmMmuError as err:
            assert str(err)
            outcomes["refused"] += 1
        stalls(read_lines(path), "damaged")
        with suppress(KvmMmuError):
            recording = read_recording(path)
            for kernel in (None, "v5.2" if name.startswith("6") else "v6.12"):
                run_scenario_workload(recorded_scenario(recording, kernel))
    assert outcomes["replayed"] > 0
