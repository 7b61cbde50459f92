"""A fault, an MMIO hit and a generation wrap, step by step: what happened, and a picture after each step.

    python examples/step_by_step.py [-o DIR]

The notebook `step_by_step.ipynb` shows the same steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kvm_mmu as km
from kvm_mmu.view.picture import vm_svg


@dataclass
class Step:
    """One step: what was done, the events it caused, the picture after it."""

    title: str
    events: list[list[object]]
    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def __str__(self) -> str:
        shown = "\n".join(f"    {' '.join(map(str, event))}" for event in self.events[:12])
        more = f"\n    ... and {len(self.events) - 12} more" if len(self.events) > 12 else ""
        return f"{self.title}\n{shown}{more}"


def steps(kernel: str = "v5.0-seed") -> Iterator[Step]:
    """The lesson; each step is yielded when it has been done."""
    vm = km.Vm(kernel=kernel, family="npt", events="all")

    def done(title: str) -> Step:
        events = vm.events
        vm.clear_events()
        return Step(title, events, vm_svg(vm.snapshot(), title))

    vm.memslots.create(slot=0, gpa=0, size=16 * km.MIB)
    yield done("a memslot: 16 MiB of RAM at 0; no table yet")
    vm.vcpus[0].access(0x1000, "w")
    yield done("a write to RAM: the fault builds four tables, one per level, and a reverse map entry")
    vm.vcpus[0].access(0x5000, "r")
    yield done("a read nearby: only an entry in the same level-1 table")
    vm.vcpus[0].access(0xFEE0_0000)
    yield done("an access without memslot: an MMIO SPTE with the generation in it; the table is flagged")
    vm.vcpus[0].access(0xFEE0_1000)
    vm.vcpus[0].access(0xFEE0_0000)
    yield done("the same again: the MMIO SPTE is checked against the generation and answers")
    vm.memslots.create(slot=1, gpa=256 * km.MIB, size=km.MIB)
    vm.vcpus[0].access(0xFEE0_0000)
    yield done("after a memslot update the SPTE is stale: checked, refused, marked again")
    vm.set_generation(0, (1 << vm.generation_policy.layout.width) * 3)
    vm.check_wrap(0)
    yield done("the generation wraps: only the flagged table is zapped, RAM stays mapped")


def main(argv: list[str] | None = None) -> list[Step]:
    """Print the steps, write the pictures; returns the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--kernel", default="v5.0-seed")
    args = parser.parse_args(argv)
    found = list(steps(args.kernel))
    for number, step in enumerate(found, 1):
        print(f"{number}. {step}")
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"step-{number}.svg").write_text(step.svg, encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
