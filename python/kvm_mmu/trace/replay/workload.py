"""A recording as a workload: what its replay gave the model to do, up to the teardown, for other plans and kernels.

Owns: the replay that keeps its operations VM by VM, where a VM's teardown begins, which VM is taken, and what of the
result was assumed. Under the kernel it was made on a recording is taken as it is, so that its counts are the replay's;
for another kernel `translation` makes guest accesses of its faults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvm_mmu.errors import TraceError, UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.terminal import one_line
from kvm_mmu.trace.replay.engine import Engine, shadows_guest
from kvm_mmu.trace.replay.replaying import Report, replay
from kvm_mmu.trace.replay.translation import translate
from kvm_mmu.trace.text import host as host_facts
from kvm_mmu.trace.text.source import Copy, Source, Traced, display_name, iter_lines, source_of

Op = dict[str, Any]
#: (kernel, configuration, plans by event) -> a fresh VM
Make = Callable[[str, Mapping[str, object], Mapping[str, str]], Engine]


@dataclass
class RecordedVm:
    """One VM of a recording: its configuration as in a scenario header, its operations and what each returned."""

    config: dict[str, Any]
    ops: list[Op] = field(default_factory=list)
    returns: list[int] = field(default_factory=list)
    #: Where the recorded teardown begins; None: it is not in the recording.
    teardown: int | None = None


@dataclass
class Workload:
    """The operations of one VM for one kernel; in sentences what was chosen or assumed, and what was changed for it."""

    kernel: str
    recorded_on: str
    config: dict[str, Any]
    ops: list[Op]
    returns: list[int | None]
    notes: list[str]
    changes: list[str]


@dataclass
class Recording:
    """A replayed recording: the VMs in it, and the report of the replay."""

    path: str
    kernel: str
    vms: list[RecordedVm]
    report: Report

    def __repr__(self) -> str:
        return one_line(f"<Recording {self.path} {self.kernel}, {len(self.vms)} VMs>")

    def busiest(self) -> int:
        """The number (from 1) of the VM with the most operations, the first among equals."""
        return 1 + max(range(len(self.vms)), key=lambda i: (len(self.vms[i].ops), -i))

    def workload(
        self, kernel: str | None = None, vm: int | None = None, *, as_accesses: bool = False
    ) -> Workload:
        """One VM as a workload, up to its teardown.

        Args:
            kernel: the kernel to model; default the one it was recorded on.
            vm: which VM, from 1; default the busiest.
            as_accesses: accesses in place of faults also under its own kernel.

        Raises:
            UsageError: an unknown kernel, there is no such VM, or its guest's own page tables are shadowed.
        """
        target = self.kernel if kernel is None else kernel_profile(kernel).name
        number = self.busiest() if vm is None else vm
        if not 1 <= number <= len(self.vms):
            raise UsageError(f"{self.path}: VM {number}: expected 1 to {len(self.vms)}")
        taken = self.vms[number - 1]
        if shadows_guest(taken.config):
            raise UsageError(
                f"{self.path}: VM {number}: the page tables of its guest are shadowed: such a recording is replayed, "
                "but is no workload: it has the guest's writes to its tables as its kernel took them, some as faults, "
                "some seen by nobody, and another kernel or plan takes others; expected a guest without tables of its "
                "own, or two-dimensional paging"
            )
        ops, returns = taken.ops[: taken.teardown], taken.returns[: taken.teardown]
        made = translate(taken.config, ops, returns, self.kernel, target, as_accesses=as_accesses)
        notes = [*self._notes(number, vm is None), *made.notes]
        return Workload(target, self.kernel, made.config, made.ops, made.returns, notes, made.changes)

    def _notes(self, number: int, is_choice_ours: bool) -> list[str]:
        notes = []
        if len(self.vms) > 1:
            why = ", the one with the most operations" if is_choice_ours else ""
            notes.append(f"VM {number} of {len(self.vms)}{why}")
        if self.vms[number - 1].teardown is None:
            notes.append("the recording ends before the VM does")
        assumed = ", ".join(f"{key} = {value}" for key, value in self.report.inferred.items())
        if assumed:
            notes.append(f"not in the recording and assumed: {assumed}")
        if self.report.host_answers:
            notes.append(f"{self.report.host_answers} answers of host memory are the recording's")
        for name, count in self.report.ignored_operations.items():
            notes.append(f"operation {shown(name)} has no effect on the model ({count} times)")
        parted = self.report.divergence
        if parted is not None:
            total = sum(self.report.recorded.values())
            notes.append(f"the replay differs from the recording after {parted.agreed} of {total} outputs")
        return notes


def _core(kernel: str, config: Mapping[str, object], plans: Mapping[str, str]) -> Engine:
    from kvm_mmu.scenario.machine_engine import MachineEngine

    return MachineEngine(kernel, config, plans)


def read_recording(trace: Traced, host: Mapping[str, object] | None = None, make: Make = _core) -> Recording:
    """Replay a recording under the kernel it was made on and keep what the model was given to do.

    Args:
        trace: A path, an open `Trace`, or lines.
        host: Facts of the host that the recording does not hold.
        make: Makes the VMs that the replay drives.

    Raises:
        TraceError: the recording cannot be read, its kernel is not known, or no VM is in it.
    """
    with source_of(trace) as path:
        return _read(path, host, make)


def _read(path: Source, host: Mapping[str, object] | None, make: Make) -> Recording:
    keeper = _Keeper(make)
    kernel = _recorded_kernel(path, host)
    try:
        report = replay(path, keeper, kernel=kernel, host=host)
    except ValueError as error:
        if isinstance(error, TraceError) and display_name(path) in str(error):
            raise
        raise TraceError(f"{display_name(path)}: {error}") from error
    if not keeper.vms:
        raise TraceError(f"{display_name(path)}: no VM in it: no workload")
    return Recording(
        path.name if isinstance(path, Copy) else str(path),
        kernel_profile(report.kernel).name,
        keeper.vms,
        report,
    )


def _recorded_kernel(path: Source, host: Mapping[str, object] | None) -> str:
    """The kernel that a recording's facts name: never the one that is to be modelled."""
    first = next(iter_lines(path), "")
    facts: dict[str, object] = {}
    if first.startswith(host_facts.PREFIX):
        facts = host_facts.parse_facts(first[len(host_facts.PREFIX) :], f"{display_name(path)}:1")
    else:
        facts = (None if isinstance(path, Copy) else host_facts.beside(path)) or {}
    facts = {**facts, **(host or {})}
    kernel = host_facts.kernel_of(facts)
    if not kernel:
        raise TraceError(
            f"{display_name(path)}: which kernel made this recording is not known: "
            """give --host '{"kernel": "6.1"}' or a host.json beside it"""
        )
    try:
        return kernel_profile(kernel).name
    except UsageError as error:
        raise TraceError(f"{display_name(path)}: recorded on {error}") from error


class _Keeper:
    """Engines for a replay; the operations of each are kept."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self.vms: list[RecordedVm] = []

    def __call__(self, kernel: str, config: Mapping[str, object]) -> _Kept:
        known = {key: value for key, value in config.items() if value is not None}
        self.vms.append(RecordedVm(known))
        return _Kept(self._make(kernel_profile(kernel).name, known, {}), self.vms[-1])


class _Kept:
    def __init__(self, engine: Any, vm: RecordedVm) -> None:
        self._engine = engine
        self._vm = vm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def apply(self, op: Op) -> dict[str, Any]:
        """Keep the operation and run it."""
        result: dict[str, Any] = self._engine.apply(op)
        # Only the end of a VM makes a replay zap everything; what comes after it is no guest's any more.
        if op["op"] == "zap_all" and self._vm.teardown is None:
            self._vm.teardown = len(self._vm.ops)
        self._vm.ops.append(op)
        self._vm.returns.append(int(result["ret"]))
        return result
