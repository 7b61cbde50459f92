"""The whole ring of a generation policy: the kernels' own, made-up ones, and policies with one wrong rule each."""

from __future__ import annotations

import itertools

import kvm_mmu as km
import pytest
from kvm_mmu.lab.ring import RULES, RingOfSpace
from kvm_mmu.machine.generation import GenerationV51, GenerationV51Fixed

LAP = 1 << 18


def broken(found: km.lab.ring.Ring) -> set[tuple[str, int | None]]:
    return {(finding.rule, finding.as_id) for finding in found.findings if finding.is_unsafe}


def test_v5_0_never_finds_the_wrap_of_address_space_0() -> None:
    found = km.ring("v5.0")
    assert found.spaces == (
        RingOfSpace(0, 0, LAP, None, LAP, LAP, LAP),
        RingOfSpace(1, 0, LAP, 37, LAP, 0, None),
    )
    assert not found.is_safe and broken(found) == {("ring_repeat", 0)}
    assert "262,144 updates later" in " ".join(str(found).split())
    assert max(map(len, str(found).splitlines())) <= 80


@pytest.mark.parametrize(
    ("kernel", "period", "accepted"),
    [
        ("v5.2", LAP, 512),
        ("v5.10", LAP // 2, LAP // 2),
        ("v6.1", LAP, LAP),
        ("v6.12", LAP, LAP),
        ("v6.18", LAP, LAP),
        ("v7.2", LAP // 2, LAP // 2),
        ("v7.3", LAP // 2, LAP // 2),
    ],
)
def test_the_kernels_from_5_1_on_are_safe(kernel: str, period: int, accepted: int) -> None:
    found = km.ring(kernel)
    assert found.is_safe
    assert found.spaces == tuple(RingOfSpace(as_id, 0, period, period, accepted, 0, None) for as_id in (0, 1))
    assert [finding.rule for finding in found.findings] == ["ring_useful"] * (2 if accepted == 512 else 0)


def test_the_stored_field_of_v5_1_put_right_makes_every_generation_useful() -> None:
    assert km.ring(GenerationV51Fixed(), kernel="v5.2").findings == ()


class AddressSpaceBitKept(GenerationV51Fixed):
    def is_wrap(self, generation: int) -> bool:
        return self.kept(generation) == 0


class NoWrap(GenerationV51Fixed):
    def is_wrap(self, generation: int) -> bool:
        return False


class NotRefused(GenerationV51Fixed):
    layout = km.GenerationLayout(19, 1 << 63, False, GenerationV51Fixed.layout.fields)


class SameTwice(GenerationV51Fixed):
    """Every second update keeps the compared bits: what is marked before it stays fresh after it."""

    def next(self, generation: int) -> int:
        generation &= ~self.layout.in_progress
        return generation ^ (1 << 19) if not generation >> 19 & 1 else (generation ^ (1 << 19)) + 2


class NeverPublished(GenerationV51Fixed):
    def conclude(self, generation, publish, check):
        check(generation)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (AddressSpaceBitKept(), {("ring_repeat", 1)}),
        (NoWrap(), {("ring_repeat", 0), ("ring_repeat", 1)}),
        (km.SteppedGeneration(bits=12, step=2, wrap_mask=0x1FFE), {("ring_repeat", 0), ("ring_repeat", 1)}),
        (km.SteppedGeneration(bits=14, step=2, wrap_mask=0x7FFE), {("ring_repeat", 0), ("ring_repeat", 1)}),
        (km.SteppedGeneration(bits=14, step=2, wrap_mask=0x1FFE), set()),
        (km.SteppedGeneration(lambda i: 2 + i, bits=4, step=4), {("ring_repeat", 0), ("ring_repeat", 1)}),
        (km.SteppedGeneration(bits=3), set()),
        (NotRefused(), {("ring_inflight", 0), ("ring_inflight", 1)}),
        (
            SameTwice(),
            {(rule, as_id) for rule in ("ring_repeat", "ring_window") for as_id in (0, 1)},
        ),
        (NeverPublished(), {("ring_order", None)}),
    ],
)
def test_each_wrong_rule_is_found_by_the_rule_for_it(policy, expected) -> None:
    kernel = "v6.12" if isinstance(policy, km.SteppedGeneration) else "v5.2"
    assert broken(km.ring(policy, kernel=kernel)) == expected


def test_the_arithmetic_says_what_stepping_through_says() -> None:
    """Every pair of a small ring, one by one: marked at one update, met again at a later one, no wrap in between."""
    for bits, step, start, mask in itertools.product((2, 3, 4), (1, 2, 3, 4), (0, 1, 5), (0b0110, 0b1110, 0)):
        policy = km.SteppedGeneration(start, bits=bits, step=step, wrap_mask=mask)
        generation, installed = policy.initial(0), []
        for _ in range(80):
            installed.append(generation)
            generation = policy.next(policy.begin(generation))
        space = km.ring(policy).spaces[0]
        unsafe = 0
        assert space.before == 0
        for k in range(space.period):
            for later in range(k + 1, len(installed)):
                if policy.is_wrap(installed[later]):
                    break
                if policy.kept(installed[later]) == policy.kept(installed[k]):
                    unsafe += 1
                    break
        assert (space.unsafe, space.accepted) == (unsafe, space.period), policy


def test_two_spaces_with_one_generation_matter_where_the_cache_goes_by_space_0() -> None:
    policy = km.SteppedGeneration(0, bits=10, step=2)
    assert [f.is_unsafe for f in km.ring(policy, kernel="v5.2").findings] == [True]
    assert [f.is_unsafe for f in km.ring(policy, kernel="6.12.117").findings] == [False]


class Wide(GenerationV51):
    layout = km.GenerationLayout(30, 1 << 63, True, (km.GenerationField(0, 8, 3),))


def test_what_cannot_be_judged_is_refused_in_words() -> None:
    with pytest.raises(km.UsageError, match="ask for them with long"):
        km.ring(Wide())
    with pytest.raises(km.UsageError, match="expected a kernel's name or a GenerationPolicy"):
        km.ring(3)  # type: ignore[arg-type]
    with pytest.raises(km.UsageError, match="do not repeat with the lowest 5 bits"):
        km.ring(km.SteppedGeneration(bits=3, wrap_mask=0x70), kernel="v5.2")
    for wrong in ({"bits": 20}, {"step": 0}, {"start": True}, {"start": "ii"}, {"wrap_mask": -1}):
        with pytest.raises(km.UsageError):
            km.SteppedGeneration(**wrong)


def test_every_rule_has_a_sentence() -> None:
    assert all(text and not text.endswith(".") for text in RULES.values())
