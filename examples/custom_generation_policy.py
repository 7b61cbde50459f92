"""A memslot generation of one's own: four bits, so that a wrap comes every few updates, in ten lines of policy.

    python examples/custom_generation_policy.py [--updates 20]

Prints each memslot update, the generation after it, and whether it was a wrap, then how the policy steps a whole lap.
"""

from __future__ import annotations

import argparse

import kvm_mmu as km
from kvm_mmu.machine.generation import run_until_wrap


class FourBits(km.GenerationPolicy):
    """Sixteen values, one an update; the value is kept whole in SPTE bits 3 to 6; bit 63 says that one is in flight."""

    name = "four-bits"
    layout = km.GenerationLayout(
        width=4, in_progress=1 << 63, refuse_in_progress=True, fields=(km.GenerationField(0, 4, 3),)
    )
    default_start = "i"

    def begin(self, generation: int) -> int:
        return generation | self.layout.in_progress

    def next(self, generation: int) -> int:
        return (generation & ~self.layout.in_progress) + 1

    def is_wrap(self, generation: int) -> bool:
        return self.kept(generation) == 0


def main(argv: list[str] | None = None) -> int:
    """Run updates over a VM with this policy; returns how many wraps it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=20)
    updates = parser.parse_args(argv).updates

    vm = km.Vm(kernel="v5.2", family="npt", generation=FourBits(), plans={"wrap": "indexed"})
    vm.memslots.create(slot=0, gpa=0, size=km.GIB)
    wraps = 0
    for update in range(2, updates + 1):
        vm.vcpus[0].access(0xFEE0_0000)  # no memslot there: an MMIO SPTE is cached with this generation
        before = vm.work["pages_zapped"]
        vm.memslots.set_flags(0, int(update % 2 == 0))
        zapped = vm.work["pages_zapped"] - before
        wraps += zapped > 0
        generation = vm.memslots.generations[0]
        print(
            f"update {update:3}: generation {generation:#x}"
            + (f", a wrap: {zapped} page zapped" if zapped else "")
        )
    lap = run_until_wrap(FourBits(), as_id=0)
    print(f"stepped alone: first wrap at update {lap.first}, then every {lap.lap}")
    return wraps


if __name__ == "__main__":
    main()
