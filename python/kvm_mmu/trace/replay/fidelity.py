"""The fidelity table: for each recording, how many outputs of each kind the model predicted, in order.

Owns: finding recordings in folders, the counts that are kept beside a recording that replays equal (`outputs.json`),
and the Markdown of the table that the documentation holds. A table of kept counts needs no replay; whoever keeps them
replays the recordings elsewhere and holds the counts against that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.scenario.scenario_text import read_object
from kvm_mmu.trace.replay.engine import EngineFactory
from kvm_mmu.trace.replay.replaying import replay

_NAMES = ("trace.txt.xz", "trace.txt.gz", "trace.txt")
#: Beside a recording that replays equal: how many outputs of each kind it has.
KEPT = "outputs.json"


@dataclass(frozen=True)
class Row:
    """One recording: its kernel and scenario, and its replay, or why there is none."""

    kernel: str
    scenario: str
    #: kind -> outputs recorded, and how many of them were predicted
    recorded: dict[str, int] = field(default_factory=dict)
    equal: dict[str, int] = field(default_factory=dict)
    is_equal: bool = False
    refused: str = ""


def recordings_in(folder: Path) -> list[Path]:
    """The traces in a folder and below, in order of their names.

    Raises:
        TraceError: there is none.
    """
    found = sorted({path.parent for name in _NAMES for path in folder.glob(f"**/{name}")})
    if not found:
        raise TraceError(f"{folder}: no recording here: expected folders with {' or '.join(_NAMES)}")
    return [next(parent / name for name in _NAMES if (parent / name).is_file()) for parent in found]


def rows(folder: Path, factory: EngineFactory | None = None, *, backend: str = "auto") -> Iterator[Row]:
    """Replay every recording of a folder; one that cannot be replayed gives a row that says why.

    Args:
        factory: makes the VMs; None: those of the backend.
    """
    for path in recordings_in(folder):
        kernel, scenario = path.parent.parent.name, path.parent.name
        try:
            report = replay(path, factory, backend=backend, keep=False)
        except TraceError as err:
            yield Row(kernel, scenario, refused=str(err).removeprefix(f"{path}: "))
        else:
            yield Row(kernel, scenario, dict(report.recorded), dict(report.equal), report.is_equal)


def kept(recording: Path) -> dict[str, int]:
    """Read the counts that are kept beside a recording.

    Args:
        recording: its folder.

    Returns:
        Kind to outputs; nothing where none are kept.

    Raises:
        TraceError: the file is no object of counts.
    """
    path = recording / KEPT
    if not path.is_file():
        return {}
    found = read_object(path.read_text(encoding="utf-8"), str(path))
    if not all(isinstance(count, int) and not isinstance(count, bool) for count in found.values()):
        raise TraceError(f"{path}: expected an object of kinds and counts")
    return found


def kept_rows(folder: Path) -> Iterator[Row]:
    """The table by the counts that are kept, without a replay; a recording without any was never equal."""
    for path in recordings_in(folder):
        kernel, scenario = path.parent.parent.name, path.parent.name
        counts = kept(path.parent)
        yield Row(kernel, scenario, counts, counts, bool(counts), "" if counts else f"no {KEPT} beside it")


def keep(folder: Path, found: Iterable[Row]) -> list[Path]:
    """Write the counts of recordings that are equal beside them.

    Args:
        folder: where the recordings are.
        found: their rows, in the order of `recordings_in`.

    Returns:
        The files that changed.
    """
    written = []
    for path, row in zip(recordings_in(folder), found, strict=True):
        text = json.dumps(dict(sorted(row.recorded.items()))) + "\n"
        target = path.parent / KEPT
        if row.is_equal and (not target.is_file() or target.read_text(encoding="utf-8") != text):
            target.write_text(text, encoding="utf-8")
            written.append(target)
    return written


def markdown(found: list[Row]) -> str:
    """The table: a row a recording, its kinds with what was predicted of what was recorded."""
    lines = ["| kernel | scenario | outputs | by kind |", "|---|---|---|---|"]
    for row in found:
        if row.refused:
            lines.append(f"| {row.kernel} | {row.scenario} | not replayed | {row.refused} |")
            continue
        total = sum(row.recorded.values())
        kinds = ", ".join(_kind(row, kind) for kind in sorted(row.recorded))
        lines.append(f"| {row.kernel} | {row.scenario} | {sum(row.equal.values())} of {total} | {kinds} |")
    equal = sum(row.is_equal for row in found)
    total = sum(sum(row.recorded.values()) for row in found)
    agreed = sum(sum(row.equal.values()) for row in found)
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
                "kinds": {
                    kind: {"equal": row.equal.get(kind, 0), "recorded": count}
                    for kind, count in sorted(row.recorded.items())
                },
            }
            for row in found
        ],
    }


def _kind(row: Row, kind: str) -> str:
    equal, recorded = row.equal.get(kind, 0), row.recorded[kind]
    return f"{kind} {recorded}" if equal == recorded else f"**{kind} {equal} of {recorded}**"
