"""A 6.x recording of direct pages -> the model of v6.1/v6.12: which line makes what happen.

Owns: the markers of that recorder, the tracepoints and kprobes that are inputs, and the attribution of
predictions. A recording says more or less, by its event set; what a set leaves out is taken from the markers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.direct_6x.fault import Fault, HostAnswer, begin, finish, reclaim
from kvm_mmu.trace.direct_6x.memslots import Slot
from kvm_mmu.trace.direct_6x.vm import Facts, Vcpu, Vm
from kvm_mmu.trace.host import HostFacts
from kvm_mmu.trace.line import clean_body, lost_events, parse_line
from kvm_mmu.trace.markers import Operation, number, parse_marker
from kvm_mmu.trace.narrator import Prediction
from kvm_mmu.trace.stripping import ANSWER

_MANUAL_DIRTY_LOG_PROTECT2 = 168
_INITIALLY_SET = 1 << 1
#: The wrap scenario that deletes and creates, in the recorder's command line.
_RECREATES = re.compile(r"-k kind=1\b")
#: Largest leaf: 1 GiB.
_LEVEL_MAX = 3
#: Operations that drop the roots, where no probe on that is recorded.
_DROPS_ROOTS = frozenset({"set_cpu", "host_set_crs", "host_set_cr_efer"})

_PATTERNS = {
    "kvm_page_fault": r"vcpu (\d+) rip 0x[0-9a-f]+ address 0x([0-9a-f]{1,16}) error_code 0x([0-9a-f]{1,16})",
    "kvm_mmu_spte_requested": r"gfn ([0-9a-f]{1,16}) pfn ([0-9a-f]{1,16}) level ([1-5])",
    ANSWER: r"set ([01]) writable ([01]) found (\S+)",
    "kvm_smm_transition": r"vcpu (\d+): (entering|leaving) SMM",
    "kvm_unmap_hva_range": r"mmu notifier unmap range: 0x([0-9a-f]{1,16}) -- 0x([0-9a-f]{1,16})",
    "dirty_masked": r"gfn_offset=0x([0-9a-f]{1,16}) mask=0x([0-9a-f]{1,16})",
    "free_roots": r"mask=0x([0-9a-f]{1,16})",
    "zap_oldest": r"nr=(\d{1,18})",
    "invalidate_mmio": r"gen=0x([0-9a-f]{1,16})",
    "mmu_load": r"",
}
_COMPILED = {event: re.compile(pattern) for event, pattern in _PATTERNS.items()}


class Event(NamedTuple):
    """An input line: its number, what it is, and the groups of its text, or the operation of a marker."""

    line: int
    name: str
    groups: tuple[str, ...]
    operation: Operation | None


def read_events(lines: Iterable[str], name: str) -> list[Event]:
    """The input lines, in order.

    Raises:
        TraceError: an input line cannot be read, or events were lost; the message names the line.
    """
    events = []
    for at, text in enumerate(lines, 1):
        line = parse_line(text)
        if line is None:
            if lost_events(text) is not None:
                raise TraceError(f"{name}:{at}: events were lost here ({lost_events(text)}): not replayable")
            continue
        if line.event == "tracing_mark_write":
            operation = parse_marker(clean_body(line.body), f"{name}:{at}")
            if operation is not None and "op" in operation:
                events.append(Event(at, "op", (), operation))
        elif line.event in _COMPILED:
            found = _COMPILED[line.event].match(clean_body(line.body))
            if found is None:
                raise TraceError(f"{name}:{at}: {line.event}: cannot be read: {line.body[:80]!r}")
            events.append(Event(at, line.event, found.groups(), None))
    return events


class Recorder6x:
    """Feeds a 6.x recording to the model, one input at a time."""

    def __init__(
        self, kernel: str, host: HostFacts, names: frozenset[str], emit: Callable[[Prediction], None]
    ):
        npt = host.text("mmu") == "npt"
        if host.number("tdp_mmu"):
            raise TraceError("this recording used the TDP MMU, which is not modelled")
        if not npt and host.text("guest_mode") not in ("flat", "real"):
            raise TraceError("shadow paging of a guest with page tables cannot be replayed yet")
        self._facts = Facts(
            kernel=kernel,
            root_level=(5 if host.number("la57") else 4) if npt else 2,
            four_roots=not npt,
            mmio_caching=bool(host.number("mmio_caching")),
            nx_huge_pages=bool(host.number("nx_huge_pages")),
        )
        self._emit = emit
        self._line = 0
        self._has_loads = "mmu_load" in names
        self._has_frees = "free_roots" in names
        #: An input where no other probe shows memslot updates, and then no output.
        self._given_generations = "invalidate_mmio" in names
        self._mode = host.text("guest_mode")
        self._vm = Vm(self._facts, self._out)
        self._current = 0
        self._logged: tuple[int, int] | None = None
        self._fault: Fault | None = None
        self._requested: tuple[int, int] | None = None
        #: The slot last made or changed, and whether updates without a marker delete it and make it again.
        self._touched: Slot | None = None
        self._recreates = self._removing = False
        self.ignored: dict[str, int] = {}

    def feed(self, event: Event, where: str) -> None:
        """Execute one input line."""
        if self._requested is not None and event.name != ANSWER:
            self._map(None)
        self._line = event.line
        if event.operation is not None:
            self._operation(event.operation, where)
            return
        handler = getattr(self, f"_on_{event.name}")
        handler(*event.groups)

    def finish(self) -> None:
        """The trace ends: a mapping whose answer never came is made."""
        if self._requested is not None:
            self._map(None)

    def _out(self, event: str, body: str) -> None:
        if event == "invalidate_mmio" and self._given_generations:
            return
        self._emit(Prediction(self._line, event, body))

    def _vcpu(self) -> Vcpu:
        return self._vm.vcpu(self._current)

    # -- tracepoints and probes
    # -----------------------------------------------------------------------------------

    def _on_kvm_page_fault(self, vcpu: str, address: str, error_code: str) -> None:
        self._current = int(vcpu)
        self._fault = begin(self._vm, self._vcpu(), int(address, 16), int(error_code, 16))

    def _on_kvm_mmu_spte_requested(self, _gfn: str, pfn: str, level: str) -> None:
        if int(level) > min(_LEVEL_MAX, self._facts.root_level):
            raise TraceError(
                f"line {self._line} of the stripped trace: a mapping of level {level} is not possible here"
            )
        if self._fault is not None:
            # The line with the host's answer, if there is one, comes next and belongs to this mapping.
            self._requested = (int(pfn, 16), int(level))

    def _on_replay_host_answer(self, was_set: str, writable: str, found: str) -> None:
        if self._requested is None:
            return
        gfns = frozenset() if found == "-" else frozenset(int(gfn, 16) for gfn in found.split(","))
        self._map(HostAnswer(was_set == "1", writable == "1", gfns))

    def _map(self, answer: HostAnswer | None) -> None:
        fault, requested = self._fault, self._requested
        self._fault = self._requested = None
        if fault is not None and requested is not None:
            finish(self._vm, fault, requested[0], requested[1], answer)

    def _on_kvm_smm_transition(self, vcpu: str, direction: str) -> None:
        self._vm.vcpu(int(vcpu)).is_smm = direction == "entering"

    def _on_kvm_unmap_hva_range(self, start: str, end: str) -> None:
        self._vm.unmap_hva_range(int(start, 16), int(end, 16))

    def _on_dirty_masked(self, offset: str, mask: str) -> None:
        slot = None if self._logged is None else self._vm.memslots.slots.get(self._logged)
        if slot is not None:
            self._vm.protect_dirty(slot, int(offset, 16), int(mask, 16))

    def _on_free_roots(self, mask: str) -> None:
        if int(mask, 16) & 1:
            self._vm.drop_roots(self._vcpu())

    def _on_zap_oldest(self, wanted: str) -> None:
        pages = self._vm.pages
        if self._fault is not None and not self._fault.reclaimed:
            reclaim(self._vm, self._fault)
        if pages.expected_scans:
            pages.expected_scans -= 1
        else:
            pages.zap_oldest(int(wanted))

    def _on_invalidate_mmio(self, gen: str) -> None:
        """Only an input where updates were made without a marker: one that the model has not made yet."""
        value = int(gen, 16)
        as_id = value & 1
        if value != self._vm.memslots.generations[as_id] + 2:
            return
        if self._recreates and self._touched is not None and self._touched.as_id == as_id:
            self._quiet_recreation(self._touched)
        else:
            self._vm.install(as_id)

    def _quiet_recreation(self, slot: Slot) -> None:
        """One of the three publications of a slot that is deleted and made again."""
        vm = self._vm
        if self._removing:
            vm.finish_removal(slot)
            self._removing = False
        elif (slot.as_id, slot.id) in vm.memslots.slots:
            vm.begin_removal(slot)
            self._removing = True
        else:
            vm.create(slot)

    def _on_mmu_load(self) -> None:
        self._vm.load_roots(self._vcpu())

    # -- operations
    # -----------------------------------------------------------------------------------------------

    def _operation(self, op: Operation, where: str) -> None:
        vm = self._vm
        name = str(op["op"])
        self._fault = None
        if name in _DROPS_ROOTS and not self._has_frees:
            vm.drop_roots(self._vcpu())
        match name:
            case "begin":
                # The host facts tell long5 from long, which the marker does not.
                self._mode = self._mode or str(op.get("mode"))
                self._recreates = _RECREATES.search(str(op.get("cmd"))) is not None
            case "create_vm":
                self._vm = Vm(self._facts, self._out)
                self._current = 0
            case "backing":
                hva, size = number(op, "hva", where), number(op, "size", where)
                vm.residency.add_backing(str(op.get("name")), hva, size, bool(number(op, "thp", where, 0)))
            case "host_map":
                root, gva, size, level = (number(op, key, where) for key in ("root", "gva", "size", "level"))
                vm.residency.map_guest_range(self._mode, root, gva, size, level)
            case "smm_handler":
                vm.residency.touch_smm_handler()
            case "set_memslot":
                slot = _slot(op, where)
                vm.set_memslot(slot)
                self._touched = vm.memslots.slots.get((slot.as_id, slot.id))
            case "create_vcpu" | "use_vcpu":
                self._current = number(op, "id", where)
                vm.vcpu(self._current)
            case "set_nr_mmu_pages":
                vm.set_nr_mmu_pages(number(op, "n", where))
            case "enable_cap":
                if number(op, "cap", where) == _MANUAL_DIRTY_LOG_PROTECT2:
                    vm.initially_set = bool(number(op, "arg0", where) & _INITIALLY_SET)
            case "get_dirty_log" | "clear_dirty_log":
                self._logged = (0, number(op, "slot", where))
            case "guest_run":
                self._enter()
            case "end":
                vm.destroy()

    def _enter(self) -> None:
        """A vCPU enters; where loads are recorded, they say so themselves."""
        vcpu = self._vcpu()
        if not self._has_loads:
            if self._vm.has_obsolete_root(vcpu):
                self._vm.drop_roots(vcpu)
            self._vm.load_roots(vcpu)


def _slot(op: Operation, where: str) -> Slot:
    gpa, size = number(op, "gpa", where), number(op, "size", where)
    return Slot(
        as_id=number(op, "as_id", where, 0),
        id=number(op, "slot", where),
        base=gpa >> 12,
        npages=size >> 12,
        hva=number(op, "hva", where, 0),
        flags=number(op, "flags", where, 0),
    )
