"""What the commands on recordings say of a wrong call: which command it was, what would be right, who said what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kvm_mmu.trace.text.markers import number
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
UPDATES = TRACES / "6.1" / "npt1tdp0_multi_vcpu" / "trace.txt.xz"


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *words], input=stdin, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["summary", "decode", "stalls", "replay", "strip"])
def test_an_error_names_the_command(command: str):
    done = run("trace", command, "nowhere.txt")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"kvm-mmu trace {command}: nowhere.txt: ")


def test_an_option_that_is_none_of_its_own_names_the_command_too():
    done = run("trace", "strip", "nowhere.txt", "--kernel", "v5.0\x1b[31m")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kvm-mmu trace strip: unrecognized arguments: --kernel v5.0\\x1b[31m\n"


def test_trace_alone_lists_its_commands():
    done = run("trace")
    assert (done.returncode, done.stdout) == (2, "")
    for command in ("summary", "decode", "stalls", "export", "kit", "replay", "diff"):
        assert f"\n    {command} " in done.stderr


def test_a_wrong_kernel_is_blamed_on_who_said_it():
    given = run("trace", "replay", str(UPDATES), "--host", '{"kernel": "x"}')
    assert given.returncode == 2 and "kernel 'x' (the given host facts say so): replay knows" in given.stderr
    chosen = run("trace", "replay", str(UPDATES), "--kernel", "x")
    assert chosen.returncode == 2 and "kernel 'x': replay knows" in chosen.stderr


def test_short_markers_without_their_text_name_the_option():
    folder = TRACES / "6.12" / "npt1tdp0_memslot_churn_big"
    text = "\n".join(read_lines(folder / "trace.txt.xz"))
    done = run("trace", "replay", "-", "--host", str(folder / "host.json"), stdin=text)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no field 'id'" in done.stderr and "(--ops)" in done.stderr
    assert number({"op": "x"}, "n", "here", 7) == 7


@pytest.mark.parametrize("is_shown", [True, False])
def test_shown_is_inferred_and_the_rest_is_assumed(is_shown: bool):
    lines = read_lines(UPDATES) if is_shown else ["     a-1 [000] ..... 1.0: kvm_entry: vcpu 0, rip 0x1"]
    done = run("trace", "decode", "-", "--kernel", "v6.1", stdin="\n".join(lines))
    expected = "inferred: family = npt (shown by" if is_shown else "assumed: family = npt (not in"
    assert f"kvm-mmu trace decode: {expected} the trace)" in done.stderr
