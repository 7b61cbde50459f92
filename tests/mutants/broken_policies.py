"""Broken generation policies, as a pytest plugin: `-p broken_policies` plants the one that KVM_MMU_POLICY_MUTANT names.

A mutant is a subclass with one wrong rule; planting puts that rule into the policy it breaks, so that every profile
that uses the policy has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from kvm_mmu.machine.generation import GenerationPolicy, GenerationV50, GenerationV51


class WrapMaskShortV50(GenerationV50):
    """The highest kept bit does not count for the wrap: half a lap looks like a whole one."""

    def is_wrap(self, generation: int) -> bool:
        return self.kept(generation) & ~(1 << (self.layout.width - 1)) == 0


class AddressSpaceBitKept(GenerationV51):
    """The bit that tells the address spaces apart counts for the wrap: address space 1 never wraps."""

    def is_wrap(self, generation: int) -> bool:
        return self.kept(generation) == 0


class WrapCheckBeforePublication(GenerationV50):
    """v5.0 looks for the wrap while the old generation is still visible."""

    def conclude(self, generation: int, publish: Callable[[int], None], check: Callable[[int], None]) -> None:
        check(generation)
        publish(generation)


MUTANTS: dict[str, tuple[type[GenerationPolicy], type[GenerationPolicy], str]] = {
    "wrap-mask-short": (GenerationV50, WrapMaskShortV50, "is_wrap"),
    "address-space-bit-kept": (GenerationV51, AddressSpaceBitKept, "is_wrap"),
    "wrap-check-before-publication": (GenerationV50, WrapCheckBeforePublication, "conclude"),
}


def plant(name: str) -> None:
    """Put the wrong rule of a mutant in the place of the right one."""
    right, wrong, method = MUTANTS[name]
    setattr(right, method, vars(wrong)[method])


if chosen := os.environ.get("KVM_MMU_POLICY_MUTANT"):
    plant(chosen)
