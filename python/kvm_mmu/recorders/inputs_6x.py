"""The inputs of a stripped recording with JSON markers (v5.10 and later): which lines they are, and what they say.

Owns: the wording of the inputs, what exits tell that other lines do not (the vCPU of a v5.10 fault, an EPT
misconfiguration), and whose vCPU a task is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.stripping import ANSWER
from kvm_mmu.trace.replay.stripping_tdp import RECOVERS
from kvm_mmu.trace.text.line import Line, clean_body, lost_events, parse_line
from kvm_mmu.trace.text.markers import Operation, number, parse_marker

_MAX_VCPUS = 256
#: v5.10 does not say vCPU and instruction pointer of a fault.
_FAULT = re.compile(
    r"(?:vcpu (\d{1,9}) rip 0x([0-9a-f]{1,16}) )?address (?:0x)?([0-9a-f]{1,16}) error_code (?:0x)?([0-9a-f]{1,16})"
)
_EXIT = re.compile(r"vcpu (\d{1,9}) reason (.{1,40}?) rip 0x([0-9a-f]{1,16}) ")
#: Where the address of an EPT misconfiguration can be read, which its exit does not tell.
_GPA = {
    "kvm_mmu_spte_requested": re.compile(r"gfn ([0-9a-f]{1,13}) "),
    "vcpu_match_mmio": re.compile(r"gva 0x[0-9a-f]{1,16} gpa 0x([0-9a-f]{1,16}) "),
    "kvm_mmio": re.compile(r"mmio \S+ len \d{1,9} gpa 0x([0-9a-f]{1,16}) "),
}
_PATTERNS = {
    "mmu_fault": r"gpa=0x([0-9a-f]{1,16}) error_code=0x([0-9a-f]{1,16})",
    "kvm_mmu_spte_requested": r"gfn ([0-9a-f]{1,16}) pfn ([0-9a-f]{1,16}) level ([1-5])",
    ANSWER: r"set ([01]) writable ([01]) found (\S+)",
    "kvm_smm_transition": r"vcpu (\d{1,9}): (entering|leaving) SMM",
    "kvm_age_hva": r"mmu notifier age hva: 0x([0-9a-f]{1,16}) -- 0x([0-9a-f]{1,16})",
    "kvm_unmap_hva_range": r"mmu notifier unmap range: 0x([0-9a-f]{1,16}) -- 0x([0-9a-f]{1,16})",
    "dirty_masked": r"gfn_offset=0x([0-9a-f]{1,16}) mask=0x([0-9a-f]{1,16})",
    "free_roots": r"mask=0x([0-9a-f]{1,16})",
    "zap_oldest": r"nr=(\d{1,18})",
    "invalidate_mmio": r"gen=0x([0-9a-f]{1,16})",
    "set_memslot": r"change=(-?\d{1,20})",
    "mmu_load": r"",
}
_COMPILED = {event: re.compile(pattern) for event, pattern in _PATTERNS.items()}
#: Inputs of a recording of the TDP MMU besides; answers of other kinds go by names of their own.
_TDP_COMPILED = {
    **_COMPILED,
    "mmu_unload": re.compile(""),
    "slot_clear_dirty": re.compile(""),
}
#: Inputs of a recording of a guest whose page tables are shadowed besides.
_SHADOW_COMPILED = {
    **_COMPILED,
    "kvm_mmu_pagetable_walk": re.compile(r"addr ([0-9a-f]{1,16}) pferr ([0-9a-f]{1,16})"),
    "kvm_mmu_paging_element": re.compile(r"pte ([0-9a-f]{1,16}) level ([1-5])"),
    "new_pgd": re.compile(r"pgd=0x([0-9a-f]{1,16})"),
    "sync_roots": re.compile(""),
    "sync_prev_roots": re.compile(""),
    "invlpg": re.compile(r"gva=0x([0-9a-f]{1,16})"),
    "pte_write": re.compile(r"gpa=0x([0-9a-f]{1,16}) val=0x([0-9a-f]{1,16}) bytes=(\d{1,9})"),
    "unprotect_page": re.compile(r"(gfn|cr2)=0x([0-9a-f]{1,16})(?: always=([01]))?"),
    "reset_context": re.compile(""),
    "free_obsolete_roots": re.compile(""),
    "vcpu_match_mmio": re.compile(r"gva 0x([0-9a-f]{1,16}) gpa 0x[0-9a-f]{1,16} (Read|Write) (GPA|GVA)"),
}
_TDP_ANSWERS = {
    "leaves_found": re.compile(r"(?:young|dirty) (-|[01]:[0-9a-f]{1,13}(?:,[01]:[0-9a-f]{1,13})*)$"),
    RECOVERS: re.compile(RECOVERS),
}
#: What the recorder notes between operations, as far as it matters there.
_NOTES = frozenset({"dirty_log", "clear_dirty_log_ret", "guest_done", "pre_fault_ret", "vm_closed"})


class Event(NamedTuple):
    """An input line: its number, what it is, and the groups of its text, or the operation of a marker."""

    line: int
    name: str
    groups: tuple[str, ...]
    operation: Operation | None
    task: str = ""
    #: instruction pointer of a fault
    rip: int = 0


def read_events(lines: Iterable[str], name: str) -> list[Event]:
    """The input lines in memory, as `iter_events` gives them."""
    return list(iter_events(lines, name))


def iter_events(
    lines: Iterable[str],
    name: str,
    *,
    is_tdp: bool = False,
    has_guest_tables: bool = False,
    probes: set[str] | None = None,
) -> Iterator[Event]:
    """The input lines, in order.

    Args:
        lines: the stripped text.
        name: the trace, for errors.
        is_tdp: also those that only the TDP MMU needs.
        has_guest_tables: also those that only shadow paging needs.
        probes: gets the names of the lines that only shadow paging needs, where those are not inputs.

    Raises:
        TraceError: an input line cannot be read, or events were lost; the message names the line.
    """
    exits = _Exits()
    patterns = _TDP_COMPILED if is_tdp else _SHADOW_COMPILED if has_guest_tables else _COMPILED
    takes_notes = is_tdp or has_guest_tables
    for at, text in enumerate(lines, 1):
        line = parse_line(text)
        if line is None:
            if lost_events(text) is not None:
                raise TraceError(f"{name}:{at}: events were lost here ({lost_events(text)}): not replayable")
            continue
        if line.event == "tracing_mark_write":
            marked = operation_of(line.body, f"{name}:{at}", at, line.task if takes_notes else None)
            if marked is not None:
                yield marked
            continue
        if line.event == "kvm_exit":
            exits.note(line)
        misconfigured = exits.address(line) if line.event in _GPA else None
        if misconfigured is not None:
            yield Event(at, "misconfiguration", (misconfigured,), None, line.task)
        pattern = _FAULT if line.event == "kvm_page_fault" else patterns.get(line.event)
        if pattern is None and probes is not None and line.event in _SHADOW_COMPILED:
            probes.add(line.event)
        if pattern is None:
            continue
        body = clean_body(line.body)
        found = pattern.match(body)
        if found is None and line.event == ANSWER and not body.startswith("set "):
            for answer, form in _TDP_ANSWERS.items():
                said = form.match(body) if is_tdp else None
                if said is not None:
                    yield Event(at, answer, said.groups(), None, line.task)
            continue
        if found is None:
            raise TraceError(f"{name}:{at}: {line.event}: cannot be read: {line.body[:80]!r}")
        if line.event == "kvm_page_fault":
            vcpu, rip, address, error_code = found.groups()
            if vcpu is None:
                vcpu, rip = exits.last.get(line.task, ("", "0"))
            yield Event(at, line.event, (vcpu, address, error_code), None, line.task, int(rip, 16))
        else:
            exits.has_probe |= line.event == "mmu_fault"
            yield Event(at, line.event, found.groups(), None, line.task)


def operation_of(body: str, where: str, at: int = 0, noted_by: str | None = None) -> Event | None:
    """The input that a marker is; None: none. `noted_by`: the task, where notes behind an operation are inputs.

    Raises:
        TraceError: it cannot be read.
    """
    operation = parse_marker(clean_body(body), where)
    if operation is None:
        return None
    if "op" in operation:
        return Event(at, "op", (), operation)
    if operation.get("ev") == "toggle":
        return Event(at, "toggle", (), {**operation, "op": "toggle"})
    if noted_by is not None and operation.get("ev") in _NOTES:
        return Event(at, str(operation["ev"]), (), None, noted_by)
    return None


def event_of(name: str, body: str, where: str) -> Event:
    """The input of one line, by its event's name and text.

    Raises:
        TraceError: it cannot be read.
    """
    found = _COMPILED[name].match(clean_body(body))
    if found is None:
        raise TraceError(f"{where}: {name}: cannot be read: {body[:80]!r}")
    return Event(0, name, found.groups(), None)


@dataclass
class _Exits:
    """What exits say that other lines do not."""

    #: task -> vCPU and instruction pointer of its last exit
    last: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: tasks whose last exit is an EPT misconfiguration, as long as no line has told its address
    misconfigured: set[str] = field(default_factory=set)
    #: a probe tells the address
    has_probe: bool = False

    def note(self, line: Line) -> None:
        """Take an exit."""
        found = _EXIT.match(line.body)
        if found is None:
            return
        vcpu, reason, rip = found.groups()
        self.last[line.task] = (vcpu, rip)
        self.misconfigured.discard(line.task)
        if reason == "EPT_MISCONFIG" and not self.has_probe:
            self.misconfigured.add(line.task)

    def address(self, line: Line) -> str | None:
        """The address of the task's misconfiguration, where this line is the first that tells it."""
        if line.task not in self.misconfigured:
            return None
        found = _GPA[line.event].match(clean_body(line.body))
        if found is None:
            return None
        self.misconfigured.discard(line.task)
        return found[1] + "000" if line.event == "kvm_mmu_spte_requested" else found[1]


def count_vcpus(events: Iterable[Event], name: str) -> int:
    """How many vCPUs the busiest VM of a recording has.

    Raises:
        TraceError: more than are modelled.
    """
    most = 0
    for event in events:
        if event.name in ("kvm_page_fault", "kvm_smm_transition") and event.groups[0]:
            most = max(most, int(event.groups[0]))
        elif event.operation is not None and event.operation.get("op") in ("create_vcpu", "use_vcpu"):
            most = max(most, number(event.operation, "id", f"{name}:{event.line}"))
    if most >= _MAX_VCPUS:
        raise TraceError(f"{name}: vCPU number {most}: at most {_MAX_VCPUS} vCPUs are modelled")
    return most + 1


def vcpus_of_tasks(events: Iterable[Event], tasks: dict[str, int]) -> Iterator[Event]:
    """The events; `tasks` gets the vCPU of each task whose faults are all of one, unless operations choose the vCPU."""
    has_choice = False
    several: set[str] = set()
    for event in events:
        if event.operation is not None:
            has_choice |= event.operation.get("op") == "use_vcpu"
        elif event.name in ("kvm_page_fault", "kvm_smm_transition") and event.groups[0]:
            vcpu = int(event.groups[0])
            if tasks.setdefault(event.task, vcpu) != vcpu:
                several.add(event.task)
        yield event
    for task in list(tasks):
        if has_choice or task in several:
            del tasks[task]
