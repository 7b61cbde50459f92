"""A set of pages kept as ranges, so that a range of any length costs one entry.

Owns no meaning: what the pages have in common is its user's. The ranges are ascending, disjoint and not empty.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class PageRanges:
    """Pages in half-open ranges."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []

    def __contains__(self, page: int) -> bool:
        at = bisect_right(self._firsts, page) - 1
        return at >= 0 and page < self._ends[at]

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First page and end of each range, ascending."""
        return zip(self._firsts, self._ends, strict=True)

    def add(self, first: int, end: int) -> None:
        """Take in the pages from `first` to `end` (not included)."""
        self._replace(first, end, keep=True)

    def remove(self, first: int, end: int) -> None:
        """Let go of the pages from `first` to `end` (not included)."""
        self._replace(first, end, keep=False)

    def _replace(self, first: int, end: int, *, keep: bool) -> None:
        if first >= end:
            return
        # The ranges that touch this one: what they have outside of it stays.
        low, high = bisect_left(self._ends, first), bisect_right(self._firsts, end)
        pieces: list[tuple[int, int]] = []
        if low < high:
            pieces = [(self._firsts[low], first), (end, self._ends[high - 1])]
        if keep:
            whole = [*(piece for piece in pieces if piece[0] < piece[1]), (first, end)]
            pieces = [(min(piece[0] for piece in whole), max(piece[1] for piece in whole))]
        pieces = [piece for piece in pieces if piece[0] < piece[1]]
        self._firsts[low:high] = [piece[0] for piece in pieces]
        self._ends[low:high] = [piece[1] for piece in pieces]
