"""What ships with the package to begin with: it is written, read, explained, replayed and compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.trace.text import recordings


def run(*words: str, stdin: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *words],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def test_a_recording_as_text_and_as_a_folder(tmp_path: Path):
    text = run("trace", "sample").stdout
    done = run("trace", "sample", "-o", str(tmp_path / "a"))
    assert done.returncode == 0
    assert [Path(line).name for line in done.stdout.splitlines()] == ["host.json", "ops.jsonl", "trace.txt"]
    assert (tmp_path / "a" / "trace.txt").read_text() == text and text.count("\n") > 1000
    assert json.loads((tmp_path / "a" / "host.json").read_text())["kernel"] == "6.1"


@pytest.mark.parametrize("name", recordings.names())
def test_every_command_reads_it(name: str, tmp_path: Path):
    assert run("trace", "sample", name, "-o", "it", cwd=tmp_path).returncode == 0
    for words in (["summary", "--strict"], ["decode"], ["stalls"], ["replay"], ["export", "--csv", "csv"]):
        done = run("trace", words[0], "it/trace.txt", *words[1:], cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
    assert name in run("trace", "sample", "--list").stdout and recordings.ABOUT[name]


def test_through_a_pipe():
    text = run("trace", "sample").stdout
    done = run("trace", "replay", "-", "--kernel", "v6.1", stdin=text)
    assert done.returncode == 0 and " outputs equal, in order" in done.stdout
    stalls = km.stalls(text.splitlines())
    assert {"create", "delete"} <= {row.name for row in stalls.operations} and stalls.waited_ns > 0


def test_an_unknown_name_is_refused(tmp_path: Path):
    done = run("trace", "sample", "none", "-o", str(tmp_path / "a"))
    assert done.returncode == 2 and done.stderr.startswith("kvm-mmu trace sample: recording 'none': ")
    assert not (tmp_path / "a").exists()


def test_a_scenario(tmp_path: Path):
    text = run("scenario", "sample").stdout
    (tmp_path / "scenario.jsonl").write_text(text)
    ran = run("run", "scenario.jsonl", "--kernel", "v5.2", cwd=tmp_path)
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) == len(text.splitlines())
    compared = run(
        "compare", "-", "--kernel", "v5.0", "--plan", "seed", "--plan", "merged", "--at", "wrap", stdin=text
    )
    assert compared.returncode == 0, compared.stderr
    listed = run("scenario")
    assert listed.returncode == 2 and "\n    sample " in listed.stderr
