"""Intel hosts: qualifications as error codes, misconfigurations, what a trace without the probe shows, the masks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.replay.stripping import operations_beside, strip, wants_answers
from kvm_mmu.trace.text import host
from kvm_mmu.trace.text.exit_qualification import error_code_of
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.source import read_lines
from kvm_mmu.trace.text.spte_words import spte_words

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
RECORDINGS = sorted(f"{d.parent.name}/{d.name}" for d in TRACES.glob("*/ept1tdp0_*"))
_PAIR = re.compile(
    r"kvm_page_fault: .* error_code 0x(\w+)\n.*mmu_fault: \S+ \[kvm\]\) gpa=\w+ error_code=0x(\w+)\n"
)


def core(kernel: str, config: Mapping[str, object]) -> Any:
    from kvm_mmu.scenario.machine_engine import MachineEngine

    return MachineEngine(kernel=kernel, config=dict(config))


def text_of(name: str) -> str:
    return "\n".join(read_lines(TRACES / name / "trace.txt.xz")) + "\n"


@pytest.mark.parametrize(
    ("qualification", "code"),
    [
        (0x781, 0x100000004),
        (0x782, 0x100000002),
        (0x584, 0x100000010),
        (0x81, 0x200000004),
        (0x82, 0x200000002),
        (0x7AA, 0x100000003),
        (0x59C, 0x100000011),
    ],
)
def test_a_qualification_as_the_error_code_that_the_mmu_makes_of_it(qualification: int, code: int):
    assert error_code_of(qualification) == code


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_recorded_qualification(name: str):
    pairs = {(int(one, 16), int(two, 16)) for one, two in _PAIR.findall(text_of(name))}
    assert pairs and all(error_code_of(qualification) == code for qualification, code in pairs)


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_misconfiguration_is_found_without_the_probe_on_the_mmu(name: str, tmp_path: Path):
    """Its exit has no address: what follows it has."""
    path = TRACES / name / "trace.txt.xz"
    facts = host.beside(path) or {}
    lines = read_lines(path)
    kept = strip(lines, facts, operations_beside(path), answers=wants_answers(facts, lines)).lines
    told = []
    for number, texts in enumerate((kept, [text for text in kept if ": mmu_fault: " not in text])):
        file = tmp_path / f"{number}.txt"
        file.write_text("\n".join(texts) + "\n")
        told.append([(p.event, p.body) for p in replay(file, core).predictions])
    assert told[0] == told[1]


def test_the_host_says_the_masks_or_the_trace_does():
    said = HostFacts({"mmu": "ept"})
    assert said.family == "ept_ad" and said.inferred["family"] == "ept_ad"
    assert HostFacts({"mmu": "ept", "family": "ept_noad"}).family == "ept_noad"
    shown = HostFacts({}, likely={"mmu": "ept", "family": "ept_noad"})
    assert shown.family == "ept_noad" and shown.inferred == {"mmu": "ept", "family": "ept_noad"}
    with pytest.raises(TraceError, match="do not agree"):
        host.check_facts({"mmu": "npt", "family": "ept_ad"}, "x")
    with pytest.raises(TraceError, match="must be npt, ept_ad, ept_noad or shadow"):
        host.check_facts({"family": "ept"}, "x")


@pytest.mark.parametrize("name", ["6.1/ept1tdp0_dirty_log", "6.12/ept1tdp0_noad_basic_flat"])
def test_without_host_facts_the_trace_shows_its_masks(name: str, tmp_path: Path):
    said = json.loads((TRACES / name / "host.json").read_text())
    lonely = tmp_path / "trace.txt"
    lonely.write_text(text_of(name))
    report = replay(lonely, core, host={"kernel": said["kernel"], "l1tf_mask": said["l1tf_mask"]})
    assert report.is_equal and report.family == said["family"], report.as_text()
    assert report.inferred["mmu"] == "ept" and report.how_known("mmu") == "inferred"
    assert report.how_known("family") == "inferred"


def test_words_of_ept_are_its_own():
    words = spte_words("v6.12", "ept_ad")
    assert (words.accessed, words.dirty, words.host_writable) == (1 << 8, 1 << 9, 1 << 57)
    assert words.is_mmio(0xD0000046) and words.is_mmio(0xF8D0000046) and not words.is_mmio(0x8600000001234B77)
    assert words.access_text(0x8600000001234BF3) == "rw-u"
    assert spte_words("v6.1", "ept_noad").dirty == 0
