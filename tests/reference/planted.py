"""A wrong version of one function, planted for the length of a test, and the vector that must notice it.

Owns the comparison of an engine with recorded lines, and what it means that a vector notices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

#: What is compared of a line, with the digest of the state.
KEYS = ("ret", "out", "nested", "events", "ctr", "digest")
#: Name, module, function, its wrong version, vector.
Planted = tuple[str, Any, str, Callable[..., Any], str]


def difference(
    engine: Any, lines: Iterable[Mapping[str, Any]], errors: tuple[type[Exception], ...] = ()
) -> int | None:
    """The first step that is not as recorded, or that ends in one of `errors`."""
    for want in lines:
        try:
            got = {**engine.apply(want["op"]), "digest": engine.digest()}
        except errors:
            return int(want["i"])
        if any(got.get(key) != want.get(key) for key in KEYS):
            return int(want["i"])
    return None


def each_of(planted: Iterable[Planted]) -> pytest.MarkDecorator:
    """One test for each; `planted` is its argument."""
    several = list(planted)
    return pytest.mark.parametrize("planted", several, ids=[one[0] for one in several])


def assert_noticed(
    planted: Planted, first_difference: Callable[[str], int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vector is equal without the mutant, and not with it."""
    _, module, function, wrong, vector = planted
    assert first_difference(vector) is None
    monkeypatch.setattr(module, function, wrong)
    assert first_difference(vector) is not None
