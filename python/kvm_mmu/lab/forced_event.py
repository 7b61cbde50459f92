"""An event forced at the end of a workload: the wrap, a slot removal, the teardown, or nothing but the plan (`end`).

`force` runs one plan for the event and tells its work. What the event is without the plan is done by `prepare`, so
that an untouched clone differs from a zapped one by the plan alone.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import GenerationPolicy, run_until_wrap
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.zap_plan import ZapPlan
from kvm_mmu.scenario.workload import TABLE_SPAN, live_pages

EVENTS = ("end", "wrap", "slot-removal", "teardown")
#: A zap loop of the user's own: called with the VM, zaps through `Vm.zap_batch`.
PythonPlan = Callable[[Vm], object]
Plan = ZapPlan | PythonPlan


class NoProgress(Exception):
    """Raised out of a run that was interrupted more often than there were pages."""


@dataclass(frozen=True)
class EventRun:
    """What a plan did for an event: `outcome` is done, stale_next or livelock; `work` counts the plan alone.

    `longest_hold` is that of the lock held for writing; `shared_units` of the work were done while it was held for
    reading.
    """

    outcome: str
    work: dict[str, int]
    longest_hold: int
    lock_breaks: int
    page: int | None = None
    step: int | None = None
    shared_units: int = 0
    longest_shared_hold: int = 0


def as_event(at: str) -> str:
    """The event's name.

    Raises:
        UsageError: none of `EVENTS`.
    """
    name = at.replace("_", "-")
    if name not in EVENTS:
        raise UsageError(f"event {at!r}: expected one of {', '.join(EVENTS)}")
    return name


def plan_name(plan: Plan) -> str:
    """How a plan is called in tables."""
    return str(plan) if isinstance(plan, ZapPlan) else str(getattr(plan, "__name__", "custom"))


def wrapping_generation(policy: GenerationPolicy) -> int:
    """A generation that the policy calls a wrap, found by stepping it towards one.

    Raises:
        UsageError: the policy finds none within a lap and a half.
    """
    step = policy.next(policy.begin(0))
    generation = max(0, (1 << policy.layout.width) - 8 * step)
    for _ in range(16):
        generation = policy.next(policy.begin(generation))
        if policy.is_wrap(generation):
            return generation
    counted = run_until_wrap(policy, 0)
    if counted.first is None:
        raise UsageError(f"{policy!r} never wraps in address space 0: there is no wrap to force")
    generation = policy.initial(0)
    for _ in range(counted.first):
        generation = policy.next(policy.begin(generation))
    return generation


@lru_cache(maxsize=64)
def _lap(kind: type[GenerationPolicy], start: str) -> int:
    try:
        policy = kind(start)
    except (TypeError, UsageError):
        policy = kind()
    return run_until_wrap(policy, 0).lap


def updates_per_event(vm: Vm, at: str) -> int:
    """Memslot updates between two events of this kind: a lap of the generation for the wrap, one otherwise."""
    if at in ("wrap", "end"):
        return _lap(type(vm.generation_policy), vm.generation_policy.start_name)
    return 1


def largest_slot(vm: Vm) -> tuple[int, int] | None:
    """(address space, id) of the slot that a forced removal takes: the largest, the lowest id among equals."""
    slots = [(-slot.npages, as_id, slot.id) for as_id, slot in vm.memslots]
    return min(slots)[1:] if slots else None


def prepare(vm: Vm, at: str) -> None:
    """The event without its plan: for a wrap the generation becomes one."""
    if at == "wrap":
        generation = wrapping_generation(vm.generation_policy)
        vm.generation_policy.wrapped(0, generation)
        vm.set_generation(0, generation)


def force(
    vm: Vm, at: str, plan: Plan, contend: int = 0, added: int = 0, removed: tuple[int, int] | None = None
) -> EventRun:
    """Run a plan for an event on a prepared VM.

    Args:
        contend: every `contend`-th offer of the lock is taken by somebody else (0: none is).
        added: MMIO tables that vCPU 0 touches for the first time in each of those lock breaks.
        removed: the slot that a removal takes; None: the largest.

    Raises:
        UsageError: a plan in Python raised; the message names plan, event and what was raised.
    """
    vm.core.set_lock_break(contend, contend + 1 if contend else 0)
    # The TDP MMU offers the lock at entries, not at pages.
    limit = 8 * live_pages(vm) * (512 if vm.tdp_mmu else 1) + 1024
    breaks = 0
    fresh = 3 << (min(int(vm.config["phys_bits"]), 48) - 2)

    def interrupted(_vm: Vm) -> None:
        nonlocal breaks, fresh
        breaks += 1
        if breaks > limit:
            raise NoProgress
        for _ in range(added):
            vm.vcpus[0].access(fresh, "r")
            fresh += TABLE_SPAN

    before = vm.work
    vm.on_lock_break = interrupted
    try:
        if not isinstance(plan, ZapPlan):
            _run_python(plan, vm, at)
            work = _since(vm.work, before)
            return EventRun("done", work, work["units"], work["lock_breaks"])
        slot = (removed or largest_slot(vm)) if plan.needs_slot else None
        if plan.needs_slot and slot is None:
            return EventRun("no slot", _since(before, before), 0, 0)
        run = vm.zap(plan, slot=slot)
        if at == "teardown":
            for vcpu in vm.vcpus:
                vcpu.unload()
        return EventRun(
            run.outcome,
            run.work,
            run.longest_hold,
            int(run.report["lock_breaks"]),
            run.page,
            run.step,
            run.shared_units,
            run.longest_shared_hold,
        )
    except NoProgress:
        work = _since(vm.work, before)
        return EventRun("livelock", work, 0, breaks)
    finally:
        vm.on_lock_break = None
        vm.core.set_lock_break(0, 0)


def _run_python(plan: PythonPlan, vm: Vm, at: str) -> None:
    try:
        found = plan(vm)
    except NoProgress:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"plan {plan_name(plan)} at the {at}: it raised {type(error).__name__}: {error}"
        ) from error
    if isinstance(found, Generator | Coroutine):
        found.close()
        raise UsageError(
            f"plan {plan_name(plan)} at the {at}: it returned a {type(found).__name__}, nothing ran"
        )


def _since(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def is_exercised(run: EventRun) -> bool:
    """Whether the plan had anything to do."""
    did = ("pages_zapped", "sptes_cleared", "rmap_steps", "flushes")
    return any(run.work.get(name, 0) for name in did)


def describe(plan: Plan) -> dict[str, Any]:
    """A plan as plain data."""
    if isinstance(plan, ZapPlan):
        return {"name": plan_name(plan), "spec": plan.spec}
    return {"name": plan_name(plan), "spec": f"python:{getattr(plan, '__module__', '?')}.{plan_name(plan)}"}
