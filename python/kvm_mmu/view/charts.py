"""Charts drawn with matplotlib (the extra `plot`): curves on logarithmic axes, and bars.

Owns what a curve looks like: `look` gives a number one colour and one marker that no other has, so that a plan looks
the same in every chart. Curves that cannot be told apart are one line with one entry in the legend that names them
all. A picture is the same text for the same numbers: no date, no settings of the user's, no ids by chance.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.view.svg import drawable

#: Colours that stay apart for most eyes, and a marker beside each.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#8c564b", "#000000", "#7f3c8d", "#999999", "#8a9a00", "#a50026", "#17becf", "#c5b000"),
)
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8")
LINES = ("-", "--", ":", "-.")
#: Curves nearer than this share of their height at every point are drawn as one.
NEAR = 0.01
#: How many times the smallest value the largest is where an axis ends beside them, not at powers of ten.
_WIDE = 6
#: Bars of a chart, and characters of a line of a name.
MAX_BARS, MAX_NAME = 60, 36
#: What is fixed beside matplotlib's own defaults.
_SETTINGS = {"svg.hashsalt": "kvm-mmu", "svg.fonttype": "none", "font.size": 10.0}


@dataclass(frozen=True)
class Look:
    """What a curve or a bar looks like."""

    colour: str
    mark: str
    line: str = "-"


@dataclass(frozen=True)
class Series:
    """One curve: points are `(x, y)`; those that a logarithmic axis cannot show are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    look: Look


@dataclass(frozen=True)
class Bar:
    """One bar; a value of zero has none, only its number."""

    name: str
    value: float
    look: Look


def look(number: int, line: int = 0) -> Look:
    """Choose a colour and a marker; two numbers below 144 never share both.

    Args:
        number: the number of a plan, from 0.
        line: the number of what else tells its curves apart, from 0.

    Returns:
        The look.
    """
    lap = number // len(COLOURS)
    mark = MARKS[(number + lap) % len(MARKS)]
    return Look(COLOURS[number % len(COLOURS)], mark, LINES[line % len(LINES)])


def missing() -> str | None:
    """Say what charts lack here.

    Returns:
        A sentence; None where matplotlib is installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        what = "it is not installed" if error.name == "matplotlib" else f"importing it failed: {error}"
        return f"charts need matplotlib ({what}): pip install 'kvm_mmu[plot]'"
    return None


def to_svg(draw: Callable[[Any], object], title: str, rows: int = 0) -> str:
    """Draw a picture of its own.

    Args:
        draw: draws into the axes that it is given.
        title: the picture's name for those who cannot see it.
        rows: bars that it has, for its height.

    Returns:
        The picture as SVG text.

    Raises:
        UsageError: matplotlib is not installed.
    """
    lacks = missing()
    if lacks is not None:
        raise UsageError(lacks)
    from matplotlib import style

    text = io.StringIO()
    with style.context(["default", _SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # its reader's fonts may have it
        ax = _axes(max(4.6, 1.4 + 0.3 * min(rows, MAX_BARS + 1)))
        draw(ax)
        about = {"Date": None, "Creator": None, "Title": drawable(title)}
        ax.figure.savefig(text, format="svg", metadata=about)
    return text.getvalue()


def axes() -> Any:
    """Make axes of a figure of their own.

    Returns:
        The axes.

    Raises:
        UsageError: matplotlib is not installed.
    """
    lacks = missing()
    if lacks is not None:
        raise UsageError(lacks)
    return _axes(4.6)


def _axes(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(8.6, height), layout="constrained").subplots()


def draw_curves(ax: Any, series: Sequence[Series], title: str, x_label: str, y_label: str) -> None:
    """Draw curves on two logarithmic axes, with a legend beside them.

    Args:
        ax: the axes to draw into.
        series: the curves; one without a point that such axes can show is named so.
        title: what stands above.
        x_label: what stands below.
        y_label: what stands to the left.
    """
    lines, names = [], []
    shown: list[tuple[float, float]] = []
    for group in together(series):
        points = positive(group[0])
        shown += points
        one = group[0].look
        (line,) = ax.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=one.colour,
            marker=one.mark,
            linestyle=one.line,
            label="_",
        )
        lines.append(line)
        names.append(_entry(group))
    ax.set_title(_words(title), loc="left")
    ax.set_xlabel(_words(x_label))
    ax.set_ylabel(_words(y_label))
    if shown:
        _logarithmic(ax.xaxis, [x for x, _ in shown])
        _logarithmic(ax.yaxis, [y for _, y in shown])
        ax.grid(True, color="#dddddd", linewidth=0.8)
        ax.set_axisbelow(True)
    else:
        _nothing(ax)
    if names:
        # Named after it is made: a legend leaves out what begins with an underscore.
        legend = ax.legend(
            lines, ["."] * len(lines), loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False
        )
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)


def draw_bars(ax: Any, bars: Sequence[Bar], title: str, label: str) -> None:
    """Draw horizontal bars on a logarithmic axis, the first on top, the value beside each.

    Args:
        ax: the axes to draw into.
        bars: the bars; of more than `MAX_BARS` the rest is counted, not shown.
        title: what stands above.
        label: what is measured.
    """
    kept = list(bars[:MAX_BARS])
    ax.set_title(_words(title), loc="left")
    ax.set_xlabel(_words(label))
    values = [bar.value for bar in kept if bar.value > 0]
    if not values:
        _nothing(ax)
        return
    low, high = _decades(values)
    least = 10.0 ** (low - 1)
    widths = [max(0.0, bar.value - least) for bar in kept]
    ax.barh(range(len(kept)), widths, left=least, color=[bar.look.colour for bar in kept])
    ax.set_yticks(range(len(kept)), [_words(_cut(bar.name)) for bar in kept])
    _logarithmic(ax.xaxis, values)
    ax.set_ylim(len(kept) - 0.4, -0.6)
    ax.set_xlim(least, 10.0 ** (high + 0.6))
    for at, bar in enumerate(kept):
        ax.plot([max(bar.value, least)], [at], bar.look.mark, color=bar.look.colour, markeredgecolor="white")
        ax.annotate(
            f"{bar.value:,.0f}" if bar.value >= 1 or not bar.value else f"{bar.value:.3g}",
            (max(bar.value, least), at),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    if len(bars) > len(kept):
        ax.set_xlabel(_words(f"{label} (and {len(bars) - len(kept):,} rows more)"))


def together(series: Sequence[Series]) -> list[list[Series]]:
    """Put curves that cannot be told apart into groups, in the order of their first.

    Args:
        series: the curves.

    Returns:
        The groups; those that no such axes can show are each alone.
    """
    groups: list[list[Series]] = []
    for one in series:
        points = positive(one)
        found = next((group for group in groups if points and _is_near(positive(group[0]), points)), None)
        if found is None:
            groups.append([one])
        else:
            found.append(one)
    return groups


def positive(one: Series) -> list[tuple[float, float]]:
    """The points that logarithmic axes can show."""
    return [(x, y) for x, y in one.points if x > 0 and y > 0]


def _is_near(these: Sequence[tuple[float, float]], those: Sequence[tuple[float, float]]) -> bool:
    return len(these) == len(those) and all(
        x == also_x and abs(y - also_y) <= NEAR * max(y, also_y)
        for (x, y), (also_x, also_y) in zip(these, those, strict=True)
    )


def _entry(group: Sequence[Series]) -> str:
    names = ", ".join(one.name for one in group)
    if any(positive(one) != positive(group[0]) for one in group):
        names += f" (within {NEAR:.0%})"
    if not positive(group[0]):
        names += " (nothing)"
    lines = textwrap.wrap(drawable(names), MAX_NAME, break_on_hyphens=False, max_lines=6)
    return "\n".join(map(_plain, lines))


def _cut(name: str) -> str:
    name = drawable(name)
    return name if len(name) <= 2 * MAX_NAME else name[: 2 * MAX_NAME - 3] + "..."


def _words(text: str) -> str:
    return _plain(drawable(text))


def _plain(text: str) -> str:
    # A pair of dollar signs would begin a formula.
    return text.replace("$", r"\$")


def _nothing(ax: Any) -> None:
    ax.text(0.5, 0.5, "nothing to show: every value is zero", ha="center", transform=ax.transAxes)
    ax.set_xticks([])
    ax.set_yticks([])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    # A point a little beyond a power of ten does not open another decade.
    low = math.floor(math.log10(min(values)) + 0.02)
    high = math.ceil(math.log10(max(values)) - 0.02)
    return low, max(high, low + 1)


def _logarithmic(axis: Any, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    name = axis.axis_name
    getattr(axis.axes, f"set_{name}scale")("log")
    low, high = _decades(values)
    first, last = 10.0**low / 1.06, 10.0**high * 1.06
    if max(values) >= _WIDE * min(
        values
    ):  # wide enough for a labelled tick or two between the first and the last value
        first, last = min(values) / 1.25, max(values) * 1.25
    getattr(axis.axes, f"set_{name}lim")(first, last)
    if last < 100 * first:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _at: _power(value)))
    axis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    if 0.001 <= value < 1e6:
        return f"{value:,.0f}" if value >= 1 else f"{value:g}"
    return f"1e{round(math.log10(value))}"
