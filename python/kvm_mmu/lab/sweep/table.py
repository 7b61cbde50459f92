"""`Sweep`: the table of a sweep, in the order of its grid, as text, files and data frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvm_mmu.lab.sweep.cells import ROW
from kvm_mmu.lab.sweep.journal import NAME, row_text
from kvm_mmu.terminal import folded
from kvm_mmu.view.document import definitions, document, table
from kvm_mmu.view.meanings import COLUMNS
from kvm_mmu.view.out_folder import OutFolder, write_all
from kvm_mmu.view.tables import cell as plain_text
from kvm_mmu.view.tables import csv_text, text_table
from kvm_mmu.view.whole_file import Content

SCHEMA = "kvm-mmu/sweep/1"
#: Columns that the table for a terminal shows, where they say more than one thing; and those it always shows.
_AXES = ("input", "kernel", "plan", "pages_asked", "mmio_asked", "vcpus", "seed", "sample")
_SHORT = {
    "pages_asked": "asked",
    "mmio_asked": "MMIO",
    "pages": "pages",
    "pages_zapped": "zapped",
    "longest_hold": "hold",
    "faults_again": "faults again",
    "sound": "sound",
}
_COUNTS = ("pages", "pages_zapped", "longest_hold", "faults_again", "sound")


@dataclass
class Sweep:
    """The table of a sweep.

    Attributes:
        rows: one a cell, in the order of the grid, with the columns of `ROW`.
        written: the files, where a folder was given.
    """

    rows: list[dict[str, Any]]
    written: list[Path] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Sweep of {len(self.rows)} cells, {len(self.failed)} failed>"

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return self.to_text()

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of cells that failed."""
        return [row for row in self.rows if row["error"]]

    @property
    def columns(self) -> Mapping[str, list[Any]]:
        """The columns, each with a value a row; None where one does not apply."""
        return {name: [row.get(name) for row in self.rows] for name in ROW}

    def to_text(self) -> str:
        """Write the table for a terminal: the axes that vary, and the counts that most ask for.

        Returns:
            The text, and a line for each kind of failure.
        """
        columns = self.columns
        axes = [name for name in _AXES if len({str(value) for value in columns[name]}) > 1]
        shown = {_SHORT.get(name, name): columns[name] for name in (*(axes or ["plan"]), *_COUNTS)}
        lines = [text_table(shown)]
        fixed = {name: columns[name][0] for name in (*_AXES, "at") if name not in axes and self.rows}
        said = ", ".join(
            f"{name.replace('_asked', '')} {value}" for name, value in fixed.items() if value is not None
        )
        lines.append(folded(f"all cells: {said}"))
        errors: dict[str, int] = {}
        for row in self.failed:
            errors[row["error"]] = errors.get(row["error"], 0) + 1
        lines += [folded(f"failed, {count:,} cells: {text}") for text, count in errors.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Turn the table into plain data.

        Returns:
            `schema` and `rows`.
        """
        return {"schema": SCHEMA, "rows": [{name: row.get(name) for name in ROW} for row in self.rows]}

    def to_polars(self) -> Any:
        """Turn the table into a polars data frame (polars must be installed).

        Returns:
            The frame.
        """
        import polars

        return polars.DataFrame(dict(self.columns), strict=False)

    def to_pandas(self) -> Any:
        """Turn the table into a pandas data frame (pandas must be installed).

        Returns:
            The frame.
        """
        import pandas

        return pandas.DataFrame(dict(self.columns))

    def to_page(self) -> str:
        """Write the table as one page for a browser, whose columns sort; it needs no network.

        Returns:
            The text of an HTML file.
        """
        columns = self.columns
        shown = {
            name: values for name, values in columns.items() if len({str(value) for value in values}) > 1
        }
        fixed = {name: values[0] for name, values in columns.items() if name not in shown and self.rows}
        parts = [
            f"<p>{len(self.rows):,} cells, {len(self.failed):,} failed.</p>",
            table(shown, "every column that varies", COLUMNS),
            "<h2>The same in all cells</h2>",
            table({"column": list(fixed), "value": [plain_text(value) for value in fixed.values()]}),
            definitions("Columns", {name: COLUMNS[name] for name in columns if name in COLUMNS}, "column"),
        ]
        return document("Sweep", parts)

    def write(self, folder: str | Path | OutFolder) -> list[Path]:
        """Write JSON lines, CSV, a page and, with pyarrow, Parquet into a folder; the same bytes for the same table.

        Args:
            folder: where; or a folder that the caller has claimed.

        Returns:
            The files.
        """
        rows = [{name: row.get(name) for name in ROW} for row in self.rows]
        files: dict[str, Content] = {
            NAME: "".join(row_text(row) for row in rows),
            "sweep.csv": csv_text(self.columns),
        }
        files["report.html"] = self.to_page()
        parquet = _parquet(self.columns)
        if parquet is not None:
            files["sweep.parquet"] = parquet
        return write_all(folder, files)


def _parquet(columns: Mapping[str, list[Any]]) -> bytes | None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return None
    out = pyarrow.BufferOutputStream()
    table = pyarrow.table({name: _typed(pyarrow, values) for name, values in columns.items()})
    pyarrow.parquet.write_table(table, out)
    found: bytes = out.getvalue().to_pybytes()
    return found


def _typed(pyarrow: Any, values: list[Any]) -> Any:
    """A column that keeps its type also where no row has a value."""
    if any(isinstance(value, float) for value in values):
        return pyarrow.array(values, pyarrow.float64())
    if any(isinstance(value, int) for value in values):
        return pyarrow.array(values, pyarrow.int64())
    return pyarrow.array(values, pyarrow.string())
