"""A text read in parts gives what it gives as a whole: by threads, cut anywhere, many lines at once."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvm_mmu import _core
from kvm_mmu.trace.analysis import activity as activity_of
from kvm_mmu.trace.analysis.activity import activity
from kvm_mmu.trace.analysis.explain import INDENT, explainer
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.analysis.summary import summarize
from kvm_mmu.trace.replay.opened import open_recording
from kvm_mmu.trace.replay.stripping import Kept
from kvm_mmu.trace.text.line import parse_line
from kvm_mmu.trace.text.pieces import pieces_of
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
NAMES = ["5.0.1-npt/mmio_gen", "6.12/npt0_multi_vcpu_flat", "6.1/npt1tdp0_multi_vcpu"]
MIXED = "\n".join(
    line for name in NAMES for line in read_lines(TRACES / name / "trace.txt.xz")[:400]
).encode()


@pytest.fixture(scope="module", params=NAMES)
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording with its files, a few times over, as plain text."""
    folder = tmp_path_factory.mktemp("jobs")
    for file in (TRACES / request.param).iterdir():
        if not file.name.startswith("trace.txt"):
            (folder / file.name).write_bytes(file.read_bytes())
    lines = read_lines(TRACES / request.param / "trace.txt.xz")
    (folder / "trace.txt").write_text("\n".join(lines[:6000] * 2), encoding="utf-8")
    return folder / "trace.txt"


def everything(trace: Path, jobs: int) -> str:
    found = activity(trace, jobs=jobs)
    said = [stalls(trace, jobs=jobs).as_json(), summarize(trace, jobs=jobs).as_json()]
    return json.dumps(
        [*said, repr(found.works), repr(list(found.waits)), repr(list(found.runs)), found.events]
    )


def test_threads_do_not_matter(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = everything(recording, 1)
    assert everything(recording, 3) == whole
    for size in (1 << 17, 77_777):
        monkeypatch.setattr(activity_of, "_CHUNK", size)
        assert everything(recording, 2) == whole


def counted(text: bytes, cuts: list[int], threads: int) -> tuple[dict[str, Any], str]:
    reader = _core.TraceReader(columns=True)
    for start, end in pairwise([0, *cuts, len(text)]):
        reader.feed(text[start:end], threads)
    reader.finish()
    tables, timeline = reader.take()
    columns = [timeline, *(table["columns"] for table in tables)]
    shown = [(name, repr(list(column))) for table in columns for name, column in table.items()]
    return reader.summary(), f"{shown} {reader.tasks()}"


@given(st.lists(st.integers(0, len(MIXED)), max_size=4).map(sorted), st.integers(2, 9))
def test_any_cut_reads_the_same(cuts: list[int], threads: int) -> None:
    assert counted(MIXED, cuts, threads) == WHOLE


WHOLE = counted(MIXED, [], 1)


@given(st.lists(st.integers(0, len(MIXED)), max_size=4).map(sorted))
def test_any_cut_gives_the_same_pieces(cuts: list[int]) -> None:
    chunks = [MIXED[start:end] for start, end in pairwise([0, *cuts, len(MIXED)])]
    assert one_by_one(chunks) == list(MIXED.decode().split("\n"))


def one_by_one(chunks: list[bytes]) -> list[str]:
    lines: list[str] = []
    for piece in pieces_of(chunks, {"kvm_page_fault", "mark_mmio_spte"}):
        if isinstance(piece, str):
            lines.append(piece)
        elif len(piece) == 2:
            count, block = piece
            assert block.count(b"\n") == count and block.endswith(b"\n")
            lines += block.decode().split("\n")[:-1]
        else:
            text, task, event, event_at, body_at = piece
            line = parse_line(text)
            assert line is not None
            assert (task, event, event_at, body_at) == (line.task, line.event, line.event_at, line.body_at)
            lines.append(text)
    return lines


def test_what_is_explained_many_lines_at_once_is_what_is_explained_line_by_line(recording: Path) -> None:
    lines = read_lines(recording)
    release = json.loads((recording.parent / "host.json").read_text())["release"]
    name = "v" + ".".join(release.split(".")[:2])
    one = explainer(name)
    expected = "".join(
        chain.from_iterable(
            (f"{text}\n", *(f"{INDENT}{w}\n" for w in words)) for text, words in one.lines(lines)
        )
    )
    data = recording.read_bytes()
    for size in (len(data), 100_001):
        many = explainer(name)
        chunks = [data[start : start + size] for start in range(0, len(data), size)]
        assert "".join(many.written(chunks)) == expected
        assert (many.agreed, many.contradicted, many.unread) == (one.agreed, one.contradicted, one.unread)
        assert many.first_contradiction == one.first_contradiction


@pytest.mark.parametrize("answers", [False, True])
def test_what_is_stripped_many_lines_at_once_is_what_is_stripped_line_by_line(
    recording: Path, answers: bool
) -> None:
    with open_recording(recording, None, answers=answers) as opened:
        expected = "".join(f"{item.text}\n" for item in opened.items() if isinstance(item, Kept))
        assert "".join(opened.stripped_text()) == expected


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "trace", *command], capture_output=True, text=True
    )
    return f"{done.returncode} {done.stdout} {done.stderr}"


def test_the_commands_take_jobs() -> None:
    trace = str(TRACES / NAMES[0] / "trace.txt.xz")
    assert run("stalls", trace, "--jobs", "3", "--json") == run("stalls", trace, "--json")
    assert "expected 1 to 256" in run("summary", trace, "--jobs", "0")
