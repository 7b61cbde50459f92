"""The memslot generation policy: where a generation starts, how it steps, what counts as a wrap, in which order.

A policy is a Python class, open to subclassing. Only data cross to the core, once per VM (`layout`): how many bits an
MMIO SPTE keeps of the generation and where. Every step, start value and wrap test stays here.
Source: docs/kernel-facts.md, mmio.gen and slots.gen (v5.0: `update_memslots`/`install_new_memslots`,
`kvm_mmu_invalidate_mmio_sptes`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import flag, integer, shown
from kvm_mmu.types import KVM_ADDRESS_SPACE_NUM

log = logging.getLogger("kvm_mmu.generation")

_U64 = (1 << 64) - 1

#: Starting values of address space `i` that history used; a policy takes one of these names or any function of `i`.
STARTS: dict[str, Callable[[int], int]] = {
    "i*2-150": lambda i: i * 2 - 150,
    "i*2": lambda i: i * 2,
    "i": lambda i: i,
}


@dataclass(frozen=True, slots=True)
class GenerationField:
    """A run of generation bits and where an MMIO SPTE stores it.

    Args:
        gen_shift: lowest bit of the generation in this field.
        bits: how many bits are stored.
        spte_shift: lowest bit of the SPTE that holds them.
        read_bits: how many are read back; 0: as many as stored. v5.0 does not mask its high field when it reads.
    """

    gen_shift: int
    bits: int
    spte_shift: int
    read_bits: int = 0

    def __post_init__(self) -> None:
        for name in ("gen_shift", "bits", "spte_shift", "read_bits"):
            object.__setattr__(self, name, integer(name, getattr(self, name), -64, 64))
        if self.read_bits == 0:
            object.__setattr__(self, "read_bits", self.bits)


@dataclass(frozen=True, slots=True)
class GenerationLayout:
    """What the core must know of a policy: which bits of a generation an MMIO SPTE keeps, and where.

    Args:
        width: the compared value is `generation & ((1 << width) - 1)`.
        in_progress: mask; a set bit of it means that an update is in flight.
        refuse_in_progress: nothing is cached or accepted while one is.
        fields: where the bits are stored.
    """

    width: int
    in_progress: int
    refuse_in_progress: bool
    fields: tuple[GenerationField, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", integer("generation width", self.width, 1, 63))
        object.__setattr__(self, "in_progress", integer("in-progress mask", self.in_progress))
        object.__setattr__(self, "refuse_in_progress", flag("refuse_in_progress", self.refuse_in_progress))
        fields = self.fields if isinstance(self.fields, Iterable) else [None]
        object.__setattr__(self, "fields", tuple(fields))
        if not all(isinstance(field, GenerationField) for field in self.fields):
            raise UsageError(f"generation fields={shown(self.fields)}: expected GenerationField values")
        used = 0
        for field in self.fields:
            if field.bits < 1 or field.gen_shift < 0 or field.gen_shift + field.bits > 63:
                raise UsageError(f"{field}: generation bits outside 0 to 62")
            if field.spte_shift < 3 or field.spte_shift + field.bits > 63:
                raise UsageError(f"{field}: SPTE bits outside 3 to 62")
            mask = ((1 << field.bits) - 1) << field.spte_shift
            if mask & used:
                raise UsageError(f"{field}: overlaps another field of the SPTE")
            if mask & (((1 << 52) - 1) & ~0xFFF):
                raise UsageError(f"{field}: overlaps the gfn of the MMIO SPTE (bits 12 to 51)")
            used |= mask


class GenerationPolicy(ABC):
    """Base of all policies. Subclass it and override what differs.

    Args:
        start: the first generation of address space `i`: a name of `STARTS`, a function of `i`, or None for the
            kernel's.
    """

    name = "base"
    layout = GenerationLayout(
        width=20, in_progress=0, refuse_in_progress=False, fields=(GenerationField(0, 9, 3),)
    )
    default_start = "i"

    def __init__(self, start: str | Callable[[int], int] | None = None) -> None:
        key = self.default_start if start is None else start
        if isinstance(key, str):
            if key not in STARTS:
                raise UsageError(
                    f"generation start {key!r}: expected one of {', '.join(STARTS)} or a function of i"
                )
            self.start_name = key
            self._start = STARTS[key]
        else:
            if not callable(key):
                raise UsageError(f"generation start {shown(key)}: expected a name or a function of i")
            self.start_name = getattr(key, "__name__", "custom")
            self._start = key

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} start={self.start_name} width={self.layout.width}>"

    def initial(self, as_id: int) -> int:
        """Give the generation of an address space before the first update.

        Args:
            as_id: address space, 0 or 1.

        Returns:
            An unsigned 64-bit value.
        """
        return integer("generation start", self._start(as_id), -_U64, _U64) & _U64

    @abstractmethod
    def begin(self, generation: int) -> int:
        """Give the value that is visible while an update is in flight.

        Args:
            generation: the value before the update.

        Returns:
            The value with its mark of an update in flight.
        """

    @abstractmethod
    def next(self, generation: int) -> int:
        """Give the value after the update.

        Args:
            generation: what `begin` returned.

        Returns:
            The new generation.
        """

    @abstractmethod
    def is_wrap(self, generation: int) -> bool:
        """Say whether stale MMIO SPTEs would look fresh under a new generation, since its kept part is zero again.

        Args:
            generation: the new generation.

        Returns:
            True if it is a wrap.
        """

    def even_updates(self, generation: int) -> int:
        """Count the updates from a generation on that are made by the same sum and of which none is a wrap.

        Args:
            generation: the generation before them.

        Returns:
            How many may be made at once; 0 where that is not known: one by one.
        """
        return 0

    def conclude(self, generation: int, publish: Callable[[int], None], check: Callable[[int], None]) -> None:
        """End an update: make the new generation visible and look for a wrap, in this policy's order.

        Args:
            generation: the new generation.
            publish: makes it visible.
            check: looks for a wrap, and zaps.
        """
        publish(generation)
        check(generation)

    def wrapped(self, as_id: int, generation: int) -> None:
        """Say that a wrap was found (the kernel's message, at debug level there and here).

        Args:
            as_id: address space, 0 or 1.
            generation: the new generation.
        """
        log.debug(
            "kvm: zapping shadow pages for mmio generation wraparound (address space %d, generation %#x)",
            as_id,
            generation,
        )

    def kept(self, generation: int) -> int:
        """Cut a generation down to what MMIO SPTEs are compared with.

        Args:
            generation: the whole generation.

        Returns:
            Its low bits, as many as the layout keeps.
        """
        return generation & ((1 << self.layout.width) - 1)


class GenerationV50(GenerationPolicy):
    """v5.0: odd while in flight, +4 an update, wrap looked for after publication.

    With the start -150 address space 0 runs through 2 mod 4 and never meets 0: its wrap is never detected.
    """

    name = "v5.0"
    layout = GenerationLayout(
        width=20,
        in_progress=1,
        refuse_in_progress=False,
        fields=(GenerationField(1, 9, 3), GenerationField(10, 10, 52, read_bits=12)),
    )
    default_start = "i*2-150"

    def begin(self, generation: int) -> int:
        return (generation + 1) & _U64

    def next(self, generation: int) -> int:
        return (generation + KVM_ADDRESS_SPACE_NUM * 2 - 1) & _U64

    def is_wrap(self, generation: int) -> bool:
        return self.kept(generation) == 0


class GenerationV51(GenerationPolicy):
    """v5.1 to v5.3: bit 63 while in flight, +2 an update, wrap looked for before publication in any address space.

    The layout keeps the kernels' bug: the high SPTE field holds generation bits 0-9 again instead of 9-18, so no
    generation of 1024 or more is ever accepted. `GenerationV51Fixed` has it switched off.
    """

    name = "v5.1"
    layout = GenerationLayout(
        width=19,
        in_progress=1 << 63,
        refuse_in_progress=True,
        fields=(GenerationField(0, 9, 3), GenerationField(0, 10, 52)),
    )
    default_start = "i"

    def begin(self, generation: int) -> int:
        return generation | self.layout.in_progress

    def next(self, generation: int) -> int:
        return ((generation & ~self.layout.in_progress) + KVM_ADDRESS_SPACE_NUM) & _U64

    def is_wrap(self, generation: int) -> bool:
        return self.kept(generation) & ~(KVM_ADDRESS_SPACE_NUM - 1) == 0

    def even_updates(self, generation: int) -> int:
        if type(self).next is not GenerationV51.next or type(self).is_wrap is not GenerationV51.is_wrap:
            return 0
        return (
            (1 << self.layout.width) // KVM_ADDRESS_SPACE_NUM
            - self.kept(generation) // KVM_ADDRESS_SPACE_NUM
            - 1
        )

    def conclude(self, generation: int, publish: Callable[[int], None], check: Callable[[int], None]) -> None:
        check(generation)
        publish(generation)


class GenerationV51Fixed(GenerationV51):
    """As v5.1, with generation bits 9-18 where the kernel meant them to be (kernel commit 34c0f6f2695a)."""

    name = "v5.1-fixed"
    layout = GenerationLayout(
        width=19,
        in_progress=1 << 63,
        refuse_in_progress=True,
        fields=(GenerationField(0, 9, 3), GenerationField(9, 10, 52)),
    )


class GenerationV61(GenerationV51):
    """v6.1 to v7.1: generation bits 0-7 in SPTE bits 3-10 and bits 8-18 in SPTE bits 52-62."""

    name = "v6.1"
    layout = GenerationLayout(
        width=19,
        in_progress=1 << 63,
        refuse_in_progress=True,
        fields=(GenerationField(0, 8, 3), GenerationField(8, 11, 52)),
    )


class GenerationV510(GenerationV51):
    """v5.10: 18 bits; generation bits 0-8 in SPTE bits 3-11 and bits 9-17 in SPTE bits 54-62."""

    name = "v5.10"
    layout = GenerationLayout(
        width=18,
        in_progress=1 << 63,
        refuse_in_progress=True,
        fields=(GenerationField(0, 9, 3), GenerationField(9, 9, 54)),
    )


class GenerationV72(GenerationV51):
    """v7.2 and later: 18 bits; generation bits 0-6 in SPTE bits 3-9 and bits 7-17 in SPTE bits 52-62."""

    name = "v7.2"
    layout = GenerationLayout(
        width=18,
        in_progress=1 << 63,
        refuse_in_progress=True,
        fields=(GenerationField(0, 7, 3), GenerationField(7, 11, 52)),
    )


@dataclass(frozen=True, slots=True)
class WrapCount:
    """The result of running a policy through its generations.

    Attributes:
        policy: its name.
        start: the name of its start.
        as_id: address space, 0 or 1.
        first: the first update at which a wrap was detected; None: never.
        lap: updates until the kept value repeats.
        steps_run: updates that were run.
    """

    policy: str
    start: str
    as_id: int
    first: int | None
    lap: int
    steps_run: int


def run_until_wrap(policy: GenerationPolicy, as_id: int, limit: int | None = None) -> WrapCount:
    """Step a policy, update by update, through one whole lap and say at which update a wrap is detected.

    Args:
        policy: the policy to run.
        as_id: address space, 0 or 1.
        limit: updates to run; default one more lap than the kept value has values.

    Returns:
        The first update at which `is_wrap` said yes, and the updates until the kept value repeats.
    """
    limit = limit or (2 << policy.layout.width)
    generation = policy.initial(as_id)
    seen_first = policy.kept(generation)
    first: int | None = None
    lap = 0
    step = 0
    for step in range(1, limit + 1):
        generation = policy.next(policy.begin(generation))
        if first is None and policy.is_wrap(generation):
            first = step
        if lap == 0 and policy.kept(generation) == seen_first:
            lap = step
        if lap and (first is not None or step >= 2 * lap):
            break
    return WrapCount(policy.name, policy.start_name, as_id, first, lap, step)
