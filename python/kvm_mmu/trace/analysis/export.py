"""Exporting a trace: Chrome JSON for Perfetto, one Parquet or CSV file per event.

Owns: the file names and which library writes Parquet. What an output may be is the rule of `view.whole_file`, for every
format: the files of one export replace older ones together, when all of them are complete.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.analysis.chrome import chrome_trace
from kvm_mmu.trace.text.reader import Batch, Trace
from kvm_mmu.trace.text.source import Traced
from kvm_mmu.trace.text.table import Table
from kvm_mmu.view.out_folder import OutFolder
from kvm_mmu.view.whole_file import check_output, write_whole

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
TIMELINE = "events"
#: Rows of a CSV file that are made into text at once.
_ROWS = 1 << 14


def export_chrome(trace: Traced, out: str | Path) -> list[Path]:
    """Write the Chrome trace of a trace.

    Args:
        trace: A path, an open `Trace`, or lines.
        out: the file to write, a FIFO or device to write through, or `-` for stdout.

    Returns:
        The file.

    Raises:
        UsageError: it cannot be written.
    """
    check_output(out)
    return [write_whole(out, json.dumps(chrome_trace(trace)) + "\n")]


def export_csv(trace: Traced, folder: str | Path) -> list[Path]:
    """Write one CSV file per event and `events.csv`.

    Args:
        trace: A path, an open `Trace`, or lines.
        folder: where; made if it is absent.

    Returns:
        The files.

    Raises:
        UsageError: one cannot be written, or another run is writing there.
    """
    with OutFolder(folder) as out:
        batch = Trace(trace).read_all()
        return out.write({name + ".csv": _csv_writer(table) for name, table in _named_tables(batch)})


def export_parquet(trace: Traced, folder: str | Path) -> list[Path]:
    """Write one Parquet file per event and `events.parquet`, by pyarrow or polars.

    Args:
        trace: A path, an open `Trace`, or lines.
        folder: where; made if it is absent.

    Returns:
        The files.

    Raises:
        TraceError: neither library is there.
        UsageError: a file cannot be written, or another run is writing there.
    """
    as_parquet = _parquet_library()
    with OutFolder(folder) as out:
        batch = Trace(trace).read_all()

        def writer(table: Table) -> Callable[[BinaryIO], object]:
            # In memory first: what a disk refuses is then an error of ours, not one of the library.
            return lambda stream: stream.write(as_parquet(table))

        return out.write({name + ".parquet": writer(table) for name, table in _named_tables(batch)})


def _named_tables(batch: Batch) -> Iterator[tuple[str, Table]]:
    for name, table in [(TIMELINE, batch.timeline), *sorted(batch.tables.items())]:
        yield _NOT_IN_NAMES.sub("_", name).strip("_"), table


def _csv_writer(table: Table) -> Callable[[BinaryIO], object]:
    def write(stream: BinaryIO) -> None:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=False)
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(list(table))
        columns = [(table[name], table.names(name)) for name in table]
        for start in range(0, len(table), _ROWS):
            rows.writerows(
                zip(*(_values(c[start : start + _ROWS], names) for c, names in columns), strict=True)
            )
        text.flush()
        text.detach()

    return write


def _values(column: npt.NDArray[Any], names: list[str]) -> list[Any]:
    values: list[Any] = column.tolist()
    if names:
        return [names[code] if 0 <= code < len(names) else "(other)" for code in values]
    if column.dtype.kind == "b":
        return ["true" if value else "false" for value in values]
    return values


def _parquet_library() -> Callable[[Table], bytes]:
    """The way to Parquet that is installed.

    Raises:
        TraceError: there is none.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        try:
            import polars  # noqa: F401
        except ImportError as err:
            raise TraceError("writing Parquet needs pyarrow or polars: install kvm_mmu[data]") from err
        return _by_polars
    return _by_pyarrow


def _by_polars(table: Table) -> bytes:
    stream = io.BytesIO()
    table.to_polars().write_parquet(stream)
    return stream.getvalue()


def _by_pyarrow(table: Table) -> bytes:
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(table.to_arrow(), stream)
    return stream.getvalue()
