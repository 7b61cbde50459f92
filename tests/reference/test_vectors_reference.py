"""The reference against the recorded vectors: every result, event, counter, digest and state of every step.

The short run takes the hand-made files and the random ones of at most 400 steps; `make soak` takes all of them.
"""

from __future__ import annotations

import json
import lzma
import os
import re
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.reference import Engine

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {"v5.0": "v5.0", "seed": "v5.0-seed", "v5.2": "v5.2"}
FAMILIES = ("npt", "ept_ad", "ept_noad")
LONGEST_IN_SHORT_RUN = 400


def vector_files() -> list[Path]:
    """The vectors that come with the project, or the shared ones."""
    shared = Path(os.environ.get("KVM_MMU_SHARED", ROOT.parent / "shared")) / "vectors"
    for top in (ROOT / "tests" / "data" / "vectors", shared):
        found = sorted(
            path
            for variant in KERNELS
            for path in (top / variant).glob("*.jsonl*")
            if path.name.split(".jsonl")[0].rsplit(".", 1)[1] in FAMILIES
        )
        if found:
            return found
    return []


def is_long(path: Path) -> bool:
    random = re.match(r"random_\d+_\w+_(\d+)\.", path.name)
    return random is not None and int(random[1]) > LONGEST_IN_SHORT_RUN


def cases() -> list[Any]:
    files = vector_files()
    if not files:
        return [
            pytest.param(None, marks=pytest.mark.skip("no vectors here: set KVM_MMU_SHARED to run this test"))
        ]
    return [
        pytest.param(
            path,
            id=f"{path.parent.name}/{path.name.split('.jsonl')[0]}",
            marks=[pytest.mark.soak] if is_long(path) else [],
        )
        for path in files
    ]


def read_lines(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    text = lzma.decompress(raw) if path.suffix == ".xz" else raw
    return [json.loads(line) for line in text.decode().splitlines() if line]


@pytest.mark.parametrize("path", cases())
def test_every_step_is_equal(path: Path) -> None:
    header, *lines = read_lines(path)
    engine = Engine(KERNELS[header["variant"]], header["config"])
    assert engine.masks() == header["masks"]
    for want in lines:
        got = engine.apply(want["op"])
        where = f"step {want['i']}: {want['op']}"
        for key in ("ret", "out", "nested", "events", "ctr"):
            assert got.get(key) == want.get(key), f"{where}: {key}"
        if "state" in want:
            assert engine.state() == want["state"], where
        assert engine.digest() == want["digest"], where


def test_the_whole_set_is_here() -> None:
    files = vector_files()
    if not files:
        pytest.skip("no vectors here: set KVM_MMU_SHARED to run this test")
    assert len(files) == 385
