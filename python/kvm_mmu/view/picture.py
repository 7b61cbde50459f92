"""A picture of a VM's paging structures, of either MMU: roots, tables by level, links, leaves, memslots below.

Drawn from a snapshot (plain data), so that every step of a lesson can be kept and drawn later. Capped: a table shows
its first entries, a level its first tables, and says how many more there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvm_mmu.view.svg import frame, svg_text

#: Tables of a level and entries of a table that are drawn.
MAX_TABLES, MAX_ENTRIES = 6, 6
_WIDTH, _HEAD, _ROW, _GAP_X, _GAP_Y = 150, 34, 18, 24, 46
_PAGE, _MMIO, _INVALID, _LEAF = "#e8f1fa", "#fde9d3", "#f3d6d6", "#555555"


def _box(page: Mapping[str, Any], x: int, y: int, sptes: Sequence[Sequence[Any]]) -> list[str]:
    height = _HEAD + _ROW * max(1, min(len(sptes), MAX_ENTRIES) + (len(sptes) > MAX_ENTRIES))
    fill = _INVALID if page["invalid"] else _MMIO if page.get("mmio_cached") else _PAGE
    marks = [name for name in ("mmio_cached", "invalid", "unsync") if page.get(name)]
    root = f", root x{page['root_count']}" if page["root_count"] else ""
    body = [
        f"<rect x='{x}' y='{y}' width='{_WIDTH}' height='{height}' fill='{fill}' stroke='#333333'/>",
        f"<text x='{x + 6}' y='{y + 14}' font-size='12'>page {page['id']}{root}</text>",
        f"<text x='{x + 6}' y='{y + 28}' font-size='10' fill='#555555'>gfn {page['gfn']:#x}"
        + (f" {svg_text(' '.join(marks))}" if marks else "")
        + "</text>",
    ]
    for row, spte in enumerate(sptes[:MAX_ENTRIES]):
        kind = "link" if len(spte) > 2 else str(spte[1])
        line = y + _HEAD + row * _ROW + 12
        body.append(
            f"<text x='{x + 6}' y='{line}' font-size='10' font-family='DejaVu Sans Mono, monospace'>"
            f"{spte[0]:>3} {svg_text(kind)}</text>"
        )
    if len(sptes) > MAX_ENTRIES:
        line = y + _HEAD + MAX_ENTRIES * _ROW + 12
        body.append(f"<text x='{x + 6}' y='{line}' font-size='10'>... {len(sptes) - MAX_ENTRIES} more</text>")
    return body


def _tdp_tables(snapshot: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of the TDP MMU as boxes: a root with its references, leaves that follow each other as one row."""
    roots = {root["id"]: root for root in snapshot.get("roots") or ()}
    return [
        {
            **table,
            "invalid": roots.get(table["id"], {}).get("invalid", 0),
            "root_count": roots.get(table["id"], {}).get("refs", 0),
            "sptes": [
                [spte[0], f"{spte[1]} x{spte[3]}"] if len(spte) > 3 else spte for spte in table["sptes"]
            ],
        }
        for table in snapshot.get("tdp") or ()
    ]


def vm_svg(snapshot: Mapping[str, Any], title: str = "") -> str:
    """Draw a snapshot (`Vm.snapshot()`).

    Args:
        snapshot: the whole state as plain data.
        title: above the picture.

    Returns:
        The picture as SVG text.
    """
    tables = _tdp_tables(snapshot)
    pages = [*snapshot["active"], *tables]
    by_level: dict[int, list[Mapping[str, Any]]] = {}
    for page in sorted(pages, key=lambda page: page["id"]):
        by_level.setdefault(page["level"], []).append(page)
    body: list[str] = []
    places: dict[int, tuple[int, int]] = {}
    y, width = 48, 760
    for level in sorted(by_level, reverse=True):
        row = by_level[level]
        tall = 0
        body.append(f"<text x='16' y='{y + 14}' font-size='12' fill='#555555'>level {level}</text>")
        for column, page in enumerate(row[:MAX_TABLES]):
            x = 80 + column * (_WIDTH + _GAP_X)
            places[page["id"]] = (x, y)
            body += _box(page, x, y, page["sptes"])
            count = min(len(page["sptes"]), MAX_ENTRIES) + (len(page["sptes"]) > MAX_ENTRIES)
            tall = max(tall, _HEAD + _ROW * max(1, count))
            width = max(width, x + _WIDTH + 120)
        if len(row) > MAX_TABLES:
            x = 80 + MAX_TABLES * (_WIDTH + _GAP_X)
            body.append(
                f"<text x='{x}' y='{y + 14}' font-size='12'>and {len(row) - MAX_TABLES:,} more</text>"
            )
        y += tall + _GAP_Y
    links = []
    for page in pages:
        for row_number, spte in enumerate(page["sptes"][:MAX_ENTRIES]):
            if len(spte) > 2 and page["id"] in places and spte[2] in places:
                (x1, y1), (x2, y2) = places[page["id"]], places[spte[2]]
                start = y1 + _HEAD + row_number * _ROW + 8
                links.append(
                    f"<path d='M{x1 + _WIDTH - 20} {start} C{x1 + _WIDTH + 30} {start} {x2 + _WIDTH // 2} {y2 - 40} "
                    f"{x2 + _WIDTH // 2} {y2}' fill='none' stroke='#0072b2'/>"
                )
    for line in _slots(snapshot):
        body.append(f"<text x='16' y='{y}' font-size='11'>{svg_text(line)}</text>")
        y += 16
    said = counted(len(snapshot["active"]), "shadow page")
    if snapshot.get("tdp") is not None:
        said = f"TDP MMU: {counted(len(snapshot['roots']), 'root')}, {counted(snapshot['tdp_pages'], 'table')} below"
    return frame(width, y + 10, title or said, [*links, *body])


def counted(count: int, what: str) -> str:
    """Write a count with its noun.

    Args:
        count: how many.
        what: of what, for one.

    Returns:
        `1 root`, `3 roots`.
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _slots(snapshot: Mapping[str, Any]) -> list[str]:
    lines = []
    for as_id, space in enumerate(snapshot["as"]):
        lines.append(
            f"address space {as_id}: generation {space['gen']}, {counted(len(space['slots']), 'memslot')}"
        )
        for slot in space["slots"][:4]:
            heads = ", ".join(
                f"gfn {slot['base'] + index:#x} <- " + " ".join(f"page {page}[{at}]" for page, at in entries)
                for level, index, entries in slot["rmap"][:3]
                if level == 1
            )
            more = f" and {len(slot['rmap']) - 3} more" if len(slot["rmap"]) > 3 else ""
            where = f"gfn {slot['base']:#x}, {slot['npages']:,} pages"
            # The TDP MMU keeps no reverse map.
            has_map = heads or snapshot.get("tdp") is None
            told = f"; reverse map: {heads or 'empty'}{more}" if has_map else ""
            lines.append(f"    slot {slot['id']}: {where}{told}")
    return lines
