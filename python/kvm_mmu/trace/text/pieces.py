"""A text in pieces: lines of some events one by one, everything between them many lines at once.

Owns: the three kinds of piece. For whoever writes a trace again, changed in places: most lines are never looked at in
Python. The core's reader finds the lines; one that it does not read is left to `parse_line`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from kvm_mmu import _core


class Named(NamedTuple):
    """A line of one of the events; `event_at` and `body_at` are positions in its text."""

    text: str
    task: str
    event: str
    event_at: int
    body_at: int


#: So many lines of other events with their ends; a line of one of the events; a line that the core did not read.
Piece = tuple[int, bytes] | Named | str


def pieces_of(
    chunks: Iterable[bytes], events: Collection[str], dropped: Collection[str] = ()
) -> Iterator[Piece]:
    """Yields a text in pieces, which joined are the text.

    Args:
        chunks: The text.
        events: The events whose lines come one by one.
        dropped: Events whose lines are left out, as far as the core reads them.
    """
    lines = _core.NamedLines(sorted(events), sorted(dropped))
    for chunk in chunks:
        yield from lines.feed(chunk)
    yield from lines.finish()
