"""One self-contained HTML page: no network, readable without scripts, usable by keyboard and screen reader.

Owns what pages are built of: tables that sort, figures that zoom, lists of what names mean, each linked from where the
name stands. Everything from outside is escaped, and its control characters are shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kvm_mmu.terminal import one_line
from kvm_mmu.view.page_script import SCRIPT, STYLE
from kvm_mmu.view.tables import Columns, cell, is_number, nr_rows


def text(value: object) -> str:
    """A value as it stands in a page: escaped, its control characters shown.

    Args:
        value: anything that prints.

    Returns:
        HTML text.
    """
    return escape(one_line(str(value)))


def table(columns: Columns, caption: str = "", meanings: Mapping[str, str] | None = None) -> str:
    """A table whose columns sort where scripts run.

    Args:
        columns: name to values.
        caption: what it shows.
        meanings: column to what it is: those lead to the list that `definitions` writes of them as `column`.

    Returns:
        HTML.
    """
    names = list(columns)
    edges = {name: any(is_number(value) for value in columns[name]) for name in names}
    head = "".join(_head(name, edges[name], name in (meanings or {})) for name in names)
    rows = []
    for i in range(nr_rows(columns)):
        cells = "".join(_cell(columns[name][i]) for name in names)
        rows.append(f"<tr>{cells}</tr>")
    said = f"<caption>{text(caption)}</caption>" if caption else ""
    about = text(caption or "table")
    return (
        f"<div class='wide' tabindex='0' role='region' aria-label='{about}'>"
        f"<table class='sorts'>{said}<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(name: str, is_of_numbers: bool, is_defined: bool) -> str:
    shown = text(name.replace("_", " "))
    edge = " class='n'" if is_of_numbers else ""
    where = f"<a href='#column-{text(name)}' aria-label='what {shown} means'>?</a>" if is_defined else ""
    return f"<th scope='col'{edge}><span>{shown}</span>{' ' if where else ''}{where}</th>"


def _cell(value: Any) -> str:
    edge = " class='n'" if is_number(value) else ""
    return f"<td{edge}>{text(cell(value))}</td>"


def definitions(title: str, meanings: Mapping[str, str], kind: str) -> str:
    """A list of what names mean; `#KIND-NAME` leads to each.

    Args:
        title: its heading.
        meanings: name to what it means.
        kind: what the names are: `counter`, `event`, `column`, `work`.

    Returns:
        HTML; "" without names.
    """
    if not meanings:
        return ""
    told = "".join(
        f"<div id='{kind}-{text(name)}'><dt>{text(name)}</dt><dd>{text(says)}</dd></div>"
        for name, says in meanings.items()
    )
    return f"<h2>{text(title)}</h2><dl>{told}</dl>"


def linked(kind: str, name: str) -> str:
    """A name that leads to what it means.

    Args:
        kind: as in `definitions`.
        name: the name.

    Returns:
        HTML.
    """
    return f"<a href='#{kind}-{text(name)}'>{text(name)}</a>"


def figure(svg: str, caption: str) -> str:
    """A picture that zooms where scripts run.

    Args:
        svg: SVG text of our own making.
        caption: what it shows.

    Returns:
        HTML.
    """
    drawn = re.sub(r"<svg\b(?![^>]*\brole=)", "<svg role='img'", svg[svg.index("<svg") :], count=1)
    drawn = re.sub(r"<svg\b(?![^>]*\baria-label=)", f"<svg aria-label='{text(caption)}'", drawn, count=1)
    about = f"aria-label='{text(caption)}, scrolls when zoomed'"
    return (
        f"<figure><div class='picture' tabindex='0' role='region' {about}>{drawn}</div>"
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: its heading, and its name in a browser.
        parts: HTML, each made here or escaped.

    Returns:
        The text of the file.
    """
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{text(title)}</h1>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
