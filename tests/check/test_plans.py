"""Every named plan, judged for every event it may serve: the properties decide, not the plan's words."""

from __future__ import annotations

import kvm_mmu as km
import pytest
from kvm_mmu import UsageError
from kvm_mmu.check import WORLDS, check
from kvm_mmu.check.engine import Subject, fits

#: Plans that look for MMIO SPTEs alone: nothing for a slot that goes.
MMIO_ONLY = frozenset({"seed", "v3.10-mmio", "merged", "indexed"})
#: World and depth in which an event comes up: W1 has wraps and removals, W3 zaps everything. Nothing in the language
#: ends a VM inside a search, so that `teardown` is not judged.
WHERE = {"wrap": ("W1", None), "slot_removal": ("W1", None), "flush_all": ("W3", 5)}
PLANS = [name for name, plan in km.plans.items() if not plan.is_of_roots]


@pytest.mark.parametrize("event", WHERE)
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_of_shadow_pages(name: str, event: str) -> None:
    plan, (world, depth) = km.plans[name], WHERE[event]
    subject = Subject("v6.12", plan, event)
    if plan.needs_slot and event != "slot_removal":
        with pytest.raises(UsageError, match="is for a slot"):
            check(subject, WORLDS[world])
        return
    result = check(subject, WORLDS[world], depth=depth)
    found = [(finding.name, finding.operations) for finding in result.found]
    if event == "slot_removal" and name in MMIO_ONLY:
        assert ("leaf_rmap", 3) in found, "create, access, delete"
    elif (name, event) == ("v5.3-fast", "flush_all"):
        # Its roots are obsolete at once, and asked for only when the walk comes to them: a lock break lies between.
        assert found == [("obsolete_unused", 3)]
    else:
        assert not found and (result.closed or result.depth == depth)


@pytest.mark.parametrize(
    ("name", "event", "found"),
    [
        ("tdp-fast", "wrap", None),
        ("tdp-fast", "slot_removal", None),
        ("tdp-all", "wrap", "debt_overdue"),
        ("tdp-all", "slot_removal", "debt_overdue"),
        ("tdp-slot", "slot_removal", None),
    ],
)
def test_a_plan_of_roots(name: str, event: str, found: str | None) -> None:
    result = check(Subject("v6.12", km.plans[name], event), WORLDS["T1"], depth=3)
    assert [finding.name for finding in result.found] == ([found] if found else [])


def test_a_plan_of_roots_is_not_for_a_slot_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="is for a slot"):
        check(Subject("v6.12", km.plans["tdp-slot"], "wrap"), WORLDS["T1"])


def test_a_plan_is_judged_in_worlds_of_its_page_table() -> None:
    assert not fits(WORLDS["W1"], "v6.12", km.plans["tdp-fast"])
    with pytest.raises(UsageError, match="one of the TDP MMU"):
        check(Subject("v6.12", km.plans["tdp-fast"]), WORLDS["W1"])


@pytest.mark.parametrize("name", ["v5.2-slot", "v6.12-slot"])
def test_a_removal_that_drops_the_lock_before_its_flush(name: str) -> None:
    """A notifier that finds the leaf gone returns inside the break, and relies on the flush that is still owed."""
    result = check(Subject("v5.2", km.plans[name], "slot_removal"), WORLDS["W3"], depth=6)
    assert [(finding.name, finding.owner, finding.operations) for finding in result.found] == [
        ("debt_shared", "set_memslot", 4)
    ]
