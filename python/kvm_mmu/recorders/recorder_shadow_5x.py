"""A recording of shadow paging on v5.0 to v5.2 -> operations: a guest whose page tables KVM shadows.

Owns: what one instruction of that recorder's guest does, and when. The guest's registers and the memory of its tables
are in no event; they must be given as lines of the text (`replay_guest_regs`, `replay_guest_memory`,
`replay_host_huge_slots`), without which a recording is refused. An instruction that KVM emulates takes effect at the
emulator's walk for its fetch; a store that it does not takes effect through the shadow tables, stale ones too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvm_mmu.errors import TraceError
from kvm_mmu.recorders.guest_tables import MODES, PAGE_SHIFT, GuestTables
from kvm_mmu.recorders.host_memory import HostMemory, Slot
from kvm_mmu.recorders.inputs import Fault, Given, Marker, ShadowInput, Walk
from kvm_mmu.recorders.recorder_5x import GUEST_OPERATIONS, Recorder5x, Vm
from kvm_mmu.trace.replay.narrator import Narrator
from kvm_mmu.trace.replay.narrator_shadow import NarratorShadow5x
from kvm_mmu.trace.text.markers import Operation, number

_RESERVED, _FETCH, _CODE = 1 << 3, 1 << 4, 0xFFFFFFFF
_PG, _PAE, _LMA = 1 << 31, 1 << 5, 1 << 10
_STORES = {"write8": 8, "write4": 4, "write2": 2, "write1": 1}
_REGISTERS = ("cr0", "cr3", "cr4", "efer")
_PAGES_2M = 512
_READONLY = 1 << 1
_WORDS_MAX = 1 << 20


@dataclass
class SplittingMemory(HostMemory):
    """Host memory whose huge pages are invalidated as a whole when a part of one is changed for the first time."""

    #: first pages of huge pages that nobody has split
    whole: set[int] = field(default_factory=set)

    def make_huge(self, slot: Slot) -> None:
        """The slot's memory consists of transparent huge pages, from its first use on."""
        before = len(self.huge)
        super().make_huge(slot)
        if len(self.huge) > before:
            start = slot.hva >> PAGE_SHIFT
            self.whole.update(range(start, start + max(slot.npages, _PAGES_2M), _PAGES_2M))

    def _split(self, first: int, count: int) -> None:
        for begin in range(first & -_PAGES_2M, first + count, _PAGES_2M):
            if begin in self.whole:
                self.whole.discard(begin)
                self._unmap(begin, _PAGES_2M)
        super()._split(first, count)


@dataclass
class _Instruction:
    """What the guest does, until it is done."""

    name: str
    gva: int
    value: int
    #: a fault on its address was seen, and what came of the last one
    has_faulted: bool = False
    is_emulated: bool = False
    #: the emulator or the shadow tables did it
    is_done: bool = False


class RecorderShadow5x(Recorder5x):
    """Feeds such a recording to an engine, one input at a time."""

    mmu = "shadow"
    _instruction: _Instruction | None = None
    _tables: GuestTables | None = None
    #: address and access of the walk that the last fault made
    _own_walk: tuple[int, int] | None = None

    def feed(self, item: ShadowInput, where: str) -> None:
        """Execute one input line."""
        self._line = item.line
        match item:
            case Fault():
                self._fault(item, where)
            case Walk():
                self._walk(item)
            case Given():
                self._take(item, where)
            case Marker():
                self._end_instruction()
                super().feed(item, where)

    def finish(self) -> None:
        """The recording ends."""
        self._end_instruction()

    # -- what is given besides -----------------------------------------------------------------------------------

    def _take(self, given: Given, where: str) -> None:
        self._end_instruction()
        match given.kind, given.value:
            case "regs", dict(values):
                self._wanted = {name: number(values, name, where) for name in _REGISTERS}
                self._are_registers_new = True
            case "memory", list(words) if len(words) <= _WORDS_MAX:
                vm = self._need_vm(where)
                for word in words:
                    if not isinstance(word, list) or len(word) != 2:
                        raise TraceError(f"{where}: guest memory: expected pairs of an address and a value")
                    gpa, value = (number({"n": text}, "n", where) for text in word)
                    self._poke_as(vm.current, gpa, value, 8)
                if self._tables is not None:
                    self._tables.forget()
            case "huge_slots", list(slots):
                self._huge_slots = frozenset(slot for slot in slots if isinstance(slot, int))
            case _:
                raise TraceError(f"{where}: replay_guest lines: {given.kind} cannot be read")

    _wanted: dict[str, int] | None = None
    _are_registers_new = False
    _huge_slots: frozenset[int] = frozenset()

    def _set_registers(self, vm: Vm, where: str) -> None:
        """The registers that the guest begins with: the last ones given before its first instruction."""
        if self._wanted is None:
            raise TraceError(
                f"{where}: the guest's registers and page tables are in no event of a recording of shadow paging before"
                " v5.10, and nobody gave them: expected lines replay_guest_regs and replay_guest_memory in the text"
            )
        if not self._are_registers_new:
            return
        self._are_registers_new = False
        values = self._wanted
        for vcpu in range(vm.vcpus):
            if vcpu not in self._cr3:
                self._apply({"op": "set_regs", "vcpu": vcpu, **values})
                self._cr3[vcpu] = values["cr3"]
        self._mode = _mode_of(values)
        if self._tables is None and self._mode in MODES:
            self._tables = GuestTables(self._mode, self._read, self._poke)

    # -- faults, walks, instructions -----------------------------------------------------------------------------

    def _fault(self, fault: Fault, where: str) -> None:
        vm = self._need_vm(where)
        instruction = self._instruction
        is_own = instruction is not None and fault.gpa == instruction.gva
        if instruction is not None and instruction.has_faulted and not is_own:
            self._store(instruction)
        self._enter(vm)
        op: Operation = {"op": "fault", "vcpu": vm.current, "gpa": fault.gpa, "err": fault.error_code}
        gpa = self._translate(fault.gpa)
        result = self._apply(op) if gpa is None else vm.memory.fault(op, gpa, fault.error_code)
        events = result.get("events")
        told = events if isinstance(events, list) else []
        has_walked = any(event[0] == "walk" for event in told)
        self._own_walk = (fault.gpa, fault.error_code & ~_RESERVED & _CODE) if has_walked else None
        if instruction is not None and is_own:
            instruction.has_faulted = True
            instruction.is_emulated = any(event[0] == "emulate" for event in told)
        self._enter(vm)

    def _walk(self, walk: Walk) -> None:
        own, self._own_walk = self._own_walk, None
        if own == (walk.gva, walk.error_code):
            return
        vm = self._vm
        if vm is None:
            return
        self._apply({"op": "guest_walk", "vcpu": vm.current, "gva": walk.gva, "err": walk.error_code})
        if walk.error_code & _FETCH:
            self._emulate(vm)

    def _emulate(self, vm: Vm) -> None:
        """The emulator has fetched the instruction: it takes effect now."""
        instruction = self._instruction
        if instruction is None or instruction.is_done:
            return
        if instruction.name == "cr3":
            instruction.is_done = True
            self._apply({"op": "set_cr3", "vcpu": vm.current, "cr3": instruction.gva})
            self._cr3[vm.current] = instruction.gva
            self._enter(vm)
        elif instruction.name == "invlpg":
            instruction.is_done = True
            self._apply({"op": "invlpg", "vcpu": vm.current, "gva": instruction.gva})
        elif instruction.name in _STORES and instruction.is_emulated:
            instruction.is_done = True
            gpa = self._translate(instruction.gva)
            slot = None if gpa is None else vm.memory.find(gpa >> PAGE_SHIFT)
            if gpa is not None and slot is not None and not self._is_read_only(vm, slot):
                value, size = self._stored(instruction)
                if self._tables is not None:
                    self._tables.written(gpa)
                self._apply({"op": "emul_write", "vcpu": vm.current, "gpa": gpa, "val": value, "bytes": size})

    @staticmethod
    def _is_read_only(vm: Vm, slot: Slot) -> bool:
        asked = vm.flags.get((slot.as_id, slot.id), 0)
        return bool(asked & _READONLY)

    def _stored(self, instruction: _Instruction) -> tuple[int, int]:
        size = _STORES[instruction.name]
        if size == 8 and self._mode != "long":
            size = 4
        return instruction.value & (1 << 8 * size) - 1, size

    def _store(self, instruction: _Instruction) -> None:
        """The processor stores through the tables it has, if they let it."""
        vm = self._vm
        if vm is None or instruction.is_done or instruction.name not in _STORES:
            return
        value, size = self._stored(instruction)
        self._apply(
            {
                "op": "guest_store",
                "vcpu": vm.current,
                "gva": instruction.gva,
                "val": value,
                "bytes": size,
            }
        )
        if self._tables is not None:
            self._tables.forget()

    def _end_instruction(self) -> None:
        instruction, self._instruction = self._instruction, None
        if instruction is not None:
            self._store(instruction)

    # -- operations ----------------------------------------------------------------------------------------------

    def _operation(self, op: Operation, where: str) -> None:
        name = str(op.get("op"))
        self._own_walk = None
        if name in GUEST_OPERATIONS:
            vm = self._need_vm(where)
            self._set_registers(vm, where)
            self._instruction = _Instruction(name, number(op, "a", where), number(op, "b", where, 0))
        super()._operation(op, where)

    def _create_vm(self, op: Operation, where: str) -> None:
        self._cr3, self._tables, self._mode = {}, None, ""
        super()._create_vm(op, where)

    _cr3: dict[int, int]
    _mode = ""

    def _start_vcpu(self, vm: Vm, vcpu: int) -> None:
        """A vCPU that is added begins as the first one did."""
        vm.vcpus = max(vm.vcpus, vcpu + 1)
        self._are_registers_new = self._wanted is not None

    def _memslot(self, vm: Vm, op: Operation, where: str) -> None:
        as_id, slot_id = number(op, "as", where), number(op, "slot", where)
        was_there = (as_id, slot_id) in vm.memory.slots
        super()._memslot(vm, op, where)
        slot = vm.memory.slots.get((as_id, slot_id))
        if slot is not None:
            vm.flags[as_id, slot_id] = number(vm.last_slot[as_id], "flags", where)
            if not was_there and as_id == 0 and slot_id in self._huge_slots:
                vm.memory.make_huge(slot)
        if self._tables is not None:
            self._tables.forget()

    # -- memory --------------------------------------------------------------------------------------------------

    def _translate(self, gva: int) -> int | None:
        vm = self._vm
        if vm is None or self._tables is None:
            return gva
        return self._tables.translate(self._cr3.get(vm.current, 0), gva)

    def _read(self, gpa: int, size: int) -> int:
        vm = self._vm
        assert vm is not None
        result = vm.engine.apply({"op": "peek", "vcpu": vm.current, "gpa": gpa, "bytes": size})
        out = result.get("out")
        return int(str(out["val"]), 16) if isinstance(out, dict) else 0

    def _poke(self, gpa: int, value: int, size: int) -> None:
        vm = self._vm
        assert vm is not None
        self._poke_as(vm.current, gpa, value, size)

    def _poke_as(self, vcpu: int, gpa: int, value: int, size: int) -> None:
        vm = self._vm
        assert vm is not None
        vm.engine.apply({"op": "poke", "vcpu": vcpu, "gpa": gpa, "val": value, "bytes": size})

    @property
    def _family(self) -> dict[str, object]:
        return {"family": "shadow", "traced": 1}

    def _narrator(self) -> Narrator:
        return NarratorShadow5x(self._wording, 4)

    def _host_memory(self) -> HostMemory:
        return SplittingMemory(self._apply)


def _mode_of(registers: dict[str, int]) -> str:
    if not registers["cr0"] & _PG:
        return "none"
    if registers["efer"] & _LMA:
        return "long"
    return "pae" if registers["cr4"] & _PAE else "p32"
