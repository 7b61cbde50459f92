"""Host addresses of a recording, moved below the physical width: the model's frame of a host page is its address.

Owns: which windows of 1 GiB of host memory a recording uses, and where each goes. The order of windows, their
neighbourhood and every address within a window stay, so that ranges stay ranges and huge pages stay aligned.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

_WINDOW = 30
#: A range of more windows than this is no host memory; only its beginning is moved.
_WINDOWS_MAX = 1 << 12
_INSIDE = (1 << _WINDOW) - 1


class HostRanges:
    """Where host memory goes; made of the ranges (first byte, size) that a recording uses."""

    def __init__(self, used: Iterable[tuple[int, int]]):
        windows: set[int] = set()
        for hva, size in used:
            first, last = hva >> _WINDOW, hva + max(size, 1) - 1 >> _WINDOW
            windows.update(range(first, min(last, first + _WINDOWS_MAX) + 1))
        self._windows = sorted(windows)

    @property
    def phys_bits(self) -> int:
        """The physical width that the moved memory needs."""
        return _WINDOW + len(self._windows).bit_length()

    def move(self, hva: int) -> int:
        """Where an address is now; one outside all ranges goes to the next range's beginning, or behind all."""
        window = hva >> _WINDOW
        rank = bisect_left(self._windows, window)
        is_used = rank < len(self._windows) and self._windows[rank] == window
        return rank + 1 << _WINDOW | (hva & _INSIDE if is_used else 0)

    def moved(self, op: Mapping[str, object]) -> dict[str, object]:
        """An operation of the scenario language with its host addresses moved."""
        found = dict(op)
        for key in ("hva", "start", "end") if op["op"] == "unmap_hva" else ("hva",):
            value = found.get(key)
            if isinstance(value, int):
                found[key] = self.move(value)
        return found


def used_by(op: Mapping[str, object]) -> tuple[int, int] | None:
    """The host range that an operation names, as first byte and size."""
    hva, pages, size = op.get("hva"), op.get("npages"), op.get("size")
    if not isinstance(hva, int):
        return None
    if op["op"] == "set_memslot":
        return (hva, size) if isinstance(size, int) and size else None
    return hva, pages << 12 if isinstance(pages, int) else 1
