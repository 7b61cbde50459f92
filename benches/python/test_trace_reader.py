"""Reading ftrace text (`pytest benches/python --benchmark-enable`): counts, columns, and Python's `re` doing the same.

One recording of the tree, repeated to a few megabytes. Measured wall time of our own code; the group's throughput is
bytes of text by the time of a round.
"""

from __future__ import annotations

import lzma
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.trace.text.reader import native_reader

RECORDING = Path(__file__).resolve().parents[2] / "tests/data/traces/6.12/npt1tdp0_reclaim_flat/trace.txt.xz"
REPEATS = 4
CHUNK = 1 << 18
LINE = re.compile(rb"^\s*(.+)-(\d+)\s+\[(\d+)\]\s+\S+\s+(\d+\.\d+): (\w+): (.*)$", re.MULTILINE)
GROUP = "ftrace text"


@pytest.fixture(scope="module")
def text() -> bytes:
    return lzma.decompress(RECORDING.read_bytes()) * REPEATS


def read(text: bytes, *, columns: bool) -> int:
    reader = native_reader(columns=columns)
    for start in range(0, len(text), CHUNK):
        reader.feed(text[start : start + CHUNK])
    reader.finish()
    return sum(reader.summary()["events"].values())


def speeds(rounds: int) -> dict[str, float]:
    """Bytes a second of processor time, the best of some rounds: `make bench`."""
    data = lzma.decompress(RECORDING.read_bytes()) * REPEATS
    ways = {
        "counts": lambda: read(data, columns=False),
        "columns": lambda: read(data, columns=True),
        "re": lambda: count_with_re(data),
    }
    found = {}
    for name, way in ways.items():
        spent = []
        for _ in range(rounds if name != "re" else 1):
            start = time.thread_time()
            way()
            spent.append(time.thread_time() - start)
        found[name] = len(data) / min(spent)
    return found


def count_with_re(text: bytes) -> int:
    return sum(Counter(found[5] for found in LINE.finditer(text)).values())


@pytest.mark.parametrize("way", ["counts", "columns", "re"])
def test_read(benchmark: Any, text: bytes, way: str) -> None:
    benchmark.group = GROUP
    benchmark.extra_info["bytes"] = len(text)
    if way == "re":
        events = benchmark.pedantic(count_with_re, args=(text,), rounds=2)
    else:
        events = benchmark.pedantic(read, args=(text,), kwargs={"columns": way == "columns"}, rounds=5)
    assert events == 24629 * REPEATS
