"""The demonstration on small sizes: every section answers, files are written, what fails is said to be missing."""

from __future__ import annotations

import json
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.cli import main
from kvm_mmu.errors import TraceError
from kvm_mmu.studies import demo


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SCALE", 2000)
    monkeypatch.setattr(demo, "CURVE", (500, 1000, 2000))


def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1,490 of 1,490 recorded outputs predicted" in out
    assert "kernel v5.0-seed: v5.0 with the patch of the thread" in out
    heads = [
        line
        for line in out.splitlines()
        if line.split() == "plan nodes zapped hold faults again sound".split()
    ]
    assert len(heads) == 3
    assert "nothing is missing" in out and "Answer: " in out
    names = {path.name for path in tmp_path.iterdir()}
    assert {"demo.json", "wrap.svg", "slot-removal.csv", "scaled.svg", "scaled.json"} <= names
    read = json.loads((tmp_path / "demo.json").read_text())
    assert read["replay"]["equal"] is True and read["not_there_yet"] == []
    assert len(read["comparisons"]["wrap"]["rows"]) == sum(not plan.is_of_roots for plan in km.plans.values())
    assert str(tmp_path) in out


def test_what_is_missing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_demo: object, _path: Path) -> str:
        raise TraceError("the replay is not here")

    monkeypatch.setattr(demo, "_replay", broken)
    assert main(["demo", "-o", str(tmp_path), "--json"]) == 1
    read = json.loads(capsys.readouterr().out)
    assert read["not_there_yet"] == ["1. a recording of a real kernel, replayed: the replay is not here"]
