"""A table of trace events: named columns of equal length, for numpy, pandas, polars and Arrow.

Owns: texts kept as bytes with row ends until somebody asks for them, codes with their names, and the way to
other libraries, which are imported only when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_SHOWN_ROWS = 10
_Text = tuple[npt.NDArray[np.int64], bytes]


class Table:
    """A table of events: columns of equal length by name.

    `table["gfn"]` is a numpy array (texts: an object array of `str`), `"gfn" in table` and `for column in table` work,
    `len` counts rows. Columns of codes, such as `task` and `kind`, hold numbers here and words in every other library;
    `table.words(column)` gives the words.

    Attributes:
        name: What it is called, `events` for the timeline.
        columns: The values by name; texts as the ends of the rows and their bytes.
        names: Of the columns of codes, what each code means.
        event: The event of the rows.
        wording: Which kernels' text (or `raw` fields) they were.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, npt.NDArray[Any] | _Text],
        names: Mapping[str, Sequence[str]] | None = None,
        *,
        event: str = "",
        wording: str = "",
    ):
        self.name = name
        #: The event of the rows, and which kernels' text (or `raw` fields) they were.
        self.event = event or name
        self.wording = wording
        self._columns = dict(columns)
        self._names = {column: list(values) for column, values in (names or {}).items()}

    def __repr__(self) -> str:
        return f"<Table {self.name}: {len(self)} rows of {', '.join(self._columns)}>"

    def __len__(self) -> int:
        first = next(iter(self._columns.values()), None)
        return 0 if first is None else len(first[0] if isinstance(first, tuple) else first)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, column: object) -> bool:
        return column in self._columns

    def __getitem__(self, column: str) -> npt.NDArray[Any]:
        values = self._columns.get(column)
        if values is None:
            raise UsageError(
                f"table {self.name!r} has no column {column!r}: it has {', '.join(self._columns)}"
            )
        return _texts(values) if isinstance(values, tuple) else values

    def names(self, column: str) -> list[str]:
        """Returns what the codes of a column mean (`task`, `kind`, `change`), nothing for another column.

        Args:
            column: Its name.
        """
        return self._names.get(column, [])

    def words(self, column: str) -> npt.NDArray[Any]:
        """Returns a column with words in place of codes, as an object array; another column as it is.

        Args:
            column: Its name.

        Raises:
            UsageError: there is no such column.
        """
        values = self[column]
        known = self._names.get(column)
        return values if known is None else np.array(_named(values, known), dtype=object)

    def to_arrow(self) -> Any:
        """Returns a pyarrow table; texts without a copy, codes as dictionary columns of words."""
        import pyarrow as pa

        arrays = {}
        for name, values in self._columns.items():
            if isinstance(values, tuple):
                ends, data = values
                offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends])
                buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)]
                array = pa.Array.from_buffers(pa.large_binary(), len(ends), buffers)
                arrays[name] = _as_text(pa, array)
            elif name in self._names:
                arrays[name] = _coded(pa, values, self._names[name])
            else:
                arrays[name] = pa.array(values)
        return pa.table(arrays)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Returns the Arrow stream of this table, for any library that reads one (needs pyarrow)."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def to_polars(self) -> pl.DataFrame:
        """Returns a polars data frame; through Arrow where pyarrow is there, else column by column."""
        import polars as pl

        try:
            return cast("pl.DataFrame", pl.from_arrow(self.to_arrow()))
        except ImportError:
            columns = {name: self.words(name) for name in self}
            return pl.DataFrame(
                {
                    name: values.tolist() if values.dtype == object else values
                    for name, values in columns.items()
                }
            )

    def to_pandas(self) -> pd.DataFrame:
        """Returns a pandas data frame, codes as categories."""
        import pandas as pd

        columns = {name: self[name] for name in self}
        for name, known in self._names.items():
            columns[name] = cast(Any, pd.Categorical(_named(columns[name], known)))
        return pd.DataFrame(columns)

    def _first(self, column: str, rows: int) -> list[Any]:
        values = self[column][:rows]
        known = self._names.get(column)
        return list(values) if known is None else _named(values, known)

    def _repr_html_(self) -> str:
        rows = min(len(self), _SHOWN_ROWS)
        head = "".join(f"<th>{escape(name)}</th>" for name in self)
        columns = [self._first(name, rows) for name in self]
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(column[i]))}</td>" for column in columns) + "</tr>"
            for i in range(rows)
        )
        return f"<table><caption>{escape(self.name)}, {rows} of {len(self)} rows</caption><tr>{head}</tr>{body}</table>"


def _texts(values: _Text) -> npt.NDArray[Any]:
    ends, data = values
    rows = np.empty(len(ends), dtype=object)
    start = 0
    for i, end in enumerate(ends.tolist()):
        rows[i] = data[start:end].decode("utf-8", "replace")
        start = end
    return rows


def _as_text(pa: Any, array: Any) -> Any:
    """Bytes as text; where they are not UTF-8 they are made so."""
    try:
        return array.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array([row.as_py().decode("utf-8", "replace") for row in array], pa.large_string())


def _named(codes: npt.NDArray[Any], names: Sequence[str]) -> list[str]:
    return [names[code] if 0 <= code < len(names) else "(other)" for code in codes.tolist()]


def _coded(pa: Any, codes: npt.NDArray[Any], names: Sequence[str]) -> Any:
    numbers = codes.astype(np.int64)
    known = np.where((numbers >= 0) & (numbers < len(names)), numbers, len(names)).astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(known), pa.array([*names, "(other)"]))
