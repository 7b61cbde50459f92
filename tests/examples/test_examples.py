"""Every example runs, small, and says what it claims to."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SMALL: dict[str, list[str]] = {
    "custom_generation_policy.py": ["--updates", "40"],
    "custom_zap_plan.py": ["--tables", "200"],
    "read_results.py": ["--tables", "100"],
    "scale.py": ["--pages", "2000", "--memslots", "300", "--vcpus", "8"],
    "sweep_plan_space.py": ["--tables", "40"],
}


def example(root: Path, name: str) -> Any:
    return runpy.run_path(str(root / "examples" / name))["main"]


def test_none_is_left_out(root: Path) -> None:
    assert sorted(path.name for path in (root / "examples").glob("*.py")) == sorted(SMALL)


def test_custom_generation_policy(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wraps = example(root, "custom_generation_policy.py")(SMALL["custom_generation_policy.py"])
    # The first update creates the slot and leaves generation 1; 16 updates make a lap.
    assert wraps == 2
    assert "update  16: generation 0x10, a wrap" in capsys.readouterr().out


def test_custom_zap_plan(root: Path) -> None:
    found = example(root, "custom_zap_plan.py")(SMALL["custom_zap_plan.py"])
    rows = {row["plan"]: row for row in found.rows}
    assert len({row["pages_zapped"] for row in rows.values()}) == 1
    assert rows["stop_early"]["nodes_visited"] <= rows["tail-once"]["nodes_visited"]
    assert rows["tail-once"]["nodes_visited"] < rows["seed"]["nodes_visited"]


def test_sweep_plan_space(root: Path, tmp_path: Path) -> None:
    found = example(root, "sweep_plan_space.py")([*SMALL["sweep_plan_space.py"], "-o", str(tmp_path)])
    assert len(found) > 1000
    assert {"sweep.csv", "sweep.json", "sweep.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert {outcome.split(":")[0] for outcome in found.column("outcome")} >= {"done", "livelock"}


def test_read_results(root: Path) -> None:
    frames = example(root, "read_results.py")(SMALL["read_results.py"])
    for frame in frames.values():
        assert len(frame) == 8


def test_scale(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vm = example(root, "scale.py")(SMALL["scale.py"])
    assert vm.audit() == []
    out = capsys.readouterr().out
    assert "2,000 tables built" in out and "peak memory" in out
