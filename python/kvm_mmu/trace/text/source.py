"""Opening a trace: plain text, `.gz`, `.xz` or stdin, as bytes or as numbered lines, once or again and again.

Owns: what may be given for a trace (a path, an open `Trace`, lines), turning every way a file can be broken into one
`TraceError` that names the file and how far it could be read, and the copy of an input that cannot be opened twice.
Memory does not grow with the input, but for `read_lines`. Knows nothing of events.
"""

from __future__ import annotations

import io
import lzma
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Protocol, TypeGuard, cast

import numpy as np

from kvm_mmu.errors import TraceError, UsageError
from kvm_mmu.trace.text.ahead import read_ahead
from kvm_mmu.trace.text.unpack import BROKEN, XZ_MEMORY_MAX, is_endless, is_unpacking, unpacked

STDIN = "-"
#: How a trace.dat begins.
_TRACE_DAT = b"\x17\x08Dtraci"[:8]
#: A line's length that is read whole where lines are streamed, in bytes.
LINE_MAX = 1 << 20


class Copy:
    """A temporary copy of an input that can be read once only, under the input's name."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name


#: Where a trace may come from; `-` is stdin.
Source = str | Path | Copy


class OpenTrace(Protocol):
    """What an open `Trace` offers here."""

    @property
    def source(self) -> Source | list[str]: ...
    @property
    def is_whole(self) -> bool: ...
    def lines(self) -> Iterator[str]: ...


#: What a function on traces takes: a path (a `str` is always one, `-` is stdin), an open `Trace`, or lines of text.
Traced = Source | OpenTrace | Iterable[str]
_LINES = "<lines>"


def is_source(traced: Traced) -> TypeGuard[Source]:
    """Returns true if it is a path, or the copy of an input."""
    return isinstance(traced, str | Path | Copy)


def is_file(source: Source) -> bool:
    """Returns true if it is a file that can be read again and again."""
    path = source.path if isinstance(source, Copy) else Path(source)
    try:
        return str(source) != STDIN and path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def is_opened(traced: Traced) -> TypeGuard[OpenTrace]:
    """Returns true if it is an open `Trace`."""
    return hasattr(traced, "lines") and hasattr(traced, "source")


def lines_of(traced: Traced) -> Iterator[str]:
    """Returns the lines of a trace, without their ends.

    Raises:
        TraceError: the file is missing, damaged or cut.
        UsageError: it is none of what a trace may be.
    """
    if is_source(traced):
        return iter_lines(traced)
    if is_opened(traced):
        return traced.lines()
    if isinstance(traced, bytes) or not isinstance(traced, Iterable):
        raise UsageError(f"expected a path, a Trace or lines of text, not {type(traced).__name__}")
    return (text.rstrip("\r\n") for text in traced)


def chunks_of(traced: Traced, size: int) -> Iterator[bytes]:
    """Returns the text of a trace in pieces of about `size` bytes; a line of a list is a line of the text.

    Raises:
        TraceError: the file is missing, damaged or cut.
        UsageError: it is none of what a trace may be.
    """
    if is_source(traced):
        return iter_chunks(traced, size)
    if is_opened(traced) and traced.is_whole and not isinstance(traced.source, list):
        return iter_chunks(traced.source, size)
    return _joined(lines_of(traced), size)


def _joined(lines: Iterator[str], size: int) -> Iterator[bytes]:
    kept: list[str] = []
    filled = 0
    for text in lines:
        kept.append(text)
        filled += len(text) + 1
        if filled >= size:
            yield "\n".join([*kept, ""]).encode("utf-8", "replace")
            kept, filled = [], 0
    if kept:
        yield "\n".join([*kept, ""]).encode("utf-8", "replace")


def is_same(one: Traced, other: Traced) -> bool:
    """Returns true if both are the same trace by its path, or the same object."""
    if is_source(one) and is_source(other):
        return str(one) == str(other)
    return one is other


def name_of(traced: Traced) -> str:
    """Returns what messages call this trace."""
    if is_source(traced):
        return display_name(traced)
    source = traced.source if is_opened(traced) else None
    return display_name(source) if source is not None and not isinstance(source, list) else _LINES


@contextmanager
def source_of(traced: Traced) -> Iterator[Source]:
    """The trace as a file: lines, and a `Trace` of a window, are copied to a temporary one that goes with the block.

    Raises:
        TraceError: it cannot be read or copied.
        UsageError: it is none of what a trace may be.
    """
    if is_source(traced):
        yield traced
        return
    if is_opened(traced) and traced.is_whole and not isinstance(traced.source, list):
        yield traced.source
        return
    with tempfile.NamedTemporaryFile(prefix="kvm-mmu-trace-") as copy:
        try:
            copy.writelines(text.encode("utf-8", "replace") + b"\n" for text in lines_of(traced))
            copy.flush()
        except OSError as err:
            raise TraceError(f"{name_of(traced)}: cannot be copied to {copy.name}: {err.strerror}") from err
        yield Copy(Path(copy.name), name_of(traced))


def display_name(path: Source) -> str:
    """How messages call this input."""
    if isinstance(path, Copy):
        return path.name
    return "<stdin>" if str(path) == STDIN else str(path)


@contextmanager
def readable_again(traced: Traced) -> Iterator[Source]:
    """The input as one that can be read more than once: a file is, stdin or a pipe is copied to a temporary file.

    The copy holds the bytes as they come, compressed ones compressed; it goes when the block ends.

    Raises:
        TraceError: it cannot be opened or copied.
    """
    with source_of(traced) as path:
        yield from _again(path)


def _again(path: Source) -> Iterator[Source]:
    is_once = not isinstance(path, Copy) and (str(path) == STDIN or Path(path).is_fifo())
    if not is_once:
        yield path
        return
    name = display_name(path)
    with tempfile.NamedTemporaryFile(prefix="kvm-mmu-trace-") as copy:
        try:
            with _open_raw(path) as raw:
                shutil.copyfileobj(raw, copy, 1 << 20)
            copy.flush()
        except OSError as err:
            raise TraceError(f"{name}: cannot be copied to {copy.name}: {err.strerror or err}") from err
        yield Copy(Path(copy.name), name)


@contextmanager
def open_bytes(path: Source) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a trace; `-` is stdin.

    Raises:
        TraceError: the file cannot be opened.
    """
    with _open_raw(path) as raw:
        try:
            head = cast(io.BufferedReader, raw).peek(8)
        except OSError as err:
            raise TraceError(f"{display_name(path)}: cannot be read: {err.strerror or err}") from err
        if head.startswith(_TRACE_DAT):
            name = display_name(path)
            raise TraceError(
                f"{name}: trace-cmd's own file: expected the text of `trace-cmd report -R -i {name}`"
            )
        stream = unpacked(raw, head)
        if stream is raw:
            yield stream
            return
        with stream:
            yield stream


@contextmanager
def _open_raw(path: Source) -> Iterator[BinaryIO]:
    with ExitStack() as files:
        if isinstance(path, str | Path) and str(path) == STDIN:
            _refuse_endless(sys.stdin.buffer, path)
            yield sys.stdin.buffer
            return
        file = path.path if isinstance(path, Copy) else Path(path)
        try:
            raw = files.enter_context(file.open("rb"))
        except (OSError, ValueError) as err:  # ValueError: a NUL byte in the name
            reason = err.strerror if isinstance(err, OSError) else None
            raise TraceError(f"{display_name(path)}: cannot be opened: {reason or err}") from err
        _refuse_endless(raw, path)
        yield raw


def _refuse_endless(raw: BinaryIO, path: Source) -> None:
    if is_endless(raw):
        raise TraceError(
            f"{display_name(path)}: a device that never ends: expected a file, a pipe or {STDIN}"
        )


def iter_chunks(path: Source, size: int = 1 << 20) -> Iterator[bytes]:
    """The decompressed bytes in pieces of at most `size` bytes; memory does not grow with the file.

    Raises:
        TraceError: the file is damaged or cut; the message says after how many lines.
    """
    lines = 0
    with open_bytes(path) as stream, closing(_pieces(path, stream, size)) as pieces:
        while True:
            try:
                # What could be unpacked before a damage comes first, so that the error says after how many lines.
                chunk = next(pieces, b"")
            except BROKEN as err:
                raise _damaged(path, lines, err) from err
            except OSError as err:
                raise TraceError(f"{display_name(path)}: after line {lines}: cannot be read: {err}") from err
            if not chunk:
                return
            lines += count_lines(chunk)
            yield chunk


def _pieces(path: Source, stream: IO[bytes], size: int) -> Generator[bytes]:
    """What a stream gives, piece by piece; a packed file is unpacked ahead, a pipe could keep the thread waiting."""
    read = cast(io.BufferedReader, stream).read1
    if is_unpacking(stream) and is_file(path):
        yield from read_ahead(read, size)
        return
    while chunk := read(size):
        yield chunk


def count_lines(chunk: bytes) -> int:
    """Returns how many lines end in these bytes."""
    return int(np.count_nonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")))


def read_lines(path: Source) -> list[str]:
    """All lines, as `iter_lines` gives them. Needs memory for all of them: not for huge traces.

    Raises:
        TraceError: the file is missing, damaged or cut.
    """
    return list(iter_lines(path))


def iter_lines(path: Source) -> Iterator[str]:
    """The lines one by one, without their ends (CRLF is one end); memory does not grow with the trace.

    Bytes that are not UTF-8 become U+FFFD. Of a line longer than `LINE_MAX` bytes only the beginning comes, with a
    note behind it. A line ends at a line feed and nowhere else, so that its number is the one the core's reader gives.

    Raises:
        TraceError: the file is missing, damaged or cut.
    """
    return lines_in(iter_chunks(path))


def lines_in(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a text that comes in pieces, as `iter_lines` gives them; no piece is longer than `LINE_MAX`."""
    carry, is_cut = b"", False
    for chunk in chunks:
        end = chunk.find(b"\n")
        if end < 0:
            if not is_cut:
                carry += chunk
                if len(carry) > LINE_MAX:
                    carry, is_cut = carry[:LINE_MAX], True
            continue
        yield _text(carry if is_cut else carry + chunk[:end], is_cut)
        last = chunk.rfind(b"\n")
        if last > end:
            # Chunks are no longer than the longest line, so that none of these lines is cut.
            block = chunk[end + 1 : last].decode("utf-8", "replace")
            if "\r" in block:
                yield from (text.removesuffix("\r") for text in block.split("\n"))
            else:
                yield from block.split("\n")
        carry, is_cut = chunk[last + 1 :], False
    if carry:
        yield _text(carry, is_cut)


def _text(line: bytes, is_cut: bool) -> str:
    if len(line) > LINE_MAX:
        line, is_cut = line[:LINE_MAX], True
    text = line.removesuffix(b"\r").decode("utf-8", "replace")
    return f"{text} ... (cut: longer than {LINE_MAX} bytes)" if is_cut else text


def _damaged(path: Source, lines: int, err: BaseException) -> TraceError:
    if isinstance(err, EOFError):
        what = "the compressed data end too early"
    elif isinstance(err, lzma.LZMAError) and "limit" in str(err):
        what = f"reading it would need more than {XZ_MEMORY_MAX >> 20} MiB: compress it with a smaller dictionary"
    else:
        what = f"the compressed data are damaged ({err})"
    return TraceError(f"{display_name(path)}: after line {lines}: {what}")
