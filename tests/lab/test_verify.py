"""`verify`: a file is equal when it says everything and all of it is so; what it lacks is a difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kvm_mmu.cli import main
from kvm_mmu.scenario.language import Scenario, run_scenario
from kvm_mmu.scenario.verify import verify_file

SLOT = {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 1 << 20, "hva": 1 << 33, "flags": 0}
OPS = [SLOT, {"op": "access", "gpa": 0x1000, "kind": "w"}, {"op": "get_dirty_log", "as": 0, "id": 0}]


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, list[dict[str, object]]]:
    scenario = Scenario(kernel="v5.2", config={"family": "npt"}, ops=OPS, lines=[2, 3, 4])
    return tmp_path / "results.jsonl", json.loads(json.dumps(list(run_scenario(scenario))))


def write(path: Path, lines: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_equal(results: tuple[Path, list[dict[str, object]]]) -> None:
    path, lines = results
    assert verify_file(write(path, lines)).equal
    for line in lines[1:]:
        line.pop("state", None)
    assert verify_file(write(path, lines)).equal, "the digest covers the state"


@pytest.mark.parametrize("key", ["ret", "events", "ctr", "digest", "out"])
def test_a_result_that_is_not_there_is_a_difference(
    results: tuple[Path, list[dict[str, object]]], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, lines = results
    del lines[2][key]
    assert main(["verify", write(path, lines)]) == 1
    assert f"operation 1 (access) {key}: expected nothing, got" in capsys.readouterr().out


def test_other_masks_are_a_difference(
    results: tuple[Path, list[dict[str, object]]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, lines = results
    lines[0]["masks"]["user"] = "0x8"  # type: ignore[index]
    assert main(["verify", write(path, lines)]) == 1
    assert "header masks.user: expected 8, got 4" in capsys.readouterr().out
    lines[0]["masks"] = 7
    assert main(["verify", write(path, lines)]) == 2
    said = capsys.readouterr()
    assert "results.jsonl:1: masks is not an object" in said.err and said.out == ""


def test_a_scenario_without_results_is_not_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "scenario.jsonl", [{"scenario": "s", "format": 1, "variant": "v5.2"}, {"op": SLOT}]
    )
    assert main(["verify", path]) == 1
    assert "expected a recorded result" in capsys.readouterr().out
