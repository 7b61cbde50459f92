"""Charts: well formed whatever the names, the same text each time, one look a plan, one line for what coincides."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import kvm_mmu as km
import pytest
from kvm_mmu.cli import main
from kvm_mmu.errors import UsageError
from kvm_mmu.lab.comparison import Comparison
from kvm_mmu.scenario.workload import mmio_mix
from kvm_mmu.view import charts
from kvm_mmu.view.charts import Bar, Series, draw_bars, draw_curves, look, together

HOSTILE = "<s> & \x1b[31m\0\r\n$x$ _\ufffe\ud800"


def curves(*series: Series) -> str:
    return charts.to_svg(lambda ax: draw_curves(ax, series, "a & b \x1b", "n", "visits"), "a & b \x1b")


def bars(*names_and_values: tuple[str, float]) -> str:
    some = [Bar(name, value, look(at)) for at, (name, value) in enumerate(names_and_values)]
    return charts.to_svg(lambda ax: draw_bars(ax, some, "bars <b>", "units"), "bars", len(some))


def words(picture: str) -> str:
    return " ".join("".join(ElementTree.fromstring(picture).itertext()).split())


@pytest.mark.parametrize(
    "draw",
    [
        lambda: curves(
            Series(HOSTILE, [(1, 1), (1000, 1e6)], look(0)),
            Series("_private", [(1, 2), (1000, 3)], look(1)),
            Series("empty", [(5, 0)], look(2)),
        ),
        lambda: curves(),
        lambda: bars((HOSTILE, 1e6), ("_private", 3), ("empty", 0)),
        lambda: bars(),
        lambda: bars(*[(f"plan {at}", at) for at in range(100)]),
    ],
)
def test_svg_is_well_formed_and_the_same_each_time(draw: Any) -> None:
    picture = draw()
    said = words(picture)
    assert ElementTree.fromstring(picture).tag.endswith("svg") and picture == draw()
    assert "NaN" not in picture and "inf" not in picture and "date" not in picture
    if "empty" in said:
        assert r"<s> & \x1b[31m\x00\x0d\x0a$x$ _\ufffe\ud800" in said
        assert "_private" in said
    assert "plan 59" not in said or ("plan 60" not in said and "and 40 rows more" in said)


def test_what_coincides_is_one_line_that_names_all() -> None:
    some = [
        Series("a", [(1, 100), (10, 1000)], look(0)),
        Series("b", [(1, 100), (10, 1000)], look(1)),
        Series("near", [(1, 100), (10, 1001)], look(2)),
        Series("c", [(1, 100), (10, 1200)], look(3)),
        Series("no point", [(1, 0)], look(4)),
        Series("none either", [(1, 0)], look(5)),
        Series("short", [(1, 100)], look(6)),
    ]
    groups = [[one.name for one in group] for group in together(some)]
    assert groups == [["a", "b", "near"], ["c"], ["no point"], ["none either"], ["short"]]
    said = words(curves(*some))
    assert "a, b, near (within 1%)" in said and "no point (nothing)" in said
    assert "a, b c" in words(curves(some[0], some[1], some[3]))


def test_a_plan_has_one_look_in_every_picture() -> None:
    looks = [look(number) for number in range(144)]
    assert len({(one.colour, one.mark) for one in looks}) == 144
    assert len({one.colour for one in looks[: len(km.plans)]}) == len(km.plans)
    assert len({one.mark for one in looks[: len(km.plans)]}) == len(km.plans)
    own = "walk=tail,only=mmio_cached,restart=never"
    few = km.compare(mmio_mix(20, 0.2), ["indexed", own], at="wrap", kernel=None)
    many = km.compare(mmio_mix(30, 0.2), [*km.plans, own], at="end")
    for plan in ("indexed", own):
        shown = {found._look(next(row for row in found.rows if row["plan"] == plan)) for found in (few, many)}
        assert len(shown) == 1
    axes = [found.plot(of="nodes_visited") for found in (few, many)]
    at_few, at_many = ([bar.get_facecolor() for bar in ax.patches] for ax in axes)
    assert at_few[0] == at_many[list(km.plans).index("indexed")] and len(set(at_many)) == len(at_many)


def test_kernels_are_told_apart_by_the_line(data: Path) -> None:
    trace = data / "traces" / "6.1" / "npt1tdp0_basic_long" / "trace.txt.xz"
    found = km.compare(trace, ["merged"], at="wrap", scale=[300, 900], kernel=["v6.1", "v5.2"])
    lines = found.plot(of="pages_zapped").get_lines()
    assert {line.get_color() for line in lines} == {charts.COLOURS[list(km.plans).index("merged")]}
    assert [found._look(row).line for row in found.rows] == ["-", "-", "--", "--"]


def test_without_matplotlib_there_is_no_picture_and_a_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: Comparison = km.compare(mmio_mix(20, 0.2), ["indexed"], at="wrap")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (found.to_svg, found.plot):
        with pytest.raises(UsageError, match=r"charts need matplotlib .*: pip install 'kvm_mmu\[plot\]'"):
            draw()
    assert [path.name for path in found.write(tmp_path / "a")] == [
        "compare.csv",
        "compare.json",
        "report.html",
    ]
    scenario = str(data / "vectors" / "seed" / "mmio_stale_generation.npt.jsonl.xz")
    words = ["compare", scenario, "--plan", "merged", "-o", str(tmp_path / "b")]
    assert main(words) == 0
    assert "no picture: charts need matplotlib" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert "no picture: charts need matplotlib" in capsys.readouterr().err
