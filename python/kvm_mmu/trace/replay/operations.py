"""The full text of a recording's operations, where its markers are shortened or left out (`ops.jsonl`).

Owns: which texts belong before and at a marker. A file is read in step with the trace, so that it may be as long as
that: its operations must ascend, as the recorder writes them. Only texts are known here, not what they mean.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.text.source import Source, display_name, iter_lines

_OPERATION = re.compile(r'\{"i":(\d{1,15}),')
_NAMES = ("ops.jsonl", "ops.jsonl.xz")


class Operations(Protocol):
    """Operations by number, asked for in the order of the markers."""

    def upto(self, number: int) -> Iterator[str] | None:
        """The texts of the operations behind the marker before this one, up to this one's own; None: not known."""
        ...


class KnownOperations:
    """Operations that are in memory."""

    def __init__(self, known: Mapping[int, str]):
        self._known, self._numbers, self._last = known, sorted(known), -1

    def upto(self, number: int) -> Iterator[str] | None:
        """As `Operations.upto`."""
        if number not in self._known:
            return None
        first = bisect_right(self._numbers, self._last)
        between = self._numbers[first : bisect_right(self._numbers, number)] or [number]
        self._last = number
        return (self._known[j] for j in between)


class OperationsFile:
    """Operations of a file, read as far as the markers have come; memory does not grow with the file.

    A marker whose number is not above the one before it stays as it is.

    Raises:
        TraceError: there is no operation in it.
    """

    def __init__(self, path: Source):
        # One reader goes ahead and looks whether a number is there; the texts up to it are read by the other one.
        self._ahead, self._texts = _numbered(path), _numbered(path)
        self._found: int | None = next((number for number, _ in self._ahead), None)
        if self._found is None:
            raise TraceError(
                f'{display_name(path)}: no operation found: expected lines that begin with {{"i":NUMBER,'
            )
        self._last = -1

    def upto(self, number: int) -> Iterator[str] | None:
        """As `Operations.upto`. The texts must be taken before the next call."""
        while self._found is not None and self._found < number:
            self._found = next((found for found, _ in self._ahead), None)
        if self._found != number or number <= self._last:
            return None
        self._last = number
        return self._until(number)

    def _until(self, number: int) -> Iterator[str]:
        for found, text in self._texts:
            yield text
            if found == number:
                return


def _numbered(path: Source) -> Iterator[tuple[int, str]]:
    last = -1
    for at, text in enumerate(iter_lines(path), 1):
        index = _OPERATION.match(text)
        if index is None:
            continue
        number = int(index[1])
        if number <= last:
            raise TraceError(
                f"{display_name(path)}:{at}: operation {number} after operation {last}: numbers must ascend"
            )
        last = number
        yield number, text


def first_operation(known: Mapping[int, str] | Source | None) -> str | None:
    """The text of the first operation, None where there is none."""
    if isinstance(known, Mapping):
        return known[min(known)] if known else None
    return None if known is None else next((text for _, text in _numbered(known)), None)


def read_operations(path: str | Path) -> dict[int, str]:
    """All operations of an `ops.jsonl` file by their number, in memory.

    Raises:
        TraceError: there is no operation in it, or the file cannot be read.
    """
    found = {}
    for text in iter_lines(path):
        index = _OPERATION.match(text)
        if index is not None:
            found[int(index[1])] = text
    if not found:
        raise TraceError(f'{path}: no operation found: expected lines that begin with {{"i":NUMBER,')
    return found


def operations_file_beside(trace: Source) -> Path | None:
    """The operations file that a recorder left beside its trace."""
    if not isinstance(trace, str | Path) or str(trace) == "-":
        return None
    candidates = (Path(trace).parent / name for name in _NAMES)
    return next((path for path in candidates if path.is_file()), None)


def operations_beside(trace: str | Path) -> dict[int, str] | None:
    """The operations of that file, in memory; None where there is none."""
    path = operations_file_beside(trace)
    return None if path is None else read_operations(path)
