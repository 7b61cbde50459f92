"""Replay of recordings, lines a second: in a lane of the core and the slow way, which goes line by line in Python.

Recordings of the tree, unpacked beforehand, whole replays from the path to the report; processor time of one thread.
A short recording pays for what is done once (about 2 ms); the long ones show what a line costs. The slow way is
measured once.
"""

from __future__ import annotations

import lzma
import shutil
import tempfile
import time
from pathlib import Path

from kvm_mmu.trace.replay.replaying import replay

DATA = Path(__file__).resolve().parents[2] / "tests/data/traces"
RECORDINGS = (
    "6.1/npt1tdp0_wrap_flags",
    "6.12/npt1tdp0_memslot_churn_big",
    "6.12/npt1tdp0_reclaim_flat",
    "6.12/npt1tdp0_mmio_generation_100",
    "6.1/npt1tdp0_notifier",
    "5.0.1-npt/mix001",
    "5.2.1-npt/mmio_gen",
)


def speeds(rounds: int) -> dict[str, dict[str, float]]:
    """Recording -> its lines, and lines a second in the lane and the slow way; the best of some rounds."""
    found = {}
    for name in RECORDINGS:
        with tempfile.TemporaryDirectory(prefix="kvm-mmu-bench-") as folder:
            trace = unpacked(DATA / name, Path(folder))
            lines = trace.read_bytes().count(b"\n")
            lane = min(seconds(trace, keep=False) for _ in range(rounds))
            slow = seconds(trace, keep=True)
            found[name] = {"lines": lines, "lane": lines / lane, "slow": lines / slow}
    return found


def seconds(trace: Path, *, keep: bool) -> float:
    """One replay; it must be equal."""
    start = time.thread_time()
    report = replay(trace, keep=keep)
    spent = time.thread_time() - start
    assert report.is_equal, report.as_text()
    return spent


def unpacked(recording: Path, folder: Path) -> Path:
    """The recording with its files, the text as plain text."""
    for file in recording.iterdir():
        if file.name.startswith("trace.txt"):
            data = file.read_bytes()
            (folder / "trace.txt").write_bytes(lzma.decompress(data) if file.suffix == ".xz" else data)
        else:
            shutil.copy(file, folder)
    return folder / "trace.txt"
