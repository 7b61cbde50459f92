"""What a guest needs of its machine, over a `Vm` and over any engine that takes operations.

`GuestMachine` is the seam: `machine.guest` writes tables, touches memory and flushes through it and knows neither the
core nor the reference. An engine is known by its method `apply`, so the reference can stand here without being named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import MemslotError, UsageError
from kvm_mmu.machine.guest_paging import Registers
from kvm_mmu.machine.vcpu import AccessColumns, AccessResult
from kvm_mmu.types import AccessKind

if TYPE_CHECKING:
    from kvm_mmu.machine.vm import Vm

U64 = npt.NDArray[np.uint64]

#: Where a guest's first table stands: the CR3 that a vCPU starts with.
FIRST_TABLE = 0x1000
FIRST_REGISTERS = Registers(0x80010001, FIRST_TABLE, 0x20, 0xD00)


@dataclass
class TablePool:
    """Where a guest puts its tables: one page after the other from the first.

    `window` is the guest-virtual range at which it sees them, from `FIRST_TABLE` on; empty: it does not.
    """

    next_page: int = FIRST_TABLE + 0x1000
    has_tables: bool = False
    window: tuple[int, int] = (0, 0)


@runtime_checkable
class TakesOperations(Protocol):
    """An engine of the scenario language."""

    def apply(self, op: dict[str, Any], /) -> Mapping[str, Any]:
        """Run one operation: `ret` and, where there is one, `out`."""


class GuestMachine(Protocol):
    """One vCPU of a machine, as its guest uses it."""

    pool: TablePool

    def add_memory(self, gpa: int, size: int, slot: int) -> None:
        """Give the guest memory."""

    def registers(self) -> Registers:
        """The registers that say how the guest pages."""

    def set_registers(self, registers: Registers) -> int:
        """Set them and reset the MMU context: 0, or 2 where the PDPTEs are refused."""

    def set_cr3(self, cr3: int) -> int:
        """MOV CR3."""

    def peek(self, gpa: int, size: int) -> int:
        """Read guest memory; 0 where there is none."""

    def poke(self, gpa: int, value: int, size: int) -> bool:
        """Write guest memory without telling the MMU; false where there is none."""

    def emulate_write(self, gpa: int, value: int, size: int) -> None:
        """Write guest memory as KVM does for an instruction it emulates: the MMU is told."""

    def access(self, gva: int, kind: AccessKind, is_user: bool) -> AccessResult:
        """Touch an address of the guest."""

    def access_many(self, gvas: U64, kind: AccessKind, is_user: bool) -> AccessColumns | None:
        """Touch many addresses at once, where the machine can."""

    def write(self, gva: int, gpa: int, value: int, size: int, is_user: bool) -> AccessResult:
        """Write through an address that leads to `gpa`."""

    def invlpg(self, gva: int) -> None:
        """INVLPG."""


class VmGuest:
    """A vCPU of a `Vm`."""

    def __init__(self, vm: Vm, vcpu: int) -> None:
        self.vm, self.vcpu = vm, vcpu
        self.pool = vm.table_pool

    def add_memory(self, gpa: int, size: int, slot: int) -> None:
        self.vm.memslots.create(slot, gpa=gpa, size=size)

    def registers(self) -> Registers:
        return Registers(*self.vm.core.registers(self.vcpu))

    def set_registers(self, registers: Registers) -> int:
        cr0, cr3, cr4, efer = registers
        self.vm.core.store_regs(self.vcpu, cr3, None)
        return self.vm.vcpus[self.vcpu].set_regs(cr0=cr0, cr4=cr4, efer=efer)

    def set_cr3(self, cr3: int) -> int:
        ret = self.vm.core.set_cr3(self.vcpu, cr3)
        if ret == 1 and not self.vm.profile.facts["is_role_fixed"]:
            self.vm.run_guest(self.vcpu, "sync_roots")
        return ret

    def peek(self, gpa: int, size: int) -> int:
        return self.vm.core.peek(self.vcpu, gpa, size) or 0

    def poke(self, gpa: int, value: int, size: int) -> bool:
        return self.vm.core.poke(self.vcpu, gpa, value, size) == 0

    def emulate_write(self, gpa: int, value: int, size: int) -> None:
        self.vm.core.emulate_write(self.vcpu, gpa, value, size)

    def access(self, gva: int, kind: AccessKind, is_user: bool) -> AccessResult:
        return self.vm.run_guest(self.vcpu, "access", gva, kind, is_user)

    def access_many(self, gvas: U64, kind: AccessKind, is_user: bool) -> AccessColumns | None:
        # A hook is called at lock breaks, which accesses in the core pass over.
        if self.vm.on_lock_break is not None:
            return None
        return self.vm.vcpus[self.vcpu].access_many(gvas, kind, is_user)

    def write(self, gva: int, gpa: int, value: int, size: int, is_user: bool) -> AccessResult:
        done = self.access(gva, "w", is_user)
        if done.outcome == "hit":
            self.poke(gpa, value, size)
        elif done.outcome == "emulate":
            self.emulate_write(gpa, value, size)
        return done

    def invlpg(self, gva: int) -> None:
        self.vm.run_guest(self.vcpu, "invlpg", gva)


class EngineGuest:
    """A vCPU of an engine that takes operations; its registers are what was set through this object."""

    def __init__(self, engine: TakesOperations, vcpu: int) -> None:
        self.engine, self.vcpu = engine, vcpu
        self.pool = TablePool()
        self._registers = FIRST_REGISTERS

    def _apply(self, op: str, **fields: Any) -> Mapping[str, Any]:
        return self.engine.apply({"op": op, "vcpu": self.vcpu, **fields})

    def add_memory(self, gpa: int, size: int, slot: int) -> None:
        # After 8 GiB, congruent to the gpa modulo 1 GiB, each slot in a block of its own.
        hva = (8 + 1024 * slot << 30) + gpa
        op = {"op": "set_memslot", "as": 0, "id": slot, "gpa": gpa, "size": size, "hva": hva, "flags": 0}
        if ret := self.engine.apply(op)["ret"]:
            raise MemslotError(-int(ret), f"slot {slot}: refused with {ret}")

    def registers(self) -> Registers:
        return self._registers

    def set_registers(self, registers: Registers) -> int:
        self._registers = registers
        return int(self._apply("set_regs", **registers._asdict())["ret"])

    def set_cr3(self, cr3: int) -> int:
        ret = int(self._apply("set_cr3", cr3=cr3)["ret"])
        self._registers = self._registers._replace(cr3=cr3)
        return ret

    def peek(self, gpa: int, size: int) -> int:
        return int(self._apply("peek", gpa=gpa, bytes=size)["out"]["val"], 16)

    def poke(self, gpa: int, value: int, size: int) -> bool:
        return bool(self._apply("poke", gpa=gpa, val=value, bytes=size)["ret"] == 0)

    def emulate_write(self, gpa: int, value: int, size: int) -> None:
        self._apply("emul_write", gpa=gpa, val=value, bytes=size)

    def access(self, gva: int, kind: AccessKind, is_user: bool) -> AccessResult:
        line = self._apply("vaccess", gva=gva, kind=kind, user=int(is_user))
        return AccessResult(line["out"]["outcome"], line["out"]["faults"], line["ret"])

    def access_many(self, gvas: U64, kind: AccessKind, is_user: bool) -> AccessColumns | None:
        return None

    def write(self, gva: int, gpa: int, value: int, size: int, is_user: bool) -> AccessResult:
        line = self._apply("gwrite", gva=gva, gpa=gpa, val=value, bytes=size, user=int(is_user))
        return AccessResult(line["out"]["outcome"], line["out"]["faults"], line["ret"])

    def invlpg(self, gva: int) -> None:
        self._apply("invlpg", gva=gva)


def guest_machine(machine: Vm | TakesOperations, vcpu: int) -> GuestMachine:
    """The vCPU of a `Vm` or of an engine.

    Raises:
        UsageError: it is neither, or a VM whose guest has no tables of its own.
    """
    from kvm_mmu.machine.vm import Vm

    if isinstance(machine, Vm):
        if not machine.shadows_guest:
            raise UsageError("guest: this VM shadows no page tables of a guest: make it with family='shadow'")
        return VmGuest(machine, machine.vcpus[vcpu].index)
    if isinstance(machine, TakesOperations):
        return EngineGuest(machine, vcpu)
    raise UsageError(f"guest of {type(machine).__name__}: expected a Vm, or an engine that takes operations")
