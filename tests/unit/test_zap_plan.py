"""Zap plans as values: words, text, parsing, the named ones of the issue's table."""

from __future__ import annotations

import sys

import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.profiles import as_plan, kernel_profile, kernels, with_plans
from kvm_mmu.machine.zap_plan import DESCRIPTIONS, ZapPlan, plans


def test_every_plan_of_the_space_survives_its_own_text():
    space = list(ZapPlan.space())
    assert len(space) > 500
    assert len({p.spec for p in space}) == len(space)
    for plan in space:
        assert ZapPlan.parse(plan.spec) == plan
        assert ZapPlan.from_dict(plan.to_dict()) == plan


def test_named_plans():
    assert set(plans) == {
        "seed",
        "v3.10-mmio",
        "v5.0-fast",
        "merged",
        "zap-all",
        "v5.2-slot",
        "v5.3-fast",
        "v5.4-fast",
        "v6.12-slot",
        "indexed",
        "tdp-fast",
        "tdp-all",
        "tdp-slot",
    }
    assert set(DESCRIPTIONS) == set(plans)
    seed = plans["seed"]
    assert (seed.walk, seed.only, seed.stop, seed.skip, seed.offer) == (
        "head",
        "mmio_cached",
        "none",
        "none",
        "never",
    )
    assert seed.restart == {"on_nonzero"}
    assert not seed.bump_valid_gen
    fast = plans["v5.0-fast"]
    assert (fast.offer, fast.bump_valid_gen, fast.reload_roots) == ("batch:10", True, "before")
    assert plans["v5.3-fast"].before_drop == "commit"
    assert plans["v5.3-fast"].reload_roots == "no"
    assert plans["zap-all"].only == "all"
    assert plans["merged"].restart == {"on_unstable", "on_lock_drop"}


def test_equal_by_behaviour_not_by_name():
    assert ZapPlan(walk="head", only="mmio_cached", restart={"on_nonzero"}) == plans["seed"]


#: Found by `module:object` below.
MINE = ZapPlan(walk="tail", only="all")


def test_module_object(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_plans", sys.modules[__name__])
    found = ZapPlan.parse("my_plans:MINE", imports=True)
    assert found == MINE
    assert found.name == "my_plans:MINE"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("nonsense", "expected one of seed"),
        ("walk=sideways", "expected one of head, tail"),
        ("walk=head,only=some", "only='some'"),
        ("walk=head,restart=always", "restart=always"),
        ("walk=head,offer=batch:0", "batch"),
        ("walk=head,colour=red", "'colour'"),
        ("walk", "expected one of seed"),
        ("walk=head,only", "not key=value"),
        ("walk=slot,only=all", "only=slot"),
        ("walk=index,only=obsolete", "index"),
        ("no.such.module:plan", "no"),
        ("kvm_mmu.types:GIB", "expected a ZapPlan"),
    ],
)
def test_bad_plans_are_refused_with_what_was_expected(text, word):
    with pytest.raises(UsageError, match=word):
        ZapPlan.parse(text, imports=True)


def test_plans_are_frozen():
    with pytest.raises(AttributeError):
        plans["seed"].walk = "tail"  # type: ignore[misc]


def test_profiles_choose_a_plan_for_each_event_and_any_can_be_replaced():
    assert kernels["v5.0-seed"].wrap is plans["seed"]
    assert kernels["v5.2"].slot_removal is plans["v5.2-slot"]
    changed = with_plans(kernels["v5.0"], {"wrap": "indexed"})
    assert changed.wrap is plans["indexed"]
    assert changed.teardown is plans["v5.0-fast"]
    with pytest.raises(UsageError, match="expected one of wrap"):
        with_plans(kernels["v5.0"], {"lunch": "seed"})


def test_kernel_aliases_and_unknown_kernels():
    assert kernel_profile("seed").name == "v5.0-seed"
    assert kernel_profile("5.2.1").name == "v5.2"
    with pytest.raises(UsageError, match=r"expected one of v5\.0"):
        kernel_profile("v2.6")


@pytest.mark.parametrize(
    ("text", "can"),
    [
        ("zap-all", True),
        ("merged", True),
        ("indexed", True),
        ("seed", False),
        ("v5.0-fast", False),
        ("v5.3-fast", False),
        ("walk=head,only=all,skip=invalid,restart=on_nonzero,offer=when_wanted", True),
        ("walk=head,only=all,restart=on_lock_drop,offer=never", False),
        ("walk=head,only=all,offer=each_page", False),
    ],
)
def test_which_plans_can_livelock(text, can):
    assert ZapPlan.parse(text).can_livelock is can


@pytest.mark.parametrize(
    "words",
    [
        {"restart": 5},
        {"restart": [5]},
        {"name": 5},
        {"bump_valid_gen": 5},
        {"walk": None},
        {"walk": "index", "only": "all"},
    ],
)
def test_words_of_the_wrong_type(words):
    with pytest.raises(UsageError, match="zap plan"):
        ZapPlan(**words)


@pytest.mark.parametrize("plan", [None, 5, [], {}, "walk=head,walk=tail"])
def test_what_is_no_plan(plan):
    with pytest.raises(UsageError, match="zap plan"):
        as_plan(plan)


def test_a_plan_out_of_a_file_imports_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_plans", sys.modules[__name__])
    for read in (ZapPlan.parse, as_plan, lambda text: with_plans(kernels["v5.0"], {"wrap": text})):
        with pytest.raises(UsageError, match="expected one of seed"):
            read("my_plans:MINE")
