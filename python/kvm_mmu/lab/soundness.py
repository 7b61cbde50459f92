"""Whether a plan is enough for an event: how much of what the event needs gone was there, and how much is left.

Judged by the run alone, counted by the core at every size. A run proves a plan sound only where there was something to
take, the plan did something, and nothing is left; a plan that leaves something is unsound, whatever it did.
"""

from __future__ import annotations

from kvm_mmu.machine.vm import Vm

#: What each event needs gone.
NEEDS = {
    "wrap": "stale MMIO SPTEs",
    "slot-removal": "mappings of the removed slot",
    "teardown": "shadow pages or tables",
}


def to_go(vm: Vm, at: str, slot: tuple[int, int] | None, last_page: int) -> int:
    """Count what an event needs gone on live pages up to a creation number, before or after a plan.

    After a wrap every MMIO SPTE of before is stale, whatever its generation.

    Args:
        vm: the VM, which stays as it is.
        at: the event.
        slot: the slot of a removal, as (address space, id); None where there is no slot.
        last_page: the newest page that there was at the event.

    Returns:
        The count; 0 for `end`, which needs nothing gone.
    """
    match at:
        case "teardown":
            # An empty root of the TDP MMU stays until the VM is gone.
            return vm.core.nr_active_pages + vm.core.nr_tdp_tables[1]
        case "wrap":
            return vm.core.count_mmio_sptes(last_page)
        case "slot-removal" if slot is not None:
            return vm.core.count_mappings(*slot, last_page)
    return 0


def verdict(to_go: int, left_over: int, did_something: bool) -> str | None:
    """Judge a run that ended.

    Args:
        to_go: how much the event needs gone there was.
        left_over: how much of it is left.
        did_something: whether the plan zapped, cleared or flushed anything.

    Returns:
        `no` if something is left; `yes` if there was something, the plan worked and nothing is left; None where the
        run shows nothing.
    """
    if left_over:
        return "no"
    return "yes" if to_go and did_something else None
