"""Opening a trace: plain text, `.gz`, `.xz` or stdin, as bytes or as numbered lines.

Owns: finding out the compression (by its first bytes, not by the name), and turning every way a file can be
broken into one `TraceError` that names the file and how far it could be read. Knows nothing of events.
"""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from kvm_mmu.errors import TraceError

STDIN = "-"
#: A line's length that is read whole where lines are streamed, in bytes.
LINE_MAX = 1 << 20
_MAGIC: tuple[tuple[bytes, str], ...] = ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\x00", "xz"))
_BROKEN = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


def display_name(path: str | Path) -> str:
    """How messages call this input."""
    return "<stdin>" if str(path) == STDIN else str(path)


@contextmanager
def open_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a trace; `-` is stdin.

    Raises:
        TraceError: the file cannot be opened.
    """
    with ExitStack() as files:
        raw: BinaryIO
        if str(path) == STDIN:
            raw = sys.stdin.buffer
        else:
            try:
                raw = files.enter_context(Path(path).open("rb"))
            except OSError as err:
                raise TraceError(f"{path}: cannot be opened: {err.strerror or err}") from err
        buffered = cast(io.BufferedReader, raw)
        try:
            head = buffered.peek(8)
        except OSError as err:
            raise TraceError(f"{display_name(path)}: cannot be read: {err.strerror or err}") from err
        for magic, kind in _MAGIC:
            if head.startswith(magic):
                unpacked = gzip.open(buffered) if kind == "gzip" else lzma.open(buffered)  # noqa: SIM115
                yield cast(IO[bytes], files.enter_context(unpacked))
                return
        yield buffered


def iter_chunks(path: str | Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The decompressed bytes in pieces of at most `size` bytes; memory does not grow with the file.

    Raises:
        TraceError: the file is damaged or cut; the message says after how many lines.
    """
    lines = 0
    with open_bytes(path) as stream:
        while True:
            try:
                chunk = stream.read(size)
            except _BROKEN as err:
                raise _damaged(path, lines, err) from err
            except OSError as err:
                raise TraceError(f"{display_name(path)}: after line {lines}: cannot be read: {err}") from err
            if not chunk:
                return
            lines += chunk.count(b"\n")
            yield chunk


def read_lines(path: str | Path) -> list[str]:
    """All lines without their ends (CRLF is one end). Bytes that are not UTF-8 become U+FFFD.

    Raises:
        TraceError: the file is missing, damaged or cut.
    """
    data = b"".join(iter_chunks(path))
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace")
    return text.read().splitlines()


def iter_lines(path: str | Path) -> Iterator[str]:
    """The lines one by one, as `read_lines` gives them; memory does not grow with the trace.

    Of a line longer than `LINE_MAX` bytes only the beginning comes, with a note behind it.

    Raises:
        TraceError: the file is missing, damaged or cut.
    """
    carry, is_cut = b"", False
    for chunk in iter_chunks(path):
        first, *more = chunk.split(b"\n")
        if not is_cut:
            carry += first
        for text in more:
            yield _text(carry, is_cut)
            carry, is_cut = text, False
        if len(carry) > LINE_MAX:
            carry, is_cut = carry[:LINE_MAX], True
    if carry:
        yield _text(carry, is_cut)


def _text(line: bytes, is_cut: bool) -> str:
    if len(line) > LINE_MAX:
        line, is_cut = line[:LINE_MAX], True
    text = line.removesuffix(b"\r").decode("utf-8", "replace")
    return f"{text} ... (cut: longer than {LINE_MAX} bytes)" if is_cut else text


def _damaged(path: str | Path, lines: int, err: BaseException) -> TraceError:
    what = (
        "the compressed data end too early"
        if isinstance(err, EOFError)
        else f"the compressed data are damaged ({err})"
    )
    return TraceError(f"{display_name(path)}: after line {lines}: {what}")
