"""A comparison in words for a terminal and for a notebook: one table of what decides, everything else when asked.

Owns which columns are shown where. The table fits 80 columns: what rows share stands in a line above them, a plan's
text that is too long is numbered and written out below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from kvm_mmu.lab.fit import Fit
from kvm_mmu.terminal import WIDTH, escaped, folded, one_line
from kvm_mmu.view.html import table_html
from kvm_mmu.view.tables import Columns, text_table

if TYPE_CHECKING:
    from kvm_mmu.lab.comparison import Comparison, Side

#: Characters of a plan's name in the table, and notes and rows in a notebook.
MAX_PLAN, MAX_NOTES, MAX_ROWS = 20, 8, 60
#: The table: title and column.
SHOWN = {
    "plan": "plan",
    "nodes": "nodes_visited",
    "zapped": "pages_zapped",
    "hold": "longest_hold",
    "shared": "shared_units",
    "faults_again": "faults_again",
    "sound": "sound",
}
#: The tables of `wide`.
WORK = (
    *("plan", "pages", "mmio_pages", "nodes_visited", "restarts", "pages_zapped", "sptes_cleared"),
    *(
        "sptes_changed",
        "rmap_steps",
        "parent_steps",
        "flushes",
        "lock_breaks",
        "outcome",
        "to_go",
        "left_over",
        "sound",
    ),
)
COST = (
    *(
        "plan",
        "pages",
        "longest_hold",
        "shared_units",
        "longest_shared_hold",
        "work_units",
        "tables_rebuilt",
        "faults_again",
        "updates_per_event",
    ),
    *("units_per_update", "tables_per_update", "faults_per_update", "digest"),
)

Row = Mapping[str, Any]


def text(found: Comparison, wide: bool, measured: bool) -> str:
    """Write a comparison for a terminal.

    Args:
        found: the comparison.
        wide: every column, the workloads, input and scaled run side by side.
        measured: the wall time of this program.

    Returns:
        The table, the growth where there are sizes, what else was asked for, and the notes.
    """
    parts = [_wide(found)] if wide else [table(found.rows)]
    names = _names(found.rows)
    for title, rows in groups(found.rows):
        if rows[0].get("modelled_ms") is not None:
            parts.append(_cut(f"time modelled by {rows[0]['cost_model']}, not measured: {title}", WIDTH))
            modelled = {n: [r[n] for r in rows] for n in ("pages", "modelled_ms", "modelled_ms_per_update")}
            parts.append(text_table({"plan": [names[r["plan"]] for r in rows], **modelled}, indent="  "))
    if found.fits:
        parts.append("growth with the live pages (least squares on logarithms, 95 % interval)")
        parts.append(text_table(_growth(found.fits, names), indent="  "))
    if measured and found.measured_rows:
        parts.append("measured wall time of this program (not a kernel's), seconds")
        shown = tuple(found.measured_rows[0])
        parts.append(text_table({n: [r[n] for r in found.measured_rows] for n in shown}, indent="  "))
    notes = [] if wide else _differences(found.sides)
    said = [sentence(f"note: {note}") for note in [*notes, *found.notes]]
    return "\n".join([*(escaped(part) for part in parts if part), *said])


def sentence(text: str) -> str:
    """Write a note or a finding for a terminal.

    Args:
        text: the sentence.

    Returns:
        It in lines of at most 80 columns; a word that is longer, such as a file name, is not cut.
    """
    return folded(text)


def table(rows: Sequence[Row]) -> str:
    """Write the rows as one table of at most 80 columns.

    Args:
        rows: rows of a comparison.

    Returns:
        Title, then each group of rows under what its rows share; plans with long texts below.
    """
    if not rows:
        return ""
    names, lines = _names(rows), text_table(_columns(rows)).splitlines()
    written, place = lines[:2], 2
    for title, group in groups(rows, by_size=True):
        written.append(title)
        written += lines[place : place + len(group)]
        place += len(group)
    written += [f"{name}: {plan}" for plan, name in names.items() if plan != name]
    return "\n".join(written)


def html(found: Comparison) -> str:
    """Write the same table for a notebook.

    Args:
        found: the comparison.

    Returns:
        The HTML, escaped and capped.
    """
    parts, left = [], MAX_ROWS
    for title, rows in groups(found.rows, by_size=True):
        if left <= 0:
            break
        parts.append(table_html(_columns(rows[:left], _names(found.rows)), caption=title))
        left -= len(rows)
    if left < 0:
        parts.append(f"<p>... and {len(found.rows) - MAX_ROWS:,} rows more</p>")
    named = [f"{name}: {plan}" for plan, name in _names(found.rows[:MAX_ROWS]).items() if plan != name]
    notes = [*named, *(f"note: {note}" for note in found.notes[:MAX_NOTES])]
    if len(found.notes) > MAX_NOTES:
        notes.append(f"... and {len(found.notes) - MAX_NOTES:,} notes more")
    return "<div>" + "".join(parts) + "".join(f"<p>{escape(note)}</p>" for note in notes) + "</div>"


def groups(rows: Sequence[Row], by_size: bool = False) -> list[tuple[str, list[Row]]]:
    """Put rows of one input and kernel together.

    Args:
        rows: rows of a comparison.
        by_size: those of one size.

    Returns:
        What the rows of a group share, in words, and the rows, in order.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        told = f", kernel {row['kernel']}{' (TDP MMU)' if row['mmu'] == 'tdp' else ''}, at {row['at']}"
        name = one_line(row["input"])
        if by_size:
            told += f", {row['pages']:,} pages, {row['mmio_pages']:,} cache MMIO"
        found.setdefault((name, told), []).append(row)
    return [
        (f"{_cut(name, max(16, WIDTH - len(told))) if by_size else name}{told}", group)
        for (name, told), group in found.items()
    ]


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """What each plan is called in the table."""
    found: dict[str, str] = {}
    for row in rows:
        plan = row["plan"]
        if plan not in found:
            is_long = len(plan) > MAX_PLAN
            count = sum(1 for p, name in found.items() if p != name)
            found[plan] = f"plan {count + 1}" if is_long else plan
    return found


def _columns(rows: Sequence[Row], names: Mapping[str, str] | None = None) -> Columns:
    names = _names(rows) if names is None else names
    shown = dict(SHOWN)
    if not any(row["shared_units"] for row in rows):
        del shown["shared"]
    columns = {title: [row[name] for row in rows] for title, name in shown.items()}
    columns["plan"] = [names[row["plan"]] for row in rows]
    # A run that did not simply end says so where its soundness would stand.
    columns["sound"] = [
        row["sound"] if row["outcome"] == "done" or row["sound"] else str(row["outcome"]).split(":")[0]
        for row in rows
    ]
    return columns


def _growth(fits: Sequence[Mapping[str, Any]], plans: Mapping[str, str]) -> Columns:
    names = [n for n in ("input", "kernel") if len({f[n] for f in fits}) > 1]
    columns: dict[str, list[Any]] = {n: [_cut(str(f[n]), 24) for f in fits] for n in names}
    columns["plan"] = [plans[f["plan"]] for f in fits]
    columns["of"] = [f["of"] for f in fits]
    columns["grows_as"] = [str(f["fit"]) if isinstance(f["fit"], Fit) else f["fit"] for f in fits]
    return columns


def _wide(found: Comparison) -> str:
    parts = []
    if found.workloads:
        parts.append("workloads: live pages before the event, and what was made and zapped on the way there")
        known = [name for name in found.workloads[0] if name != "size"]
        parts.append(text_table({n: [w[n] for w in found.workloads] for n in known}, indent="  "))
    for title, rows in groups(found.rows):
        for names, what in ((WORK, "work, exact counts"), (COST, "cost and collateral damage")):
            parts.append(f"{title}: {what}")
            parts.append(text_table({n: [r[n] for r in rows] for n in names}, indent="  "))
    for title, sides in found.sides.items():
        parts.append(f"{title}: input and scaled run side by side")
        parts.append(text_table(side_columns(sides), indent="  "))
    return "\n".join(parts)


def _differences(sides: Mapping[str, Sequence[Side]]) -> list[str]:
    """Where scaled runs are not as their input, one sentence an input."""
    found = []
    for title, several in sides.items():
        count = sum(side.within is False for side in several)
        if count:
            things = f"{count} of {len(several)} things compared (all of them: wide)"
            found.append(f"{title}: the scaled run differs from its input by more than 5 % in {things}")
    return found


def side_columns(sides: Sequence[Side]) -> Mapping[str, list[Any]]:
    """Input and scaled run side by side, as columns."""
    return {
        "what": [s.what for s in sides],
        "input": [s.of_input for s in sides],
        "scaled": [s.of_scaled for s in sides],
        "within_5_%": [s.within for s in sides],
        "why": [s.why for s in sides],
    }
