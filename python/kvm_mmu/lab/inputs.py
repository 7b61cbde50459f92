"""Inputs of the laboratory from files: scenario and result files as they are, recordings through the trace room.

A recording is replayed once; the operations of the scenario language that it becomes are kept, for any kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kvm_mmu.errors import ScenarioError, UsageError
from kvm_mmu.scenario.language import Scenario, read_scenario
from kvm_mmu.scenario.scenario_text import numbered_lines, open_text

if TYPE_CHECKING:
    from kvm_mmu.trace.replay.workload import Recording


def is_scenario(path: str | Path) -> bool:
    """Whether a file's first line with something in it is a JSON object."""
    with open_text(path) as stream:
        for _, line in numbered_lines(stream, str(path)):
            if line.strip():
                return line.lstrip().startswith("{")
    raise ScenarioError(f"{path}: empty: expected a scenario or a recording")


def open_input(
    path: str | Path, host: Mapping[str, object] | None = None, vm: int | None = None
) -> Scenario | Recording:
    """A scenario file (also a result file; `-` is one on stdin) or a recording, read and replayed.

    Args:
        host: facts of a recording's host. vm: which VM of a recording will be asked for, from 1.

    Raises:
        ScenarioError, TraceError: the file cannot be read, with file and line. UsageError: `vm` of a scenario.
    """
    if str(path) != "-" and not is_scenario(path):
        from kvm_mmu.trace.replay.workload import read_recording

        return read_recording(path, host)
    if vm is not None:
        raise UsageError(f"{path}: VM {vm}: a scenario has one VM, only a recording may have several")
    try:
        return read_scenario(path)
    except ScenarioError as error:
        if str(path) != "-":
            raise
        raise ScenarioError(f"{error}; a recording is read from a file, not from stdin") from error


def recorded_scenario(
    recording: Recording,
    kernel: str | None = None,
    vm: int | None = None,
    *,
    as_accesses: bool = False,
    plans: Mapping[str, str] | None = None,
) -> Scenario:
    """A VM of a recording as a scenario, up to its teardown.

    Args:
        kernel: the kernel to model; default the one it was recorded on. vm: which VM, from 1; default the busiest.
        as_accesses: guest accesses in place of faults also under its own kernel: so it must be under other plans.
        plans: plans by event (`slot_removal`, `wrap`, ...) in place of the kernel's own.
    """
    made = recording.workload(kernel, vm, as_accesses=as_accesses)
    path = Path(recording.path)
    name = path.parent.name if path.name.startswith("trace.") else path.name
    return Scenario(
        name=name or str(path),
        kernel=made.kernel,
        config=made.config,
        plans=dict(plans or {}),
        ops=made.ops,
        path=str(path),
        recorded_on=made.recorded_on,
        returns=made.returns,
        notes=made.notes,
        changes=made.changes,
    )


def read_input(
    path: str | Path,
    kernel: str | None = None,
    host: Mapping[str, object] | None = None,
    vm: int | None = None,
) -> Scenario:
    """A scenario from a scenario file, a result file or a recording; `-` is a scenario on stdin.

    Raises:
        ScenarioError, TraceError: the file cannot be read, with file and line. UsageError: no such kernel or VM.
    """
    found = open_input(path, host, vm)
    return found if isinstance(found, Scenario) else recorded_scenario(found, kernel, vm)
