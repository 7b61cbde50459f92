"""Decompressing what a stranger sent: `.gz` and `.xz` as streams that hold little at a time.

Owns: which first bytes mean which compression, and the limit on what an `.xz` may make us allocate: its header names
the size of the window, so a file of a few bytes could ask for 4 GiB. Every damage is an error here: data that end too
early (`EOFError`), data that are wrong (`lzma.LZMAError`, `zlib.error`, `gzip.BadGzipFile`), and bytes behind the end.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import zlib
from pathlib import Path
from typing import IO, BinaryIO, cast

#: What the errors of damaged data are.
BROKEN = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
#: Memory an `.xz` may ask for: `xz -9` makes files that need 65 MiB.
XZ_MEMORY_MAX = 256 << 20
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"
_PIECE = 1 << 16


def is_endless(raw: BinaryIO) -> bool:
    """True for a character device such as /dev/zero, which never ends; a terminal and the null device do."""
    try:
        found = os.fstat(raw.fileno())
        is_device = stat.S_ISCHR(found.st_mode) and not os.isatty(raw.fileno())
        return is_device and found.st_rdev != Path(os.devnull).stat().st_rdev
    except (OSError, ValueError):  # no file of the system is behind it
        return False


def unpacked(raw: BinaryIO, head: bytes) -> IO[bytes]:
    """The decompressed bytes of a stream that begins with `head`; the stream itself where it is plain."""
    if head.startswith(_GZIP):
        return cast(IO[bytes], gzip.open(raw))
    if head.startswith(_XZ):
        return io.BufferedReader(_Xz(raw), _PIECE)
    return raw


def is_unpacking(stream: IO[bytes]) -> bool:
    """Returns true if what `unpacked` gave is decompressed on the way."""
    return isinstance(stream, gzip.GzipFile) or isinstance(getattr(stream, "raw", None), _Xz)


class _Xz(io.RawIOBase):
    """The bytes of one or more `.xz` streams, one behind the other, with padding between them."""

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._decoder = _decoder()
        #: Compressed bytes that belong to the next stream.
        self._ahead = b""
        self._is_done = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill the buffer with what comes next; 0 at the end."""
        view = memoryview(cast(bytearray, buffer))
        while not self._is_done:
            if self._decoder.eof and not self._next_stream():
                break
            piece = b""
            if self._decoder.needs_input:
                piece, self._ahead = self._ahead or self._raw.read(_PIECE), b""
                if not piece:
                    raise EOFError("the compressed data end too early")
            found = self._decoder.decompress(piece, max_length=len(view))
            if found:
                view[: len(found)] = found
                return len(found)
        return 0

    def _next_stream(self) -> bool:
        """Step over the padding; whether another stream follows."""
        rest = self._decoder.unused_data
        while True:
            rest = rest.lstrip(b"\0")
            if rest:
                self._decoder, self._ahead = _decoder(), rest
                return True
            rest = self._raw.read(_PIECE)
            if not rest:
                self._is_done = True
                return False


def _decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX)
