"""Tables as text, markdown and CSV, out of columns: a dict of equally long sequences, in the order they are shown.

Counts print in decimal with separators, fractions with four significant digits, what is absent as `-`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kvm_mmu.terminal import one_line

Columns = Mapping[str, Sequence[Any]]


def cell(value: Any) -> str:
    """One value as it is shown."""
    if value is None:
        return "-"
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        if value == int(value) and abs(value) < 1e15:
            return f"{int(value):,}"
        return f"{value:.4g}"
    return one_line(str(value))


def is_number(value: Any) -> bool:
    """Whether a value belongs to the right edge of its column."""
    if hasattr(value, "item"):
        value = value.item()
    return isinstance(value, int | float) and not isinstance(value, bool)


def nr_rows(columns: Columns) -> int:
    """Rows of a table."""
    return max((len(values) for values in columns.values()), default=0)


def _cells(columns: Columns, limit: int | None) -> tuple[list[str], list[list[str]], list[bool]]:
    names = list(columns)
    count = nr_rows(columns)
    shown = count if limit is None else min(count, limit)
    rows = [[cell(columns[name][i]) for name in names] for i in range(shown)]
    right = [all(is_number(v) or v is None for v in columns[name]) and count > 0 for name in names]
    return names, rows, right


def text_table(columns: Columns, limit: int | None = None, indent: str = "") -> str:
    """A table for a terminal; with `limit` the rest is said to be left out."""
    names, rows, right = _cells(columns, limit)
    titles = [one_line(name.replace("_", " ")) for name in names]
    widths = [max([len(titles[i]), *(len(row[i]) for row in rows)]) for i in range(len(names))]

    def line(row: Sequence[str]) -> str:
        parts = [
            text.rjust(width) if edge else text.ljust(width)
            for text, width, edge in zip(row, widths, right, strict=True)
        ]
        return indent + "  ".join(parts).rstrip()

    lines = [line(titles), indent + "  ".join("-" * width for width in widths)]
    lines += [line(row) for row in rows]
    left_out = nr_rows(columns) - len(rows)
    if left_out:
        lines.append(f"{indent}... and {left_out:,} rows more")
    return "\n".join(lines)


def markdown_table(columns: Columns) -> str:
    """A table for a page."""
    names, rows, right = _cells(columns, None)

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"

    edges = ["---:" if edge else "---" for edge in right]
    return "\n".join(
        [line([n.replace("_", " ") for n in names]), "|" + "|".join(edges) + "|", *map(line, rows)]
    )


def csv_text(columns: Columns) -> str:
    """A table as CSV, plain numbers, `\\n` line ends."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for i in range(nr_rows(columns)):
        writer.writerow([plain(values[i]) for values in columns.values()])
    return out.getvalue()


def plain(value: Any) -> Any:
    """A value as JSON and CSV take it: numpy scalars unpacked, NaN absent."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def records(columns: Columns) -> list[dict[str, Any]]:
    """A table as one dict a row."""
    return [{name: plain(values[i]) for name, values in columns.items()} for i in range(nr_rows(columns))]
