"""What a wrap of the generation, or the removal of a memslot, would cost now: each plan on a production VM's own state.

Knows the laboratory and live VMs. Every plan runs on a clone of the VM, whose list order, links and MMIO SPTEs are the
real one's; counts are exact, times are not told.
"""

from __future__ import annotations

from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.lab import soundness
from kvm_mmu.lab.forced_event import prepare
from kvm_mmu.lab.page_tables import own_plan
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.zap_plan import ZapPlan, plans

#: A removal takes a slot; everything else does not.
WRAP, REMOVAL = "wrap", "slot-removal"
_WORK = (
    "pages_zapped",
    "pages_freed",
    "sptes_cleared",
    "sptes_changed",
    "walk_visited",
    "heads_visited",
    "flushes",
)


def slot_of(vm: Vm, slot_id: int) -> tuple[int, int]:
    """The address space and id of a slot, of the normal address space where both have it.

    Raises:
        UsageError: no address space has it; the message lists those there are.
    """
    for as_id, slot in vm.memslots:
        if slot.id == slot_id:
            return as_id, slot_id
    known = ", ".join(map(str, sorted({slot.id for _, slot in vm.memslots}))) or "none"
    raise UsageError(f"slot {slot_id}: this VM has {known}")


def costs(vm: Vm, at: str, slot: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Run every plan of the VM's page table for an event, each on a clone.

    Args:
        vm: the VM; it stays as it is.
        at: `wrap` or `slot-removal`.
        slot: the slot of a removal.

    Returns:
        One row a plan, the kernel's own first: `plan`, `is_own`, exact counts, `units`, `longest_hold`, `to_go` and
        `left_over` (of what the event needs gone), `sound` (yes, no, or None where the run shows nothing), `broken`
        (what the judge found).
    """
    own = own_plan(vm.profile, at, vm.family if vm.tdp_mmu else "shadow")
    chosen = [own] + [plan for plan in plans.values() if plan.is_of_roots == vm.tdp_mmu and plan != own]
    found = []
    for plan in chosen:
        if plan.needs_slot and slot is None:
            continue
        found.append(_run(vm, at, slot, plan) | {"is_own": plan == own})
    return found


def _run(vm: Vm, at: str, slot: tuple[int, int] | None, plan: ZapPlan) -> dict[str, Any]:
    twin = vm.clone()
    prepare(twin, at)
    last_page = len(vm.core.active_page_ids()) + sum(vm.core.nr_tdp_tables) + 1
    to_go = soundness.to_go(twin, at, slot, last_page)
    twin.set_judged()
    run = twin.zap(plan, slot=slot if plan.needs_slot else None)
    left = soundness.to_go(twin, at, slot, last_page)
    work = run.work
    did = any(
        work.get(name, 0)
        for name in ("pages_zapped", "sptes_cleared", "rmap_steps", "flushes", "sptes_changed")
    )
    return {
        "plan": plan.name or str(plan),
        "outcome": run.outcome,
        **{name: int(work.get(name, 0)) for name in _WORK},
        "units": int(work["units"]),
        "longest_hold": int(run.longest_hold),
        "to_go": to_go,
        "left_over": left,
        "sound": soundness.verdict(to_go, left, did),
        "broken": [list(one) for one in twin.judge()],
    }
