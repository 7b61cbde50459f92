"""Scaling a workload: the input's own accesses, repeated side by side in shifted guest memory until n pages live.

Owned here: which of the input's operations made the population that lives at its end, how its guest memory is packed
and shifted, how many copies give n pages. The accesses are repeated operation by operation over all copies, not copy
by copy, so that what was touched early is old in the scaled run too (or, on request, in groups of copies, so that MMIO
is spread evenly over all ages). Guest memory is packed: blocks of 1 GiB that hold RAM come first, under at most 509
memslots, blocks that hold MMIO above them. The limit of shadow pages and, with a note, the physical width are lifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.comparison import Side
from kvm_mmu.lab.machine_engine import MachineEngine
from kvm_mmu.lab.scenario import Scenario
from kvm_mmu.lab.workload import (
    Batch,
    Gpas,
    Population,
    Touch,
    Workload,
    WorkloadEngine,
    kind_of_error,
    population,
)
from kvm_mmu.machine.memory_region import Slot
from kvm_mmu.machine.memslots import FIRST_HVA
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.machine.vm import DEFAULTS, Vm
from kvm_mmu.types import GIB, KVM_MEMSLOT_INVALID, KVM_USER_MEM_SLOTS, MIB, PAGE_SHIFT, PAGE_SIZE

#: Operations on a vCPU that stay in their place among the accesses.
VCPU_OPS = frozenset({"smm", "set_regs", "load", "unload", "enter"})
#: A zap of at least this share of the live pages begins a new population.
MASS_ZAP = 0.95
#: Where MMIO pages stand in a scaled run.
MMIO_PLACES = ("input", "even")
#: Groups of copies that `even` runs at most.
MOST_GROUPS = 1000
#: Largest difference between input and scaled run that counts as the same, in shares and ages.
WITHIN = 0.05


@dataclass
class Pattern:
    """What is repeated: accesses (with whether each met MMIO) and vCPU operations, the slots under them."""

    name: str
    kernel: str
    config: dict[str, Any]
    steps: list[Touch | dict[str, Any]] = field(default_factory=list)
    mmio: set[int] = field(default_factory=set)
    slots: list[tuple[int, Slot]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    of_input: Population | None = None

    @property
    def flags(self) -> int:
        """The flags that every slot of the input has."""
        common = {slot.flags for _, slot in self.slots}
        return common.pop() if len(common) == 1 else 0

    @property
    def gpas(self) -> list[int]:
        """Every touched page, ascending, once."""
        return sorted({step.gpa for step in self.steps if isinstance(step, Touch)})


@dataclass(frozen=True)
class Packing:
    """Where guest memory goes: the blocks of `block` bytes that the input touches, numbered, RAM and MMIO apart.

    Copy k of the RAM blocks lies at `k * len(ram)` blocks; the MMIO blocks of all copies lie above all RAM.
    """

    block: int
    ram: Mapping[int, int]
    mmio: Mapping[int, int]

    def ram_gpas(self, gpa: int, copies: Gpas) -> Gpas:
        """An address of RAM in these copies."""
        first = self.ram[gpa // self.block] * self.block + gpa % self.block
        return copies * np.uint64(len(self.ram) * self.block) + np.uint64(first)

    def mmio_gpas(self, gpa: int, copies: Gpas, nr_copies: int) -> Gpas:
        """An MMIO address in these copies, of `nr_copies` in all."""
        first = (
            nr_copies * len(self.ram) * self.block
            + self.mmio[gpa // self.block] * self.block
            + gpa % self.block
        )
        return copies * np.uint64(len(self.mmio) * self.block) + np.uint64(first)

    def end(self, nr_copies: int) -> int:
        """End of guest memory with that many copies."""
        return nr_copies * (len(self.ram) + len(self.mmio)) * self.block


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


def pattern_of(scenario: Scenario, kernel: str | None = None) -> Pattern:
    """The operations that made what lives at a scenario's end.

    A zap of (nearly) everything begins a new population; of the populations the last that has accesses is taken.
    """
    chosen = kernel or scenario.kernel
    if chosen is None:
        raise UsageError(f"{scenario.path}: no kernel: give --kernel, or a header with a variant")
    name = kernel_profile(chosen).name
    starts = _population_starts(scenario, name)
    start, stop = starts[-1], len(scenario.ops)
    # Every population but the last is ended by a zap, which is the operation before the next one.
    ends = [*(begin - 1 for begin in starts[1:]), len(scenario.ops)]
    for begin, end in zip(reversed(starts), reversed(ends), strict=True):
        if any(op["op"] in ("access", "fault") for op in scenario.ops[begin:end]):
            start, stop = begin, end
            break
    return _collect(scenario, name, start, stop)


def _population_starts(scenario: Scenario, kernel: str) -> list[int]:
    engine = MachineEngine(kernel, scenario.config, scenario.plans)
    starts = [0]
    for i, op in enumerate(scenario.ops):
        before, live = engine.vm.work["pages_zapped"], engine.vm.core.nr_active_pages
        engine.apply(op)
        zapped = engine.vm.work["pages_zapped"] - before
        # A root in use outlives the zap; taking it away later, while pages are built, begins nothing new.
        if zapped >= MASS_ZAP * live and engine.vm.core.nr_active_pages < live:
            starts.append(i + 1)
    return starts


def _collect(scenario: Scenario, kernel: str, start: int, stop: int) -> Pattern:
    config = {**DEFAULTS, **scenario.config}
    pattern = Pattern(scenario.name, kernel, config)
    engine = WorkloadEngine(kernel, scenario.config, scenario.plans)
    seen: set[tuple[Touch, int]] = set()
    smm = 0
    for i, op in enumerate(scenario.ops[:stop]):
        result = engine.apply(op)
        name = op["op"]
        if name == "smm":
            smm ^= 1 << int(str(op.get("vcpu", 0)), 0)
        if i < start:
            continue
        if name in ("access", "fault"):
            kind = op.get("kind", "r") if name == "access" else kind_of_error(int(str(op["err"]), 0))
            gpa = int(str(op["gpa"]), 0) & ~(PAGE_SIZE - 1)
            touch = Touch(int(str(op.get("vcpu", 0)), 0), gpa, kind)
            if name == "access" and result["out"]["outcome"] in ("error", "stuck"):
                pattern.left_out["failed access"] = pattern.left_out.get("failed access", 0) + 1
                continue
            if any(event[0] == "emulate" for event in result["events"]):
                pattern.mmio.add(gpa)
            else:
                pattern.mmio.discard(gpa)
            if (touch, smm) not in seen:
                seen.add((touch, smm))
                pattern.steps.append(touch)
        elif name in VCPU_OPS:
            if name != "enter":
                pattern.steps.append(op)
        elif name != "dump":
            pattern.left_out[name] = pattern.left_out.get(name, 0) + 1
    pattern.slots = [
        (as_id, slot) for as_id, slot in engine.vm.memslots if not slot.flags & KVM_MEMSLOT_INVALID
    ]
    pattern.of_input = population(engine.vm)
    return pattern


def packing(pattern: Pattern, block: int = GIB) -> Packing:
    """Number the blocks of guest memory that the input touches."""
    numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for gpa in pattern.gpas:
        mine = numbers[gpa in pattern.mmio]
        mine.setdefault(gpa // block, len(mine))
    if not numbers[0] and not numbers[1]:
        raise UsageError(f"{pattern.name}: nothing in it touches guest memory, so there is nothing to repeat")
    return Packing(block, *numbers)


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
    vm = Vm(kernel=pattern.kernel, events="off", **config)
    _install(vm, pattern, copies * len(packed.ram), packed.block)
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


def _install(vm: Vm, pattern: Pattern, blocks: int, block: int) -> None:
    """Put RAM under every block, in as many slots as the kernel has, without an update of the generation: the copies'
    memory was there before the copies ran."""
    if not blocks:
        return
    spaces = sorted({as_id for as_id, _ in pattern.slots}) or [0]
    most = KVM_USER_MEM_SLOTS if len(spaces) == 1 else KVM_USER_MEM_SLOTS // 2
    each = -(-blocks // most)
    for as_id in spaces:
        for number, first in enumerate(range(0, blocks, each)):
            npages = min(each, blocks - first) * block >> PAGE_SHIFT
            base = first * block >> PAGE_SHIFT
            slot = (number, base, npages, FIRST_HVA + (base << PAGE_SHIFT), pattern.flags)
            vm.install_slot(as_id, vm.generation(as_id), slot)


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
    for block in (GIB, 2 * MIB):
        packed = packing(pattern, block)
        sizes = _sizes(pattern, packed)
        copies, mmio_copies = _copies(pattern, sizes, n, mmio_share)
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
    one(
        "share of MMIO pages",
        before.mmio_share,
        after.mmio_share,
        shared if asked is None else f"{asked:.0%} asked for",
    )
    repeated = [level for level in (1, 2) if level in {*before.levels, *after.levels}]
    for level in sorted({*before.levels, *after.levels}):
        one(f"level {level}, of all pages", before.level_share(level), after.level_share(level), shared)
    for level in repeated:
        of = [sum(p.levels.get(x, 0) for x in repeated) for p in (before, after)]
        parts = [
            p.levels.get(level, 0) / total if total else 0.0
            for p, total in zip((before, after), of, strict=True)
        ]
        why = "MMIO tables are repeated less often" if asked is not None else "level-2 tables are shared"
        one(f"level {level}, of the repeated levels", parts[0], parts[1], why)
    why = "few pages" if before.pages < 64 else "MMIO tables are repeated less often"
    why = "spread evenly was asked for" if made.place_asked == "even" else why
    one("mean age of MMIO pages (0 new, 1 old)", before.age_mmio, after.age_mmio, why)
    one("mean age of level-1 pages", before.age_level1, after.age_level1, why)
    return sides


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
