"""A recording of direct pages on v5.10 or later -> operations of the scenario language: which line makes what happen.

Owns: the markers of that recorder, the tracepoints and kprobes that are inputs, what each of them does to the VM, and
the attribution of every predicted output to the input line that caused it. Holds no rule of the MMU: those are the
engine's. A recording says more or less, by its event set; what a set leaves out is taken from the markers.

A trace shows a fault in two lines: the exit, and later the request to map, when the fault got that far. So it is two
operations: a fault to which the host says nothing yet, and, with the host's answer, one without the error-code bits
that the first has dealt with.

Long: one method for each input of that recorder, and what they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvm_mmu.errors import TraceError
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.recorders.inputs_6x import Event
from kvm_mmu.recorders.quiet_updates import DELETE, FLAGS, MOVE, QuietUpdates
from kvm_mmu.recorders.residency_6x import Residency
from kvm_mmu.recorders.smm_6x import SmmWatch
from kvm_mmu.trace.replay.engine import Engine, EngineFactory
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.narrator_6x import Narrator6x
from kvm_mmu.trace.replay.stripping import ANSWER
from kvm_mmu.trace.text.exit_qualification import MISCONFIGURATION, error_code_of
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.markers import Operation, number
from kvm_mmu.trace.text.spte_words import spte_words
from kvm_mmu.trace.text.wording import wording_of

_MANUAL_DIRTY_LOG_PROTECT2 = 168
_P, _W, _RSVD = 1 << 0, 1 << 1, 1 << 3
LOG_DIRTY, READONLY = 1 << 0, 1 << 1
GROUP = 8
#: A fault that makes room asks for no more pages; the shrinker asks for its batch of 128.
REFILL_PAGES = 25
#: Root level of a guest without paging on shadow tables.
_PAE_ROOT_LEVEL = 2
#: Largest leaf: 1 GiB.
LEVEL_MAX = 3
#: Pages of one CLEAR_DIRTY_LOG, so that a damaged number costs no memory.
_CLEARED_MAX = 1 << 24
#: Operations that set registers from outside: a changed one drops the roots, where no probe on that is recorded.
_SETS_REGISTERS = frozenset({"set_cpu", "host_set_crs", "host_set_cr_efer"})
_REGISTERS = ("cr0", "cr3", "cr4", "efer")
#: Their bits of a guest with three levels of page tables: setting its registers reads them anew every time.
_PG, _PAE, _LMA = 1 << 31, 1 << 5, 1 << 10
#: Bits of CR0 (PG; WP is looked after without) and CR4 (PSE, PAE, LA57, SMEP, SMAP, PKE) whose change by the guest
#: drops the roots.
_ROLE_BITS = {0: 1 << 31, 4: 1 << 4 | 1 << 5 | 1 << 12 | 1 << 20 | 1 << 21 | 1 << 22}
#: The same where pages under two-dimensional paging depend on the guest's registers: also WP and PGE.
_ROLE_BITS_OPEN = {0: 1 << 31 | 1 << 16, 4: _ROLE_BITS[4] | 1 << 7}

#: Operations that do something here, or may; at all others a fault that was on its way is over, and that is all.
HEARD = _SETS_REGISTERS | {
    "backing",
    "begin",
    "clear_dirty_log",
    "create_vcpu",
    "create_vm",
    "enable_cap",
    "end",
    "get_dirty_log",
    "guest_mov_cr",
    "guest_run",
    "host_map",
    "host_pt_at",
    "host_write_gpte",
    "set_memslot",
    "set_nr_mmu_pages",
    "smi",
    "smm_handler",
    "use_vcpu",
}

#: What the first half of a fault has told of: the second does it again.
_TOLD_BEFORE = frozenset({"fast_pf", "set_accessed", "set_dirty", "walk_error"})
#: What only a VM that was made before can do.
_NEEDS_VM = frozenset({"kvm_page_fault", "mmu_load"})


@dataclass(frozen=True)
class Slot:
    """A memslot; base and npages in pages, hva in bytes."""

    as_id: int
    id: int
    base: int
    npages: int
    hva: int
    flags: int

    def holds(self, gfn: int) -> bool:
        """Whether a gfn lies in it."""
        return self.base <= gfn < self.base + self.npages

    def page_of(self, gfn: int) -> int:
        """Host page of a gfn."""
        return (self.hva >> 12) + gfn - self.base


@dataclass
class Fault:
    """A fault between its exit and its request to map."""

    vcpu: int
    gpa: int
    error_code: int
    #: the probe on reclaim came by
    is_reclaimed: bool = False


@dataclass
class Vm:
    """A VM of the recording: its model, and what the recorder has done to it."""

    engine: Engine
    narrator: Narrator6x
    residency: Residency
    slots: dict[tuple[int, int], Slot] = field(default_factory=dict)
    generations: list[int] = field(default_factory=lambda: [0, 1])
    smm: set[int] = field(default_factory=set)
    #: zap_oldest calls made by the model whose probe has not come by yet.
    expected_scans: int = 0

    def find(self, vcpu: int, gfn: int) -> Slot | None:
        """The slot that a vCPU sees at a gfn."""
        as_id = int(vcpu in self.smm)
        return next((s for s in self.slots.values() if s.as_id == as_id and s.holds(gfn)), None)


class Recorder6x:
    """Feeds a 6.x recording to an engine, one input at a time."""

    def __init__(
        self,
        factory: EngineFactory,
        kernel: str,
        host: HostFacts,
        names: frozenset[str],
        emit: Callable[[Prediction], None],
    ):
        family = host.family
        is_shadow = family == "shadow"
        self._factory, self._kernel, self._emit = factory, kernel, emit
        tdp_level = 5 if host.number("la57") else 4
        self._config: dict[str, object] = {
            "family": family,
            "guest_paging": int(not is_shadow),
            "phys_bits": min(max(host.number("phys_bits"), 36), 52),
            "tdp_level": tdp_level,
            "l1tf": int(host.number("l1tf_mask") != 0),
            "mmio_caching": int(host.number("mmio_caching") != 0),
            "nx_huge_pages": int(host.number("nx_huge_pages") != 0),
        }
        self._is_ept = family.startswith("ept")
        if family == "ept_ad":
            self._config["pml"] = int(host.number("pml") != 0)
        self._words, self._wording = spte_words(kernel, family), wording_of(kernel)
        self._root_level = _PAE_ROOT_LEVEL if is_shadow else tdp_level
        #: vCPUs with an EPT violation whose call of the MMU has not come by yet.
        self._violations: set[int] = set()
        self._line = 0
        self._has_loads = "mmu_load" in names
        self._has_frees = "free_roots" in names
        self._has_transitions = "kvm_smm_transition" in names
        #: Whether the protection that follows from reading or clearing a dirty log comes as a probe of its own.
        self._has_masks = bool(names & {"mmu_load", "free_roots", "dirty_masked"})
        #: An input where no other probe shows memslot updates, and then no output.
        self._given_generations = "invalidate_mmio" in names
        self._mode = host.text("guest_mode")
        self._made: Vm | None = None
        self._current = 0
        self._logged: tuple[int, int] | None = None
        self._fault: Fault | None = None
        self._requested: int | None = None
        #: The slot last made or changed: the one that updates without a marker are about.
        self._touched: Slot | None = None
        self._quiet = QuietUpdates()
        self._smm = SmmWatch()
        #: A marker of an update came and the probe on it not yet.
        self._announced = False
        #: (vCPU, register) -> its value, as far as operations tell
        self._registers: dict[tuple[int, str], int] = {}
        #: Whether the role of a root follows from SMM alone; else the model is told the registers.
        self._is_role_fixed = bool(kernel_profile(kernel).facts.is_role_fixed)
        #: vCPU -> registers that operations announced and that its guest has not yet written
        self._announced_registers: dict[int, list[tuple[str, int]]] = {}
        #: vCPUs that gave up their roots and have not loaded new ones
        self._has_unloaded: set[int] = set()
        self.vcpus_needed = 1
        #: Task -> the vCPU it runs, where no operation chooses one: the probes do not say whose they are.
        self.tasks: dict[str, int] = {}
        self.ignored: dict[str, int] = {}
        self._begun = False
        #: A vCPU faulted or got a root, and no operation had made the VM: the recording starts in the middle of it.
        self.starts_in_the_middle = False

    def feed(self, event: Event, where: str) -> None:
        """Execute one input line."""
        if self._requested is not None and event.name != ANSWER:
            self._map(None)
        if event.name == "toggle" or (self._quiet.pending and event.name != "invalidate_mmio"):
            self._make_quiet_updates(event, where)
        self._line = event.line
        if event.operation is not None:
            if event.name == "op":
                self._operation(event.operation, where)
            return
        self._current = self.tasks.get(event.task, self._current)
        self.starts_in_the_middle |= not self._begun and event.name in _NEEDS_VM
        if event.name == "kvm_page_fault":
            self._current = int(event.groups[0] or self._current)
            if self._smm.leaves_at_fault(self._current, event.rip):
                self._switch_smm(self._current, False)
        handler = getattr(self, f"_on_{event.name}", None)
        if handler is not None:
            handler(*event.groups)

    def finish(self) -> None:
        """The trace ends: a mapping whose answer never came is made, and what was kept for a later line."""
        if self._requested is not None:
            self._map(None)
        self._update_all_quietly(self._quiet.take())

    # -- tracepoints and probes
    # -----------------------------------------------------------------------------------

    def _on_kvm_page_fault(self, _vcpu: str, address: str, error_code: str) -> None:
        code = int(error_code, 16)
        if self._is_ept:
            code = error_code_of(code)
            self._violations.add(self._current)
        self._take_fault(Fault(self._current, int(address, 16), code))

    def _on_mmu_fault(self, gpa: str, error_code: str) -> None:
        """The MMU is called: for a violation, which is known, or for a misconfiguration, which no tracepoint tells."""
        if not self._is_ept:
            return
        if self._current in self._violations:
            self._violations.discard(self._current)
        else:
            self._take_fault(Fault(self._current, int(gpa, 16), int(error_code, 16)))

    def _on_misconfiguration(self, gpa: str) -> None:
        """The same where no probe tells it."""
        if self._is_ept:
            self._take_fault(Fault(self._current, int(gpa, 16), MISCONFIGURATION))

    def _take_fault(self, fault: Fault) -> None:
        result = self._apply(fault_op(fault, fault.error_code, None))
        self._fault = None if is_answered(result) else fault
        slot = self._vm.find(fault.vcpu, fault.gpa >> 12)
        if self._fault is None or slot is None or not fault.error_code & _W or slot.flags & READONLY:
            return
        # Whether the fault maps or is told to come again: the host page is resident and writable from here on.
        page = slot.page_of(fault.gpa >> 12)
        if not self._vm.residency.is_resident(page):
            self._vm.residency.touch(page)

    def _on_kvm_mmu_spte_requested(self, _gfn: str, _pfn: str, level: str) -> None:
        if int(level) > min(LEVEL_MAX, self._root_level):
            raise TraceError(
                f"line {self._line} of the stripped trace: a mapping of level {level} is not possible here"
            )
        if self._fault is not None:
            # The line with the host's answer, if there is one, comes next and belongs to this mapping.
            self._requested = int(level)

    def _on_replay_host_answer(self, was_set: str, writable: str, found: str) -> None:
        if self._requested is not None:
            gfns = [] if found == "-" else [int(gfn, 16) for gfn in found.split(",")]
            self._map({"writable": int(writable), "found": gfns, "set": int(was_set)})

    def _map(self, answer: dict[str, object] | None) -> None:
        """The second half of a fault; where no answer is given, residency says what the host had."""
        fault, level = self._fault, self._requested
        self._fault = self._requested = None
        if fault is None or level is None:
            return
        gfn = fault.gpa >> 12
        slot, residency = self._vm.find(fault.vcpu, gfn), self._vm.residency
        if slot is not None and level > 1:
            residency.note_2m(slot.page_of(gfn))
        if slot is None:
            answer = {"writable": 0, "found": []}
        elif answer is None:
            group = range(gfn & -GROUP, (gfn & -GROUP) + GROUP)
            writable = not slot.flags & READONLY and residency.is_resident(slot.page_of(gfn))
            found = [g for g in group if self._is_resident(fault.vcpu, g)]
            answer = {"writable": int(writable), "found": found}
        op = fault_op(fault, fault.error_code & ~(_P | _RSVD), {"level": level, **answer})
        result = self._apply(op, is_second_half=True)
        # A reclaim of this fault whose probe came before the request.
        self._vm.expected_scans += scans(result) - int(fault.is_reclaimed)

    def _is_resident(self, vcpu: int, gfn: int) -> bool:
        slot = self._vm.find(vcpu, gfn)
        return slot is not None and self._vm.residency.is_resident(slot.page_of(gfn))

    def _on_kvm_smm_transition(self, vcpu: str, direction: str) -> None:
        self._switch_smm(int(vcpu), direction == "entering")

    def _switch_smm(self, vcpu: int, on: bool) -> None:
        (self._vm.smm.add if on else self._vm.smm.discard)(vcpu)
        self._apply({"op": "smm", "vcpu": vcpu, "on": int(on)})
        if not self._is_role_fixed:
            # The handler begins in real mode, without EFER; leaving gives the registers back.
            efer = 0 if on else self._registers.get((vcpu, "efer"), 0)
            self._apply({"op": "set_regs", "vcpu": vcpu, "efer": efer})
        if not self._has_loads:
            self._expect({"op": "enter", "vcpu": vcpu})

    def _on_kvm_unmap_hva_range(self, start: str, end: str) -> None:
        self._apply({"op": "unmap_hva", "start": int(start, 16), "end": int(end, 16)})

    def _on_kvm_age_hva(self, start: str, end: str) -> None:
        """Without accessed bits an aged leaf faults again; with them only the CPU's bit goes, which is not compared."""
        if not self._words.accessed:
            self._apply({"op": "age_hva", "start": int(start, 16), "end": int(end, 16), "flush": 1})

    def _on_dirty_masked(self, offset: str, mask: str) -> None:
        if self._logged is not None and self._logged in self._vm.slots:
            as_id, slot_id = self._logged
            fields = {"offset": int(offset, 16), "mask": int(mask, 16)}
            self._apply({"op": "dirty_masked", "as": as_id, "id": slot_id, **fields})

    def _on_free_roots(self, mask: str) -> None:
        if self._smm.leaves_with_roots(self._current):
            self._switch_smm(self._current, False)
        if int(mask, 16) & 1:
            self._apply({"op": "unload", "vcpu": self._current})
            self._has_unloaded.add(self._current)

    def _on_zap_oldest(self, wanted: str) -> None:
        vm = self._vm
        is_refill = int(wanted) <= REFILL_PAGES
        if self._fault is not None and not self._fault.is_reclaimed and is_refill:
            self._fault.is_reclaimed = True
        elif vm.expected_scans > 0:
            vm.expected_scans -= 1
        else:
            self._apply({"op": "zap_oldest", "n": int(wanted)})

    def _on_invalidate_mmio(self, gen: str) -> None:
        """Only an input where nothing else shows updates: one that the model has not made yet."""
        value = int(gen, 16)
        if value == self._vm.generations[value & 1] + 2 * (1 + self._quiet.pending):
            self._quiet.note(value & 1)

    def _on_set_memslot(self, change: str) -> None:
        """The probe on an update says what it was; one without a marker is about the slot updated last."""
        if not self._announced and change in ("0", "1", "2", "3"):
            self._update_quietly(int(change))
        self._announced = False

    def _make_quiet_updates(self, event: Event, where: str) -> None:
        """What came since the last update that was announced, now that it can be told what it was."""
        quiet, op = self._quiet, event.operation
        if event.name == "toggle" and op is not None and "k" in op:
            quiet.counted(number(op, "k", where) + 1)
        elif op is not None and op.get("op") == "set_memslot":
            quiet.announced(is_deletion=number(op, "size", where) == 0)
        self._update_all_quietly(quiet.take())

    def _update_all_quietly(self, changes: list[int]) -> None:
        for change in changes:
            self._update_quietly(change)

    def _update_quietly(self, change: int) -> None:
        slot, as_id = self._touched, self._quiet.as_id
        if slot is not None and change != MOVE:
            now = self._vm.slots.get((slot.as_id, slot.id), slot)
            flags = now.flags ^ LOG_DIRTY if change == FLAGS else now.flags
            self._set_memslot(replace(now, flags=flags), 0 if change == DELETE else now.npages << 12)
        elif self._given_generations:
            value = self._vm.generations[as_id] + 2
            self._apply({"op": "set_generation", "as": as_id, "gen": value})
            self._apply({"op": "invalidate_mmio", "as": as_id})
            self._vm.generations[as_id] = value

    def _on_mmu_load(self) -> None:
        if self._fault is not None and self._fault.vcpu == self._current:
            self._fault = None  # over before its vCPU enters again: a reclaim from here on is not its own
        self._smm.load(self._current)
        waiting = self._announced_registers.get(self._current)
        if waiting and self._current in self._has_unloaded:
            self._set_registers(dict([waiting.pop(0)]))
        self._has_unloaded.discard(self._current)
        self._enter()

    # -- operations
    # -----------------------------------------------------------------------------------------------

    def _begin_operation(self, name: str, op: Operation, where: str) -> None:
        """What any operation means for the inputs before it."""
        self._fault = None
        self._announced = False
        for vcpu in self._smm.leaves_at_operation():
            self._switch_smm(vcpu, False)
        if self._follows_registers:
            self._follow_registers(name, op, where)

    def _request_slot(self, slot: Slot, size: int) -> None:
        self._set_memslot(slot, size)
        self._touched = self._vm.slots.get((slot.as_id, slot.id))
        self._announced = True

    def _operation(self, op: Operation, where: str) -> None:
        name = str(op["op"])
        self._begin_operation(name, op, where)
        match name:
            case "begin":
                # The host facts tell long5 from long, which the marker does not.
                self._mode = self._mode or str(op.get("mode"))
            case "create_vm":
                self._made, self._current, self._begun = None, 0, True
            case "backing":
                hva, size = number(op, "hva", where), number(op, "size", where)
                thp = bool(number(op, "thp", where, 0))
                self._vm.residency.add_backing(str(op.get("name")), hva, size, thp)
            case "host_map":
                root, gva, size, level = (number(op, key, where) for key in ("root", "gva", "size", "level"))
                self._vm.residency.map_guest_range(self._mode, root, gva, size, level)
            case "host_pt_at":
                self._vm.residency.map_guest_table(self._mode, number(op, "gva", where))
            case "host_write_gpte":
                self._vm.residency.write_guest_table(number(op, "gpa", where))
            case "guest_mov_cr" if op.get("cr") == 3:
                # A root that is new here was copied by the recorder.
                self._vm.residency.write_guest_table(number(op, "value", where))
            case "smi" if not self._has_transitions:
                self._smm.ask(self._current)
            case "smm_handler":
                self._vm.residency.touch_smm_handler()
            case "set_memslot":
                self._request_slot(_slot(op, where), number(op, "size", where))
            case "create_vcpu" | "use_vcpu":
                self._current = number(op, "id", where)
            case "set_nr_mmu_pages":
                self._expect({"op": "set_nr_mmu_pages", "n": number(op, "n", where)})
            case "enable_cap":
                if number(op, "cap", where) == _MANUAL_DIRTY_LOG_PROTECT2:
                    self._apply({"op": "manual_protect", "on": number(op, "arg0", where) & 3})
            case "get_dirty_log" | "clear_dirty_log":
                self._logged = _space_and_id(op, where)
                if not self._has_masks:
                    self._dirty_log(op, where)
            case "guest_run":
                self._vm.residency.write_commands(number(op, "ncmds", where, 0))
                if self._smm.enters(self._current):
                    self._switch_smm(self._current, True)
                if not self._has_loads:
                    self._enter()
            case "end":
                self._end()

    def _dirty_log(self, op: Operation, where: str) -> None:
        """Without the probe the engine's own dirty bits say what is protected."""
        as_id, slot_id = _space_and_id(op, where)
        if (as_id, slot_id) not in self._vm.slots:
            return
        fields: Operation = {"as": as_id, "id": slot_id}
        if op["op"] == "get_dirty_log":
            self._apply({"op": "get_dirty_log", **fields})
            return
        pages = min(number(op, "num", where), _CLEARED_MAX)
        word = (number(op, "bytepattern", where, 0xFF) & 0xFF) * 0x0101010101010101
        words = op.get("words", [word] * ((pages + 63) // 64))
        cleared = {"first": number(op, "first", where), "num": pages, "mask": words}
        self._apply({"op": "clear_dirty_log", **fields, **cleared})

    @property
    def _follows_registers(self) -> bool:
        """Whether anything depends on what operations say of registers."""
        return not (self._has_frees and self._is_role_fixed)

    def _follow_registers(self, name: str, op: Operation, where: str) -> None:
        """What an operation does to registers: roots that no probe says are dropped, and what the model is told."""
        drops = self._drops_roots(name, op, where)
        if drops and not self._has_frees:
            self._apply({"op": "unload", "vcpu": self._current})
        if self._is_role_fixed:
            return
        if name in _SETS_REGISTERS and drops:
            self._set_registers({key: number(op, key, where) for key in ("cr0", "cr4", "efer") if key in op})
        elif drops:
            # The guest writes it in the run that comes next; there its roots are given up and loaded again.
            written = (f"cr{number(op, 'cr', where)}", number(op, "value", where))
            self._announced_registers.setdefault(self._current, []).append(written)
            if not self._has_frees:
                self._set_registers(dict([self._announced_registers[self._current].pop()]))

    def _set_registers(self, values: dict[str, int]) -> None:
        """Tell the model; the probes or operations around it have dropped the roots."""
        if values:
            self._apply({"op": "set_regs", "vcpu": self._current, **values})

    def _drops_roots(self, name: str, op: Operation, where: str) -> bool:
        """Whether an operation changes registers so that the vCPU gives its roots up."""
        if name in _SETS_REGISTERS:
            changed = False
            for register in _REGISTERS:
                if register in op:
                    value = number(op, register, where)
                    changed |= self._registers.get((self._current, register)) != value
                    self._registers[self._current, register] = value
            return changed or self._has_pae_tables()
        if name == "guest_mov_cr":
            which, value = number(op, "cr", where), number(op, "value", where)
            old = self._registers.get((self._current, f"cr{which}"), value)
            self._registers[self._current, f"cr{which}"] = value
            bits = _ROLE_BITS if self._is_role_fixed else _ROLE_BITS_OPEN
            return bool((old ^ value) & bits.get(which, 0))
        return False

    def _has_pae_tables(self) -> bool:
        cr0, cr4, efer = (self._registers.get((self._current, name), 0) for name in ("cr0", "cr4", "efer"))
        return bool(cr0 & _PG and cr4 & _PAE and not efer & _LMA)

    def _set_memslot(self, slot: Slot, size: int) -> None:
        """A request to change a slot; the engine says whether it was one."""
        op: Operation = {"op": "set_memslot", "as": slot.as_id, "id": slot.id, "gpa": slot.base << 12}
        result = self._expect({**op, "size": size, "hva": slot.hva, "flags": slot.flags})
        if result.get("ret") == 0:
            self._note_slot(slot, size)

    def _note_slot(self, slot: Slot, size: int) -> None:
        """A request was granted."""
        if size:
            self._vm.slots[slot.as_id, slot.id] = slot
        else:
            self._vm.slots.pop((slot.as_id, slot.id), None)

    def _end(self) -> None:
        """The VM ends: every page goes, then each vCPU gives its roots up."""
        self._apply({"op": "zap_all"})
        for vcpu in range(self.vcpus_needed):
            self._apply({"op": "unload", "vcpu": vcpu})

    def _enter(self) -> None:
        self._expect({"op": "enter", "vcpu": self._current})

    # -- the engine
    # -----------------------------------------------------------------------------------------------

    @property
    def _vm(self) -> Vm:
        """The VM, made when the first input needs it."""
        if self._made is None:
            self._made = Vm(self._new_engine(), self._narrator(), self._residency())
            self._begin()
        return self._made

    def _new_engine(self) -> Engine:
        return self._factory(self._kernel, {**self._config, "vcpus": self.vcpus_needed})

    def _begin(self) -> None:
        """Set what of a new VM no configuration says."""

    def _narrator(self) -> Narrator6x:
        return Narrator6x(self._wording, self._words, self._root_level)

    def _residency(self) -> Residency:
        return Residency(self._note_huge)

    def _note_huge(self, first: int, count: int, kind: str = "thp") -> None:
        self._apply({"op": "host_huge", "hva": first << 12, "npages": count, "kind": kind})

    def _expect(self, op: Operation) -> dict[str, object]:
        """An operation whose reclaims come by as probes of their own."""
        result = self._apply(op)
        self._vm.expected_scans += scans(result)
        return result

    def _apply(self, op: Operation, *, is_second_half: bool = False) -> dict[str, object]:
        vm = self._vm
        result = vm.engine.apply(op)
        if is_second_half:
            # Without accessed bits the lock-free path looks at absent entries, too: the first half has told of that.
            result["events"] = [event for event in _events(result) if event[0] not in _TOLD_BEFORE]
        for event, body in vm.narrator.tell(op, result):
            if event == "memslots_updated":
                gen = int(body.removeprefix("gen="), 16)
                vm.generations[gen & 1] = gen
            if event != "invalidate_mmio" or not self._given_generations:
                self._emit(Prediction(self._line, event, body))
        return result


def fault_op(fault: Fault, error_code: int, host: dict[str, object] | None) -> Operation:
    return {"op": "fault", "vcpu": fault.vcpu, "gpa": fault.gpa, "err": error_code, "host": host}


def _events(result: dict[str, object]) -> list[list[object]]:
    events = result.get("events")
    return events if isinstance(events, list) else []


def is_answered(result: dict[str, object]) -> bool:
    """The first half ended the fault: the lock-free path dealt with it, or the emulator has it."""
    return any(
        event[0] in ("emulate", "inject_pf") or (event[0] == "fast_pf" and event[-1])
        for event in _events(result)
    )


def scans(result: dict[str, object]) -> int:
    """How often the oldest pages were zapped."""
    return sum(1 for event in _events(result) if event[0] == "zap_oldest_ret")


def _space_and_id(op: Operation, where: str) -> tuple[int, int]:
    """Address space and slot of a dirty-log operation, whose number has both as the ioctl takes them."""
    slot = number(op, "slot", where)
    return slot >> 16, slot & 0xFFFF


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
