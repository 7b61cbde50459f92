"""What of an input is repeated when it is scaled: the accesses whose tables live at its end, in order of age.

A zap of (nearly) everything begins a new population; of the populations the last that has accesses is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.memory_region import Slot
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.machine.vm import DEFAULTS, Vm
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.scenario.workload import Population, Touch, WorkloadEngine, kind_of_error, live_pages, population
from kvm_mmu.types import KVM_MEMSLOT_INVALID, PAGE_SHIFT, PAGE_SIZE

#: Operations on a vCPU that stay in their place among the accesses; `enter` is part of every access.
VCPU_OPS = frozenset({"smm", "set_regs", "load", "unload"})
#: Those after which accesses make other pages.
MODE_OPS = frozenset({"smm", "set_regs"})
#: A zap of at least this share of the live pages begins a new population.
MASS_ZAP = 0.95


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

    def leave_out(self, what: str) -> None:
        """Count something of the input that is not repeated."""
        self.left_out[what] = self.left_out.get(what, 0) + 1


def pattern_of(scenario: Scenario, kernel: str | None = None) -> Pattern:
    """The accesses that made what lives at a scenario's end.

    Raises:
        UsageError: no kernel anywhere.
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
        before, live = engine.vm.stats["zapped"], live_pages(engine.vm)
        engine.apply(op)
        zapped = engine.vm.stats["zapped"] - before
        # A root in use outlives the zap; taking it away later, while pages are built, begins nothing new.
        if zapped >= MASS_ZAP * live and live_pages(engine.vm) < live:
            starts.append(i + 1)
    return starts


def _collect(scenario: Scenario, kernel: str, start: int, stop: int) -> Pattern:
    pattern = Pattern(scenario.name, kernel, {**DEFAULTS, **scenario.config})
    engine = WorkloadEngine(kernel, scenario.config, scenario.plans)
    seen: set[tuple[Touch, int]] = set()
    smm = 0
    for i, op in enumerate(scenario.ops[:stop]):
        result = engine.apply(op)
        name = op["op"]
        if name == "smm":
            smm ^= 1 << int(str(op.get("vcpu", 0)), 0)
        if i < start or name in ("enter", "dump"):
            continue
        if name in ("access", "fault"):
            touch = _touch(pattern, op, result)
            if touch is not None and (touch, smm) not in seen:
                seen.add((touch, smm))
                pattern.steps.append(touch)
        elif name in VCPU_OPS:
            pattern.steps.append(op)
        else:
            pattern.leave_out(name)
    pattern.slots = [
        (as_id, slot) for as_id, slot in engine.vm.memslots if not slot.flags & KVM_MEMSLOT_INVALID
    ]
    pattern.of_input = population(engine.vm)
    _by_age(pattern, engine.vm, any(op["op"] == "host_huge" for op in scenario.ops))
    return pattern


def _touch(pattern: Pattern, op: dict[str, Any], result: dict[str, Any]) -> Touch | None:
    is_access = op["op"] == "access"
    if is_access and result["out"]["outcome"] in ("error", "stuck"):
        pattern.leave_out("failed access")
        return None
    kind = op.get("kind", "r") if is_access else kind_of_error(int(str(op["err"]), 0))
    gpa = int(str(op["gpa"]), 0) & ~(PAGE_SIZE - 1)
    if any(event[0] == "emulate" for event in result["events"]):
        pattern.mmio.add(gpa)
    elif is_access or result["ret"] == 1:
        pattern.mmio.discard(gpa)
    return Touch(int(str(op.get("vcpu", 0)), 0), gpa, kind)


def _by_age(pattern: Pattern, vm: Vm, has_huge: bool) -> None:
    """Keep the accesses whose table lives at the end, in the order in which those tables were made.

    Left alone where a vCPU changes its mode between the accesses: their order is then part of the pattern.
    """
    if any(not isinstance(step, Touch) and step["op"] in MODE_OPS for step in pattern.steps):
        return
    made: dict[tuple[int, int], int] = {}
    for page_id in [*vm.core.active_page_ids(), *(table for table, _, _ in vm.core.tdp_tables())]:
        page = vm.core.page(page_id)
        if page is not None:
            made[int(page["level"]), int(page["gfn"])] = page_id

    def table(gpa: int) -> int | None:
        for level in range(1, 4 if has_huge else 2):
            found = made.get((level, gpa >> PAGE_SHIFT >> 9 * level << 9 * level))
            if found is not None:
                return found
        return None

    aged: list[tuple[int, Touch]] = []
    for step in pattern.steps:
        found = table(step.gpa) if isinstance(step, Touch) else None
        if found is not None and isinstance(step, Touch):
            aged.append((found, step))
    if len(aged) < sum(isinstance(step, Touch) for step in pattern.steps):
        pattern.leave_out("access to a table that was zapped later")
    pattern.steps = [step for _, step in sorted(aged, key=lambda one: one[0])]
