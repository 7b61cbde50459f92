"""The curves of the field: what an event costs a guest, over its size, for every kernel since 5.0.

The first of them is "guest entries lost to one slot removal, over VM size": the faults that a guest takes again outside
of a small slot that went.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.sweep.grid import OWN, OWN_SHADOW
from kvm_mmu.lab.sweep.run import sweep
from kvm_mmu.lab.sweep.table import Sweep
from kvm_mmu.machine.profiles import kernel_profile, kernels
from kvm_mmu.terminal import folded
from kvm_mmu.view import charts
from kvm_mmu.view.document import definitions, document, figure, table
from kvm_mmu.view.meanings import COLUMNS
from kvm_mmu.view.out_folder import OutFolder, write_all
from kvm_mmu.view.tables import csv_text, text_table
from kvm_mmu.view.whole_file import Content

#: What a curve can show, by name: the column of a sweep, and what the axis is called.
MEASURES = {
    "lost": ("faults_again", "guest entries that others lost"),
    "faults": ("faults_again", "faults taken again"),
    "rebuilt": ("tables_rebuilt", "shadow pages rebuilt"),
    "hold": ("longest_hold", "longest hold of mmu_lock, work units"),
}
#: What it can show that against, with the values it has where none are given.
AXES: dict[str, tuple[str, tuple[str, ...]]] = {
    "pages": ("live shadow pages", ("512", "1024", "2048", "4096", "8192", "16384")),
    "mmio": ("share of pages that cache MMIO", ("0.001", "0.01", "0.05", "0.1", "0.25")),
    "vcpus": ("vCPUs", ("1", "2", "4", "8", "16")),
}
SCHEMA = "kvm-mmu/curve/1"
#: What a removal does where a VMM has switched the quirk of 6.12 off: a curve of its own for each kernel that has it.
QUIRK_OFF = "tdp-slot"


@dataclass
class Curve:
    """A curve for each kernel.

    Attributes:
        event: what was forced.
        of: a name of `MEASURES`.
        over: a name of `AXES`.
        input: the workload.
        points: kernel to its points, ascending.
        cells: the sweep behind it.
    """

    event: str
    of: str
    over: str
    input: str
    points: dict[str, list[tuple[float, float]]]
    cells: Sweep

    @property
    def title(self) -> str:
        """What the figure is called."""
        events = {"slot-removal": "one slot removal", "wrap": "one wrap of the generation"}
        return f"{MEASURES[self.of][1]}: {events.get(self.event, self.event)}, {self.input}"

    def families(self) -> list[tuple[list[str], list[tuple[float, float]]]]:
        """Group the kernels whose curves are the same.

        Returns:
            Their names in order, with the points.
        """
        found: dict[tuple[tuple[float, float], ...], list[str]] = {}
        for kernel, points in self.points.items():
            found.setdefault(tuple(points), []).append(kernel)
        return [(names, list(points)) for points, names in found.items()]

    def __str__(self) -> str:
        families = self.families()
        axis = sorted({x for _, points in families for x, _ in points})
        labels = [chr(ord("A") + i) for i in range(len(families))]
        columns: dict[str, list[Any]] = {AXES[self.over][0]: [int(x) if x == int(x) else x for x in axis]}
        for label, (_, points) in zip(labels, families, strict=True):
            at = dict(points)
            columns[label] = [at.get(x) for x in axis]
        lines = [self.title, text_table(columns)]
        lines += [folded(f"{a}: {', '.join(names)}") for a, (names, _) in zip(labels, families, strict=True)]
        errors = dict.fromkeys(row["error"] for row in self.cells.failed)
        return "\n".join([*lines, *(folded(f"failed: {text}") for text in errors)])

    def to_dict(self) -> dict[str, Any]:
        """Turn the curve into plain data.

        Returns:
            `schema`, what it shows, and a list of kernels with their points.
        """
        return {
            "schema": SCHEMA,
            "event": self.event,
            "of": self.of,
            "over": self.over,
            "input": self.input,
            "curves": [{"kernels": names, "points": points} for names, points in self.families()],
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw the figure into axes of matplotlib.

        Args:
            ax: the axes; made when absent.

        Returns:
            The axes.

        Raises:
            UsageError: matplotlib (the extra `plot`) is not installed.
        """
        if ax is None:
            ax = charts.axes()
        series = [
            charts.Series(", ".join(names), points, charts.look(number))
            for number, (names, points) in enumerate(self.families())
        ]
        charts.draw_curves(ax, series, self.title, AXES[self.over][0], MEASURES[self.of][1])
        return ax

    def write(self, folder: str | Path | OutFolder) -> list[Path]:
        """Write the figure, where matplotlib is installed, its points as CSV, and both as a page for a browser.

        Args:
            folder: where; or a folder that the caller has claimed.

        Returns:
            The files.
        """
        flat = [(k, x, y) for k, points in self.points.items() for x, y in points]
        columns = {name: [row[i] for row in flat] for i, name in enumerate(("kernel", self.over, self.of))}
        files: dict[str, Content] = {"curve.csv": csv_text(columns)}
        meanings = {
            "kernel": COLUMNS["kernel"],
            self.over: AXES[self.over][0],
            self.of: MEASURES[self.of][1],
        }
        parts = [table(columns, self.title, meanings), definitions("Columns", meanings, "column")]
        if charts.missing() is None:
            picture = charts.to_svg(self.plot, self.title)
            files["curve.svg"] = picture
            parts.insert(0, figure(picture, self.title))
        files["report.html"] = document(self.title, parts)
        return write_all(folder, files)


def curve(
    event: str = "slot-removal",
    *,
    of: str | None = None,
    over: str = "pages",
    values: Sequence[str | int | float] = (),
    input: str = "boot",
    kernels: Sequence[str] = (),
    mmu: str = "own",
    executor: str | Executor | None = None,
    jobs: int | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Curve:
    """Draw what an event costs a guest, over its size, its MMIO or its vCPUs, for several kernels.

    Args:
        event: `slot-removal` or `wrap`.
        of: `lost` (entries that others lost; a removal only), `faults`, `rebuilt` or `hold`; default `lost` for a
            removal, `hold` for a wrap.
        over: `pages`, `mmio` or `vcpus`.
        values: where on that axis; default a few over a wide range.
        input: a workload by name.
        kernels: rows or releases; default every row.
        mmu: `own`, the page table that each kernel serves guests with, or `shadow`, shadow pages for all.
        executor: who computes, as `sweep` takes it.
        jobs: processes, where no executor is given.
        progress: told what has been done.

    Returns:
        A curve for each kernel.

    Raises:
        UsageError: an unknown word, or values that are not of the axis.
    """
    if event not in ("slot-removal", "wrap"):
        raise UsageError(f"curve {event!r}: expected slot-removal or wrap")
    of = of or ("lost" if event == "slot-removal" else "hold")
    if of not in MEASURES:
        raise UsageError(f"curve of {of!r}: expected one of {', '.join(MEASURES)}")
    if of == "lost" and event != "slot-removal":
        raise UsageError("curve of lost: entries that others lost are those of a slot removal; give faults")
    if over not in AXES:
        raise UsageError(f"curve over {over!r}: expected one of {', '.join(AXES)}")
    if mmu not in ("own", "shadow"):
        raise UsageError(f"curve with the MMU {mmu!r}: expected own or shadow")
    texts = [str(value) for value in values] or list(AXES[over][1])
    rows = list(kernels) or list(_every_row())
    plan = OWN if mmu == "own" else OWN_SHADOW
    axes: dict[str, Any] = {"pages": texts if over == "pages" else ["2048"]}
    if over == "mmio":
        axes["mmio"] = [_number(text, over) for text in texts]
    elif event == "wrap":
        axes["mmio"] = [0.01]
    if over == "vcpus":
        axes["vcpus"] = [int(_number(text, over)) for text in texts]
    found = sweep(
        [input], [plan], kernels=rows, at=event, executor=executor, jobs=jobs, progress=progress, **axes
    )
    points = _points(found, of, over)
    off = [name for name in rows if kernel_profile(name).facts["has_slot_zap_all_quirk"]]
    if event == "slot-removal" and mmu == "own" and off:
        spared = sweep(
            [input],
            [QUIRK_OFF],
            kernels=off,
            at=event,
            executor=executor,
            jobs=jobs,
            progress=progress,
            **axes,
        )
        points |= {f"{name}-quirk-off": line for name, line in _points(spared, of, over).items()}
        found.rows += spared.rows
    return Curve(event, of, over, input, points, found)


def _every_row() -> Sequence[str]:
    return list(kernels)


def _number(text: str, over: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"{over} {text!r}: expected a number") from None


def _points(found: Sweep, of: str, over: str) -> dict[str, list[tuple[float, float]]]:
    column = MEASURES[of][0]
    place = {"pages": "pages", "mmio": "mmio_asked", "vcpus": "vcpus"}[over]
    points: dict[str, list[tuple[float, float]]] = {}
    for row in found.rows:
        if not row["error"] and row[column] is not None:
            points.setdefault(row["kernel"], []).append((row[place], row[column]))
    return {kernel: sorted(of_kernel) for kernel, of_kernel in points.items()}
