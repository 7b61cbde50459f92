"""A recording of shadow paging on v5.10 or later -> operations: a guest whose page tables KVM shadows.

Owns: which line of such a recording makes what happen, and the memory of the guest as far as it holds tables. What the
MMU does at an entry (roots loaded, given up and synced) is the engine's own: the probes on it say when, not what.
The guest's instructions between two lines are executed when a line shows how far it has come (`guest_program`).

A walk that the recording prints belongs to the fault before it when address and access are the fault's, else to the
emulator. It says what was read, and that is adopted as the content of the guest's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvm_mmu.errors import TraceError
from kvm_mmu.recorders.guest_program import GuestProgram, Step, command_of
from kvm_mmu.recorders.guest_tables import MODES, PAGE_SHIFT, GuestTables
from kvm_mmu.recorders.inputs_6x import Event
from kvm_mmu.recorders.recorder_6x import Fault, Recorder6x, fault_op, is_answered, scans
from kvm_mmu.trace.replay.engine import Engine, EngineFactory
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.narrator_6x import Narrator6x
from kvm_mmu.trace.replay.narrator_shadow import NarratorShadow
from kvm_mmu.trace.replay.stripping import ANSWER
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.markers import Operation, number

_P, _W, _USER, _RSVD = 1 << 0, 1 << 1, 1 << 2, 1 << 3
#: What a fault waits for: its walk, and the probe that an Intel host has between the two.
_WALK = frozenset({"kvm_mmu_pagetable_walk", "kvm_mmu_paging_element", "mmu_fault"})
#: The guest's code, its commands and its stack, and the second place where they are mapped.
_PROGRAM_PAGES = range(0x1000, 0x8000)
_COMMANDS, _COMMANDS_END, _COMMAND_SIZE = 0x8000, 0x10000, 64
_ALIAS = 0xA0000000
#: Memory of the recorder in which guests have tables; all other pages hold data only.
_TABLE_BACKINGS = frozenset({"low", "pool"})
_PG = 1 << 31
#: Bits whose change gives the roots up: PG and WP of CR0; PSE, PAE, LA57, SMEP, SMAP and PKE of CR4.
_ROLE_BITS = {0: _PG | 1 << 16, 4: 1 << 4 | 1 << 5 | 1 << 12 | 1 << 20 | 1 << 21 | 1 << 22}
_REGISTERS = ("cr0", "cr3", "cr4", "efer")
_SETS_REGISTERS = frozenset({"set_cpu", "host_set_crs", "host_set_cr_efer"})
_STORES = frozenset({"write", "copy", "or"})
_ACCESSES = frozenset({"read", "write", "exec", "copy", "or"})


def shadows_guest_tables(host: HostFacts) -> bool:
    """Whether the host shadowed page tables of its guests."""
    return host.family == "shadow" and host.text("guest_mode") not in ("flat", "real")


@dataclass
class _Walk:
    """A walk as it is printed."""

    gva: int
    error_code: int
    entries: list[tuple[int, int]] = field(default_factory=list)


class RecorderShadow(Recorder6x):
    """Feeds such a recording to an engine, one input at a time."""

    def __init__(
        self,
        factory: EngineFactory,
        kernel: str,
        host: HostFacts,
        names: frozenset[str],
        emit: Callable[[Prediction], None],
    ):
        super().__init__(factory, kernel, host, names, emit)
        self._config |= {"guest_paging": 1, "traced": 1}
        self._names = names
        #: Whether probes say what the guest did to its roots and tables.
        self._has_probes = "sync_roots" in names
        self._program = GuestProgram(self._execute)
        self._tables: GuestTables | None = None
        #: host pages that may hold tables
        self._backings: list[tuple[int, int]] = []
        #: a fault whose walk may still come
        self._held: Fault | None = None
        #: a walk whose lines come
        self._walk: _Walk | None = None
        self._walk_is_faults = False
        #: an INVLPG whose answer may come
        self._invlpg: int | None = None
        #: (address, whether the instruction comes again anyway) of a page to give up its shadow
        self._unprotect: tuple[int, bool] | None = None
        #: vCPUs that run the program in user mode
        self._in_user_mode: set[int] = set()
        #: the next sync of roots is that of a load
        self._loads = False

    def feed(self, event: Event, where: str) -> None:
        """Execute one input line."""
        if self._invlpg is not None:
            answer = event.groups[2] if event.name == ANSWER else None
            self._apply_invlpg(answer)
            if answer is not None:
                self._line = event.line
                return
        if event.name not in _WALK:
            self._settle()
        super().feed(event, where)
        if event.name == "guest_done":
            self._line = event.line
            self._program.finish()

    def finish(self) -> None:
        """The trace ends."""
        if self._invlpg is not None:
            self._apply_invlpg(None)
        self._settle()
        super().finish()

    def _new_engine(self) -> Engine:
        try:
            return super()._new_engine()
        except ValueError as err:
            raise TraceError(f"shadow paging of this recording cannot be replayed: {err}") from err

    # -- the guest's memory --------------------------------------------------------------------------------------

    @property
    def _guest(self) -> GuestTables:
        if self._tables is None:
            mode = self._mode or "long"
            if mode not in MODES:
                raise TraceError(f"guest mode {mode!r}: expected one of {', '.join(MODES)}, flat, real")
            self._tables = GuestTables(mode, self._read, self._poke)
        return self._tables

    def _read(self, gpa: int, size: int) -> int:
        result = self._vm.engine.apply({"op": "peek", "vcpu": self._current, "gpa": gpa, "bytes": size})
        out = result.get("out")
        return int(str(out["val"]), 16) if isinstance(out, dict) else 0

    def _poke(self, gpa: int, value: int, size: int) -> None:
        self._vm.engine.apply({"op": "poke", "vcpu": self._current, "gpa": gpa, "val": value, "bytes": size})

    def _register(self, name: str) -> int:
        return self._registers.get((self._current, name), 0)

    def _translate(self, gva: int) -> int | None:
        return self._guest.translate(self._register("cr3"), gva)

    def _may_hold_tables(self, gpa: int) -> bool:
        slot = self._vm.find(self._current, gpa >> PAGE_SHIFT)
        if slot is None:
            return False
        page = slot.page_of(gpa >> PAGE_SHIFT)
        return any(first <= page < end for first, end in self._backings)

    def _execute(self, step: Step) -> None:
        """An instruction of the guest that no line tells of."""
        match step.kind:
            case "write" | "copy" | "or":
                self._store(step)
            case "cr" if step.gva == 3 and not self._has_probes:
                self._set_cr3(step.value)
            case "cr" if step.gva != 3:
                self._write_register(step)
            case "invlpg" if "invlpg" not in self._names:
                self._apply({"op": "invlpg", "vcpu": self._current, "gva": step.gva})

    def _store(self, step: Step) -> None:
        gpa = self._translate(step.gva)
        if gpa is None or not self._may_hold_tables(gpa):
            return
        if not self._has_probes:
            raise TraceError(
                f"line {self._line} of the stripped trace: the guest writes into a page that may be one of its page"
                f" tables, at {gpa:#x}, and the recording has none of the probes (pte_write, new_pgd, sync_roots,"
                " mmu_load) that say when KVM saw its tables change: what follows cannot be predicted"
            )
        value = step.value
        if step.kind == "copy":
            source = self._translate(step.value)
            value = 0 if source is None else self._read(source, step.size)
        elif step.kind == "or":
            value |= self._read(gpa, step.size)
        self._guest.store(gpa, value, step.size)

    # -- faults and walks ----------------------------------------------------------------------------------------

    def _on_kvm_page_fault(self, _vcpu: str, address: str, error_code: str) -> None:
        self._loads = False
        self._held = Fault(self._current, int(address, 16), int(error_code, 16))
        if self._current not in self._vm.smm:
            self._find_access(self._held)

    def _find_access(self, fault: Fault) -> None:
        """Run the guest up to the access that faults."""
        at = fault.gpa - _ALIAS if _ALIAS <= fault.gpa < _ALIAS + _COMMANDS_END else fault.gpa
        if _COMMANDS <= at < _COMMANDS_END:
            self._program.go_to_command((at - _COMMANDS) // _COMMAND_SIZE)
        elif at not in _PROGRAM_PAGES:
            self._program.go_to_access(fault.gpa, _STORES if fault.error_code & _W else _ACCESSES)

    def _on_kvm_mmu_pagetable_walk(self, gva: str, error_code: str) -> None:
        walk = _Walk(int(gva, 16), int(error_code, 16))
        fault, has_one = self._held, self._walk is not None
        is_faults = (
            fault is not None
            and not has_one
            and (walk.gva, walk.error_code) == (fault.gpa, fault.error_code & ~_RSVD)
        )
        if not is_faults:
            self._settle(keeps_unprotect=not has_one)
        self._walk, self._walk_is_faults = walk, is_faults

    def _on_kvm_mmu_paging_element(self, entry: str, level: str) -> None:
        if self._walk is not None:
            self._walk.entries.append((int(entry, 16), int(level)))

    def _on_vcpu_match_mmio(self, gva: str, direction: str, found_by: str) -> None:
        """Where walks are not recorded: the emulator has walked, unless the vCPU's cache knew the address."""
        if found_by == "GPA" and "kvm_mmu_pagetable_walk" not in self._names:
            self._walk_for_emulator(int(gva, 16), self._privilege | (_W if direction == "Write" else 0))

    def _walk_for_emulator(self, gva: int, error_code: int) -> None:
        self._apply({"op": "guest_walk", "vcpu": self._current, "gva": gva, "err": error_code})

    @property
    def _privilege(self) -> int:
        return _USER if self._current in self._in_user_mode else 0

    def _settle(self, *, keeps_unprotect: bool = False) -> None:
        """Nothing more comes of the fault, walk or page that waits: do it."""
        walk, self._walk = self._walk, None
        fault, self._held = self._held, None
        if walk is not None:
            self._adopt(walk)
        if fault is not None:
            self._take_fault(fault)
        if walk is not None and not self._walk_is_faults:
            self._walk_for_emulator(walk.gva, walk.error_code)
        if self._unprotect is not None and not keeps_unprotect:
            (gva, retries), self._unprotect = self._unprotect, None
            if walk is None:
                self._walk_for_emulator(gva, self._privilege | _W)
            gpa = self._translate(gva)
            if gpa is not None:
                self._unprotect_gfn(gpa >> PAGE_SHIFT, retries=retries)

    def _adopt(self, walk: _Walk) -> None:
        """What a walk read is the content of the guest's memory."""
        tables = self._guest
        for gpa, value in tables.place(self._register("cr3"), walk.gva, walk.entries):
            if self._read(gpa, tables.paging.entry_size) != value:
                tables.store(gpa, value, tables.paging.entry_size)

    def _take_fault(self, fault: Fault) -> None:
        result = self._apply(fault_op(fault, fault.error_code, None))
        self._fault = None if is_answered(result) else fault

    def _map(self, answer: dict[str, object] | None) -> None:
        """The second half of a fault."""
        fault, level = self._fault, self._requested
        self._fault = self._requested = None
        if fault is None or level is None:
            return
        given = {"writable": 1} if answer is None else answer
        op = fault_op(fault, fault.error_code & ~(_P | _RSVD), {"level": level, **given})
        result = self._apply(op, is_second_half=True)
        self._vm.expected_scans += scans(result) - int(fault.is_reclaimed)

    # -- what the guest does that KVM sees -----------------------------------------------------------------------

    def _on_new_pgd(self, pgd: str) -> None:
        self._loads = False
        value = int(pgd, 16)
        self._program.go_to_register(lambda register, to: register == 3 and to == value)
        self._set_cr3(value)

    def _set_cr3(self, value: int) -> None:
        self._registers[self._current, "cr3"] = value
        self._expect({"op": "set_cr3", "vcpu": self._current, "cr3": value})
        if not self._has_probes:
            self._enter()

    def _on_sync_roots(self) -> None:
        """Of a load it is part; else the guest wrote CR3 without a change, or flushed its TLB by CR4."""
        if self._loads:
            self._loads = False
            return
        if self._current not in self._vm.smm:
            cr3 = self._register("cr3")
            step = self._program.go_to_register(
                lambda register, to: register == 4 or (register == 3 and to == cr3)
            )
            if step is not None and step.gva == 4:
                self._write_register(step)
            elif step is not None:
                self._expect({"op": "set_cr3", "vcpu": self._current, "cr3": cr3})
        self._expect({"op": "sync_roots", "vcpu": self._current})

    def _on_free_obsolete_roots(self) -> None:
        self._enter()

    def _on_mmu_load(self) -> None:
        if self._fault is not None and self._fault.vcpu == self._current:
            self._fault = None
        self._smm.load(self._current)
        self._enter()
        self._loads = True

    def _on_free_roots(self, mask: str) -> None:
        """The engine gives roots up by itself; the probe only shows the end of an SMM handler."""
        if self._smm.leaves_with_roots(self._current):
            self._switch_smm(self._current, False)

    def _on_reset_context(self) -> None:
        """The guest wrote CR0 or CR4, where it was about to; else an operation has dealt with it."""
        if self._current in self._vm.smm:
            return
        step = self._program.go_to_register(self._changes_role)
        if step is not None:
            self._write_register(step)

    def _changes_role(self, register: int, value: int) -> bool:
        old = self._register(f"cr{register}")
        return bool((old ^ value) & _ROLE_BITS.get(register, 0))

    def _write_register(self, step: Step) -> None:
        """A write of CR0 or CR4."""
        changes = self._changes_role(step.gva, step.value)
        self._registers[self._current, f"cr{step.gva}"] = step.value
        if changes:
            self._tell_registers()
            if not self._has_loads:
                self._enter()

    def _tell_registers(self) -> None:
        values = {name: self._register(name) for name in _REGISTERS}
        self._apply({"op": "set_regs", "vcpu": self._current, **values})

    def _on_invlpg(self, gva: str) -> None:
        value = int(gva, 16)
        if self._program.go_to_access(value, frozenset({"invlpg"})):
            self._program.skip()
        self._invlpg = value

    def _apply_invlpg(self, found: str | None) -> None:
        gva, self._invlpg = self._invlpg, None
        assert gva is not None
        gpa = self._translate(gva)
        slot = None if gpa is None else self._vm.find(self._current, gpa >> PAGE_SHIFT)
        if found is not None and gpa is not None and slot is not None:
            gfns = [] if found == "-" else [int(gfn, 16) for gfn in found.split(",")]
            gfn = gpa >> PAGE_SHIFT
            self._apply(
                {
                    "op": "host_state",
                    "hva": slot.page_of(gfn) << PAGE_SHIFT,
                    "npages": 1,
                    "state": "rw" if gfn in gfns else "cow",
                }
            )
        self._expect({"op": "invlpg", "vcpu": self._current, "gva": gva})

    def _on_pte_write(self, gpa: str, value: str, size: str) -> None:
        place, length = int(gpa, 16), int(size)
        if length not in (1, 2, 4, 8):
            raise TraceError(f"line {self._line} of the stripped trace: an emulated write of {length} bytes")
        self._program.take_store(lambda step: self._is_store_to(step, place))
        written = int(value, 16) & (1 << 8 * length) - 1
        self._guest.written(place)
        self._apply(
            {"op": "emul_write", "vcpu": self._current, "gpa": place, "val": written, "bytes": length}
        )

    def _is_store_to(self, step: Step, gpa: int) -> bool:
        return not (step.gva ^ gpa) & (1 << PAGE_SHIFT) - 1 and self._translate(step.gva) == gpa

    def _on_unprotect_page(self, kind: str, value: str, retries: str | None) -> None:
        if kind == "gfn":
            self._unprotect_gfn(int(value, 16), retries=False)
        else:
            self._unprotect = int(value, 16), retries == "1"

    def _unprotect_gfn(self, gfn: int, *, retries: bool) -> None:
        self._apply({"op": "unprotect", "gfn": gfn})

    def _switch_smm(self, vcpu: int, on: bool) -> None:
        """The handler runs in real mode; leaving gives the registers back."""
        (self._vm.smm.add if on else self._vm.smm.discard)(vcpu)
        values = {name: self._registers.get((vcpu, name), 0) for name in _REGISTERS}
        if on:
            values = {"cr0": values["cr0"] & ~_PG, "cr3": values["cr3"], "cr4": 0, "efer": 0}
        self._apply({"op": "set_regs", "vcpu": vcpu, **values, "smm": int(on)})
        if not self._has_loads:
            self._expect({"op": "enter", "vcpu": vcpu})

    # -- operations ----------------------------------------------------------------------------------------------

    def _operation(self, op: Operation, where: str) -> None:
        name = str(op["op"])
        if name == "create_vm":
            self._program, self._tables, self._backings = GuestProgram(self._execute), None, []
        super()._operation(op, where)
        command = command_of(op, name, self._guest_mode, where)
        if command is not None:
            if command.kind == "cr" and command.gva == 3:
                self._guest.see_root(command.value)
            self._program.add(command)
            return
        match name:
            case "backing" if op.get("name") in _TABLE_BACKINGS:
                first = number(op, "hva", where) >> PAGE_SHIFT
                self._backings.append((first, first + (number(op, "size", where) >> PAGE_SHIFT)))
            case "host_map":
                keys = ("root", "gva", "gpa", "size", "flags", "level")
                self._guest.map_range(*(number(op, key, where) for key in keys))
            case "host_write_gpte":
                self._guest.write_entry(number(op, "gpa", where), number(op, "value", where))
            case "host_pde":
                self._guest.write_directory_entry(number(op, "gva", where), number(op, "value", where))
            case "host_selfmap":
                self._guest.map_itself()
            case "host_pt_at":
                self._guest.put_table(number(op, "gva", where), number(op, "gfn", where))
            case "set_memslot":
                self._guest.forget()
            case "guest_run":
                self._program.start(number(op, "ncmds", where, 1))

    @property
    def _guest_mode(self) -> str:
        return self._mode or "long"

    def _follow_registers(self, name: str, op: Operation, where: str) -> None:
        """Registers that the VMM sets; what the guest writes follows from its program."""
        if name not in _SETS_REGISTERS:
            return
        if "cpl" in op:
            is_user = number(op, "cpl", where) == 3
            (self._in_user_mode.add if is_user else self._in_user_mode.discard)(self._current)
        changed = self._drops_roots(name, op, where)
        if changed:
            self._tell_registers()

    @property
    def _follows_registers(self) -> bool:
        return True

    def _narrator(self) -> Narrator6x:
        return NarratorShadow(self._wording, self._words, self._root_level)
