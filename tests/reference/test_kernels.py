"""The reference's table of kernels beside the core's: the same rows, facts, values and plans, and the same names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from kvm_mmu import _core, kernels
from kvm_mmu.reference.common.errors import ScenarioError
from kvm_mmu.reference.common.fix_levels import FIX_LEVELS
from kvm_mmu.reference.common.kernels import KERNELS, KernelRules, kernel

#: What a row has beside its facts.
LABELS = ("name", "release", "plans")
CORE: dict[str, Any] = {row["name"]: row for row in _core.kernels()}


def test_both_have_the_same_rows() -> None:
    assert list(KERNELS) == list(CORE)
    assert {name: rules.release for name, rules in KERNELS.items()} == {
        name: row["release"] for name, row in CORE.items()
    }


def test_both_have_the_same_facts() -> None:
    ours = {field.name for field in fields(KernelRules)} - set(LABELS)
    assert all(ours == set(row["facts"]) for row in CORE.values())


@pytest.mark.parametrize("name", KERNELS)
def test_both_have_the_same_values(name: str) -> None:
    facts = {
        field.name: getattr(KERNELS[name], field.name)
        for field in fields(KernelRules)
        if field.name not in LABELS
    }
    assert facts == CORE[name]["facts"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *[(name, name) for name in KERNELS],
        *[(rules.release, rules.name) for rules in KERNELS.values() if rules.name != "v5.0-seed"],
        ("6.12.94", "v6.12.0"),
        ("v6.12.300", "v6.12"),
        ("6.12", "v6.12"),
        ("7.2.9", "v7.2.6"),
        ("5.2.0", "v5.2"),
        ("5.10.100", "v5.10"),
        ("5.10.260", "v5.10:child_reuse=gfn_role"),
        ("6.12.95", "v6.12.0:child_reuse=gfn_role:large_in_way=zapped_full"),
        ("6.18.30", "v6.18:child_reuse=gfn"),
    ],
)
def test_a_text_names_a_row(text: str, name: str) -> None:
    assert kernel(text).name == name


def edges() -> list[str]:
    """Each patch level at which a row or a fix begins, and those beside it."""
    begins = {
        (rules.release.rpartition(".")[0], int(rules.release.rpartition(".")[2]))
        for rules in KERNELS.values()
    }
    begins |= {(level.branch, at) for level in FIX_LEVELS for at in (level.first, level.absent_to)}
    levels = {
        (branch, at) for branch, begin in begins for at in (begin - 1, begin, begin + 1, 999) if at >= 0
    }
    return [f"{branch}.{at}" for branch, at in sorted(levels)]


@pytest.mark.parametrize("text", edges())
def test_both_have_the_same_facts_between_rows(text: str) -> None:
    rules = kernel(text)
    facts = {
        field.name: getattr(rules, field.name) for field in fields(KernelRules) if field.name not in LABELS
    }
    assert facts == dict(kernels[text].facts)
    again = kernel(rules.name)
    assert {field: getattr(again, field) for field in facts} == facts


@pytest.mark.parametrize("text", ["", "v", "6", "v6.6", "6.6.30", "6.12.x", "v6.12 ", "seed", "6.12.1.1"])
def test_another_text_names_none(text: str) -> None:
    with pytest.raises(ScenarioError, match="unknown kernel"):
        kernel(text)


def test_the_order_of_a_fault_follows_from_the_facts() -> None:
    """Two kernels that differ in the order differ in a fact that says so."""
    orders = {name: row["fault_order"] for name, row in CORE.items()}
    assert (
        orders["v6.12.0"]
        != orders["v6.12"]
        == _core.kernel_row("v6.12.0:stale_test=after_reclaim")["fault_order"]
    )
    for name, order in orders.items():
        rules = KERNELS[name]
        assert ("level" in order) != rules.is_level_requested
        assert ("slot_going" in order) == rules.invalid_slot_retries
        asked = [step for step in order if step in ("invalidated", "host")]
        assert asked.index("host") == int(rules.retry_before_pin)
        if rules.stale_test != "none":
            is_late = order.index("room") < order.index("stale")
            assert is_late == (rules.stale_test == "after_reclaim")
