"""A picture of a guest that pages: its own tables, the shadow tables and the reverse map side by side.

Drawn from plain data: a snapshot and the rows of the guest's tables. With two of them, before and after a step, the
second stands below the first, and every row that the other one has not is marked. Capped as the picture of a VM is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvm_mmu.view.svg import frame, svg_text

#: Tables of a column and rows of a table that are drawn.
MAX_TABLES, MAX_ROWS = 12, 8
_COLUMN, _WIDTH, _HEAD, _MARKS, _ROW, _GAP = 360, 330, 20, 14, 16, 10
#: Characters of a row and of a box's name that are sure to fit its width.
_ROW_FITS, _NAME_FITS = 52, 54
_GUEST, _SHADOW, _UNSYNC, _INVALID, _REVERSE, _NEW = (
    "#eef6e8",
    "#e8f1fa",
    "#fff3c4",
    "#f3d6d6",
    "#f2f2f2",
    "#ffb74d",
)
_MONO = "font-family='DejaVu Sans Mono, monospace' font-size='10' xml:space='preserve'"


@dataclass(frozen=True)
class GuestView:
    """What a picture shows of one moment.

    Attributes:
        snapshot: the whole state as plain data.
        entries: present entries of the guest's tables: level, gpa of the table, index, flags, what it leads to, whether
            that is a page.
    """

    snapshot: Mapping[str, Any]
    entries: Sequence[tuple[int, int, int, str, int, bool]]


@dataclass(frozen=True)
class _Box:
    """A table of a column: what stands above it, its colour, its rows, what it is marked with, and what it is the same
    table by at another moment (its name, where nothing is said)."""

    name: str
    fill: str
    rows: Sequence[str]
    marks: str = ""
    same_by: str = ""

    @property
    def height(self) -> int:
        """In pixels, the row that counts what is left out included."""
        shown = min(len(self.rows), MAX_ROWS) + (len(self.rows) > MAX_ROWS)
        return _HEAD + (_MARKS if self.marks else 0) + _ROW * shown + 4


def _guest_boxes(view: GuestView) -> list[_Box]:
    """The guest's tables, the highest first; one that is walked at several levels stands once for each."""
    rows: dict[tuple[int, int], dict[int, str]] = {}
    for level, table, index, flags, gpa, is_page in view.entries:
        arrow = "page" if is_page else "table"
        rows.setdefault((-level, table), {})[index] = f"{index:>4} {flags} {arrow} {gpa:#x}"
    return [
        _Box(f"level {-level}, gfn {table >> 12:#x}", _GUEST, [row[index] for index in sorted(row)])
        for (level, table), row in sorted(rows.items())
    ]


def _shadow_boxes(view: GuestView) -> list[_Box]:
    """The shadow pages, the highest level first, then by creation."""
    boxes = []
    quartered = {(page["level"], page["gfn"]) for page in view.snapshot["active"] if _quadrant(page)}
    for page in sorted(view.snapshot["active"], key=lambda page: (-page["level"], page["id"])):
        marks = [name for name in ("unsync", "invalid") if page.get(name)]
        marks += [f"unsync children {page['unsync_children']}"] if page.get("unsync_children") else []
        marks += [f"writes {page['flood']}"] if page.get("flood") else []
        kind = "direct, " if page["direct"] else ""
        name = (
            f"page {page['id']}: level {page['level']}, {kind}gfn {page['gfn']:#x}, {_rights(page['access'])}"
        )
        name += f", part {_quadrant(page)}" if (page["level"], page["gfn"]) in quartered else ""
        fill = _INVALID if page["invalid"] else _UNSYNC if page.get("unsync") else _SHADOW
        rows = [
            f"{spte[0]:>4} " + (f"page {spte[2]}" if len(spte) > 2 and spte[2] is not None else str(spte[1]))
            for spte in page["sptes"]
        ]
        boxes.append(_Box(name, fill, rows, ", ".join(marks), f"page {page['id']}"))
    return boxes


def _rights(access: int) -> str:
    """What a page gives, as the guest's entries are written."""
    return "r" + "".join(letter if access & bit else "-" for letter, bit in (("w", 2), ("u", 4), ("x", 1)))


def _quadrant(page: Mapping[str, Any]) -> int:
    """Which part of a table of 4-byte entries a page shadows; 0 where it shadows all."""
    return int(str(page["role"]), 16) >> 5 & 3


def _reverse_boxes(view: GuestView) -> list[_Box]:
    """Every memslot with its reverse map."""
    boxes = []
    for as_id, space in enumerate(view.snapshot["as"]):
        for slot in space["slots"]:
            shifts = {1: 0, 2: 9, 3: 18}
            rows = [
                f"gfn {((slot['base'] >> shifts[level]) + index) << shifts[level]:#x} <- "
                + " ".join(f"page {page}[{at}]" for page, at in entries)
                for level, index, entries in slot["rmap"] or ()
            ]
            rows += [
                f"gfn {slot['base'] + index:#x} is a table, tracked" for index, _ in slot.get("track") or ()
            ]
            where = f"slot {slot['id']}" + (f" of address space {as_id}" if as_id else "")
            boxes.append(_Box(f"{where}: gfn {slot['base']:#x}, {slot['npages']:,} pages", _REVERSE, rows))
    return boxes


_COLUMNS = (
    ("guest tables", _guest_boxes),
    ("shadow tables", _shadow_boxes),
    ("reverse map", _reverse_boxes),
)


def _cut(text: str, most: int) -> str:
    """A text that fits, its end left out where it is longer."""
    return text if len(text) <= most else text[: most - 3] + "..."


def _drawn(box: _Box, x: int, y: int, other: set[str]) -> Iterator[str]:
    """A box; rows that the other moment has not are marked."""
    rows = list(box.rows[:MAX_ROWS])
    left = len(box.rows) - len(rows)
    yield f"<rect x='{x}' y='{y}' width='{_WIDTH}' height='{box.height}' fill='{box.fill}' stroke='#333333'/>"
    name = svg_text(_cut(box.name, _NAME_FITS))
    yield f"<text x='{x + 6}' y='{y + 14}' font-size='11'>{name}</text>"
    top = y + _HEAD
    if box.marks:
        marks = svg_text(_cut(box.marks, _NAME_FITS))
        yield f"<text x='{x + 6}' y='{top + 9}' font-size='10' fill='#8a5a00'>{marks}</text>"
        top += _MARKS
    for row in rows:
        if other and row_name(box, row) not in other:
            yield f"<rect x='{x + 3}' y='{top}' width='{_WIDTH - 6}' height='{_ROW - 1}' fill='{_NEW}'/>"
        yield f"<text x='{x + 6}' y='{top + 12}' {_MONO}>{svg_text(_cut(row, _ROW_FITS))}</text>"
        top += _ROW
    if left:
        yield f"<text x='{x + 6}' y='{top + 12}' font-size='10'>... {left:,} more</text>"


def row_name(box: _Box, row: str) -> str:
    """What makes a row the same in two moments: its table, without the marks of it, and its text."""
    return f"{box.same_by or box.name}: {row}"


def _moment(view: GuestView, other: GuestView | None, y: int) -> tuple[int, list[str]]:
    """One moment's three columns from `y` down, and where they end."""
    body: list[str] = []
    end = y
    for column, (title, boxes_of) in enumerate(_COLUMNS):
        boxes = boxes_of(view)
        known = {row_name(box, row) for box in boxes_of(other) for row in box.rows} | {""} if other else set()
        x, at = 16 + column * _COLUMN, y + 24
        body.append(f"<text x='{x}' y='{y + 12}' font-size='12' fill='#555555'>{title}</text>")
        for box in boxes[:MAX_TABLES]:
            body += _drawn(box, x, at, known)
            at += box.height + _GAP
        if len(boxes) > MAX_TABLES:
            body.append(
                f"<text x='{x}' y='{at + 10}' font-size='11'>and {len(boxes) - MAX_TABLES:,} more</text>"
            )
            at += 20
        end = max(end, at)
    return end, body


def guest_svg(after: GuestView, before: GuestView | None = None, title: str = "") -> str:
    """Draw a guest that pages, at one moment or before and after a step.

    Args:
        after: the moment, or the later one.
        before: the earlier one; rows that only one of them has are marked.
        title: above the picture.

    Returns:
        The picture as SVG text.
    """
    if before is None:
        end, body = _moment(after, None, 44)
    else:
        middle, body = _moment(before, after, 64)
        end, below = _moment(after, before, middle + 34)
        body += [
            f"<text x='16' y='{y}' font-size='13'>{word}</text>"
            for y, word in ((52, "before"), (middle + 20, "after"))
        ]
        body += below
    said = f"{len(after.snapshot['active']):,} shadow pages of a guest with its own tables"
    return frame(16 + len(_COLUMNS) * _COLUMN, end + 6, title or said, body)
