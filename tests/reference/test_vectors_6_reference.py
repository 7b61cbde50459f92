"""The reference against the vectors of format 6: every result, event, counter, digest and state of every step.

The files that come with the project run always, all of them in a long run: of the TDP MMU, and of the direct MMU of
shadow pages.
"""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.reference import Engine

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("v6.1", "v6.12")
FAMILIES = ("npt", "ept_ad", "ept_noad")


def files_in(top: Path) -> dict[str, Path]:
    found = {}
    for variant in VARIANTS:
        for path in sorted((top / variant).glob("*.tdp[01].jsonl*")):
            if path.name.split(".")[1] in FAMILIES:
                found[f"{variant}/{path.name.split('.jsonl')[0]}"] = path
    return found


OURS = files_in(ROOT / "tests" / "data" / "vectors")
ALL = OURS | files_in(Path(os.environ.get("KVM_MMU_SHARED", ROOT.parent / "shared")) / "vectors")


def read_lines(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    text = lzma.decompress(raw) if path.suffix == ".xz" else raw
    return [json.loads(line) for line in text.decode().splitlines() if line]


def test_there_are_files_of_both_kernels_and_all_families() -> None:
    assert {(name.split("/")[0], *name.split(".")[-2:]) for name in OURS} == {
        (variant, family, mmu) for variant in VARIANTS for family in FAMILIES for mmu in ("tdp0", "tdp1")
    }


def test_the_list_of_equal_files_has_them() -> None:
    """`tests/vectors/equal.txt` says of what is run here that the reference is equal."""
    lines = (ROOT / "tests" / "vectors" / "equal.txt").read_text(encoding="utf-8").splitlines()
    listed = {line.split()[0].split(".jsonl")[0] for line in lines if line.endswith(" reference")}
    assert {name for name in listed if ".tdp" in name and name.split(".")[-2] in FAMILIES} == set(OURS)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name, marks=[] if name in OURS else [pytest.mark.soak])
        for name, path in ALL.items()
    ],
)
def test_every_step_is_equal(path: Path) -> None:
    header, *lines = read_lines(path)
    engine = Engine(header["variant"], header["config"], format=header["format"])
    assert engine.masks() == header["masks"]
    for want in lines:
        got = engine.apply(want["op"])
        where = f"step {want['i']}: {want['op']}"
        for key in ("ret", "out", "nested", "events", "ctr"):
            assert got.get(key) == want.get(key), f"{where}: {key}"
        if "state" in want:
            assert engine.state() == want["state"], where
        assert engine.digest() == want["digest"], where
