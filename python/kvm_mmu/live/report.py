"""What a person reads of a kernel and its VMs: the table of VMs, and one VM."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvm_mmu.live.kernel import LiveKernel
from kvm_mmu.live.live_vm import LiveVm
from kvm_mmu.live.slots import Slot
from kvm_mmu.live.vcpus import NO_ROOT
from kvm_mmu.terminal import folded
from kvm_mmu.view.tables import text_table

#: Columns of the table of VMs, by their title.
_COLUMNS = {
    "pid": "pid",
    "vcpus": "vCPUs",
    "mmu": "MMU",
    "generation": "generation",
    "slots": "slots",
    "pages": "pages",
    "tdp_tables": "TDP",
    "leaves": "leaves",
    "fresh": "fresh",
    "stale": "stale",
}
_MAX_LINES = 64


def heading(kernel: LiveKernel) -> str:
    """The kernel in a line, and what must be known of the reading."""
    facts = kernel.facts
    lines = [f"{kernel.release}: {facts.family}, {facts.phys_bits} physical bits"]
    lines += [f"note: {note}" for note in kernel.notes]
    return "\n".join(folded(line) for line in lines)


def vm_table(vms: list[LiveVm]) -> str:
    """The table of VMs, and below it those that were busy or could not be read."""
    read = [vm.summary() for vm in vms if not vm.error]
    if not vms:
        return "no VM is running"
    lines = []
    if read:
        rows = [row | {"pid": str(row["pid"])} for row in read]
        lines.append(text_table({title: [row[key] for row in rows] for key, title in _COLUMNS.items()}))
        lines.append("generation, slots: of the normal address space and of SMM; fresh, stale: MMIO SPTEs")
    for vm in vms:
        lines += remarks(vm)
    return "\n".join(lines)


def remarks(vm: LiveVm) -> list[str]:
    """What limits what was read of a VM, in lines."""
    if vm.error:
        return [folded(f"VM {vm.kvm:#x}: cannot be read: {vm.error}")]
    lines = []
    name = f"VM {vm.pid}"
    if vm.busy:
        lines.append(f"{name}: busy: {', '.join(vm.busy)}")
    if vm.settled is False:
        lines.append(
            f"{name}: moved while it was read ({vm.state.tries} tries): stop its VMM, or raise --tries"
        )
    lines += [f"{name}: {fault}" for fault in vm.faults]
    return [folded(line) for line in lines]


def vm_report(vm: LiveVm) -> str:
    """One VM: roots, levels, slots, vCPUs, MMIO caches, counters."""
    state = vm.state
    whole = vm.snapshot()
    lines = [
        f"process {vm.pid}, struct kvm {vm.kvm:#x}: {vm.mmu}",
        f"shadow pages: {whole['used']} used of {whole['max']}"
        f" ({whole['requested'] or 'no limit'} requested), {whole['indirect']} shadow a guest's table, "
        f"valid generation {whole['mmu_valid_gen']}",
        "",
        _levels(vm),
        "",
        _vcpu_table(whole),
    ]
    for number, space in enumerate(state.spaces):
        name = "normal" if number == 0 else "SMM" if number == 1 else str(number)
        lines += ["", f"address space {number} ({name}), generation {space.generation:#x}"]
        if space.slots:
            lines.append(_slot_table(vm, number, space.slots))
    plain = {
        key: value.get("counter") if isinstance(value, dict) else value
        for key, value in whole["stats"].items()
    }
    counts = {key: value for key, value in plain.items() if isinstance(value, int) and value}
    lines += ["", "counters that are not 0: " + (", ".join(f"{k} {v}" for k, v in counts.items()) or "none")]
    lines += remarks(vm)
    return "\n".join(lines)


def _levels(vm: LiveVm) -> str:
    state = vm.state
    entries = vm.entries()
    rows: dict[str, list[Any]] = {
        "level": [],
        "tables": [],
        "links": [],
        "leaves": [],
        "MMIO": [],
        "frozen": [],
    }
    for level in sorted(set(state.pages.level.tolist()), reverse=True):
        here = entries["level"] == level
        rows["level"].append(level)
        rows["tables"].append(int((state.pages.level == level).sum()))
        for title, kind in (("links", "link"), ("leaves", "leaf"), ("MMIO", "mmio"), ("frozen", "frozen")):
            rows[title].append(int((here & (entries["kind"] == kind)).sum()))
    return text_table(rows)


def _vcpu_table(whole: dict[str, Any]) -> str:
    shown = whole["vcpus"][:_MAX_LINES]

    def root(vcpu: dict[str, Any]) -> str:
        if vcpu["root"] is not None:
            return f"page {vcpu['root']}"
        if vcpu["pae_entries"]:
            return "PAE: 4 roots"
        return "none" if int(vcpu["root_hpa"], 16) == NO_ROOT else vcpu["root_hpa"]

    table = {
        "vCPU": [vcpu["id"] for vcpu in shown],
        "root": [root(vcpu) for vcpu in shown],
        "role": [vcpu["root_role"] for vcpu in shown],
        "CR3": [vcpu["cr3"] for vcpu in shown],
        "requests": [vcpu["requests"] for vcpu in shown],
        "last MMIO gva": [vcpu["mmio"][0] for vcpu in shown],
        "gfn": [hex(vcpu["mmio"][1]) for vcpu in shown],
        "access": [vcpu["mmio"][2] for vcpu in shown],
        "generation": [vcpu["mmio"][3] for vcpu in shown],
    }
    more = len(whole["vcpus"]) - len(shown)
    return text_table(table) + (f"\nand {more} more vCPUs" if more else "")


def _slot_table(vm: LiveVm, space: int, slots: list[Slot]) -> str:
    shown = slots[:_MAX_LINES]
    mapped = vm.mapped_by_slot(space)
    table: dict[str, list[Any]] = {
        "slot": [slot.id for slot in shown],
        "base": [hex(slot.base) for slot in shown],
        "pages": [slot.npages for slot in shown],
        "flags": [hex(slot.flags) for slot in shown],
        "leaves": mapped[: len(shown)],
        "no large": [sum(len(index) for index, _ in slot.disallow.values()) for slot in shown],
        "tracked": [len(slot.track[0]) for slot in shown],
        "dirty": [
            "-" if slot.dirty is None else f"{int(np.count_nonzero(slot.is_dirty)):,}" for slot in shown
        ],
        "host address": [hex(slot.hva) for slot in shown],
    }
    more = len(slots) - len(shown)
    return text_table(table) + (f"\nand {more:,} more slots" if more else "")
