"""The generation policy: S2 and S3 by running it, and what a policy hands to the core."""

from __future__ import annotations

import logging

import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import (
    GenerationField,
    GenerationLayout,
    GenerationPolicy,
    GenerationV50,
    GenerationV51,
    GenerationV51Fixed,
    GenerationV61,
    run_until_wrap,
)

ALL = (GenerationV50, GenerationV51, GenerationV51Fixed, GenerationV61)


@pytest.mark.parametrize(
    ("policy", "start", "as_id", "first"),
    [
        (GenerationV50, "i*2-150", 0, None),  # S3: steps over zero
        (GenerationV50, "i*2-150", 1, 37),
        (GenerationV50, "i*2", 0, 262144),
        (GenerationV50, "i*2", 1, None),
        (GenerationV50, "i", 0, 262144),
        (GenerationV50, "i", 1, None),
        (GenerationV51, "i", 0, 262144),
        (GenerationV51, "i", 1, 262144),
        (GenerationV51, "i*2-150", 0, 75),
        (GenerationV51, "i*2-150", 1, 74),
    ],
)
def test_first_wrap_by_running_the_policy(policy, start, as_id, first):
    found = run_until_wrap(policy(start), as_id)
    assert found.first == first
    assert found.lap == 262144  # an update costs 4 of 2^20 or 2 of 2^19


def test_one_update_of_each_kernel():
    old = GenerationV50()
    assert hex(old.initial(0)) == "0xffffffffffffff6a"
    assert hex(old.initial(1)) == "0xffffffffffffff6c"
    assert old.next(old.begin(old.initial(0))) == old.initial(0) + 4
    assert old.begin(old.initial(0)) & 1
    new = GenerationV51()
    assert (new.initial(0), new.initial(1)) == (0, 1)
    assert new.begin(6) == 6 | 1 << 63
    assert new.next(new.begin(6)) == 8


@pytest.mark.parametrize(
    ("policy", "order"), [(GenerationV50, ["publish", "check"]), (GenerationV51, ["check", "publish"])]
)
def test_order_of_publication_and_check(policy, order):
    seen: list[str] = []
    policy().conclude(4, lambda _: seen.append("publish"), lambda _: seen.append("check"))
    assert seen == order


def test_wrap_is_logged_at_debug(caplog):
    with caplog.at_level(logging.DEBUG, logger="kvm_mmu.generation"):
        GenerationV50().wrapped(1, 0)
    assert "mmio generation wraparound" in caplog.text


@pytest.mark.parametrize("policy", ALL)
def test_in_flight_generation_differs_and_next_clears_it(policy):
    p = policy()
    gen = p.initial(0)
    for _ in range(1000):
        flight = p.begin(gen)
        assert flight != gen
        assert flight & p.layout.in_progress
        gen = p.next(flight)
        assert not gen & p.layout.in_progress


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ((GenerationField(0, 0, 3),), "generation bits"),
        ((GenerationField(60, 9, 3),), "generation bits"),
        ((GenerationField(0, 4, 2),), "SPTE bits"),
        ((GenerationField(0, 4, 3), GenerationField(0, 4, 5)), "overlaps another"),
        ((GenerationField(0, 12, 3),), "overlaps the gfn"),
    ],
)
def test_bad_layouts_are_refused(fields, word):
    with pytest.raises(UsageError, match=word):
        GenerationLayout(20, 1, False, fields)


def test_unknown_start_is_refused():
    with pytest.raises(UsageError, match=r"expected one of i\*2-150"):
        GenerationV50("now")


def test_base_class_is_abstract():
    with pytest.raises(TypeError):
        GenerationPolicy()  # type: ignore[abstract]
