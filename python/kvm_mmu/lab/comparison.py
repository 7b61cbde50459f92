"""`Comparison`: the result of comparing plans. Exact counts in columns, measured wall time apart, fits, pictures.

Invariant: nothing in `columns` depends on a clock; `measured` holds the only times, and they are ours, not a kernel's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import UsageError
from kvm_mmu.lab import comparison_page, comparison_text
from kvm_mmu.lab.fit import Fit
from kvm_mmu.lab.sampling import SAMPLED
from kvm_mmu.machine.zap_plan import plans
from kvm_mmu.view import charts
from kvm_mmu.view.out_folder import OutFolder, write_all
from kvm_mmu.view.tables import csv_text, records

SCHEMA = "kvm-mmu/compare/1"
#: Every column of a comparison, in order; each is exact and the same on every run.
COLUMNS = (
    "input",
    "kernel",
    "mmu",
    "at",
    "plan",
    "pages",
    "mmio_pages",
    "outcome",
    "sound",
    "to_go",
    "left_over",
    "nodes_visited",
    "restarts",
    "pages_zapped",
    "sptes_cleared",
    "sptes_changed",
    "rmap_steps",
    "parent_steps",
    "flushes",
    "lock_breaks",
    "longest_hold",
    "shared_units",
    "longest_shared_hold",
    "work_units",
    "tables_rebuilt",
    "faults_again",
    "updates_per_event",
    "units_per_update",
    "tables_per_update",
    "faults_per_update",
    "digest",
)
#: Columns that only a comparison with a cost model has.
MODELLED = ("cost_model", "modelled_ms", "modelled_ms_per_update")


@dataclass(frozen=True)
class Side:
    """One line of input and scaled run side by side: what, of the input, of the scaled run, whether within 5 %."""

    what: str
    of_input: float | None
    of_scaled: float | None
    within: bool | None
    why: str = ""


@dataclass
class Comparison:
    """Plans compared: one row an input, a kernel, a size and a plan.

    Attributes:
        rows: the columns of each run. `to_go` counts what the event needs gone and was there, `left_over` what of
            it is left; `sound` is `no` if anything is left, `yes` if there was something, the plan did something
            and nothing is left, else None (nothing forced, nothing to take, nothing done, or a run without an end).
            `mmu` says what the plan was run on: `shadow` (shadow pages) or `tdp` (the TDP MMU). `longest_hold` is that
            of the lock held for writing; of the `work_units` `shared_units` were done while it was held for reading.
        measured_rows: wall time of our own code.
        fits: how a column grows with the pages.
        sides: input and scaled run side by side.
        notes: what was chosen, assumed and changed.
        own_events: (input, kernel) to how often the input's own operations have the forced event already.
        plans: the plans in words.
        workloads: of each input, kernel and size what lived before the event, and what was made and zapped on the
            way.
        runs: those of the workloads that are small enough for the steps of a report.
    """

    rows: list[dict[str, Any]]
    measured_rows: list[dict[str, Any]] = field(default_factory=list)
    fits: list[dict[str, Any]] = field(default_factory=list)
    sides: dict[str, list[Side]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    own_events: dict[tuple[str, str], int] = field(default_factory=dict)
    plans: list[dict[str, Any]] = field(default_factory=list)
    workloads: list[dict[str, Any]] = field(default_factory=list)
    runs: list[comparison_page.Run] = field(default_factory=list, repr=False, compare=False)

    def __repr__(self) -> str:
        names = list(dict.fromkeys(row["plan"] for row in self.rows))
        return f"<Comparison of {len(names)} plans ({', '.join(names[:6])}), {len(self.rows)} rows>"

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return self.to_html()

    # -- columns ------------------------------------------------------------------------------------------------

    def column(self, name: str) -> list[Any]:
        """Take one column.

        Args:
            name: one of `names`.

        Returns:
            Its values in the order of the rows; None where a value does not apply.
        """
        return [row[name] for row in self.rows]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that this comparison has, in order."""
        first = self.rows[0] if self.rows else {}
        return COLUMNS + tuple(name for more in (SAMPLED, MODELLED) if more[0] in first for name in more)

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns as numpy arrays (counts int64, float64 with NaN where some do not apply, words as objects)."""
        return {name: _array(self.column(name)) for name in self.names}

    @property
    def measured(self) -> dict[str, npt.NDArray[Any]]:
        """The measured wall time of our own code in seconds, by input, pages and plan; never part of `columns`."""
        return {
            name: _array([row[name] for row in self.measured_rows])
            for name in ("input", "kernel", "pages", "plan", "measured_wall_seconds")
        }

    @property
    def not_exercised(self) -> list[tuple[str, str]]:
        """The plans that had nothing to do, as (input, plan)."""
        return [(row["input"], row["plan"]) for row in self.rows if row["outcome"] == "not exercised"]

    @property
    def unsound(self) -> list[tuple[str, str]]:
        """The plans that are not enough for the event, as (input, plan)."""
        return [(row["input"], row["plan"]) for row in self.rows if row["sound"] == "no"]

    def finding_lines(self) -> list[str]:
        """Say the findings as sentences.

        Returns:
            One for each workload and kind of finding; kernels with the same findings share one.
        """
        said: dict[tuple[str, str, str, str], list[str]] = {}
        for _, rows in comparison_text.groups(self.rows):
            idle = ", ".join(row["plan"] for row in rows if row["outcome"] == "not exercised")
            unsound = ", ".join(row["plan"] for row in rows if row["sound"] == "no")
            lines = []
            if idle:
                lines.append((f"not exercised: {idle} had nothing to do", self._own_event(rows[0])))
            if unsound:
                lines.append((f"unsound: {unsound} not enough for the event", ""))
            ended = [row for row in rows if row["outcome"] not in ("done", "not exercised")]
            lines += [(f"{row['outcome']}: {row['plan']}", "") for row in ended]
            for begin, end in lines:
                said.setdefault((begin, rows[0]["input"], rows[0]["at"], end), []).append(rows[0]["kernel"])
        return [
            f"{begin} ({name}, kernel{'s' * (len(kernels) > 1)} {', '.join(kernels)}, at {at}){end}"
            for (begin, name, at, end), kernels in said.items()
        ]

    def _own_event(self, row: Mapping[str, Any]) -> str:
        """What to say of an input in which the forced event occurs already."""
        count = self.own_events.get((row["input"], row["kernel"]), 0)
        if not count:
            return ""
        times = "once" if count == 1 else f"{count:,} times"
        already = f"; its own operations have the {row['at']} already, {times}"
        return f"{already} (--moment peak forces it when most pages live)"

    @property
    def findings(self) -> list[tuple[str, str, str]]:
        """The runs that did not simply end, or whose plan is unsound for the event, as (input, plan, outcome)."""
        return [
            (r["input"], r["plan"], "unsound" if r["outcome"] == "done" else r["outcome"])
            for r in self.rows
            if r["outcome"] != "done" or r["sound"] == "no"
        ]

    def to_polars(self) -> Any:
        """Turn the rows into a polars data frame (polars must be installed).

        Returns:
            The frame.
        """
        import polars

        return polars.DataFrame({name: self.column(name) for name in self.names}, strict=False)

    def to_pandas(self) -> Any:
        """Turn the rows into a pandas data frame (pandas must be installed).

        Returns:
            The frame.
        """
        import pandas

        return pandas.DataFrame({name: self.column(name) for name in self.names})

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The columns as an Arrow stream (pyarrow must be installed)."""
        import pyarrow

        return pyarrow.table({n: self.column(n) for n in self.names}).__arrow_c_stream__(requested_schema)

    # -- text, pictures, files ----------------------------------------------------------------------------------

    def to_text(self, *, wide: bool = False, measured: bool = False) -> str:
        """Write one table for a terminal of 80 columns, the growth where there are sizes, and the notes.

        Args:
            wide: every column, the workloads, and input and scaled run side by side.
            measured: the wall time of this program, called so.

        Returns:
            The text.
        """
        return comparison_text.text(self, wide, measured)

    def to_html(self) -> str:
        """Write the same table for a notebook, escaped and capped, with the notes below.

        Returns:
            The HTML.
        """
        return comparison_text.html(self)

    @property
    def _is_scaled(self) -> bool:
        """Whether every workload was made to a size, and there are several: only then curves mean growth."""
        sizes = [workload["size"] for workload in self.workloads]
        return None not in sizes and len({row["pages"] for row in self.rows}) > 1

    def _label(self, row: Mapping[str, Any]) -> str:
        """What a row is called in a picture: its plan, and what else tells it from others."""
        parts = [str(row["plan"])]
        if len({r["kernel"] for r in self.rows}) > 1:
            parts.append(row["kernel"])
        if not self._is_scaled and len({r["input"] for r in self.rows}) > 1:
            parts.append(row["input"])
        return ", ".join(parts)

    def _look(self, row: Mapping[str, Any]) -> charts.Look:
        """What a row looks like in every picture: colour and marker by its plan, the line by its kernel."""
        names = list(dict.fromkeys([*plans, *(r["plan"] for r in self.rows)]))
        kernels = list(dict.fromkeys(r["kernel"] for r in self.rows))
        return charts.look(names.index(row["plan"]), kernels.index(row["kernel"]))

    def _curves(self, of: str) -> list[charts.Series]:
        points: dict[str, list[tuple[float, float]]] = {}
        looks: dict[str, charts.Look] = {}
        for row in self.rows:
            name = self._label(row)
            looks.setdefault(name, self._look(row))
            if row[of] is not None:
                points.setdefault(name, []).append((row["pages"], row[of]))
        return [charts.Series(name, sorted(found), looks[name]) for name, found in points.items()]

    def _title(self, of: str, label: str) -> str:
        if self._is_scaled:
            return f"{label} by live shadow pages"
        shown = [row for row in self.rows if row[of] is not None]
        where = f" at {shown[0]['at']}" if shown else ""
        if len({row["pages"] for row in shown}) == 1:
            where += f", {shown[0]['pages']:,} pages"
        return label + where

    def to_svg(self, of: str = "longest_hold") -> str:
        """Draw one picture: curves over the number of live pages where there are several sizes, else bars.

        A plan has the same colour and marker in every picture; curves that coincide are one line.

        Args:
            of: the column to draw.

        Returns:
            The picture as SVG text, the same for the same rows.

        Raises:
            UsageError: a column that does not hold numbers, or matplotlib (the extra `plot`) is not installed.
        """
        rows = 0 if self._is_scaled else len(self.rows)
        return charts.to_svg(lambda ax: self.plot(ax, of), of.replace("_", " "), rows)

    def plot(self, ax: Any = None, of: str = "longest_hold") -> Any:
        """Draw the same into axes of matplotlib.

        Args:
            ax: the axes to draw into; made when absent.
            of: the column to draw.

        Returns:
            The axes.

        Raises:
            UsageError: a column that does not hold numbers, or matplotlib (the extra `plot`) is not installed.
        """
        if of not in self.names or not all(isinstance(v, int | float | None) for v in self.column(of)):
            raise UsageError(f"column {of!r}: expected a column of numbers")
        if ax is None:
            ax = charts.axes()
        label = of.replace("_", " ") + (", work units" if of == "longest_hold" else "")
        title = self._title(of, label)
        if self._is_scaled:
            charts.draw_curves(ax, self._curves(of), title, "live shadow pages", label)
        else:
            shown = [row for row in self.rows if row[of] is not None]
            bars = [charts.Bar(self._label(row), row[of], self._look(row)) for row in shown]
            charts.draw_bars(ax, bars, title, f"{label}, logarithmic")
        return ax

    def to_dict(self) -> dict[str, Any]:
        """Turn everything into plain data; `schema` names the version.

        Returns:
            The keys of the page on JSON.
        """
        return {
            "schema": SCHEMA,
            "plans": self.plans,
            "workloads": self.workloads,
            "rows": records({name: self.column(name) for name in self.names}),
            "fits": [
                {k: v.to_dict() if isinstance(v, Fit) else v for k, v in fit.items()} for fit in self.fits
            ],
            "side_by_side": {k: records(comparison_text.side_columns(v)) for k, v in self.sides.items()},
            "notes": self.notes,
            "measured": self.measured_rows,
        }

    def to_json(self) -> str:
        """Write `to_dict` as text.

        Returns:
            The JSON.
        """
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def write(self, folder: str | Path | OutFolder, name: str = "compare") -> list[Path]:
        """Write CSV, JSON, a page and one SVG into a folder, all of them or none; without matplotlib no SVG.

        Args:
            folder: where, made if it is absent; or a folder that the caller has claimed.
            name: what the files are called, without their endings.

        Returns:
            The files.
        """
        texts = {
            f"{name}.csv": csv_text({n: self.column(n) for n in self.names}),
            f"{name}.json": self.to_json(),
        }
        picture = None
        if charts.missing() is None:
            picture = texts[f"{name}.svg"] = self.to_svg()
        texts["report.html" if name == "compare" else f"{name}.html"] = comparison_page.page(self, picture)
        return write_all(folder, texts)


def _array(values: Sequence[Any]) -> npt.NDArray[Any]:
    if values and all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        return np.array(values, dtype=np.int64)
    if values and all(v is None or isinstance(v, int | float) for v in values):
        return np.array([np.nan if v is None else float(v) for v in values])
    return np.array(values, dtype=object)
