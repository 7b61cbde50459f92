"""Ways a trace can be broken, for every subcommand that reads one: an error with the line, or read as far as it goes.

One recording, broken in each way; what each subcommand must do with it stands in one table.
"""

from __future__ import annotations

import gzip
import lzma
import re
from pathlib import Path

import pytest
from kvm_mmu.cli import main
from kvm_mmu.trace.text.source import read_lines

FOLDER = Path(__file__).resolve().parent.parent / "data" / "traces" / "6.1" / "npt1tdp0_smm"
LINES = read_lines(FOLDER / "trace.txt.xz")
TEXT = "\n".join(LINES) + "\n"
LONG = "x" * (10 << 20)
AT = 400


def put(text: str) -> bytes:
    """The recording with one more line."""
    return ("\n".join([*LINES[:AT], text, *LINES[AT:]]) + "\n").encode()


BROKEN: dict[str, bytes] = {
    "cut.xz": lzma.compress(TEXT.encode())[:-2000],
    "cut.gz": gzip.compress(TEXT.encode())[:-2000],
    "nul bytes": put("\0" * 500),
    "nul in a line": TEXT.replace("kvm_page_fault: ", "kvm_page_fault: \0", 1).encode(),
    "10 MB line": put(LONG),
    "10 MB event": put(LINES[AT] + LONG),
    "crlf": TEXT.replace("\n", "\r\n").encode(),
    "line cut": "\n".join([*LINES[:AT], LINES[AT][:30], *LINES[AT:]]).encode(),
    "end cut": TEXT.encode()[:-30],
    "cpus": "\n".join(text.replace("[000]", f"[{n % 4:03}]") for n, text in enumerate(LINES)).encode(),
    "lost": put("CPU:0 [LOST 42 EVENTS]"),
    "any bytes": bytes(range(256)) * 1000,
}
COMMANDS = {
    "summary": ["summary", "FILE"],
    "strict": ["summary", "FILE", "--strict"],
    "decode": ["decode", "FILE"],
    "stalls": ["stalls", "FILE"],
    "strip": ["strip", "FILE"],
    "replay": ["replay", "FILE"],
    "emit": ["replay", "FILE", "--emit"],
    "chrome": ["export", "FILE", "--chrome", "OUT"],
    "csv": ["export", "FILE", "--csv", "OUT"],
}
CUT = r": after line [1-9]\d*: the compressed data end too early"
#: What ends in an error, and which; everything else is read to its end.
ERRORS: dict[tuple[str, str], str] = {
    **{(name, command): CUT for name in ("cut.xz", "cut.gz") for command in COMMANDS},
    ("nul in a line", "strict"): r":\d+: not understood: .*kvm_page_fault",
    ("10 MB line", "strict"): rf":{AT + 1}: not understood: 'a line longer than 1 MiB' \(1 such",
    ("10 MB event", "strict"): rf":{AT + 1}: not understood: 'a line longer than 1 MiB' \(1 such",
    ("line cut", "strict"): rf":{AT + 1}: not understood: ",
    ("end cut", "strict"): rf":{len(LINES)}: not understood: ",
    ("lost", "replay"): rf":{AT + 1}: events were lost here \(42\): not replayable",
    ("lost", "emit"): rf":{AT + 1}: events were lost here \(42\): not replayable",
    **{
        ("any bytes", command): "no event in it: expected ftrace text"
        for command in ("summary", "strict", "stalls")
    },
    ("any bytes", "replay"): "nothing to replay",
    ("any bytes", "emit"): "nothing to replay",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("broken")
    for name in ("host.json", "ops.jsonl.xz"):
        (found / name).write_bytes((FOLDER / name).read_bytes())
    for name, content in BROKEN.items():
        (found / name).write_bytes(content)
    (found / "whole").write_text(TEXT)
    return found


def run(folder: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    out = folder / f"{command}.out"
    words = [{"FILE": str(folder / name), "OUT": str(out)}.get(word, word) for word in COMMANDS[command]]
    status = main(["trace", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("name", sorted(BROKEN))
def test_each(folder: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]):
    status, _, err = run(folder, name, command, capsys)
    expected = ERRORS.get((name, command))
    if expected is None:
        assert status == 0, err
        return
    assert status == 2 and len(err.splitlines()) == 1
    assert re.search(re.escape(str(folder / name)) + r".*" + expected, err), err


@pytest.mark.parametrize("name", ["crlf", "cpus", "nul bytes", "10 MB line", "line cut"])
def test_predictions_are_those_of_the_whole(folder: Path, name: str, capsys: pytest.CaptureFixture[str]):
    bodies = []
    for one in ("whole", name):
        status, out, _ = run(folder, one, "emit", capsys)
        assert status == 0
        bodies.append([text.split(" ", 1)[1] for text in out.splitlines()])
    assert bodies[0] == bodies[1] and len(bodies[0]) > 400


def test_what_a_summary_counts(folder: Path, capsys: pytest.CaptureFixture[str]):
    said = {name: run(folder, name, "summary", capsys)[1] for name in BROKEN if not name.startswith("cut")}
    assert "1 line longer than 1 MiB was skipped" in said["10 MB line"]
    assert "events were lost at 1 place (42 as far as the trace says)" in said["lost"]
    for name in ("crlf", "cpus", "nul bytes", "lost"):
        assert "  0 lines not understood" in said[name]
    assert "  1 line not understood" in said["line cut"] and "  1 line not understood" in said["end cut"]
