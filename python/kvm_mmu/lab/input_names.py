"""What inputs are called in a comparison: short, and no two alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

_FOLDERS = 6


def short_name(path: str | Path, parts: int = 1) -> str:
    """A file's name; a trace in a folder of its own (`.../npt1tdp0_smm/trace.txt.xz`) is called as the folder.

    Args:
        parts: how many parts of the path, counted from its end.
    """
    found = Path(path)
    if not found.name.startswith("trace."):
        return "/".join(found.resolve().parts[1:][-parts:]) if parts > 1 else found.name
    return "/".join(found.resolve().parent.parts[1:][-parts:]) or found.name


class InputNames:
    """Names given so far; inputs whose files are called alike get folders in front."""

    def __init__(self, inputs: Sequence[object]):
        self._paths = Counter(short_name(one) for one in inputs if isinstance(one, str | Path))
        self._taken: set[str] = set()

    def give(self, one: object, own: str) -> str:
        """The name of the next input, whose own name is `own`."""
        longer: list[str] = []
        if isinstance(one, str | Path) and str(one) != "-":
            longer = [short_name(one, parts) for parts in range(2, _FOLDERS)]
            if self._paths[short_name(one)] > 1:
                own, longer = longer[0], [*longer[1:], *(f"{longer[0]} ({n})" for n in range(2, 10))]
        candidates = chain([own], longer, (f"{own} ({n})" for n in count(2)))
        name = next(name for name in candidates if name not in self._taken)
        self._taken.add(name)
        return name
