"""A generation policy made of numbers: how many bits, which step, which start, which wrap mask."""

from __future__ import annotations

from collections.abc import Callable

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import GenerationField, GenerationLayout, GenerationPolicy
from kvm_mmu.machine.numbers import flag, integer
from kvm_mmu.types import KVM_ADDRESS_SPACE_NUM

_U64 = (1 << 64) - 1
_LOW_FIELD, _LOW_SHIFT, _HIGH_SHIFT = 8, 3, 52


class SteppedGeneration(GenerationPolicy):
    """A policy made of numbers, to try a width, a step, a start or a wrap mask that no kernel had.

    While an update is in flight bit 63 is set, as from v5.1 on. An MMIO SPTE keeps the low eight bits in its bits 3 to
    10 and the rest from bit 52 on.

    Args:
        start: the first generation of address space `i`: a name of `STARTS`, a function of `i`, or a number, the
            same for both; None: `i`.
        bits: how many bits of the generation are compared, 1 to 19.
        step: what an update adds, 1 or more.
        wrap_mask: an update is a wrap if none of these bits of its generation is set; None: the compared bits without
            the one that tells the address spaces apart.
        wrap_first: the wrap is looked for before the generation is published, as from v5.1 on.

    Raises:
        UsageError: a number out of range.
    """

    def __init__(
        self,
        start: str | int | Callable[[int], int] | None = None,
        *,
        bits: int = 19,
        step: int = KVM_ADDRESS_SPACE_NUM,
        wrap_mask: int | None = None,
        wrap_first: bool = True,
    ) -> None:
        bits = integer("generation bits", bits, 1, 19)
        self.step = integer("generation step", step, 1, _U64)
        if isinstance(start, bool):
            raise UsageError(f"generation start {start!r}: expected a name, a number or a function of i")
        if isinstance(start, int):
            number = integer("generation start", start, -_U64, _U64)
            super().__init__(lambda _: number)
            self.start_name = str(number)
        else:
            super().__init__(start)
        self.wrap_mask = None if wrap_mask is None else integer("wrap mask", wrap_mask, 0, _U64)
        self.wrap_first = flag("wrap_first", wrap_first)
        self.name = f"{bits} bits, +{self.step}"
        low = min(bits, _LOW_FIELD)
        fields = [GenerationField(0, low, _LOW_SHIFT)]
        if bits > low:
            fields.append(GenerationField(low, bits - low, _HIGH_SHIFT))
        self.layout = GenerationLayout(
            width=bits, in_progress=1 << 63, refuse_in_progress=True, fields=tuple(fields)
        )

    def begin(self, generation: int) -> int:
        return generation | self.layout.in_progress

    def next(self, generation: int) -> int:
        return ((generation & ~self.layout.in_progress) + self.step) & (_U64 >> 1)

    def is_wrap(self, generation: int) -> bool:
        mask = self.wrap_mask
        if mask is None:
            mask = ((1 << self.layout.width) - 1) & ~(KVM_ADDRESS_SPACE_NUM - 1)
        return generation & mask == 0

    def conclude(self, generation: int, publish: Callable[[int], None], check: Callable[[int], None]) -> None:
        for each in (check, publish) if self.wrap_first else (publish, check):
            each(generation)
