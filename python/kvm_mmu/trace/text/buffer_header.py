"""What the comments at the head of a trace say of the kernel's ring buffer: how many entries it held, how many were
ever written.

Owns: that line, and the sentences about events that are not in the text, overwritten in the buffer or cut off behind
it. Looks at the comments before the first event only: nothing is paid for the events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kvm_mmu.trace.text.host import PREFIX
from kvm_mmu.trace.text.source import Source, count_lines, iter_chunks, iter_lines

_ENTRIES = re.compile(r"# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})(?!\d)")


class Entries(NamedTuple):
    """Entries that the ring buffer held when it was read, and that were written to it."""

    in_buffer: int
    written: int

    def missing(self, in_text: int | None) -> list[str]:
        """What is not in the text that was recorded, as sentences; `in_text` None: what was removed is not known."""
        notes = []
        if self.written > self.in_buffer:
            notes.append(
                f"the ring buffer overwrote {self.written - self.in_buffer} of {self.written} events: "
                "the oldest are missing (record less, or with a larger buffer)"
            )
        if in_text is not None and in_text < self.in_buffer:
            notes.append(
                f"the text has {in_text} of the {self.in_buffer} events its header tells of: "
                "cut off at the end, or filtered"
            )
        return notes


class BufferHeader:
    """The head of one text; `entries` is known when its first event has come, None where no line tells."""

    def __init__(self) -> None:
        self.entries: Entries | None = None
        #: Outputs were removed from the text, so that the number of its lines says nothing.
        self.is_stripped = False

    def watch(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines as they come; the comments before the first event are looked at."""
        rest = iter(lines)
        for text in rest:
            is_comment = self._look(text)
            yield text
            if not is_comment:
                break
        yield from rest

    def missing(self, in_text: int | None) -> list[str]:
        """As `Entries.missing`; nothing where no header tells."""
        if self.entries is None:
            return []
        return self.entries.missing(None if self.is_stripped else in_text)

    def _look(self, text: str) -> bool:
        if not text.startswith("#"):
            return not text.strip()
        self.is_stripped |= text.startswith(PREFIX)
        found = _ENTRIES.match(text)
        if found is not None and self.entries is None:
            self.entries = Entries(int(found[1]), int(found[2]))
        return True


def header_in(head: bytes) -> BufferHeader:
    """The header of a text that begins with these bytes."""
    header = BufferHeader()
    for _ in header.watch(head.decode("utf-8", "replace").splitlines()):
        pass
    return header


def header_of(source: Source) -> BufferHeader:
    """The header of a text that can be read again; reads no further than its first event."""
    header = BufferHeader()
    for text in header.watch(iter_lines(source)):
        if not text.startswith("#") and text.strip():
            break
    return header


def missing_from(source: Source) -> list[str]:
    """The sentences about a text that can be read again. Counts its lines, where it has such a header."""
    header = header_of(source)
    if header.entries is None:
        return []
    return header.missing(None if header.is_stripped else _entries_in(source))


def _entries_in(source: Source) -> int:
    """Lines that are no comments."""
    lines = comments = 0
    before = b"\n"
    for chunk in iter_chunks(source):
        lines += count_lines(chunk)
        comments += (chunk.count(b"\n#") if b"#" in chunk else 0) + (
            before == b"\n" and chunk.startswith(b"#")
        )
        before = chunk[-1:]
    return lines + (before != b"\n") - comments
