"""Control characters of an input are shown, never passed on: in reports, errors, progress, to terminals."""

from __future__ import annotations

import json
import lzma
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from kvm_mmu.cli import main
from kvm_mmu.errors import KvmMmuError, MemslotError, TraceError
from kvm_mmu.lab.compare import compare
from kvm_mmu.scenario.language import read_scenario
from kvm_mmu.terminal import escaped, one_line
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.analysis.summary import summarize
from kvm_mmu.trace.text.source import read_lines
from kvm_mmu.view.tables import text_table

TRACES = Path(__file__).parents[1] / "data" / "traces"
#: Red, a window title, the bell, backspace, a carriage return, the eight-bit start of a sequence, text in reverse.
EVIL = "\x1b[31mEV\x1b]0;pwn\x07\x08\r\x9b31m\u202e"
SHOWN = r"\x1b[31mEV\x1b]0;pwn\x07\x08\x0d\x9b31m\u202e"
NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MAIN = [sys.executable, "-m", "kvm_mmu"]


def clean(text: str) -> bool:
    return NOT_PRINTABLE.search(text) is None


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording whose task, lines that nobody understands and file name are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    source = TRACES / "6.12" / "npt1tdp0_reclaim_flat"
    text = lzma.decompress((source / "trace.txt.xz").read_bytes()).decode()
    task = re.search(r"^ *(\S+)-\d+ +\[", text, re.MULTILINE)
    assert task is not None
    lines = text.replace(task[1], EVIL.replace("\r", "")).splitlines(keepends=True)
    lines.insert(40, f" {EVIL}-1 [000] nonsense {EVIL}\n")
    path = folder / f"t{EVIL}.txt"
    path.write_bytes("".join(lines).encode())
    for name in ("host.json", "ops.jsonl.xz"):
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())
    return path


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / f"s{EVIL}.jsonl"
    ops = [
        {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 1 << 21, "hva": 1 << 33, "flags": 0},
        {"op": "access", "vcpu": 0, "gpa": 0, "kind": "w"},
    ]
    head = {"scenario": EVIL, "variant": "v5.0", "config": {"family": "npt"}}
    path.write_text("\n".join(json.dumps(line) for line in [head, *({"op": op} for op in ops)]))
    return path


def test_what_is_shown() -> None:
    assert escaped(f"a\tb\n{EVIL}\x7f\ud800") == f"a\tb\n{SHOWN}\\x7f\\ud800"
    assert one_line("a\tb\nc") == r"a\x09b\x0ac"
    plain = "gfn 0x1000, äöü, 漢字, \\x1b as text"
    assert escaped(plain) == one_line(plain) == plain


def test_reports_of_the_command_line(
    trace: Path, scenario: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = {}
    for words in (
        ["trace", "summary", str(trace)],
        ["trace", "stalls", str(trace)],
        ["trace", "replay", str(trace)],
        ["trace", "replay", str(trace), "--emit"],
        ["trace", "decode", str(trace), "--kernel", EVIL],
        ["trace", "export", str(trace), "--csv", str(tmp_path / EVIL)],
        ["trace", EVIL],
        ["compare", str(scenario), "--plan", "seed", "--at", "wrap", "-o", str(tmp_path / f"c{EVIL}")],
        ["compare", str(scenario), "--plan", f"walk=active,only=all,{EVIL}"],
        ["run", str(scenario), "--kernel", EVIL],
        ["verify", str(scenario)],
        ["run", EVIL],
        ["verify", EVIL],
        [EVIL],
        ["run", "x", EVIL],
    ):
        with suppress(SystemExit):
            main(words)
        out, err = capfd.readouterr()
        assert clean(out) and clean(err), words
        said[" ".join(words)] = out + err
    assert [
        words for words, text in said.items() if r"\x1b[31mEV" not in text and "--emit" not in words
    ] == []


def test_an_error_stays_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", str(tmp_path / "a\nkvm-mmu run: fine")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_reports_from_python(trace: Path, scenario: Path) -> None:
    texts = [summarize(trace).as_text(), stalls(read_lines(trace), str(trace)).as_text()]
    read = read_scenario(scenario)
    found = compare(read, ["seed"], at="wrap")
    texts += [repr(read), found.to_text(), str(found), text_table({EVIL: [EVIL, "a\nb"]})]
    texts += [str(TraceError(EVIL)), str(MemslotError(22, EVIL))]
    with pytest.raises(KvmMmuError) as caught:
        read_scenario(EVIL)
    texts.append(str(caught.value))
    assert [text for text in texts if not clean(text)] == []
    assert all(SHOWN.partition("]")[0] in text for text in texts)


def in_a_terminal(words: list[str]) -> str:
    """Run with stdout, and only that, on a pseudo terminal."""
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen([*MAIN, *words], stdout=theirs, stderr=subprocess.DEVNULL)
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            found += part
        assert child.wait() in (0, 1)
    finally:
        os.close(ours)
    return found.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("command", ["decode", "strip"])
def test_a_trace_passes_untouched_except_to_a_terminal(command: str, trace: Path, tmp_path: Path) -> None:
    words = ["trace", command, str(trace)]
    piped = subprocess.run([*MAIN, *words], capture_output=True, check=False).stdout.decode()
    with (tmp_path / "out").open("wb") as stream:
        subprocess.run([*MAIN, *words], stdout=stream, stderr=subprocess.DEVNULL, check=False)
    assert "\x1b[31mEV\x1b]0;pwn\x07" in piped and (tmp_path / "out").read_bytes().decode() == piped
    seen = in_a_terminal(words)
    assert clean(seen) and seen == escaped(piped)


def test_progress(
    scenario: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["compare", str(scenario), "--plan", "seed", "--at", "wrap"]) in (0, 1)
    lines = capsys.readouterr().err.split("\r\x1b[K")
    assert len(lines) > 2 and all(clean(line) for line in lines)
    assert any(SHOWN in line for line in lines)


def test_json_stays_json(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "del.jsonl"
    path.write_text(scenario.read_text().replace(json.dumps(EVIL), json.dumps(EVIL + "\x7f"), 1))
    main(["compare", str(path), "--plan", "seed", "--at", "wrap", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"][0]["input"] == EVIL + "\x7f"
    main(["run", str(path)])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["scenario"] == EVIL + "\x7f"
