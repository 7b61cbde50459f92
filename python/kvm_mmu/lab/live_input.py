"""A real VM as an input: the state that `kvm-mmu live` reads, and as accesses what its page tables map.

A dump says where a guest was, not how it came there: each page that is mapped is taken as touched once, by vCPU 0, in
the order of guest memory, written where its entry is writable. So what is lost and faulted again is that of a guest
that touches all of its mapped pages again.
"""

from __future__ import annotations

import copy
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.input_names import short_name
from kvm_mmu.live import LiveVm
from kvm_mmu.live import open as open_kernel
from kvm_mmu.machine import from_live
from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.workload import Touch, Workload, batches
from kvm_mmu.types import PAGE_SIZE

_XZ, _CORES = b"\xfd7zXZ\x00", (b"\x7fELF", b"KDUM")
_WRITABLE = 1 << 1


def is_dump(path: str | Path) -> bool:
    """True if a file is a kernel's memory: a core, a kdump, or a reduced one."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as stream:
            start = stream.read(6)
        if start == _XZ:
            with lzma.open(path) as unpacked:
                start = unpacked.read(4)
    except (OSError, ValueError, EOFError, lzma.LZMAError):
        return False
    return start[:4] in _CORES


def live_workload(path: str | Path, kernel: str | None = None, vm: int | None = None) -> Workload:
    """A VM of a dump as a workload.

    Args:
        path: the dump, as `kvm-mmu live` reads it.
        kernel: the kernel to go on with; None: its own row.
        vm: which VM, from 1, in the order of `kvm-mmu live`; None: the one with the most tables.

    Returns:
        The VM in the state it was in.

    Raises:
        LiveError: the dump cannot be read.
        SnapshotError: the VM was torn, or its kernel keeps something that the model does not.
        UsageError: there is no such VM, or its guest's own page tables are shadowed.
    """
    beside = Path(path).parent
    found = open_kernel(str(path), facts=str(beside) if (beside / "types.btf").is_file() else None)
    vms = found.vms()
    readable = [one for one in vms if not one.error]
    if not readable:
        raise UsageError(f"{path}: no VM in it that can be read")
    if vm is not None and not 1 <= vm <= len(vms):
        raise UsageError(f"{path}: VM {vm}: expected 1 to {len(vms)}")
    live = max(readable, key=lambda one: len(one.pages)) if vm is None else vms[vm - 1]
    made = Vm.from_snapshot(_with_low_memory(live), kernel, events="off")
    if made.shadows_guest:
        raise UsageError(
            f"{path}: process {live.pid}: the page tables of its guest are shadowed: what the guest touches is "
            "not known; expected two-dimensional paging"
        )
    touches = sorted(set(_mapped(made)), key=lambda touch: touch.gpa)
    notes = [f"{path}: process {live.pid}: each page that it maps is taken as touched once, by vCPU 0"]
    if len(vms) > 1 and vm is None:
        notes.append(f"{path}: VM {vms.index(live) + 1} of {len(vms)}, the one with the most tables")
    return Workload(f"{short_name(path)}, process {live.pid}", made, batches(touches), notes)


def _with_low_memory(live: LiveVm) -> dict[str, Any]:
    """The VM's state, its host memory at lower addresses: in the model an address stands for its frame, and the frame
    of a page that is faulted in again must be within the host's physical bits. Alignment stays.
    """
    found: dict[str, Any] = copy.deepcopy(dict(from_live.plain(live)))
    low = (1 << int(from_live.config_of(found, from_live.profile_of(found, None))["phys_bits"]) - 1) - 1
    for space in found["as"]:
        for slot in space["slots"]:
            slot["hva"] = hex(int(slot["hva"], 16) & low)
    return found


def _mapped(vm: Vm) -> Iterator[Touch]:
    """The pages that page tables of the normal address space map, MMIO SPTEs among them."""
    slots = [(slot.base, slot.base + slot.npages) for as_id, slot in vm.memslots if as_id == 0]
    tables = [table for table, _, _ in vm.core.tdp_tables()] if vm.tdp_mmu else vm.core.active_page_ids()
    for number in tables:
        page = vm.core.page(number)
        if page is None or page["invalid"]:
            continue
        for index, entry, child in page["sptes"]:
            if child is not None:
                continue
            gfn = page["gfn"] + (index << 9 * (page["level"] - 1))
            has_slot = any(first <= gfn < end for first, end in slots)
            yield Touch(0, gfn * PAGE_SIZE, "w" if has_slot and entry & _WRITABLE else "r")
