"""Reading ahead in a thread: the same pieces in order, errors in their turn, no thread left behind."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import pytest
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.text.ahead import PIECES, read_ahead
from kvm_mmu.trace.text.source import iter_chunks

NAME = "kvm-mmu-unpack"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == NAME]


def test_pieces_come_in_order_and_the_error_behind_them():
    pieces = [bytes([at]) for at in range(100)]

    def read(_: int) -> bytes:
        if not pieces:
            raise EOFError("cut")
        return pieces.pop(0)

    found = []
    with pytest.raises(EOFError, match="cut"):
        for piece in read_ahead(read, 1):
            found.append(piece[0])
    assert found == list(range(100))
    assert not threads()


def test_a_reader_that_stops_leaves_no_thread_and_little_read():
    given = 0

    def read(_: int) -> bytes:
        nonlocal given
        given += 1
        return b"x"

    ahead = read_ahead(read, 1)
    assert next(ahead) == b"x"
    assert threads()
    ahead.close()
    assert not threads()
    assert given <= PIECES + 3


def test_a_cut_file_says_after_how_many_lines(tmp_path: Path):
    whole = gzip.compress(b"".join(b"line %d of a trace\n" % at for at in range(100_000)))
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    read = 0
    with pytest.raises(TraceError, match=r"after line \d+: the compressed data end too early") as err:
        for chunk in iter_chunks(tmp_path / "cut.gz"):
            read += chunk.count(b"\n")
    assert f"after line {read}:" in str(err.value)
    assert read > 1000
