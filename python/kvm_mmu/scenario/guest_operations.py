"""The scenario language's operations on a guest with page tables of its own, on the machine layer: one small function
an operation. They exist where the guest's tables are shadowed (docs/reference/scenario.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvm_mmu.machine.vm import Vm

Values = Mapping[str, Any]
Result = int | tuple[int, dict[str, Any]]


def _is_stepped(vm: Vm) -> bool:
    return bool(vm.profile.facts.is_role_fixed)


def _where(op: Values) -> tuple[int, int, int, int]:
    return op["vcpu"], op["gpa"], op["val"], op["bytes"]


def _vaccess(vm: Vm, op: Values) -> tuple[int, dict[str, Any]]:
    done = vm.run_guest(op["vcpu"], "access", op["gva"], op["kind"], bool(op["user"]))
    return done.ret, {"outcome": done.outcome, "faults": done.faults}


def _gwrite(vm: Vm, op: Values) -> Result:
    ret, out = _vaccess(vm, {**op, "kind": "w"})
    written: int | None = None
    if out["outcome"] == "hit":
        written = vm.core.poke(*_where(op))
    elif out["outcome"] == "emulate":
        written = vm.core.emulate_write(*_where(op))
    if written is not None and not _is_stepped(vm):
        out["write"] = written
    return ret, out


def _poke(vm: Vm, op: Values) -> Result:
    return vm.core.poke(*_where(op))


def _peek(vm: Vm, op: Values) -> Result:
    return 0, {"val": hex(vm.core.peek(op["vcpu"], op["gpa"], op["bytes"]) or 0)}


def _emul_write(vm: Vm, op: Values) -> Result:
    ret = vm.core.emulate_write(*_where(op))
    # From v6.1 on the emulator is told whether it was done.
    return int(not ret) if _is_stepped(vm) else ret


def _invlpg(vm: Vm, op: Values) -> Result:
    vm.run_guest(op["vcpu"], "invlpg", op["gva"])
    return 0


def _set_cr3(vm: Vm, op: Values) -> Result:
    ret = vm.core.set_cr3(op["vcpu"], op["cr3"])
    if ret == 1 and not _is_stepped(vm):
        vm.run_guest(op["vcpu"], "sync_roots")
    return ret


def _set_pkru(vm: Vm, op: Values) -> Result:
    vm.core.set_pkru(op["vcpu"], op["pkru"])
    return 0


def _unprotect(vm: Vm, op: Values) -> Result:
    return int(vm.core.unprotect(op["gfn"]))


def _guest_walk(vm: Vm, op: Values) -> Result:
    code = vm.core.emulator_walk(op["vcpu"], op["gva"], op["err"])
    return 0 if code is None else (1, {"error_code": code})


def _sync_roots(vm: Vm, op: Values) -> Result:
    vm.core.request_sync(op["vcpu"])
    return vm.run_guest(op["vcpu"], "enter").ret


def _guest_store(vm: Vm, op: Values) -> Result:
    done = vm.core.processor_store(op["vcpu"], op["gva"], op["val"], op["bytes"], bool(op["user"]))
    return int(not done)


GUEST_OPERATIONS: dict[str, Callable[[Vm, Values], Result]] = {
    "emul_write": _emul_write,
    "guest_store": _guest_store,
    "guest_walk": _guest_walk,
    "gwrite": _gwrite,
    "invlpg": _invlpg,
    "peek": _peek,
    "poke": _poke,
    "set_cr3": _set_cr3,
    "set_pkru": _set_pkru,
    "sync_roots": _sync_roots,
    "unprotect": _unprotect,
    "vaccess": _vaccess,
}
