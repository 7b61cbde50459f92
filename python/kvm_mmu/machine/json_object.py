"""JSON from outside: every object's keys stand once.

The standard reader takes the last of several values of a key without a word; whoever wrote the others meant them.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from kvm_mmu.machine.numbers import shown


class RepeatedKeyError(ValueError):
    """A key that an object has twice."""


def loads(text: str) -> Any:
    """Read JSON.

    Args:
        text: one value.

    Returns:
        The value.

    Raises:
        RepeatedKeyError: an object has a key twice.
        ValueError: no JSON, or a number of more digits than Python reads.
        RecursionError: nested too deeply.
    """
    return _DECODER.decode(text)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RepeatedKeyError(f"the key {shown(twice)} stands twice in one object: expected it once")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_each_once)
