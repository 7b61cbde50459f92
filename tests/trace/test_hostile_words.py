"""Every word of real lines replaced by hostile ones: huge numbers, deep nesting, NaN, lone surrogates.

Exhaustive in the long run, a fixed sample of it in the short one. What comes out is a result or an error of this
package; in particular no `ValueError` of a number with more digits than Python reads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from kvm_mmu.errors import KvmMmuError, TraceError
from kvm_mmu.recorders.inputs import read_inputs
from kvm_mmu.recorders.inputs_6x import count_vcpus, read_events
from kvm_mmu.trace.analysis.chrome import chrome_trace
from kvm_mmu.trace.analysis.explain import explained
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.replay.normalise import normalise
from kvm_mmu.trace.replay.stripping import strip
from kvm_mmu.trace.text import host
from kvm_mmu.trace.text.line import lost_events, parse_line
from kvm_mmu.trace.text.markers import parse_marker
from kvm_mmu.trace.text.reader import native_reader
from kvm_mmu.trace.text.source import read_lines
from kvm_mmu.trace.text.spte_words import words_of

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
STEP = 1 if os.environ.get("KVM_MMU_SOAK", "") not in ("", "0") else 5
NAMES = [
    "5.0.1-npt/mmio_gen",
    "6.1/npt1tdp0_notifier",
    "6.1/npt1tdp0_smm",
    "6.12/npt0_multi_vcpu_flat",
    "6.12/npt1tdp0_huge_thp",
]
PREFIX = "             vmm-851   [001] .....  5012.1: "
RAW = f"{PREFIX}kvm_mmu_get_page: mmu_valid_gen=0 gfn=0 role=14212 root_count=0 unsync=0 created=1"
WORDS = [
    "9" * 5000, "f" * 5000, "f" * 17, "-1", "NaN", "1e999", "-Infinity", "[" * 3000, '"\\ud800"', "\u0663", "0x", "",
    "true", "null", '{"a":1}', "1.5", "\0", "\r",
]  # fmt: skip


def one_of_each(name: str) -> list[str]:
    """The first lines of each event and of each operation of a recording."""
    lines: dict[str, str] = {}
    for text in read_lines(TRACES / name / "trace.txt.xz"):
        lines.setdefault(": ".join(text.split(": ")[1:2]), text)
        operation = re.search(r'"op":"(\w+)"', text)
        if operation is not None:
            lines.setdefault(f"operation {operation[1]}", text)
    return list(lines.values())


def ways(text: str, kernel: str) -> list[Callable[[], object]]:
    """Everything that reads a line."""
    line = parse_line(text)
    facts = {"kernel": kernel, "mmu": "npt"}
    inputs = read_inputs if kernel.startswith("v5") else read_events
    return [
        lambda: strip([text], facts, {0: '{"i":0,"op":"x"}'}, answers=True),
        lambda: list(inputs([text], "x")),
        lambda: kernel.startswith("v5") or count_vcpus(read_events([text], "x"), "x"),
        lambda: list(explained([text], kernel)),
        lambda: stalls([text], "x").as_text(),
        lambda: json.dumps(chrome_trace([text])),
        lambda: line and normalise(line.event, line.body, words_of(facts)),
    ]


@pytest.mark.parametrize("name", [*NAMES, "raw"])
def test_any_word_of_a_line(name: str):
    tried = 0
    for text in [RAW, "CPU:0 [LOST 42 EVENTS]"] if name == "raw" else one_of_each(name):
        for place in re.finditer(r'"?\w+"?', text):
            for word in WORDS:
                tried += 1
                if tried % STEP and name != "raw":
                    continue
                damaged = text[: place.start()] + word + text[place.end() :]
                for way in ways(damaged, "v5.0" if name[0] == "5" else "v6.12"):
                    try:
                        way()
                    except KvmMmuError as err:
                        assert str(err)
                reader = native_reader(columns=True)
                reader.feed(damaged.encode("utf-8", "surrogatepass"))
                reader.finish()
                assert reader.summary()["lines"] == 1
    assert tried > 100


@pytest.mark.parametrize("word", ["9" * 5000, "[" * 100_000, '{"a":' * 50_000, "NaN", "1e999", '"\\ud800"'])
def test_facts_and_markers(word: str):
    with pytest.raises(TraceError):
        host.parse_facts(f'{{"phys_bits": {word}}}', "host.json:1")
    try:
        parse_marker(f'OP 1 "op":"memslot","size":{word}', "t:1")
    except TraceError as err:
        assert str(err).startswith("t:1: ")


def test_lost_events_without_a_number_that_fits():
    text = f"CPU:0 [LOST {'9' * 5000} EVENTS]"
    assert lost_events(text) == 0
    reader = native_reader(columns=False)
    reader.feed(f"{text}\nCPU:1 [LOST {(1 << 64) - 1} EVENTS]\nCPU:2 [LOST 42 EVENTS]\n".encode())
    counts = reader.summary()
    assert (counts["lost_notes"], counts["lost"], counts["not_understood"]) == (3, (1 << 64) - 1, 0)
