"""Broken and hostile traces: every one ends in a clear error with file and line, or is read as if nothing was."""

from __future__ import annotations

import gzip
import lzma
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvm_mmu import reference
from kvm_mmu.errors import KvmMmuError, TraceError
from kvm_mmu.recorders.inputs import read_inputs
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.text import host
from kvm_mmu.trace.text.line import clean_body, lost_events, parse_line
from kvm_mmu.trace.text.source import LINE_MAX, iter_chunks, iter_lines, read_lines

PREFIX = "            init-1     [000] ....     1.0: "
HOST = '# replay-host: {"kernel": "5.0.1", "mmu": "npt", "phys_bits": 40, "initial_efer_nx": 1}'
TRACE = "\n".join(
    [
        HOST,
        f'{PREFIX}tracing_mark_write: OP 0 "op":"create_vm","ram":"0x1000000","huge":0',
        f'{PREFIX}tracing_mark_write: OP 1 "op":"memslot","slot":0,"as":0,"gpa":"0x0","size":"0x1000000","flags":0',
        f'{PREFIX}tracing_mark_write: OP 2 "op":"read8","a":"0x40000000","b":"0x0"',
        f"{PREFIX}kvm_page_fault: address 100000 error_code 6",
        "",
    ]
)


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def predictions(path: Path) -> list[str]:
    return [f"{p.line} {p.event}: {p.body}" for p in replay(path, engine).predictions]


@pytest.fixture
def expected(tmp_path: Path) -> list[str]:
    (tmp_path / "plain.txt").write_text(TRACE)
    return predictions(tmp_path / "plain.txt")


def test_the_trace_of_these_tests_says_something(expected: list[str]):
    assert [text.split(": ")[0] for text in expected] == ["4 kvm_mmu_get_page", *["5 kvm_mmu_get_page"] * 3]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.gz", gzip.compress(TRACE.encode())),
        ("t.xz", lzma.compress(TRACE.encode())),
        ("named_wrongly.txt", lzma.compress(TRACE.encode())),
        ("crlf.txt", TRACE.replace("\n", "\r\n").encode()),
        ("nul.txt", TRACE.replace("error_code 6", "error_code 6\0").encode()),
        ("not_utf8.txt", TRACE.encode() + b"\xff\xfe garbage\n"),
        ("long.txt", TRACE.encode() + b"x" * (10 << 20) + b"\n"),
        (
            "blanks.txt",
            TRACE.encode() + b" " * (10 << 20) + b"[000] 1.0: kvm_page_fault: address 0 error_code 0\n",
        ),
    ],
)
def test_read_as_if_nothing_was(tmp_path: Path, expected: list[str], name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    assert predictions(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello\n", "which kernel made this trace is not known"),
        (HOST.encode() + b"\nhello\n", "nothing to replay"),
        (HOST.replace("40", '"x"').encode(), "t.txt:1: host fact 'phys_bits' must be a number"),
        (b"# replay-host: {", "t.txt:1: not JSON"),
        (b"# replay-host: []", "t.txt:1: host facts must be a JSON object"),
        (HOST.replace("npt", "tdp").encode(), "must be npt, ept or shadow"),
        (TRACE.replace('"huge":0', '"hu').encode(), "t.txt:2: operation marker is not JSON"),
        (
            TRACE.replace('"0x1000000","flags"', '"0xz","flags"').encode(),
            "t.txt:3: operation 'memslot': field 'size'",
        ),
        (TRACE.replace("error_code 6", "error").encode(), "t.txt:5: kvm_page_fault: expected"),
        (TRACE.replace("100000", "1" * 17).encode(), "t.txt:5: kvm_page_fault: expected"),
        (TRACE.encode() + b"CPU:0 [LOST 42 EVENTS]\n", r"t.txt:6: events were lost here \(42\)"),
        (
            "\n".join(TRACE.split("\n")[:1] + TRACE.split("\n")[2:]).encode(),
            "t.txt:2: no create_vm before this line: the recording starts in the middle",
        ),
        (TRACE.replace("read8", 'use_vcpu","n":999,"x":"').encode(), "vCPU number 999: at most"),
        (lzma.compress(TRACE.encode())[:-30], "after line 5: the compressed data end too early"),
        (gzip.compress(TRACE.encode())[:-30], "the compressed data"),
        (lzma.compress(TRACE.encode()[:60] * 9)[:40] + b"junk" * 20, "the compressed data are damaged"),
    ],
)
def test_clear_errors(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(TraceError, match=message):
        replay(tmp_path / "t.txt", engine)


def test_unknown_kernels_are_refused(tmp_path: Path):
    (tmp_path / "t.txt").write_text(TRACE)
    with pytest.raises(KvmMmuError, match=r"v5\.9"):
        replay(tmp_path / "t.txt", engine, kernel="v5.9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "no/such/file"], "no/such/file: cannot be opened"),
        (["replay", "-", "--host", "{"], "--host: not JSON"),
        (["replay", "-", "--host", "no/such/file"], "no/such/file: cannot be read"),
        (["replay"], "FILE"),
        (["strip", "no/such/file"], "no/such/file: cannot be opened"),
        (["strip", "-", "--ops", "no/such/file"], "no/such/file: cannot be opened"),
    ],
)
def test_the_command_exits_with_2_and_one_line(arguments: list[str], message: str):
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "trace", *arguments],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_chunks_have_the_size_asked_for(tmp_path: Path):
    (tmp_path / "t.xz").write_bytes(lzma.compress(TRACE.encode()))
    chunks = list(iter_chunks(tmp_path / "t.xz", 100))
    assert b"".join(chunks) == TRACE.encode() and max(map(len, chunks)) <= 100
    assert read_lines(tmp_path / "t.xz") == TRACE.splitlines()


def test_streamed_lines_are_the_lines(tmp_path: Path):
    (tmp_path / "t.txt").write_bytes(TRACE.encode() * 2000 + b"last\r\ncut")
    assert list(iter_lines(tmp_path / "t.txt")) == read_lines(tmp_path / "t.txt")
    (tmp_path / "long.txt").write_bytes(b"a\n" + b"x" * (10 << 20) + b"\nb\n" + b"y" * (LINE_MAX + 1))
    lines = list(iter_lines(tmp_path / "long.txt"))
    assert [lines[0], lines[2]] == ["a", "b"] and len(lines) == 4
    assert all(len(text) < LINE_MAX + 64 and "(cut: longer" in text for text in (lines[1], lines[3]))


def test_lines():
    line = parse_line(f"{PREFIX}free_roots: (kvm_mmu_free_roots+0x0/0x1c0 [kvm]) mask=0xf")
    assert line is not None and (line.task, line.cpu, line.timestamp, line.event) == (
        "init-1",
        0,
        "1.0",
        "free_roots",
    )
    assert clean_body(line.body) == "mask=0xf"
    assert clean_body("sync\0 new ") == "sync new"
    assert parse_line("# tracer: nop") is None
    assert (lost_events("CPU:0 [LOST 42 EVENTS]"), lost_events("CPU:1 [LOST EVENTS]"), lost_events("x")) == (
        42,
        0,
        None,
    )


@given(st.text(max_size=200), st.integers(0, 200))
def test_any_text_is_read_or_refused(text: str, at: int):
    damaged = TRACE[:at] + text + TRACE[at:]
    try:
        list(read_inputs(damaged.splitlines(), "t"))
        host.parse_facts(damaged.splitlines()[0][len(host.PREFIX) :], "t:1")
    except TraceError as err:
        assert str(err).startswith("t:")
