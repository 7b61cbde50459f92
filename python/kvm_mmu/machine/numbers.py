"""What a number from outside must be: an integer within bounds, or an error that names the argument.

Owns the wording. numpy's scalars count as integers, bools do not; what comes back is a Python int, so that nothing
behind this ever wraps around.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from kvm_mmu.errors import UsageError

U64 = (1 << 64) - 1


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _bound(number: int) -> str:
    for power in (64, 63, 52, 32, 31):
        if number == (1 << power) - 1:
            return f"2^{power}-1"
    return str(number)


def array(name: str, values: Any) -> np.ndarray[Any, Any]:
    """The values as an array.

    Raises:
        UsageError: numpy cannot make one of them.
    """
    try:
        return np.asarray(values)
    except (ValueError, OverflowError):
        raise UsageError(f"{name}={shown(values)}: expected one dimension of integers") from None


def unsigned(name: str, values: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The values as an array of uint64, of any shape.

    Raises:
        UsageError: no integers, or one below 0 or above 2^64-1.
    """
    made = array(name, values)
    if made.dtype.kind in "fO" and not isinstance(values, np.ndarray):
        # numpy makes floats of a list with integers on both sides of 2^63, objects of one with integers above 2^64.
        exact = np.array(values, dtype=object)
        if all(isinstance(value, int | np.integer) for value in exact.flat):
            low, high = int(exact.min()), int(exact.max())
            if high > U64:
                raise UsageError(f"{name}: value {shown(high)} above 2^64-1")
            if low < 0:
                raise UsageError(f"{name}: negative value {shown(low)}")
            return exact.astype(np.uint64)
    if made.dtype.kind not in "uib":
        raise UsageError(f"{name}: dtype {made.dtype}; expected integers")
    if made.dtype.kind == "i" and made.size and int(made.min()) < 0:
        raise UsageError(f"{name}: negative value {int(made.min())}")
    return made.astype(np.uint64, copy=False)


def integer(name: str, value: Any, low: int = 0, high: int = U64) -> int:
    """The value as an int from `low` to `high`.

    Raises:
        UsageError: no integer, or out of bounds.
    """
    if type(value) is int and low <= value <= high:
        return value
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise UsageError(f"{name}={shown(value)}: expected an integer from {_bound(low)} to {_bound(high)}")
    return number


def flag(name: str, value: Any) -> bool:
    """The value as a bool: True, False, 0 or 1.

    Raises:
        UsageError: anything else.
    """
    try:
        number = operator.index(bool(value) if type(value).__name__ in ("bool", "bool_") else value)
    except TypeError:
        number = None
    if number not in (0, 1):
        raise UsageError(f"{name}={shown(value)}: expected True or False")
    return number == 1


def word(name: str, value: Any, words: tuple[str, ...]) -> str:
    """The value, one of the words.

    Raises:
        UsageError: anything else.
    """
    if not isinstance(value, str) or value not in words:
        raise UsageError(f"{name}={shown(value)}: expected one of {', '.join(words)}")
    return value


def pair(
    name: str, value: Any, parts: tuple[str, str], highs: tuple[int, int] = (U64, U64)
) -> tuple[int, int]:
    """Two integers from 0.

    Raises:
        UsageError: not two, no integers, or out of bounds.
    """
    try:
        first, second = value
    except (TypeError, ValueError):
        raise UsageError(f"{name}={shown(value)}: expected ({', '.join(parts)})") from None
    return integer(f"{name}: {parts[0]}", first, 0, highs[0]), integer(
        f"{name}: {parts[1]}", second, 0, highs[1]
    )
