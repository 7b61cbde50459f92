"""Memory does not grow with a trace: peaks of the command on a recording, on many copies of it, and on bombs.

Measured is the largest resident set of a process of its own. The copies make one trace of many VMs; what is compared
is the peak with few and with many copies, so that no number of megabytes of an interpreter stands here.
"""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
SOAK = os.environ.get("KVM_MMU_SOAK", "") not in ("", "0")
MIB = 1 << 20
#: What two runs of the same work may differ by, with batches of columns and pieces of text in them.
NOISE = 24 * MIB
BOMB = (1 << 30) if SOAK else (96 * MIB)
RECORDING = "6.1/npt1tdp0_dirty_log"


def peak(arguments: list[str], statuses: tuple[int, ...] = (0,)) -> int:
    """Bytes of memory that `kvm-mmu trace ARGUMENTS` needed at most."""
    child = subprocess.Popen(
        [sys.executable, "-m", "kvm_mmu", "trace", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    assert child.returncode in statuses and "Traceback" not in said, said
    return used.ru_maxrss * 1024


def copies(folder: Path, name: str, nr: int) -> Path:
    """A recording so many times in one file, with its host facts beside it."""
    source, target = TRACES / name, folder / f"{nr}"
    target.mkdir()
    text = "\n".join(read_lines(source / "trace.txt.xz")) + "\n"
    with (target / "trace.txt").open("w") as file:
        for _ in range(nr):
            file.write(text)
    (target / "host.json").write_text((source / "host.json").read_text())
    return target / "trace.txt"


@pytest.fixture(scope="module")
def few_and_many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A few and many copies: 1.5 and 15 MiB of text."""
    folder = tmp_path_factory.mktemp("copies")
    return copies(folder, RECORDING, 10), copies(folder, RECORDING, 100)


COMMANDS = {
    "summary": (["summary"], []),
    "strip": (["strip"], []),
    "decode": (["decode"], []),
    "replay": (["replay"], []),
    "emit": (["replay"], ["--emit"]),
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_ten_times_the_trace_needs_the_same_memory(few_and_many: tuple[Path, Path], command: str):
    before, behind = COMMANDS[command]
    few, many = (peak([*before, str(path), *behind]) for path in few_and_many)
    assert many - few < NOISE, f"{few / MIB:.0f} MiB, then {many / MIB:.0f} MiB"


def zeros(piece: bytes) -> Iterator[bytes]:
    for _ in range(BOMB // len(piece)):
        yield piece


@pytest.fixture(scope="module", params=["xz", "gz"])
def bomb(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One character, over and over: one line, compressed a thousandfold."""
    path = tmp_path_factory.mktemp("bomb") / f"bomb.{request.param}"
    with lzma.open(path, "wb") if request.param == "xz" else gzip.open(path, "wb", 1) as file:
        for piece in zeros(b"x" * MIB):
            file.write(piece)
    assert path.stat().st_size < BOMB // 100
    return path


HOST = '{"kernel": "6.1", "mmu": "npt"}'


@pytest.mark.parametrize(
    ("arguments", "statuses"),
    [
        (["summary"], (2,)),  # no event in it
        (["stalls"], (2,)),
        (["strip", "--host", HOST], (0,)),
        (["decode", "--kernel", "6.1"], (0,)),
        (["replay", "--host", HOST], (2,)),  # nothing to replay
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bomb_of_one_line(bomb: Path, arguments: list[str], statuses: tuple[int, ...], tmp_path: Path):
    (tmp_path / "small.txt").write_text("x\n")
    small = peak([arguments[0], str(tmp_path / "small.txt"), *arguments[1:]], statuses)
    grown = peak([arguments[0], str(bomb), *arguments[1:]], statuses) - small
    assert grown < 40 * MIB, f"{grown / MIB:.0f} MiB more for a bomb"
