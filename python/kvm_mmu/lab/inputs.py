"""Inputs of the laboratory from files: scenario and result files as they are, recordings through the trace room.

A recording's inputs are replayed once and the operations of the scenario language that they become are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvm_mmu.errors import ScenarioError
from kvm_mmu.lab.machine_engine import MachineEngine
from kvm_mmu.lab.scenario import Scenario, numbered_lines, open_text, read_scenario
from kvm_mmu.machine.profiles import kernel_profile


class _Recorder:
    """Engines for a replay that keep the operations of each VM they run."""

    def __init__(self) -> None:
        self.kernel: str | None = None
        self.vms: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []

    def __call__(self, kernel: str, config: Mapping[str, object]) -> _Kept:
        self.kernel = kernel_profile(kernel).name
        ops: list[dict[str, Any]] = []
        self.vms.append((dict(config), ops))
        return _Kept(MachineEngine(self.kernel, config), ops)


class _Kept:
    def __init__(self, engine: MachineEngine, ops: list[dict[str, Any]]) -> None:
        self._engine = engine
        self._ops = ops
        self.rich_events = engine.rich_events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def apply(self, op: dict[str, Any]) -> dict[str, Any]:
        """Keep the operation and run it."""
        self._ops.append(op)
        return self._engine.apply(op)


def is_scenario(path: str | Path) -> bool:
    """Whether a file's first line with something in it is a JSON object."""
    with open_text(path) as stream:
        for _, line in numbered_lines(stream, str(path)):
            if line.strip():
                return line.lstrip().startswith("{")
    raise ScenarioError(f"{path}: empty: expected a scenario or a recording")


def read_recording(
    path: str | Path, kernel: str | None = None, host: Mapping[str, object] | None = None
) -> Scenario:
    """The operations of a recording's busiest VM, up to its end (the VM's destruction is left out)."""
    from kvm_mmu.trace import replay

    recorder = _Recorder()
    replay(path, recorder, kernel=kernel, host=host)
    config, ops = max(recorder.vms, key=lambda vm: len(vm[1]))
    end = len(ops)
    while end and ops[end - 1]["op"] == "unload":
        end -= 1
    if end and end < len(ops) and ops[end - 1]["op"] == "zap_all":
        ops = ops[: end - 1]
    known = {key: value for key, value in config.items() if value is not None}
    name = Path(path).parent.name if Path(path).name.startswith("trace.") else Path(path).name
    return Scenario(
        name=name or str(path),
        kernel=recorder.kernel,
        config=known,
        ops=ops,
        lines=list(range(1, len(ops) + 1)),
        path=str(path),
    )


def read_input(
    path: str | Path, kernel: str | None = None, host: Mapping[str, object] | None = None
) -> Scenario:
    """A scenario from a scenario file, a result file or a recording; `-` is a scenario on stdin.

    Raises:
        ScenarioError, TraceError: the file cannot be read, with file and line.
    """
    if str(path) == "-" or is_scenario(path):
        return read_scenario(path)
    return read_recording(path, kernel, host)
