"""One self-contained HTML page: no network, readable without scripts, usable by keyboard and screen reader.

Owns the page around results: its style in light and dark, tables that sort and figures that zoom. Everything from
outside is escaped, and its control characters are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from kvm_mmu.terminal import one_line
from kvm_mmu.view.tables import Columns, cell, is_number, nr_rows

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --mark: #0072b2; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 72rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; } h3 { font-size: 1rem; }
code, pre, td { font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 0.15rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n { text-align: right; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, figure button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 1rem 0; overflow: auto; max-width: 100%; }
figure svg { background: #fff; max-width: 100%; height: auto; }
figure.near svg { max-width: none; width: 200%; }
nav.steps { position: sticky; top: 0; background: Canvas; padding: 0.5rem 0; border-bottom: 1px solid var(--line); }
nav.steps input { width: min(40rem, 60%); vertical-align: middle; }
section.step { border-top: 1px solid var(--line); }
.bad { color: #b3261e; font-weight: 600; }
@media (prefers-color-scheme: dark) { .bad { color: #ff8a80; } }
"""
_SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => {
        const text = row.cells[column].textContent;
        const number = Number(text.replaceAll(",", ""));
        return text !== "-" && text !== "" && !Number.isNaN(number) ? number : text;
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const both = typeof x === "number" && typeof y === "number";
        return (both ? x - y : String(x).localeCompare(String(y))) * (down ? -1 : 1);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}
for (const figure of document.querySelectorAll("figure")) {
  const button = document.createElement("button");
  button.textContent = "zoom";
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(figure.classList.toggle("near")));
  });
  figure.prepend(button);
}
const steps = [...document.querySelectorAll("section.step")];
const nav = document.querySelector("nav.steps");
if (nav && steps.length) {
  nav.hidden = false;
  const slider = nav.querySelector("input");
  const told = nav.querySelector("output");
  const show = at => {
    steps.forEach((step, i) => { step.hidden = i !== at; });
    slider.value = String(at);
    told.textContent = steps[at].querySelector("h2").textContent;
    history.replaceState(null, "", "#" + steps[at].id);
  };
  const move = by => show(Math.min(steps.length - 1, Math.max(0, Number(slider.value) + by)));
  slider.addEventListener("input", () => show(Number(slider.value)));
  nav.querySelector(".before").addEventListener("click", () => move(-1));
  nav.querySelector(".after").addEventListener("click", () => move(1));
  const named = steps.findIndex(step => "#" + step.id === location.hash);
  show(named < 0 ? 0 : named);
}
"""


def text(value: object) -> str:
    """A value as it stands in a page: escaped, its control characters shown.

    Args:
        value: anything that prints.

    Returns:
        HTML text.
    """
    return escape(one_line(str(value)))


def table(columns: Columns, caption: str = "") -> str:
    """A table whose columns sort where scripts run.

    Args:
        columns: name to values.
        caption: what it shows.

    Returns:
        HTML.
    """
    names = list(columns)
    head = "".join(f"<th scope='col'>{text(name.replace('_', ' '))}</th>" for name in names)
    rows = []
    for i in range(nr_rows(columns)):
        cells = "".join(_cell(columns[name][i]) for name in names)
        rows.append(f"<tr>{cells}</tr>")
    said = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f"<div class='wide'><table class='sorts'>{said}<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    edge = " class='n'" if is_number(value) else ""
    return f"<td{edge}>{text(cell(value))}</td>"


def figure(svg: str, caption: str) -> str:
    """A picture that zooms where scripts run.

    Args:
        svg: SVG text of our own making.
        caption: what it shows.

    Returns:
        HTML.
    """
    start = svg.index("<svg")
    return f"<figure>{svg[start:]}<figcaption>{text(caption)}</figcaption></figure>"


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
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{text(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
