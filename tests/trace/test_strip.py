"""Stripping: what goes, what stays, what is added; and that it is what the recordings' checker does."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kvm_mmu.trace.replay.normalise import alike, normalise
from kvm_mmu.trace.replay.stripping import operations_beside, strip, wants_answers
from kvm_mmu.trace.text import kinds
from kvm_mmu.trace.text.source import read_lines
from kvm_mmu.trace.text.spte_words import words_of
from kvm_mmu.trace.text.wording import wording_of

PREFIX = "             vmm-851   [000] .....  5012.1: "
FACTS = {"kernel": "6.1", "mmu": "npt"}


@pytest.fixture(scope="module")
def checker(request: pytest.FixtureRequest) -> ModuleType:
    shared: Path = request.getfixturevalue("shared")
    spec = importlib.util.spec_from_file_location("check_replay", shared / "tools" / "check_replay.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLE = [
    "5.0.1-npt/basic",
    "5.2.1-npt/slots",
    "6.1/npt0_basic_long",
    "6.1/npt1tdp0_notifier",
    "6.1/npt0_reclaim_flat",
    "6.12/npt0_notifier",
    "6.12/npt0_dirty_log_long_big",
    "6.1/ept1tdp0_noad_notifier_age",
    "6.12/ept1tdp0_nopml_notifier",
    "5.10/npt1tdp0_basic_long",
    "6.18/npt1tdp0_dirty_log",
    "7.3/npt1tdp0_notifier",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_equals_the_checker(checker: Any, shared: Path, name: str):
    folder = shared / "traces" / name
    kernel = name.split("/")[0]
    lines = read_lines(folder / "trace.txt.xz")
    facts = json.loads((folder / "host.json").read_text())
    operations = (
        operations_beside(folder / "trace.txt.xz") if kernel not in ("5.0.1-npt", "5.2.1-npt") else None
    )
    keep, want, names = checker.strip(lines, operations or {}, kernel, name.split("/")[1], facts)
    mine = strip(lines, facts, operations, answers=wants_answers(facts, lines))
    assert mine.lines == keep
    assert [(r.event, r.body) for r in mine.recorded] == want
    mine_on = kinds.switched_on(wording_of(kernel), mine.names)
    # v5.10 has the probe on make_mmio_spte; the checker leaves it out.
    assert mine_on - (
        {"make_mmio_spte", "make_mmio_spte_ret", "unprotect_page_ret"} if kernel == "5.10" else set()
    ) == (checker.enabled(kernel, names))
    bits = checker.bits(kernel, facts)
    for event, body in want:
        assert normalise(event, body, words_of(facts)) == checker.mask(event, body, bits)


def test_answers_come_from_the_leaves_of_the_fault():
    lines = [
        f"{PREFIX}memslots_updated: (x+0x0/0x1 [kvm]) gen=0x2",
        f"{PREFIX}kvm_mmu_spte_requested: gfn 1000 pfn 161c00 level 1",
        f"{PREFIX}kvm_mmu_set_spte: gfn 1000 spte 161c00a25 (r-xu) level 1 at 160109008",
        f"{PREFIX}kvm_mmu_set_spte: gfn 1001 spte 161c01e47 (rwxu) level 1 at 160109010",
        f"{PREFIX}kvm_page_fault: vcpu 0 rip 0x1000 address 0x0000000000001000 error_code 0x10",
        f"{PREFIX}kvm_mmu_spte_requested: gfn 2000 pfn 8000000000000000 level 1",
    ]
    mine = strip(lines, FACTS, answers=True)
    assert [line.removeprefix(PREFIX) for line in mine.lines[1:]] == [
        "kvm_mmu_spte_requested: gfn 1000 pfn 161c00 level 1",
        "replay_host_answer: set 1 writable 1 found 1001",
        "kvm_page_fault: vcpu 0 rip 0x1000 address 0x0000000000001000 error_code 0x10",
        "kvm_mmu_spte_requested: gfn 2000 pfn 8000000000000000 level 1",
        "replay_host_answer: set 0 writable 1 found -",
    ]
    assert mine.origin == [0, 2, 0, 5, 6, 0]
    assert [r.line for r in mine.recorded] == [1, 3, 4]


def test_short_markers_are_completed_and_missing_ones_inserted():
    operations = {i: f'{{"i":{i},"op":"x{i}","a":"0x{i:x}"}}' for i in range(5)}
    markers = ['{"i":1,"op":"x1"}', '{"i":3,"op":"x3","a']
    lines = [f"{PREFIX}tracing_mark_write: {marker}" for marker in markers]
    mine = strip(lines, FACTS, operations, answers=False)
    assert mine.lines[1:] == [f"{PREFIX}tracing_mark_write: {operations[i]}" for i in range(4)]
    assert mine.origin == [0, 0, 1, 0, 2]


def test_the_generation_probe_is_an_input_where_it_is_the_only_sign_of_an_update():
    line = f"{PREFIX}invalidate_mmio: (kvm_mmu_invalidate_mmio_sptes+0x0/0x70 [kvm]) gen=0x2"
    assert strip([line], FACTS, answers=False).lines[1:] == [line]
    other = f"{PREFIX}swap_memslots: (kvm_swap_active_memslots+0x0/0x160 [kvm]) as_id=0"
    assert strip([line, other], FACTS, answers=False).lines[1:] == [other]


def test_the_dirty_bit_may_be_more_in_the_recording_and_never_less():
    words = words_of({"kernel": "v6.1"})
    more, less = ("page_zap_pte", "at 0 spte 63"), ("page_zap_pte", "at 0 spte 23")
    assert alike(more, less, words) and not alike(less, more, words)
    # Write-protected since, and still dirty.
    assert alike(("page_zap_pte", "at 0 spte 61"), ("page_zap_pte", "at 0 spte 21"), words)
    assert not alike(("page_zap_pte", "at 8 spte 63"), ("page_zap_pte", "at 0 spte 23"), words)
    assert not alike(("kvm_mmu_set_spte", "spte 63"), ("kvm_mmu_set_spte", "spte 23"), words)


def test_the_dirty_bit_of_ept_is_another_one():
    words = words_of({"kernel": "v6.1", "mmu": "ept", "family": "ept_ad"})
    assert alike(("page_zap_pte", "at 0 spte 277"), ("page_zap_pte", "at 0 spte 77"), words)
    assert not alike(("page_zap_pte", "at 0 spte 63"), ("page_zap_pte", "at 0 spte 23"), words)
    bare = words_of({"kernel": "v6.1", "mmu": "ept", "family": "ept_noad"})
    assert not alike(("page_zap_pte", "at 0 spte 277"), ("page_zap_pte", "at 0 spte 77"), bare)
    assert bare.is_demanded(0x0610_0000_0123_4877)  # without accessed bits nothing is prefetched


def test_the_command_strips_as_replay_does(data: Path):
    folder = data / "traces" / "5.2.1-npt" / "slots"
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "trace", "strip", str(folder / "trace.txt.xz")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    facts = json.loads((folder / "host.json").read_text())
    assert done.stdout == strip(read_lines(folder / "trace.txt.xz"), facts, answers=False).text()
    again = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "trace", "strip", "-"],
        input=done.stdout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 2 and "is stripped already" in again.stderr
