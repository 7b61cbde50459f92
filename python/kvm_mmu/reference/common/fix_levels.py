"""From which stable release on a fix is in a branch: what a row's facts are at another patch level.

This file owns the table. A release between two rows has the facts of the older row, and those that a fix changed up to
it; a release before the first row lacks what came after it. Rules of which no release is known stay the row's.
"""

from __future__ import annotations

from typing import NamedTuple

#: A fact's value.
Value = bool | int | str


class FixLevel(NamedTuple):
    """A fix in a branch."""

    branch: str
    absent_to: int  # the last patch level that is known without it
    first: int  # the first that is known with it
    facts: dict[str, tuple[Value, Value]]  # before, after


def _child_by_gfn_and_role(before: str, large: str) -> dict[str, tuple[Value, Value]]:
    """Describe 81ccda30b4e8: the child wanted, and with it how a large leaf in the way of a table goes."""
    return {"child_reuse": (before, "gfn_role"), "large_in_way": ("dropped_range", large)}


#: 2abd5287f083: reclaim before the test for a stale root, and no child inherits "invalid".
_RECLAIM_FIRST: dict[str, tuple[Value, Value]] = {
    "stale_test": ("before_reclaim", "after_reclaim"),
    "child_role_valid": (False, True),
}
FIX_LEVELS = (
    # Nothing that 5.10.262 was recorded with shows the large leaf go otherwise.
    FixLevel("5.10", 259, 260, {"child_reuse": ("access", "gfn_role")}),
    FixLevel("6.1", 176, 177, _child_by_gfn_and_role("any", "zapped_full")),
    FixLevel("6.12", 94, 95, _child_by_gfn_and_role("any", "zapped_full")),
    FixLevel("6.12", 99, 103, _RECLAIM_FIRST),
    # 0cb2af2ea66a: the child with the gfn wanted.
    FixLevel("6.18", 29, 30, {"child_reuse": ("any", "gfn")}),
    FixLevel("6.18", 37, 38, _child_by_gfn_and_role("gfn", "zapped_range")),
    FixLevel("7.1", 2, 3, _child_by_gfn_and_role("gfn", "zapped_range")),
    FixLevel("7.1", 5, 6, _RECLAIM_FIRST),
)


def changed_facts(branch: str, row: int, patch: int) -> dict[str, Value]:
    """Find what a patch level has otherwise than the row of another one.

    Args:
        branch: `6.12`.
        row: the row's patch level.
        patch: the patch level asked for.

    Returns:
        Fact to value.
    """
    levels = [level for level in FIX_LEVELS if level.branch == branch]
    found: dict[str, Value] = {}
    for level in levels:
        if row < level.first <= patch:
            found.update({fact: after for fact, (_, after) in level.facts.items()})
    for level in reversed(levels):
        if patch <= level.absent_to and level.first <= row:
            found.update({fact: before for fact, (before, _) in level.facts.items()})
    return found
