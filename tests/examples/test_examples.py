"""Every example runs, small, and says what it claims to."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

SMALL: dict[str, list[str]] = {
    "custom_generation_policy.py": ["--updates", "40"],
    "custom_zap_plan.py": ["--tables", "200"],
    "lock_latency.py": ["--pages", "128"],
    "paging_guest.py": [],
    "read_results.py": ["--tables", "100"],
    "recorded_trace.py": [],
    "scale.py": ["--pages", "2000", "--memslots", "300", "--vcpus", "8"],
    "step_by_step.py": [],
    "sweep_plan_space.py": ["--tables", "40"],
    "tebibyte_guest.py": ["--gib", "1"],
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


def test_paging_guest(root: Path) -> None:
    """Core and reference take the same ten lines and say the same."""
    main = example(root, "paging_guest.py")
    for kernel in ("v5.0", "v6.1", "v6.12"):
        said = main(["--kernel", kernel])
        assert said == main(["--kernel", kernel, "--backend", "reference"])
        assert said[:4] == [
            "a write: hit",
            "what is there: 42",
            "a write after the table changed: hit",
            "a write after the flush: guest_fault",
        ]
        assert len(said) == 6


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


def test_lock_latency(root: Path) -> None:
    found = example(root, "lock_latency.py")(SMALL["lock_latency.py"])
    verdicts = {name: {row["plan"]: row["verdict"] for row in one.rows} for name, one in found.items()}
    assert {one["own"] for one in verdicts.values()} == {one["seed"] for one in verdicts.values()} == {"ends"}
    assert verdicts["adversarial"]["zap-all"] == verdicts["adversarial"]["merged"] == "livelock"


@pytest.mark.parametrize("kernel", ["v6.1", "v7.3"])
def test_tebibyte_guest(root: Path, kernel: str) -> None:
    rows = example(root, "tebibyte_guest.py")([*SMALL["tebibyte_guest.py"], "--kernel", kernel])
    found = {row["step"]: row for row in rows}
    # A GiB: a root, two tables above, and while it is logged one table for each of 512 leaves.
    assert found["fault every 2 MiB"]["tables"] == 3
    assert found["dirty log on: split and protect"]["tables"] == 3 + 512
    assert found["dirty log on: split and protect"]["megabytes"] > 2
    assert found["write one page of every 2 MiB"]["tables"] == 3 + 512
    assert found["dirty log off: collapse"]["tables"] == found["fault every 2 MiB again"]["tables"] == 3
    assert found["tear down"]["tables"] == 1


def test_read_results(root: Path) -> None:
    frames = example(root, "read_results.py")(SMALL["read_results.py"])
    for frame in frames.values():
        assert len(frame) == 8


@pytest.mark.parametrize(
    ("name", "plan", "other", "as_other"),
    [
        # What a real kernel counted in this recording, and a real 5.2.1 in the same scenario.
        ("5.0.1-npt/basic", ("v5.0-fast", 19, 13), "v5.2-slot", (12, 0)),
        ("5.0.1-npt/vcpus", ("v5.0-fast", 31, 27), "v5.2-slot", (10, 3)),
        ("5.2.1-npt/mix002", ("v5.2-slot", 25, 10), "v5.2-slot", (25, 10)),
        ("6.12/npt1tdp0_zap_batch", ("v5.4-fast", 17, 18), "v5.4-fast", (17, 18)),
    ],
)
def test_recorded_trace(
    root: Path,
    name: str,
    plan: tuple[str, int, int],
    other: str,
    as_other: tuple[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace = root / "tests" / "data" / "traces" / name / "trace.txt.xz"
    lives, wrap = example(root, "recorded_trace.py")([str(trace)])
    counts = {life.plan: (life.made, life.zapped) for life in lives}
    assert counts[plan[0]] == plan[1:] and counts[other] == as_other
    assert [life.zapped for life in lives] == sorted(life.zapped for life in lives) and len(lives) == 6
    out = capsys.readouterr().out
    has_mmio = any(row["to_go"] for row in wrap.rows)
    assert len(wrap) == 10 and ("least is lost with" in out) == has_mmio != (
        "no stale MMIO SPTE to take" in out
    )


def test_scale(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vm = example(root, "scale.py")(SMALL["scale.py"])
    assert vm.audit() == []
    out = capsys.readouterr().out
    assert "2,000 tables built" in out and "peak memory" in out


def test_the_curve_of_scale(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example(root, "scale.py")(["--curve", str(tmp_path / "scale.svg"), "--pages", "1500"]) is None
    ElementTree.fromstring((tmp_path / "scale.svg").read_text(encoding="utf-8"))
    out = capsys.readouterr().out
    assert "1,500" in out and "most / least" in out


@pytest.mark.parametrize("kernel", ["v5.0", "v5.0-seed", "v5.2"])
def test_step_by_step(root: Path, tmp_path: Path, kernel: str) -> None:
    found = example(root, "step_by_step.py")(["-o", str(tmp_path), "--kernel", kernel])
    assert len(found) == len(list(tmp_path.iterdir())) == 7
    for step in found:
        ElementTree.fromstring(step.svg)
    told = [{event[0] for event in step.events} for step in found]
    assert "get_page" in told[1] and "mark_mmio" in told[3] and "handle_mmio" in told[4]
    assert {"check_mmio", "mark_mmio"} <= told[5] and "prepare_zap" in told[6]


def test_the_notebook_runs(root: Path) -> None:
    book = json.loads((root / "examples" / "step_by_step.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {"HERE": str(root / "examples")}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for cell in book["cells"]:
            assert cell.get("outputs", []) == []
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    assert "the generation wraps" in out.getvalue()
    assert "seed" in repr(names["found"])
