"""Slots of TiBs: core and reference agree on them, and neither's memory or output grows with what nothing touched."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest
from kvm_mmu.reference.operations import MOST_WORDS_SHOWN
from kvm_mmu.reference.operations import page_runs as runs_of
from kvm_mmu.scenario.language import Scenario, make_engine
from kvm_mmu.scenario.machine_engine import MOST_WORDS, page_runs

LARGEST = ((1 << 31) - 1) * 4096
#: What both run: the reference looks at a bitmap word by word.
LARGE = ((1 << 21) - 1) * 4096


def slot(size: int, flags: int = 1, **more: Any) -> dict[str, Any]:
    return {"op": "set_memslot", "id": 0, "gpa": 0, "size": size, "hva": 0, "flags": flags, **more}


def access(gpa: int, kind: str = "w") -> dict[str, Any]:
    return {"op": "access", "gpa": gpa, "kind": kind}


LOG = {"op": "get_dirty_log", "id": 0}
OPS: list[dict[str, Any]] = [
    {"op": "manual_protect", "on": 0},
    {"op": "host_huge", "hva": 1 << 30, "npages": 1 << 19, "kind": "hugetlb1g"},
    slot(LARGE, 0),
    access(0x1000),
    access(1 << 30, "r"),
    access(LARGE - 4096),
    slot(LARGE),
    access(0x1000),
    access(0x2000),
    access(1 << 32),
    access(1 << 30),
    LOG,
    LOG,
    {"op": "clear_dirty_log", "id": 0, "first": 0, "num": 64, "mask": [6]},
    access(0x1000),
    {"op": "lock_break", "cond": 0, "need": 500_003, "do": [[access(0x5000)], [access(3 << 31)]]},
    {"op": "slot", "id": 0, "what": "remove_write_access"},
    slot(0),
]


def both(kernel: str, ops: list[dict[str, Any]], family: str = "npt") -> list[dict[str, Any]]:
    engines = [
        make_engine(Scenario(kernel=kernel, config={"family": family}), backend=backend)
        for backend in ("core", "reference")
    ]
    lines = []
    for op in ops:
        core, reference = (engine.apply(op) for engine in engines)
        assert core == reference, op
        assert engines[0].state() == engines[1].state(), op
        assert engines[0].digest() == engines[1].digest(), op
        lines.append(core)
    return lines


@pytest.mark.parametrize("family", ["npt", "ept_ad"])
@pytest.mark.parametrize("kernel", ["v5.0", "v5.2", "v6.12"])
def test_both_agree(kernel: str, family: str) -> None:
    lines = both(kernel, OPS, family)
    first = next(line["out"]["bitmap"] for op, line in zip(OPS, lines, strict=True) if op == LOG)
    assert first["words"] == (LARGE // 4096 + 63) // 64
    assert [1, 2] in first["runs"]


def test_both_agree_where_all_pages_begin_as_dirty() -> None:
    ops = [{"op": "manual_protect", "on": 3}, *OPS[1:11], LOG]
    ops += [
        {"op": "manual_protect", "on": 0},
        {**OPS[0], "on": 3},
        OPS[13],
        LOG,
        {"op": "manual_protect", "on": 0},
    ]
    lines = both("v6.1", [*ops, LOG, LOG, slot(0)])
    runs = [line["out"]["bitmap"]["runs"] for line in lines if "out" in line and "bitmap" in line["out"]]
    npages = LARGE // 4096
    assert runs[0] == [[0, npages]]
    assert runs[1] == runs[2] == [[0, 1], [3, npages - 3]]
    assert runs[3] == []


@pytest.mark.parametrize(("words", "is_list"), [(MOST_WORDS, True), (MOST_WORDS + 1, False)])
def test_a_bitmap_is_words_up_to_a_size(words: int, is_list: bool) -> None:
    assert MOST_WORDS == MOST_WORDS_SHOWN
    lines = both("v5.0", [slot(words * 64 * 4096), access(0x41000), LOG])
    shown = lines[-1]["out"]["bitmap"]
    if is_list:
        assert len(shown) == words
        assert shown[1] == "0x2"
    else:
        assert shown == {"words": words, "runs": [[65, 1]]}


@pytest.mark.parametrize("seed", range(40))
def test_runs_are_the_same_from_spans_and_words(seed: int) -> None:
    choose = random.Random(seed)
    words = [choose.choice((0, (1 << 64) - 1, 1, 1 << 63, choose.getrandbits(64))) for _ in range(12)]
    assert page_runs((at, 1, word) for at, word in enumerate(words) if word) == runs_of(words)


@pytest.mark.parametrize("backend", ["core"])
def test_a_slot_of_tibs_in_little_memory(backend: str) -> None:
    """In a child, whose peak is its own; a bitmap of words would be 256 MiB, its text more."""
    header = {"variant": "v5.2", "config": {"family": "npt"}}
    lines = [header, *({"op": op} for op in (slot(LARGEST), access(0x1000), LOG, LOG, LOG, slot(0)))]
    # Not ru_maxrss, which a child inherits.
    code = (
        "import re, sys; from pathlib import Path; from kvm_mmu.cli import main; status = main(sys.argv[1:]);"
        "sys.stdout.flush(); text = Path('/proc/self/status').read_text();"
        "print(re.search(r'VmHWM:\\s+(\\d+)', text)[1], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "-", "--backend", backend],
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) < 30_000
    assert int(done.stderr) < 200 << 10, "KiB"
