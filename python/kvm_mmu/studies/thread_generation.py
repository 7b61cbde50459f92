"""The seed thread, S2 and S3: how often a memslot generation wraps, and what the start at -150 did.

Answered by stepping the generation policies, update by update, and by memslot updates of live VMs; no formula.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache

from kvm_mmu.machine.generation import (
    STARTS,
    GenerationPolicy,
    GenerationV50,
    GenerationV51,
    WrapCount,
    run_until_wrap,
)
from kvm_mmu.machine.vm import Vm
from kvm_mmu.studies.gallery import Answer, Line, Table, count, facts_digest, rows_to_columns
from kvm_mmu.types import KVM_ADDRESS_SPACE_NUM, MIB

POLICIES: tuple[tuple[str, type[GenerationPolicy]], ...] = (
    ("v5.0", GenerationV50),
    ("v5.1, v5.2", GenerationV51),
)


@lru_cache(maxsize=64)
def counted(policy: type[GenerationPolicy], start: str, as_id: int) -> WrapCount:
    """A policy stepped until its wrap and lap are known."""
    return run_until_wrap(policy(start), as_id)


def live_wraps(start: str, as_id: int, updates: int) -> tuple[list[int], str]:
    """Make `updates` memslot updates in a live v5.0 VM; those (from 1) at which it found a wrap, and the digest."""
    found: list[int] = []
    done = 0

    class Noting(GenerationV50):
        """v5.0, noting at which update a wrap was found."""

        def wrapped(self, as_id: int, generation: int) -> None:
            super().wrapped(as_id, generation)
            found.append(done)

    vm = Vm(kernel="v5.0", family="npt", generation=Noting(start), events="off")
    done = 1
    vm.memslots.create(slot=0, gpa=0, size=2 * MIB, as_id=as_id)
    while done < updates:
        done += 1
        vm.memslots.set_flags(0, (done + 1) % 2, as_id=as_id)
    return found, facts_digest({"state": vm.digest(), "wraps": found, "updates": done})


def s2() -> Answer:
    """Updates to the first wrap and per lap."""
    rows = []
    for kernel, policy in POLICIES:
        for start in STARTS:
            for as_id in range(KVM_ADDRESS_SPACE_NUM):
                found = counted(policy, start, as_id)
                rows.append(
                    {
                        "kernel": kernel,
                        "start": start + (" (its own)" if start == policy.default_start else ""),
                        "address_space": as_id,
                        "first_wrap_at_update": "never" if found.first is None else found.first,
                        "updates_per_lap": found.lap,
                        "digest": facts_digest(asdict(found)),
                    }
                )
    lap = counted(GenerationV50, GenerationV50.default_start, 0).lap
    width = GenerationV50.layout.width
    return Answer(
        "S2",
        "one in a million?",
        "a wrap is almost literally one in a million.",
        tables=[Table("Every policy stepped through its whole lap", rows_to_columns(rows))],
        verdict=(
            f"One in {count(lap)}: the v5.0 field has {count(1 << width)} values, but an update takes "
            f"{count((1 << width) // lap)} of them (v5.1 and later: "
            f"{count((1 << GenerationV51.layout.width) // lap)} "
            f"of {count(1 << GenerationV51.layout.width)})."
        ),
    )


def s3() -> Answer:
    """The start at -150."""
    live1, digest1 = live_wraps("i*2-150", 1, 100)
    live0, digest0 = live_wraps("i*2-150", 0, 300)
    own = counted(GenerationV50, "i*2-150", 0)
    without = counted(GenerationV50, "i*2", 0)
    other = counted(GenerationV50, "i*2", 1)
    said0 = "none" if not live0 else ", ".join(map(str, live0))
    answer = Answer(
        "S3",
        "the start at -150",
        "the start at -150, so that wrap-around is easily tested, makes it frequent.",
        lines=[
            Line(
                f"address space 1 with the start: a live VM finds its wrap at update {live1[0]} of 100",
                digest1,
            )
            if live1
            else Line("address space 1 with the start: no wrap in 100 live updates", digest1),
            Line(f"address space 0 with the start: wraps found in 300 live updates: {said0}", digest0),
            Line(
                "address space 0 with the start, the policy stepped through two laps "
                f"({count(own.steps_run)} updates): "
                + (
                    "no wrap ever, it steps over zero" if own.first is None else f"wrap at {count(own.first)}"
                ),
                facts_digest(asdict(own)),
            ),
            Line(
                "address space 0 without it (start i*2): "
                + ("never" if without.first is None else f"wrap at update {count(without.first)}"),
                facts_digest(asdict(without)),
            ),
            Line(
                "address space 1 without it (start i*2): "
                + (
                    "never, now this one steps over zero"
                    if other.first is None
                    else f"wrap at {count(other.first)}"
                ),
                facts_digest(asdict(other)),
            ),
        ],
    )
    if live1 and own.first is None and without.first is not None:
        answer.verdict = (
            f"Only address space 1 (SMM) wraps early, once, at its update {live1[0]}; address space 0 "
            "never does, and it "
            "does wrap when the start is removed. The hack hid the bug that it was meant to test."
        )
    else:
        answer.verdict = "Not what was expected: see the lines."
    return answer
