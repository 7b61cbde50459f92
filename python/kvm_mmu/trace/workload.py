"""A 6.x recording as a workload of the scenario language, for other plans and other kernels' profiles.

Owns: the translation of a recording's inputs that every kernel has: slots, limits, accesses, dirty log,
notifications, system management mode. What only the recorded kernel did (its own reclaim, its own root loads)
is left to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.trace import host as host_facts
from kvm_mmu.trace.host import HostFacts
from kvm_mmu.trace.markers import Operation, number
from kvm_mmu.trace.recorder_6x import Event, read_events
from kvm_mmu.trace.source import display_name, read_lines
from kvm_mmu.trace.stripping import is_stripped, operations_beside, strip

_WRITE, _FETCH = 1 << 1, 1 << 4
#: The model's frame of a host address is the address itself: keep it below the narrowest physical width.
_HVA_KEPT = (1 << 35) - 1


@dataclass
class Workload:
    """One VM of a recording: its configuration as in a scenario header, and its operations."""

    config: dict[str, object]
    ops: list[dict[str, object]] = field(default_factory=list)


def workloads(path: str | Path, host: Mapping[str, object] | None = None) -> list[Workload]:
    """The VMs of a 6.x recording as workloads: guest accesses by physical address, and what the VMM did.

    Raises:
        TraceError: the recording cannot be read, or holds no VM.
    """
    name = display_name(path)
    lines = read_lines(path)
    if is_stripped(lines):
        facts = HostFacts(
            {**host_facts.parse_facts(lines[0][len(host_facts.PREFIX) :], f"{name}:1"), **(host or {})}
        )
    else:
        facts = HostFacts({**(host_facts.beside(path) or {}), **(host or {})})
        lines = strip(lines, facts.values, operations_beside(path), answers=False).lines
    events = read_events(lines, name)
    reader = _Reader(facts, _vcpus(events))
    for event in events:
        reader.feed(event, f"{name}:{event.line}")
    if not reader.found:
        raise TraceError(f"{name}: no create_vm operation in it: no workload")
    return reader.found


def _vcpus(events: list[Event]) -> int:
    most = 0
    for event in events:
        if event.operation is not None and event.operation.get("op") in ("create_vcpu", "use_vcpu"):
            most = max(most, number(event.operation, "id", f"line {event.line}"))
    return most + 1


class _Reader:
    """Input lines to operations."""

    def __init__(self, facts: HostFacts, vcpus: int):
        self._config: dict[str, object] = {
            "family": "npt",
            "phys_bits": min(max(facts.number("phys_bits"), 36), 51),
            "tdp_level": 5 if facts.number("la57") else 4,
            "vcpus": vcpus,
        }
        self._logged = 0
        self.found: list[Workload] = []

    def feed(self, event: Event, where: str) -> None:
        if event.operation is not None:
            self._operation(event.operation, where)
        elif self.found:
            self._probe(event)

    def _add(self, op: str, **fields: object) -> None:
        self.found[-1].ops.append({"op": op, **fields})

    def _probe(self, event: Event) -> None:
        match event.name, event.groups:
            case "kvm_page_fault", (vcpu, address, error_code):
                code = int(error_code, 16)
                kind = "x" if code & _FETCH else "w" if code & _WRITE else "r"
                self._add("access", vcpu=int(vcpu), gpa=int(address, 16), kind=kind)
            case "kvm_unmap_hva_range", (start, end):
                first, size = int(start, 16) & _HVA_KEPT, int(end, 16) - int(start, 16)
                self._add("unmap_hva", start=first, end=first + max(size, 0))
            case "kvm_smm_transition", (vcpu, direction):
                self._add("smm", vcpu=int(vcpu), on=int(direction == "entering"))
            case "dirty_masked", (offset, mask):
                fields = {"as": 0, "id": self._logged, "offset": int(offset, 16), "mask": int(mask, 16)}
                self._add("pt_masked", **fields, what="write_protect")
            case _:
                pass

    def _operation(self, op: Operation, where: str) -> None:
        name = op["op"]
        if name == "create_vm":
            self.found.append(Workload(dict(self._config)))
        if not self.found:
            return
        match name:
            case "set_memslot":
                gpa, size, hva = (number(op, key, where, 0) for key in ("gpa", "size", "hva"))
                fields = {"as": number(op, "as_id", where, 0), "id": number(op, "slot", where)}
                self._add(
                    "set_memslot",
                    **fields,
                    gpa=gpa,
                    size=size,
                    hva=hva & _HVA_KEPT,
                    flags=number(op, "flags", where, 0),
                )
            case "backing":
                if number(op, "thp", where, 0):
                    hva, size = number(op, "hva", where), number(op, "size", where)
                    self._add("host_huge", hva=hva & _HVA_KEPT, npages=size >> 12, kind="thp")
            case "set_nr_mmu_pages":
                self._add("set_nr_mmu_pages", n=number(op, "n", where))
            case "get_dirty_log" | "clear_dirty_log":
                self._logged = number(op, "slot", where)
            case _:
                pass
