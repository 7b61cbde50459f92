"""A search that is stopped keeps what is complete, and gone on with it ends as one that was never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kvm_mmu import UsageError
from kvm_mmu.check import WORLDS, check
from kvm_mmu.check.engine import Subject
from kvm_mmu.check.search import Result
from kvm_mmu.cli import main


def facts(result: Result) -> tuple[object, ...]:
    """What must not depend on stops."""
    found = [(finding.name, finding.detail, finding.path) for finding in result.found]
    return (
        result.verdict,
        result.transitions,
        result.depth,
        result.closed,
        found,
        dict(result.goals),
        dict(result.premises),
    )


def stop_at(depth: int) -> object:
    """A progress that is interrupted once a level is complete."""

    def progress(line: str) -> None:
        if f" depth {depth}:" in line or " steps, " in line:
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_keeps_what_is_complete(tmp_path: Path) -> None:
    whole = check(Subject("v6.12"), WORLDS["W2"])
    stopped = check(Subject("v6.12"), WORLDS["W2"], folder=tmp_path, progress=stop_at(6))  # type: ignore[arg-type]
    assert (stopped.is_interrupted, stopped.depth, stopped.verdict) == (True, 6, "not judged")
    assert facts(check(Subject("v6.12"), WORLDS["W2"], folder=tmp_path)) == facts(whole)


def test_ctrl_c_keeps_what_was_found(tmp_path: Path) -> None:
    """With --all the search goes on after the first violation, which is not lost."""
    whole = check(Subject("v5.2"), WORLDS["W4"], depth=6, keep=True)
    stopped = check(
        Subject("v5.2"),
        WORLDS["W4"],
        depth=6,
        keep=True,
        folder=tmp_path,
        progress=stop_at(4),  # type: ignore[arg-type]
    )
    assert stopped.is_interrupted and stopped.verdict == "violation"
    resumed = check(Subject("v5.2"), WORLDS["W4"], depth=6, keep=True, folder=tmp_path)
    assert facts(resumed) == facts(whole) and len(resumed.found) > len(stopped.found)
    # Without --all there is nothing to go on with.
    assert check(Subject("v5.2"), WORLDS["W4"], depth=6, folder=tmp_path).found == resumed.found


def test_a_random_search_goes_on(tmp_path: Path) -> None:
    whole = check(Subject("v6.12"), WORLDS["W4"], steps=250_000, seed=5)
    stopped = check(
        Subject("v6.12"),
        WORLDS["W4"],
        steps=250_000,
        seed=5,
        folder=tmp_path,
        progress=stop_at(0),  # type: ignore[arg-type]
    )
    assert stopped.is_interrupted and 0 < stopped.transitions < whole.transitions
    resumed = check(Subject("v6.12"), WORLDS["W4"], steps=250_000, seed=5, folder=tmp_path)
    assert facts(resumed) == facts(whole) and resumed.states == whole.states


def test_killed_between_any_two_files(tmp_path: Path) -> None:
    """The level file names the states file, and comes after it: what is half written beside them does not count."""
    folder = tmp_path / "whole"
    check(Subject("v6.12"), WORLDS["W2"], depth=5, folder=folder)
    level = json.loads((folder / "level.json").read_text(encoding="utf-8"))
    states = (folder / level["states"]).read_bytes()
    whole = facts(check(Subject("v6.12"), WORLDS["W2"]))
    for number, length in enumerate((0, 1, len(states) // 2, len(states))):
        killed = tmp_path / f"killed-{number}"
        shutil.copytree(folder, killed)
        (killed / "states-6.bin").write_bytes(states[:length])
        (killed / "level.json.tmp").write_bytes(b'{"depth": 6'[:length])
        assert facts(check(Subject("v6.12"), WORLDS["W2"], folder=killed)) == whole


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    check(Subject("v6.12"), WORLDS["W2"], depth=5, folder=tmp_path)
    level = json.loads((tmp_path / "level.json").read_text(encoding="utf-8"))
    file = tmp_path / level["states"]
    states = file.read_bytes()
    for damaged in (states[:-1], states[:-1] + bytes([states[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with pytest.raises(UsageError, match=level["states"]):
            check(Subject("v6.12"), WORLDS["W2"], folder=tmp_path)
    file.unlink()
    with pytest.raises(UsageError, match=level["states"]):
        check(Subject("v6.12"), WORLDS["W2"], folder=tmp_path)
    (tmp_path / "level.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"level\.json"):
        check(Subject("v6.12"), WORLDS["W2"], folder=tmp_path)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_signal_from_outside(
    tmp_path: Path, sent: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process is stopped in the middle of a level; the command gives what it gives when nobody stops it."""
    if sent is signal.SIGKILL and not os.environ.get("KVM_MMU_SOAK"):
        pytest.skip("a second process of the same kind: with KVM_MMU_SOAK=1")
    arguments = ["check", "--kernel", "v6.12", "--world", "S2", "--resume", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "kvm_mmu", *arguments, "--depth", "30"], stdout=subprocess.PIPE, text=True
    ) as searching:
        deadline = time.monotonic() + 120
        while not (tmp_path / "level.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        searching.send_signal(sent)
        said, _ = searching.communicate(timeout=120)
        assert searching.returncode == (130 if sent is signal.SIGINT else -signal.SIGKILL)
        assert ("interrupted" in said) == (sent is signal.SIGINT)
    reached = json.loads((tmp_path / "level.json").read_text(encoding="utf-8"))["depth"]
    capsys.readouterr()
    assert main([*arguments, "--depth", str(reached + 1), "--json"]) in (0, 3)
    resumed = json.loads(capsys.readouterr().out)["results"][0]
    whole = check(Subject("v6.12"), WORLDS["S2"], depth=reached + 1)
    assert (resumed["states"], resumed["transitions"]) == (whole.states, whole.transitions)
    assert resumed["goals"] == dict(whole.goals) and resumed["premises"] == dict(whole.premises)
