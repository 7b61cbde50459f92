"""`Latency`: the distributions of a simulation, one row a plan in its place, as text, files and data frames.

Simulated time has two kinds of columns: `..._units_...` in work units, `modelled_..._us_...` in microseconds of a named
cost model. What this program itself took is in a table of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.latency.percentiles import RANKS
from kvm_mmu.terminal import WIDTH, folded
from kvm_mmu.view import charts
from kvm_mmu.view.document import document, figure, table
from kvm_mmu.view.document import text as as_html
from kvm_mmu.view.out_folder import OutFolder, write_all
from kvm_mmu.view.tables import csv_text, text_table
from kvm_mmu.view.whole_file import Content

SCHEMA = "kvm-mmu/latency/1"
#: What has a distribution, by the start of its columns' names, and how a terminal calls it.
MEASURES = {
    "hold": "lock held",
    "wait": "longest wait",
    "progress": "to get through",
    "end": "until it ends",
}
#: The percentiles that a figure shows: the longest of how many.
ONE_IN = {"p50": 2, "p99": 100, "p999": 1000}
_PLACE = (
    *("input", "kernel", "mmu", "at", "plan", "interleaving", "pages_asked", "mmio_asked", "vcpus", "pages"),
    *("runs", "first_seed", "every", "verdict", "ended", "livelocks", "lock_breaks", "shared_units"),
)
#: Every column, in order.
ROW = (
    *_PLACE,
    *(f"{of}_samples" for of in MEASURES),
    *(f"{of}_units_{rank}" for of in MEASURES for rank in RANKS),
    "cost_model",
    *(f"modelled_{of}_us_{rank}" for of in MEASURES for rank in RANKS),
    "error",
)


@dataclass
class Latency:
    """Distributions of lock hold, of waits for it and of time to progress.

    Attributes:
        rows: one a plan in its place, with the columns of `ROW`.
        measured_rows: for each row, the wall time that this program took, which says nothing of a kernel.
        notes: what to know about the rows, in sentences.
        written: the files, where a folder was given.
    """

    rows: list[dict[str, Any]]
    measured_rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Latency of {len(self.rows)} plans, {len(self.livelocks)} of them livelock>"

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return self.to_text()

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows that have an error in place of numbers."""
        return [row for row in self.rows if row["error"]]

    @property
    def livelocks(self) -> list[dict[str, Any]]:
        """The rows in which a run made no progress."""
        return [row for row in self.rows if row["livelocks"]]

    @property
    def columns(self) -> Mapping[str, list[Any]]:
        """The columns, each with a value a row; None where one does not apply."""
        return {name: [row.get(name) for row in self.rows] for name in ROW}

    def to_text(self, measured: bool = False) -> str:
        """Write the distributions for a terminal, a table for each guest.

        Args:
            measured: also what this program took.

        Returns:
            The text, with the notes.
        """
        parts = []
        for title, rows in self._groups().items():
            parts += [folded(title), text_table(_distributions(rows))]
        parts += [
            folded(f"failed: {', '.join(filter(None, (row['plan'], row['kernel'])))}: {row['error']}")
            for row in self.failed
        ]
        if measured and self.measured_rows:
            parts.append("measured wall time of this program (not a kernel's), seconds")
            names = tuple(self.measured_rows[0])
            parts.append(text_table({n: [row[n] for row in self.measured_rows] for n in names}, indent="  "))
        return "\n".join([*parts, *(folded(f"note: {note}") for note in self.notes)])

    def _groups(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of one guest together, under what they share."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["error"]:
                continue
            mmu = " (TDP MMU)" if row["mmu"] == "tdp" else ""
            title = (
                f"{row['input']}, kernel {row['kernel']}{mmu}, at {row['at']}, {row['pages']:,} pages, "
                f"{row['vcpus']:,} vCPUs, {row['interleaving']}, {row['cost_model'] or 'no cost model'}"
            )
            found.setdefault(title, []).append(row)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Turn the distributions into plain data.

        Returns:
            `schema`, `rows` and `notes`; no measured time.
        """
        rows = [{name: row.get(name) for name in ROW} for row in self.rows]
        return {"schema": SCHEMA, "rows": rows, "notes": list(self.notes)}

    def to_polars(self) -> Any:
        """Turn the rows into a polars data frame (polars must be installed).

        Returns:
            The frame.
        """
        import polars

        return polars.DataFrame(dict(self.columns), strict=False)

    def to_pandas(self) -> Any:
        """Turn the rows into a pandas data frame (pandas must be installed).

        Returns:
            The frame.
        """
        import pandas

        return pandas.DataFrame(dict(self.columns))

    def plot(self, of: str = "hold", ax: Any = None) -> Any:
        """Draw a distribution into axes of matplotlib: how long the longest of two, of a hundred, of a thousand is.

        Args:
            of: a name of `MEASURES`.
            ax: the axes; made when absent.

        Returns:
            The axes. Modelled time where every row has it, work units otherwise.

        Raises:
            UsageError: no such measure, or matplotlib (the extra `plot`) is not installed.
        """
        if of not in MEASURES:
            raise UsageError(f"plot of {of!r}: expected one of {', '.join(MEASURES)}")
        if ax is None:
            ax = charts.axes()
        good = [row for row in self.rows if not row["error"]]
        is_modelled = all(row["cost_model"] for row in good)
        series = []
        for number, row in enumerate(good):
            names = [row[name] for name in ("input", "kernel") if len({one[name] for one in good}) > 1]
            name = ", ".join([row["plan"], *names]) + (" (livelock)" if row["livelocks"] else "")
            place = f"modelled_{of}_us_" if is_modelled else f"{of}_units_"
            values = [(one_in, row[place + rank]) for rank, one_in in ONE_IN.items()]
            points = [(float(x), float(y)) for x, y in values if y is not None]
            series.append(charts.Series(name, points, charts.look(number)))
        said = "modelled us" if is_modelled else "work units"
        charts.draw_curves(ax, series, f"{MEASURES[of]}, simulated", "the longest of so many", said)
        return ax

    def write(self, folder: str | Path | OutFolder) -> list[Path]:
        """Write the rows as CSV, and the distributions as a page for a browser, with figures where matplotlib is.

        Args:
            folder: where; or a folder that the caller has claimed.

        Returns:
            The files.
        """
        parts = [table(_distributions(rows), title) for title, rows in self._groups().items()]
        said = "".join(f"<p>{as_html(note)}</p>" for note in self.notes)
        files: dict[str, Content] = {}
        if charts.missing() is None and self._groups():
            for of, called in MEASURES.items():
                if of != "end":  # one sample a run is no distribution
                    title = f"{called}, simulated"
                    files[f"{of}.svg"] = charts.to_svg(lambda ax, of=of: self.plot(of, ax), title)  # type: ignore[misc]
                    parts.append(figure(str(files[f"{of}.svg"]), title))
        files |= {
            "latency.csv": csv_text(self.columns),
            "report.html": document("Latency, simulated", [*parts, said]),
        }
        return write_all(folder, files)


def _distributions(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A line for each plan and measure; the title of the second column says in what."""
    is_modelled = rows[0]["cost_model"] is not None
    plans, names = [], []
    columns: dict[str, list[Any]] = {name: [] for name in ("n", "p50", "p99", "p99.9", "max", "verdict")}
    for row in rows:
        for of, called in MEASURES.items():
            is_first = of == next(iter(MEASURES))
            plans.append(_short(row["plan"]) if is_first else "")
            names.append(called)
            columns["n"].append(row[f"{of}_samples"])
            for rank, title in zip(RANKS, ("p50", "p99", "p99.9", "max"), strict=True):
                place = f"modelled_{of}_us_{rank}" if is_modelled else f"{of}_units_{rank}"
                columns[title].append(row[place])
            columns["verdict"].append(row["verdict"] if is_first else "")
    return {"plan": plans, "modelled_us" if is_modelled else "work_units": names, **columns}


def _short(plan: str) -> str:
    most = WIDTH // 4
    return plan if len(plan) <= most else plan[: most - 3] + "..."
