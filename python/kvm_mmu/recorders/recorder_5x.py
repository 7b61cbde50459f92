"""Operations and faults of a 5.x recording under NPT -> operations of the scenario language.

Owns: what each marker of that recorder does to the VM, when a vCPU enters, and the attribution of every
predicted output to the input line that caused it. Holds no rule of the MMU: those are the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvm_mmu.errors import TraceError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.recorders.host_memory import TOO_LARGE, HostMemory, Slot
from kvm_mmu.recorders.inputs import Fault, Input
from kvm_mmu.trace.replay.engine import Engine, EngineFactory
from kvm_mmu.trace.replay.narrator import Narrator, Prediction
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.markers import Operation, number
from kvm_mmu.trace.text.wording import wording_of

GUEST_OPERATIONS = frozenset(
    {"read8", "write8", "write4", "write2", "write1", "cr3", "invlpg", "exec", "readpages"}
)
_LOG_DIRTY = 1
#: More updates in one marker than generations have values are no recording.
_QUIET_MAX = 1 << 21
#: Slots of that recorder have some MiB; tables and bitmaps of one as large as can be would fill any memory.
_SLOT_MAX = 1 << 38
_ADDRESS_SPACES, _USER_SLOTS = 2, 509
_ROOT_LEVEL = 4
#: The recorder's mixed scenario backs two of its four small slots with huge pages, whatever `huge` of its VM says,
#: and moves each slot between two places. No marker tells. They are never mapped huge, but their leaves vanish when
#: logging is turned off, which shows in the faults (5.0.1-npt/mix003) and from v5.3 on in what prefetch finds.
_MIXED_HUGE = {2: (0x2100_0000, 0x2140_0000), 4: (0x2300_0000, 0x2340_0000)}
#: CR0 and CR4 of the 32-bit guests; under NPT nothing that is printed depends on them.
_CR0_32, _CR4_32 = 0x80010033, 0


@dataclass
class Vm:
    engine: Engine
    memory: HostMemory
    narrator: Narrator
    huge: bool
    vcpus: int = 1
    current: int = 0
    last_slot: dict[int, Operation] = field(default_factory=dict)
    last_as: int | None = None
    #: (address space, slot) -> its flags
    flags: dict[tuple[int, int], int] = field(default_factory=dict)


class Recorder5x:
    """Feeds a 5.x recording to an engine, one input at a time."""

    #: What host facts call the MMU of these recordings.
    mmu = "npt"

    def __init__(
        self, factory: EngineFactory, kernel: str, host: HostFacts, emit: Callable[[Prediction], None]
    ):
        self._factory, self._kernel, self._host, self._emit = factory, kernel, host, emit
        mmu = host.text("mmu")
        if mmu == "ept":
            raise TraceError("recordings of EPT before v5.10 cannot be replayed: none has been seen")
        if mmu != self.mmu:
            raise TraceError(f"recordings of 5.x are replayed under npt only, not under {mmu}")
        self._wording = wording_of(kernel)
        self._vm: Vm | None = None
        self._line = 0
        self._last_number = -1
        self.ignored: dict[str, int] = {}
        #: Flag updates that no marker shows, taken from gaps in the numbers of the operations.
        self.quiet_updates = 0
        self.vcpus_needed = 4

    def feed(self, item: Input, where: str) -> None:
        """Execute one input line."""
        self._line = item.line
        if isinstance(item, Fault):
            self._fault(item, where)
        else:
            self._gap(item.operation, where)
            self._operation(item.operation, where)

    # -- inputs --------------------------------------------------------------------------------------------------

    def _fault(self, fault: Fault, where: str) -> None:
        vm = self._need_vm(where)
        # Who faults has entered, also where an operation of an unknown name made it.
        self._enter(vm)
        op: Operation = {"op": "fault", "vcpu": vm.current, "gpa": fault.gpa, "err": fault.error_code}
        vm.memory.fault(op, fault.gpa, fault.error_code)
        self._enter(vm)

    def _operation(self, op: Operation, where: str) -> None:
        name = str(op.get("op"))
        if name == "create_vm":
            self._create_vm(op, where)
            return
        vm = self._need_vm(where)
        if name in GUEST_OPERATIONS:
            self._enter(vm)
            return
        match name:
            case "memslot":
                self._memslot(vm, op, where)
            case "quiet":
                self._quiet(vm, op, where)
            case "use_vcpu":
                vm.current = self._vcpu(op, where)
            case "add_vcpu":
                self._start_vcpu(vm, self._vcpu(op, where))
            case "host_dontneed":
                vm.memory.drop(number(op, "gpa", where), number(op, "len", where))
            case "host_mprotect":
                vm.memory.protect(number(op, "gpa", where), bool(number(op, "ro", where)))
            case "set_nr_mmu_pages":
                self._apply({"op": "set_nr_mmu_pages", "n": number(op, "n", where)})
            case "get_dirty_log":
                as_id, slot_id = divmod(number(op, "slot", where), 1 << 16)
                if as_id < _ADDRESS_SPACES and slot_id < _USER_SLOTS:
                    self._apply({"op": "get_dirty_log", "as": as_id, "id": slot_id})
            case "get_nr_mmu_pages":
                pass
            case "destroy_vm":
                self._destroy_vm(vm)
            case _:
                self.ignored[name] = self.ignored.get(name, 0) + 1

    def _create_vm(self, op: Operation, where: str) -> None:
        config = {
            **self._family,
            "phys_bits": self._host.number("phys_bits"),
            "vcpus": self.vcpus_needed,
        }
        try:
            engine = self._factory(self._kernel, config)
        except ValueError as err:
            raise TraceError(f"{where}: no VM can be made of the host's facts: {err}") from err
        self._vm = vm = Vm(engine, self._host_memory(), self._narrator(), bool(number(op, "huge", where, 0)))
        self._start_vcpu(vm, 0)

    @property
    def _family(self) -> dict[str, object]:
        """What of a VM's configuration follows from its MMU."""
        return {"family": "npt"}

    def _narrator(self) -> Narrator:
        return Narrator(self._wording, _ROOT_LEVEL)

    def _host_memory(self) -> HostMemory:
        return HostMemory(self._apply)

    def _start_vcpu(self, vm: Vm, vcpu: int) -> None:
        vm.vcpus = max(vm.vcpus, vcpu + 1)
        if not self._host.number("initial_efer_nx"):
            self._apply({"op": "set_regs", "vcpu": vcpu, "cr0": _CR0_32, "cr4": _CR4_32, "efer": 0, "smm": 0})

    def _memslot(self, vm: Vm, op: Operation, where: str) -> None:
        as_id, slot_id = number(op, "as", where), number(op, "slot", where)
        gpa, size, flags = number(op, "gpa", where), number(op, "size", where), number(op, "flags", where)
        if _SLOT_MAX < size < TOO_LARGE:
            raise TraceError(f"{where}: a slot of {size:#x} bytes: larger than any recording has")
        hva = vm.memory.hva_of(as_id, slot_id, size)
        asked: Operation = {"as": as_id, "id": slot_id, "gpa": gpa, "size": size, "hva": hva, "flags": flags}
        if self._apply({"op": "set_memslot", **asked}).get("ret") != 0:
            return
        known = vm.memory.slots
        if size == 0:
            known.pop((as_id, slot_id), None)
            if vm.last_slot.get(as_id, {}).get("id") == slot_id:
                del vm.last_slot[as_id]
            return
        is_new = (as_id, slot_id) not in known
        known[as_id, slot_id] = slot = Slot(as_id, slot_id, gpa >> 12, size >> 12, hva)
        vm.last_as = as_id
        vm.last_slot[as_id] = asked
        whole = vm.huge and (as_id, slot_id) == (0, 0)
        if is_new and (whole or (as_id == 0 and gpa in _MIXED_HUGE.get(slot_id, ()))):
            vm.memory.make_huge(slot)

    def _gap(self, op: Operation, where: str) -> None:
        """Operations are numbered; numbers left out are flag updates of the slot last touched."""
        if "i" not in op:
            return
        current, last = number(op, "i", where), self._last_number
        self._last_number = current
        vm = self._vm
        if vm is None or vm.last_as not in vm.last_slot or current <= last + 1:
            return
        self.quiet_updates += current - last - 1
        self._quiet(vm, {"op": "quiet", "n": current - last - 1, "as": vm.last_as}, where)

    def _quiet(self, vm: Vm, op: Operation, where: str) -> None:
        """Flag updates of the slot last touched that were made without a marker each."""
        last = vm.last_slot.get(number(op, "as", where))
        if last is None:
            raise TraceError(f"{where}: QUIET without a slot before it in this address space")
        updates = number(op, "n", where)
        if updates > _QUIET_MAX:
            raise TraceError(f"{where}: {updates} updates without a marker: more than any recording has")
        for _ in range(updates):
            last["flags"] = number(last, "flags", where) ^ _LOG_DIRTY
            self._apply({"op": "set_memslot", **last})

    def _destroy_vm(self, vm: Vm) -> None:
        self._apply({"op": "zap_all"})
        for vcpu in range(vm.vcpus):
            self._apply({"op": "unload", "vcpu": vcpu})
        self._vm = None

    # -- the engine ----------------------------------------------------------------------------------------------

    def _enter(self, vm: Vm) -> None:
        self._apply({"op": "enter", "vcpu": vm.current})

    def _apply(self, op: Operation) -> dict[str, object]:
        vm = self._vm
        if vm is None:
            raise TraceError("operation without a VM")
        try:
            result = vm.engine.apply(op)
        except ValueError as err:
            raise TraceError(
                f"line {self._line} of the stripped trace: the model refuses {shown(op['op'])}: {err}"
            ) from err
        for event, body in vm.narrator.tell(op, result):
            self._emit(Prediction(self._line, event, body))
        return result

    def _need_vm(self, where: str) -> Vm:
        if self._vm is None:
            raise TraceError(
                f"{where}: no create_vm before this line: the recording starts in the middle of a VM"
            )
        return self._vm

    def _vcpu(self, op: Operation, where: str) -> int:
        vcpu = number(op, "n", where)
        if vcpu >= self.vcpus_needed:
            raise TraceError(f"{where}: vCPU {vcpu} was never announced")
        return vcpu
