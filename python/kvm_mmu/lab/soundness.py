"""Whether a plan is enough for an event: what the event needs gone, and what of it is left after the run.

Two answers that must both be good: by its words (`left_behind`) a plan takes all of what an event needs gone, and in
this run (`left_over`) nothing of it was left. A plan in Python has no words; of it only the run is judged.
"""

from __future__ import annotations

from kvm_mmu.lab.forced_event import Plan
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.words import Codec
from kvm_mmu.machine.zap_plan import ZapPlan

#: What each event needs gone.
NEEDS = {
    "wrap": "stale MMIO SPTEs",
    "slot-removal": "mappings of the removed slot",
    "teardown": "shadow pages",
}


def left_behind(plan: Plan, at: str) -> str | None:
    """What an event needs gone and this plan leaves; None when it takes all of it, or for a plan in Python."""
    if not isinstance(plan, ZapPlan) or at == "end":
        return None
    everything = plan.only == "all" or (plan.only == "obsolete" and plan.bump_valid_gen)
    enough = (
        everything
        or (at == "wrap" and plan.only == "mmio_cached")
        or (at == "slot-removal" and plan.needs_slot)
    )
    return None if enough else NEEDS[at]


def left_over(vm: Vm, at: str, slot: tuple[int, int] | None, last_page: int) -> int:
    """How much of what an event needs gone is still there, on pages up to creation number `last_page`.

    Args:
        slot: the slot of a removal, as (address space, id).
    """
    match at:
        case "teardown":
            return vm.core.nr_active_pages
        case "wrap":
            return _mmio_sptes(vm, last_page)
        case "slot-removal" if slot is not None:
            return _mappings(vm, slot, last_page)
    return 0


def _codec(vm: Vm) -> Codec:
    config = vm.config
    l1tf = config.get("l1tf")
    return Codec(
        vm.profile,
        vm.family,
        int(config["phys_bits"]),
        execonly=bool(config["execonly"]),
        generation=vm.generation_policy,
        l1tf=None if l1tf is None else bool(l1tf),
        mmio_caching=bool(config.get("mmio_caching", 1)),
    )


def _mmio_sptes(vm: Vm, last_page: int) -> int:
    """MMIO SPTEs on pages of before the event: whatever their generation, the wrap made it meaningless."""
    entries: list[int] = []
    for page_id in vm.core.active_page_ids():
        page = vm.core.page(page_id) if page_id <= last_page else None
        if page is not None and page["mmio_cached"]:
            entries += [raw for _, raw, child in page["sptes"] if child is None]
    return int(_codec(vm).decode_mmio_sptes(entries).is_mmio.sum()) if entries else 0


def _mappings(vm: Vm, slot: tuple[int, int], last_page: int) -> int:
    """Leaves of any level that map a page of the slot; pages list no empty entry."""
    found = next((s for as_id, s in vm.memslots if (as_id, s.id) == slot), None)
    if found is None:
        return 0
    codec = _codec(vm)
    first, end = found.base, found.base + found.npages
    entries: list[int] = []
    for page_id in vm.core.active_page_ids():
        page = vm.core.page(page_id) if page_id <= last_page else None
        if page is None or int(page["role"]) >> 24 != slot[0]:
            continue
        shift = 9 * (int(page["level"]) - 1)
        for index, raw, child in page["sptes"]:
            gfn = int(page["gfn"]) + (index << shift)
            if child is None and gfn < end and gfn + (1 << shift) > first:
                entries.append(raw)
    return len(entries) - int(codec.decode_mmio_sptes(entries).is_mmio.sum()) if entries else 0
