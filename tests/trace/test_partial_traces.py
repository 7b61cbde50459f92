"""A recording of which a part is missing: every command that counts or compares says which part.

The ring buffer overwrote the oldest events, the text was cut, or the VM was there before the recording.
"""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
OF_5X, OF_6X = TRACES / "5.0.1-npt" / "basic", TRACES / "6.1" / "npt1tdp0_multi_vcpu"


def run(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *words], input=stdin, capture_output=True, text=True, check=False
    )


def copy_of(recording: Path, folder: Path, text: str | None = None) -> Path:
    """The recording in a folder of its own, with another text."""
    for path in recording.iterdir():
        if not path.name.startswith("trace."):
            (folder / path.name).write_bytes(path.read_bytes())
    copy = folder / "trace.txt"
    copy.write_text(text_of(recording) if text is None else text)
    return copy


def text_of(recording: Path) -> str:
    return lzma.open(recording / "trace.txt.xz", "rt").read()


def entries_of(text: str) -> int:
    return sum(not line.startswith("#") for line in text.splitlines())


def overwritten(recording: Path, folder: Path) -> Path:
    text = text_of(recording)
    held = entries_of(text)
    return copy_of(recording, folder, text.replace(f": {held}/{held} ", f": {held}/{held + 48838} ")).parent


@pytest.mark.parametrize("recording", [OF_5X, OF_6X])
def test_overwritten_events_are_said(recording: Path, tmp_path: Path):
    trace = str(overwritten(recording, tmp_path) / "trace.txt")
    held = entries_of(text_of(recording))
    said = f"the ring buffer overwrote 48838 of {held + 48838} events: the oldest are missing"
    assert f"  {said}" in run("trace", "summary", trace).stdout
    found = json.loads(run("trace", "summary", trace, "--json").stdout)
    assert found["buffer"] == {"in_buffer": held, "written": held + 48838, "in_text": held}
    assert said in found["missing"][0] and len(found["missing"]) == 1
    assert f"  note: {said}" in run("trace", "stalls", trace).stdout
    assert f"  note: {said}" in run("trace", "stalls", "-", stdin=Path(trace).read_text()).stdout
    replay = run("trace", "replay", trace)
    assert replay.returncode == 0 and f"  note: {said}" in replay.stdout
    assert said in json.loads(run("trace", "replay", trace, "--json").stdout)["notes"][0]
    stripped = tmp_path / "stripped.txt"
    stripped.write_text(run("trace", "strip", trace).stdout)
    emitted = run("trace", "replay", str(stripped), "--emit", "--kernel", recording.parent.name[:3])
    assert emitted.returncode == 0 and said in emitted.stderr and "cut off" not in emitted.stderr


@pytest.mark.parametrize("recording", [OF_5X, OF_6X])
def test_a_cut_text_is_said(recording: Path, tmp_path: Path):
    text = text_of(recording)
    held = entries_of(text)
    lines = text.splitlines(keepends=True)
    trace = str(copy_of(recording, tmp_path, "".join(lines[: len(lines) * 2 // 3])))
    left = entries_of(Path(trace).read_text())
    said = f"the text has {left} of the {held} events its header tells of"
    assert said in run("trace", "summary", "-", stdin=Path(trace).read_text()).stdout
    assert said in run("trace", "stalls", trace).stdout
    report = json.loads(run("trace", "replay", trace, "--json").stdout)
    assert said in report["notes"][0]


@pytest.mark.parametrize("recording", [OF_5X, OF_6X])
def test_a_whole_text_has_no_notes(recording: Path):
    trace = str(recording / "trace.txt.xz")
    assert json.loads(run("trace", "summary", trace, "--json").stdout)["missing"] == []
    assert json.loads(run("trace", "replay", trace, "--json").stdout)["notes"] == []


@pytest.mark.parametrize("kernel", ["5.0", "v5.0.1", "5.0.1", "5.0.1-generic"])
def test_a_replay_takes_the_names_that_other_commands_take(kernel: str):
    done = run("trace", "replay", str(OF_5X / "trace.txt.xz"), "--kernel", kernel)
    assert done.returncode == 0 and "kernel v5.0\n" in done.stdout


def test_the_seed_is_a_kernel_of_its_own():
    done = run("trace", "replay", str(OF_5X / "trace.txt.xz"), "--kernel", "seed")
    assert done.stdout.splitlines()[0].endswith("kernel v5.0-seed")


def without_its_beginning(recording: Path, folder: Path) -> Path:
    """From the first fault on, as a ring buffer has it that overwrote what was before."""
    lines = text_of(recording).splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if ": kvm_page_fault:" in line)
    trace = copy_of(recording, folder, "".join(line for line in lines[:first] if line.startswith("#")))
    with trace.open("a") as file:
        file.writelines(lines[first:])
    (folder / "ops.jsonl.xz").unlink(missing_ok=True)
    return trace


def test_a_replay_from_the_middle_of_a_vm_says_so(tmp_path: Path):
    trace = without_its_beginning(OF_6X, tmp_path)
    first = next(i for i, line in enumerate(trace.read_text().splitlines(), 1) if not line.startswith("#"))
    said = f"no create_vm before line {first}: the recording starts in the middle of a VM"
    done = run("trace", "replay", str(trace))
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == f"  note: {said}"
    done = run("trace", "replay", str(trace), "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and not report["equal"] and said in report["notes"]


def test_a_5x_replay_from_the_middle_of_a_vm_says_so(tmp_path: Path):
    trace = without_its_beginning(OF_5X, tmp_path)
    done = run("trace", "replay", str(trace))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "no create_vm before this line: the recording starts in the middle of a VM; the text has"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("recording", "fact", "value", "said"),
    [
        (OF_5X, "mmu", "ept", "recordings of EPT before v5.10 cannot be replayed"),
        (OF_5X, "kernel", "4.19.1", "kernel 'v4.19'"),
    ],
)
def test_a_refusal_names_who_says_so_and_what_else_to_do(
    recording: Path, fact: str, value: object, said: str, tmp_path: Path
):
    trace, facts = copy_of(recording, tmp_path), tmp_path / "host.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), fact: value}))
    done = run("trace", "replay", str(trace))
    assert done.returncode == 2 and done.stderr.startswith(f"kvm-mmu trace replay: {trace}: ")
    assert said in done.stderr and f"({facts} says so)" in done.stderr and "stalls" in done.stderr
    if fact != "kernel":
        done = run("trace", "replay", str(trace), "--host", json.dumps({fact: value}))
        assert said in done.stderr and "says so" not in done.stderr


def test_assumed_is_what_nothing_says(tmp_path: Path):
    trace = copy_of(OF_5X, tmp_path)
    (tmp_path / "host.json").write_text('{"kernel": "5.0.1"}')
    done = run("trace", "replay", str(trace)).stdout
    assert "  inferred: mmu = npt (shown by the trace)\n" in done
    assert "  assumed: phys_bits = 40 (not in the trace)\n" in done
    found = json.loads(run("trace", "replay", str(trace), "--json").stdout)
    assert (
        "phys_bits" in found["assumed"]
        and "mmu" not in found["assumed"]
        and found["inferred"]["mmu"] == "npt"
    )
