"""The shrinker: a scenario that shows something, made small while it still shows it.

Owns the search only; what "still shows it" means is the caller's question. Delta debugging: operations are dropped
in halves, quarters and so on down to single ones, then single operations inside lock breaks and publications, and the
rounds are repeated until nothing more can go. The result is minimal in that no single operation of it can be dropped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvm_mmu.scenario.language import Scenario

Op = dict[str, Any]
Differs = Callable[[Scenario], bool]

#: Fields of an operation that hold lists of operation lists.
NESTING_FIELDS = ("do", "during")


def shrink(scenario: Scenario, differs: Differs) -> Scenario:
    """The smallest scenario found for which `differs` is still true.

    Args:
        scenario: one for which it is true. differs: called with candidates; it must not change them.

    Raises:
        ValueError: `differs` is false for the scenario itself.
    """
    if not differs(scenario):
        raise ValueError("the scenario to shrink does not show what is asked for")

    def holds(ops: list[Op]) -> bool:
        return differs(with_ops(scenario, ops))

    ops = copy.deepcopy(scenario.ops)
    before = None
    while before != ops:
        before = copy.deepcopy(ops)
        ops = _fewer(ops, holds)
        ops = _shallower(ops, holds)
    return with_ops(scenario, ops)


def with_ops(scenario: Scenario, ops: list[Op]) -> Scenario:
    """The same header over other operations, without recorded results."""
    return replace(scenario, ops=copy.deepcopy(ops), expected=[], lines=list(range(2, len(ops) + 2)))


def _fewer(ops: list[Op], holds: Callable[[list[Op]], bool]) -> list[Op]:
    """Drop runs of operations, long runs first, from the end to the beginning."""
    length = max(1, len(ops) // 2)
    while True:
        end = len(ops)
        while end > 0:
            candidate = ops[: max(0, end - length)] + ops[end:]
            if candidate and holds(candidate):
                ops = candidate
            end -= length
        if length == 1:
            return ops
        length = max(1, length // 2)


def _shallower(ops: list[Op], holds: Callable[[list[Op]], bool]) -> list[Op]:
    """Drop what is nested: whole fields, whole lists from their end, single operations."""
    for position in range(len(ops)):
        for field in NESTING_FIELDS:
            nested = ops[position].get(field)
            if not nested:
                continue
            for smaller in _smaller_nestings(nested):
                candidate = copy.deepcopy(ops)
                candidate[position][field] = smaller
                if holds(candidate):
                    return candidate  # the next round goes on from here
    return ops


def _smaller_nestings(nested: list[list[Op]]) -> list[list[list[Op]]]:
    """Candidates in the order they are tried; positions stay, since the n-th list belongs to the n-th break."""
    smaller: list[list[list[Op]]] = [[], nested[:-1]]
    smaller += [[*nested[:at], [], *nested[at + 1 :]] for at, inner in enumerate(nested) if inner]
    for at, inner in enumerate(nested):
        for drop in range(len(inner)):
            smaller.append([*nested[:at], inner[:drop] + inner[drop + 1 :], *nested[at + 1 :]])
    return smaller
