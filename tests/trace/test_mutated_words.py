"""Mutated real lines through decode, stalls and the Chrome trace: no crash, whatever a stranger writes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.analysis.chrome import chrome_trace
from kvm_mmu.trace.analysis.explain import explainer
from kvm_mmu.trace.analysis.explain_host import host_explainer
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
NAMES = ("5.0.1-npt/basic", "5.2.1-npt/mmio_gen", "6.1/npt1tdp0_smm", "6.12/npt1tdp0_huge_thp")
GIVEN = {"kernel": None, "family": None, "phys_bits": None, "l1tf_mask": None}
PIECES = (
    "",
    "0",
    "f" * 16,
    "f" * 17,
    "9" * 5000,
    "-1",
    "\0",
    "vcpu 999999999",
    "(",
    "[000]",
    " reason HLT",
    "é",
    "0x",
)


def mutated(lines: list[str], dice: random.Random) -> list[str]:
    """Some lines in a row, words of them replaced, doubled, swapped or cut."""
    at = dice.randrange(len(lines))
    found = []
    for line in lines[at : at + 80]:
        words = line.split(" ")
        for _ in range(dice.randrange(4)):
            words[dice.randrange(len(words))] = dice.choice((*PIECES, *words))
        text = " ".join(words)
        found.append(text[: dice.randrange(len(text) + 1)] if dice.random() < 0.1 else text)
    dice.random() < 0.3 and dice.shuffle(found)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_mutation_crashes(name: str):
    lines = read_lines(TRACES / name / "trace.txt.xz")
    dice = random.Random(name)
    for kernel in ("v5.0", "v5.4", "v6.12"):
        for _ in range(25):
            text = mutated(lines, dice)
            explain = explainer(kernel, dice.randint(36, 52), dice.choice(("npt", "ept_ad", "ept_noad")))
            assert [line for line, _ in explain.lines(text)] == text
            json.dumps(stalls(text, "x").as_json())
            stalls(text, "x").as_text()
            assert all(e["ph"] != "X" or e["dur"] >= 0 for e in chrome_trace(text)["traceEvents"])
            try:
                host_explainer(text, {}, GIVEN, "x")
            except TraceError as err:
                assert "give --kernel" in str(err)
