"""The fidelity table: for each recording, how many outputs of each kind the model predicted, in order.

Owns: finding recordings in folders, and the Markdown of the table that the documentation holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.engine import EngineFactory
from kvm_mmu.trace.replay.replaying import Report, replay

_NAMES = ("trace.txt.xz", "trace.txt.gz", "trace.txt")


@dataclass(frozen=True)
class Row:
    """One recording: its kernel and scenario, and its replay, or why there is none."""

    kernel: str
    scenario: str
    report: Report | None
    refused: str = ""

    @property
    def is_equal(self) -> bool:
        """Every output was predicted."""
        return self.report is not None and self.report.is_equal


def recordings_in(folder: Path) -> list[Path]:
    """The traces in a folder and below, in order of their names.

    Raises:
        TraceError: there is none.
    """
    found = sorted({path.parent for name in _NAMES for path in folder.glob(f"**/{name}")})
    if not found:
        raise TraceError(f"{folder}: no recording here: expected folders with {' or '.join(_NAMES)}")
    return [next(parent / name for name in _NAMES if (parent / name).is_file()) for parent in found]


def rows(folder: Path, factory: EngineFactory | None = None, *, backend: str = "core") -> Iterator[Row]:
    """Replay every recording of a folder; one that cannot be replayed gives a row that says why.

    Args:
        factory: makes the VMs; None: those of the backend.
    """
    for path in recordings_in(folder):
        kernel, scenario = path.parent.parent.name, path.parent.name
        try:
            yield Row(kernel, scenario, replay(path, factory, backend=backend, keep=False))
        except TraceError as err:
            yield Row(kernel, scenario, None, str(err).removeprefix(f"{path}: "))


def markdown(found: list[Row]) -> str:
    """The table: a row a recording, its kinds with what was predicted of what was recorded."""
    lines = ["| kernel | scenario | outputs | by kind |", "|---|---|---|---|"]
    for row in found:
        if row.report is None:
            lines.append(f"| {row.kernel} | {row.scenario} | not replayed | {row.refused} |")
            continue
        total = sum(row.report.recorded.values())
        kinds = ", ".join(_kind(row.report, kind) for kind in sorted(row.report.recorded))
        lines.append(
            f"| {row.kernel} | {row.scenario} | {sum(row.report.equal.values())} of {total} | {kinds} |"
        )
    equal = sum(row.is_equal for row in found)
    total = sum(sum(row.report.recorded.values()) for row in found if row.report is not None)
    agreed = sum(sum(row.report.equal.values()) for row in found if row.report is not None)
    lines.extend(["", f"{equal} of {len(found)} recordings equal, {agreed} of {total} outputs."])
    return "\n".join(lines)


def as_json(found: list[Row]) -> dict[str, object]:
    """The same as plain values; the schema has a version."""
    return {
        "schema": "kvm-mmu/trace-fidelity/1",
        "recordings": [
            {
                "kernel": row.kernel,
                "scenario": row.scenario,
                "equal": row.is_equal,
                "refused": row.refused,
                "kinds": {}
                if row.report is None
                else {
                    kind: {"equal": row.report.equal[kind], "recorded": count}
                    for kind, count in sorted(row.report.recorded.items())
                },
            }
            for row in found
        ],
    }


def _kind(report: Report, kind: str) -> str:
    equal, recorded = report.equal[kind], report.recorded[kind]
    return f"{kind} {recorded}" if equal == recorded else f"**{kind} {equal} of {recorded}**"
