"""Exporting a trace: Chrome JSON for Perfetto, one Parquet or CSV file per event.

Owns: the file names and which library writes what. A file is written whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.chrome import chrome_trace
from kvm_mmu.trace.reader import Batch, Trace
from kvm_mmu.trace.source import iter_lines
from kvm_mmu.trace.table import Table
from kvm_mmu.view.whole_file import write_whole

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
TIMELINE = "events"


def export_chrome(trace: str | Path, out: Path) -> list[Path]:
    """Write the Chrome trace of a trace; returns the file."""
    if not out.parent.is_dir():
        raise TraceError(f"{out}: no such directory: {out.parent}")
    return [write_whole(out, json.dumps(chrome_trace(iter_lines(trace))) + "\n")]


def export_csv(trace: str | Path, folder: Path) -> list[Path]:
    """Write one CSV per event and `events.csv`; returns the files."""
    return _each(Trace(trace).read_all(), folder, ".csv", lambda table, path: _write(path, table, "csv"))


def export_parquet(trace: str | Path, folder: Path) -> list[Path]:
    """Write one Parquet file per event and `events.parquet`; returns the files."""
    return _each(
        Trace(trace).read_all(), folder, ".parquet", lambda table, path: _write(path, table, "parquet")
    )


def _each(batch: Batch, folder: Path, ending: str, write: Callable[[Table, Path], None]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise TraceError(f"{folder}: {err.strerror or err}") from err
    paths = []
    for name, table in [(TIMELINE, batch.timeline), *sorted(batch.tables.items())]:
        path = folder / (_NOT_IN_NAMES.sub("_", name).strip("_") + ending)
        write(table, path)
        paths.append(path)
    return paths


def _write(path: Path, table: Table, kind: str) -> None:
    """Write beside the target and rename, so that no half file stays."""
    part = path.with_name(f".{path.name}.part")
    try:
        _writer()(table, part, kind)
        os.replace(part, path)  # noqa: PTH105 - one call that replaces on every system
    except OSError as err:
        part.unlink(missing_ok=True)
        raise TraceError(f"{path}: {err.strerror or err}") from err


def _writer() -> Callable[[Table, Path, str], None]:
    try:
        import pyarrow.csv
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        try:
            import polars  # noqa: F401
        except ImportError as err:
            raise TraceError("writing tables needs pyarrow or polars: install kvm_mmu[data]") from err
        return _by_polars
    return _by_pyarrow


def _by_polars(table: Table, path: Path, kind: str) -> None:
    frame = table.to_polars()
    if kind == "csv":
        frame.write_csv(path)
    else:
        frame.write_parquet(path)


def _by_pyarrow(table: Table, path: Path, kind: str) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    arrow = table.to_arrow()
    if kind == "csv":
        plain = [
            c.cast("string") if c.type.num_fields == 0 and "dictionary" in str(c.type) else c
            for c in arrow.columns
        ]
        pyarrow.csv.write_csv(type(arrow).from_arrays(plain, names=arrow.column_names), path)
    else:
        pyarrow.parquet.write_table(arrow, path)
