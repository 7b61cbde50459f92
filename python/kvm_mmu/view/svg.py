"""Pictures without a plotting library: a small SVG writer for curves on logarithmic axes and for bars.

The text is the same for the same numbers, on every machine: no clock, no fonts measured, fixed decimals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

#: Colours that stay apart for most eyes and in grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#000000")
#: Widths that let a curve show under another one that covers it.
WIDTHS = (7, 2, 6, 2, 5, 2, 4, 2)
MARKS = ("circle", "square", "up", "diamond", "down", "circle", "square", "up")
_STYLE = "font-family='DejaVu Sans, Verdana, sans-serif' font-size='12'"


@dataclass(frozen=True)
class Series:
    """One curve: points are `(x, y)`; those that a logarithmic axis cannot show are left out."""

    name: str
    points: Sequence[tuple[float, float]]


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _power(value: float) -> str:
    if 0.001 <= value < 1e6:
        return f"{value:,.0f}" if value >= 1 else f"{value:g}"
    return f"1e{round(math.log10(value))}"


def _bounds(values: Sequence[float]) -> tuple[int, int]:
    # A point a little beyond a power of ten does not open another decade.
    low = math.floor(math.log10(min(values)) + 0.02)
    high = math.ceil(math.log10(max(values)) - 0.02)
    return low, max(high, low + 1)


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    shapes = {
        "square": [(-4, -4), (4, -4), (4, 4), (-4, 4)],
        "up": [(0, -5), (5, 4), (-5, 4)],
        "down": [(0, 5), (5, -4), (-5, -4)],
        "diamond": [(0, -5), (5, 0), (0, 5), (-5, 0)],
    }
    if kind not in shapes:
        return f"<circle cx='{_number(x)}' cy='{_number(y)}' r='4' fill='{colour}'/>"
    corners = " ".join(f"{_number(x + dx)},{_number(y + dy)}" for dx, dy in shapes[kind])
    return f"<polygon points='{corners}' fill='{colour}'/>"


def frame(width: int, height: int, title: str, body: Sequence[str]) -> str:
    """A whole SVG: white ground, the title, then the body's elements."""
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
            f"viewBox='0 0 {width} {height}' role='img' {_STYLE}>",
            f"<title>{escape(title)}</title>",
            f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
            f"<text x='16' y='24' font-size='15'>{escape(title)}</text>",
            *body,
            "</svg>",
            "",
        ]
    )


def curves(series: Sequence[Series], title: str, x_label: str, y_label: str) -> str:
    """Curves on two logarithmic axes, a legend to the right.

    Points with a value of zero or less have no place there and are left out; a series without points is named so.
    """
    width, height, left, right, top, bottom = 860, 460, 90, 240, 48, 56
    shown = [(s, [(x, y) for x, y in s.points if x > 0 and y > 0]) for s in series]
    points = [point for _, kept in shown for point in kept]
    if not points:
        return frame(
            width, height, title, ["<text x='16' y='60'>nothing to show: every value is zero</text>"]
        )
    x_low, x_high = _bounds([x for x, _ in points])
    y_low, y_high = _bounds([y for _, y in points])
    across, down = width - left - right, height - top - bottom

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (math.log10(x) - x_low) / (x_high - x_low) * across,
            top + down - (math.log10(y) - y_low) / (y_high - y_low) * down,
        )

    body = []
    for power in range(x_low, x_high + 1):
        at, _ = place(10.0**power, 10.0**y_low)
        body.append(f"<path d='M{_number(at)} {top}V{top + down}' stroke='#dddddd'/>")
        body.append(
            f"<text x='{_number(at)}' y='{top + down + 18}' text-anchor='middle'>{_power(10.0**power)}</text>"
        )
    step = max(1, (y_high - y_low + 7) // 8)
    for power in range(y_low, y_high + 1, step):
        _, at = place(10.0**x_low, 10.0**power)
        body.append(f"<path d='M{left} {_number(at)}H{left + across}' stroke='#dddddd'/>")
        body.append(
            f"<text x='{left - 8}' y='{_number(at + 4)}' text-anchor='end'>{_power(10.0**power)}</text>"
        )
    body.append(f"<rect x='{left}' y='{top}' width='{across}' height='{down}' fill='none' stroke='#555555'/>")
    body.append(
        f"<text x='{left + across // 2}' y='{height - 14}' text-anchor='middle'>{escape(x_label)}</text>"
    )
    middle = top + down // 2
    body.append(
        f"<text x='20' y='{middle}' text-anchor='middle' transform='rotate(-90 20 "
        f"{middle})'>{escape(y_label)}</text>"
    )
    for i, (one, kept) in enumerate(shown):
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
        placed = [place(x, y) for x, y in kept]
        if len(placed) > 1:
            path = " ".join(f"{_number(x)},{_number(y)}" for x, y in placed)
            body.append(
                f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{WIDTHS[i % len(WIDTHS)]}'/>"
            )
        body += [_mark(mark, x, y, colour) for x, y in placed]
        row = top + 10 + i * 20
        body.append(_mark(mark, left + across + 20, row, colour))
        name = one.name if kept else f"{one.name} (nothing)"
        body.append(f"<text x='{left + across + 32}' y='{row + 4}'>{escape(name)}</text>")
    return frame(width, height, title, body)


def bars(names: Sequence[str], values: Sequence[float], title: str, label: str) -> str:
    """Horizontal bars on a logarithmic axis, the value beside each; zero has no bar."""
    width, left, right, top, step = 860, 170, 130, 64, 30
    height = top + step * max(1, len(names)) + 20
    positive = [value for value in values if value > 0]
    body = [f"<text x='16' y='46' fill='#555555'>{escape(label)}, logarithmic</text>"]
    low, high = _bounds(positive) if positive else (0, 1)
    low = min(low, high - 1) - 1
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        y = top + i * step
        share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        size = share * (width - left - right)
        body.append(f"<text x='{left - 8}' y='{y + 15}' text-anchor='end'>{escape(name)}</text>")
        body.append(
            f"<rect x='{left}' y='{y}' width='{_number(size)}' height='20' "
            f"fill='{COLOURS[i % len(COLOURS)]}'/>"
        )
        body.append(f"<text x='{_number(left + size + 8)}' y='{y + 15}'>{value:,.0f}</text>")
    return frame(width, height, title, body)
