"""Scaling a workload: the input's own accesses, repeated side by side in shifted guest memory until n pages live.

Owned here: how many copies give n pages, the run of all copies, the comparison of input and scaled run. The accesses
are repeated operation by operation over all copies, not copy by copy, so that what was touched early is old in the
scaled run too (or, on request, in groups of copies, so that MMIO is spread evenly over all ages). The limit of shadow
pages and, with a note, physical width and number of memslots are lifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.comparison import Side
from kvm_mmu.lab.scale_packing import MOST_SLOTS, Packing, install, most_slots, nr_slots, packings
from kvm_mmu.lab.scale_pattern import Pattern, pattern_of
from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.scenario.workload import Batch, Population, Touch, Workload, population
from kvm_mmu.types import GIB, KVM_MEM_SLOTS_NUM

#: Where MMIO pages stand in a scaled run.
MMIO_PLACES = ("input", "even")
#: Groups of copies that `even` runs at most.
MOST_GROUPS = 1000
#: Largest difference between input and scaled run that counts as the same, in shares and ages.
WITHIN = 0.05


@dataclass(frozen=True)
class Scaled:
    """A scaled workload beside what it was made from."""

    workload: Workload
    pattern: Pattern
    copies: int
    mmio_copies: int
    of_scaled: Population
    share_asked: float | None
    place_asked: str


def _build(
    pattern: Pattern, packed: Packing, copies: int, with_mmio: Sequence[int], groups: int = 1
) -> Workload:
    """Run the pattern in `copies` copies, one group of them after the other; MMIO accesses only in `with_mmio`."""
    config = dict(pattern.config)
    notes = []
    needed = max(1, packed.end(copies) - 1).bit_length()
    if needed > config["phys_bits"]:
        notes.append(f"{pattern.name}: physical width lifted from {config['phys_bits']} to {needed} bits")
        config["phys_bits"] = needed
    for key in ("execonly", "pml", "flush_range"):
        config[key] = bool(config[key])
    config["tdp_mmu"] = bool(config.get("tdp_mmu", 0))
    slots = nr_slots(pattern, packed, copies)
    if slots > KVM_MEM_SLOTS_NUM:
        notes.append(f"{pattern.name}: {slots:,} memslots, above the kernel's {KVM_MEM_SLOTS_NUM}")
    vm = Vm(kernel=pattern.kernel, events="off", max_memslots=MOST_SLOTS, **config)
    install(vm, pattern, packed, copies)
    vm.set_nr_mmu_pages(1 << 30)
    every = np.array_split(np.arange(copies, dtype=np.uint64), groups)
    some = np.array(with_mmio, dtype=np.uint64)
    touches: list[Batch] = []
    for group in every:
        mmio = some[(some >= group[0]) & (some <= group[-1])]
        for step in pattern.steps:
            if not isinstance(step, Touch):
                _vcpu_op(vm, step)
                continue
            if step.gpa in pattern.mmio:
                gpas = packed.mmio_gpas(step.gpa, mmio, copies)
            else:
                gpas = packed.ram_gpas(step.gpa, group)
            if gpas.size:
                vm.vcpus[step.vcpu].access_many(gpas, step.kind)
                touches.append(Batch(step.vcpu, step.kind, gpas))
    return Workload(pattern.name, vm, touches, notes)


def _vcpu_op(vm: Vm, op: Mapping[str, Any]) -> None:
    vcpu = vm.vcpus[int(str(op.get("vcpu", 0)), 0)]
    match op["op"]:
        case "smm":
            vcpu.set_smm(bool(int(str(op["on"]), 0)))
        case "load":
            vcpu.load()
        case "unload":
            vcpu.unload()
        case _:
            given = {key: int(str(op[key]), 0) for key in ("cr0", "cr4", "efer") if op.get(key) is not None}
            vcpu.set_regs(**given, smm=None if op.get("smm") is None else bool(int(str(op["smm"]), 0)))


def scaled(
    scenario: Scenario,
    n: int,
    kernel: str | None = None,
    mmio_share: float | None = None,
    mmio_place: str = "input",
) -> Scaled:
    """Repeat a scenario's accesses until about `n` pages live (never fewer than the input's own copy gives).

    Args:
        n: live shadow pages. mmio_share: share of pages caching MMIO: the MMIO accesses are then repeated in as many
            copies as it takes, evenly spread; default the input's own share.
        mmio_place: `input`: as old among the others as in the input; `even`: spread over all ages.

    Raises:
        UsageError: the input cannot give that: nothing to repeat, no MMIO in it, or too little of it.
    """
    if mmio_place not in MMIO_PLACES:
        raise UsageError(f"MMIO place {mmio_place!r}: expected one of {', '.join(MMIO_PLACES)}")
    pattern = pattern_of(scenario, kernel)
    for packed in packings(pattern):
        sizes = _sizes(pattern, packed)
        copies, mmio_copies = _copies(pattern, sizes, n, mmio_share)
        if nr_slots(pattern, packed, copies) > most_slots():
            continue
        if packed.end(copies) <= 1 << (12 + 9 * int(pattern.config["tdp_level"])):
            break
    else:
        raise UsageError(f"{pattern.name}: {n:,} pages need more guest memory than its root can map")
    groups = min(copies, max(1, mmio_copies), MOST_GROUPS) if mmio_place == "even" else 1
    with_mmio = [i * copies // mmio_copies for i in range(mmio_copies)]
    workload = _build(pattern, packed, copies, with_mmio, groups)
    workload.size = n
    if packed.block != GIB:
        workload.notes.append(f"{pattern.name}: copies share level-2 tables, guest memory is packed by 2 MiB")
    if pattern.left_out:
        parts = ", ".join(f"{count} {name}" for name, count in sorted(pattern.left_out.items()))
        workload.notes.append(f"{pattern.name}: not repeated, accesses only: {parts}")
    workload.name = f"{pattern.name} x {copies:,}"
    return Scaled(workload, pattern, copies, mmio_copies, population(workload.vm), mmio_share, mmio_place)


@dataclass(frozen=True)
class _Sizes:
    """Pages that all copies share, that a copy adds without MMIO, that its MMIO adds, and how many are flagged."""

    shared: float
    ram: float
    mmio: float
    flagged: float


def _sizes(pattern: Pattern, packed: Packing) -> _Sizes:
    """Measured on small builds: pages are counted, not computed."""

    def pages(copies: int, with_mmio: int) -> tuple[int, int]:
        found = population(_build(pattern, packed, copies, list(range(with_mmio))).vm)
        return found.pages, found.mmio_pages

    few, many = 8, 24
    base, _ = pages(few, few)
    full, flagged_full = pages(many, many)
    _, flagged_base = pages(few, few)
    plain, _ = pages(many, few)
    spread = many - few
    mmio = (full - plain) / spread
    ram = (plain - base) / spread
    return _Sizes(base - few * (ram + mmio), ram, mmio, (flagged_full - flagged_base) / spread)


def _copies(pattern: Pattern, sizes: _Sizes, n: int, share: float | None) -> tuple[int, int]:
    if share is None:
        each = sizes.ram + sizes.mmio
        if each <= 0:
            raise UsageError(f"{pattern.name}: a further copy adds no shadow page, it cannot be scaled")
        copies = max(1, -int(-(n - sizes.shared) // each))
        return copies, copies
    if share and sizes.flagged <= 0:
        raise UsageError(f"{pattern.name}: it caches no MMIO, a share of {share:.0%} cannot be made of it")
    mmio_copies = max(1, round(share * n / sizes.flagged)) if share else 0
    rest = n - sizes.shared - mmio_copies * sizes.mmio
    if sizes.ram <= 0 or rest / sizes.ram < mmio_copies:
        most = sizes.flagged / (sizes.ram + sizes.mmio)
        raise UsageError(
            f"{pattern.name}: an MMIO share of {share:.0%} is more than the {most:.0%} it can give"
        )
    return max(1, -int(-rest // sizes.ram)), mmio_copies


def side_by_side(made: Scaled) -> list[Side]:
    """Share of MMIO pages, level mix and age order of input and scaled run, and whether they agree within 5 points."""
    before, after = made.pattern.of_input, made.of_scaled
    if before is None:
        return []
    sides = [Side("live pages", before.pages, after.pages, None)]

    def one(what: str, a: float | None, b: float | None, why: str) -> None:
        within = None if a is None or b is None else abs(a - b) <= WITHIN
        sides.append(Side(what, _round(a), _round(b), within, "" if within is not False else why))

    asked = made.share_asked
    shared = "one root and level-3 table serve all copies"
    rarer = "MMIO tables are repeated less often" if asked is not None else "level-2 tables are shared"
    repeated = [sum(p.levels.get(level, 0) for level in (1, 2)) or 1 for p in (before, after)]
    why = shared if asked is None else f"{asked:.0%} asked for"
    one("share of MMIO pages", before.mmio_share, after.mmio_share, why)
    why = "a page stays flagged whose MMIO became RAM" if asked is None else why
    one(
        "share of MMIO pages, levels 1 and 2",
        before.mmio_pages / repeated[0],
        after.mmio_pages / repeated[1],
        why,
    )
    for level in sorted({*before.levels, *after.levels}):
        one(f"level {level}, of all pages", before.level_share(level), after.level_share(level), shared)
    for level in (1, 2):
        a, b = (p.levels.get(level, 0) / count for p, count in zip((before, after), repeated, strict=True))
        one(f"level {level}, of levels 1 and 2", a, b, rarer)
    why = "few pages" if before.pages < 64 else "MMIO tables are repeated less often"
    why = "spread evenly was asked for" if made.place_asked == "even" else why
    one("mean age of MMIO pages (0 new, 1 old)", before.age_mmio, after.age_mmio, why)
    one("spread of their ages", before.age_spread, after.age_spread, why)
    return sides


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
