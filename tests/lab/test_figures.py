"""Published figures: counts match, verdicts agree, what is only near is near, and what is not is said."""

from __future__ import annotations

import json

import pytest
from kvm_mmu.cli import main
from kvm_mmu.errors import UsageError
from kvm_mmu.studies.figures import Figure, Point, figures


def points(number: int) -> dict[str, Point]:
    (found,) = figures([number])
    return {point.what: point for point in found.points}


def test_the_page_hash() -> None:
    found = points(1)
    assert int(str(found.pop("a hash of ours, by switch").ours)) < 29
    for what, point in found.items():
        assert isinstance(point.ours, int) and isinstance(point.published, int)
        assert abs(point.ours - point.published) <= 0.03 * point.published, what


@pytest.mark.soak
def test_quadratic_visits() -> None:
    for what, point in points(2).items():
        assert isinstance(point.ours, int | float) and isinstance(point.published, int | float)
        assert abs(point.ours - point.published) <= 0.05 * point.published, what


@pytest.mark.parametrize("number", [6, 7, 8])
def test_verdicts_agree(number: int) -> None:
    for what, point in points(number).items():
        assert point.error in ("agrees", "+0.0 %", "0 %", ""), what


def test_dirty_logging_counts_match() -> None:
    for what, point in points(9).items():
        assert point.ours == point.published, what


def test_memory_and_lookups_are_shown_beside() -> None:
    assert len(points(13)) == 4
    found = points(11)
    assert int(str(found["slots from which the binary search looks at fewer"].ours)) < 13


def test_modelled_times_say_so() -> None:
    for figure in figures([3, 4, 5]):
        assert "kernel-c-5.0" in figure.gap
    assert points(4)["everything over MMIO only: at least 20"].error == "agrees"
    assert points(5)["faster"].error == "agrees"


def test_errors() -> None:
    assert Point("x", 100, 90, "d").error == "-10.0 %"
    assert Point("x", 0, 1, "d").error == "not zero"
    assert Point("x", "yes", "no", "d").error == "differs"
    assert "gap" not in Figure(1, "t", "s", "where", [Point("x", 1, 1, "d")]).to_text()
    with pytest.raises(UsageError, match="figure 99"):
        list(figures([99]))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery", "figures", "8", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["schema"] == "kvm-mmu/figures/1" and read["figures"][0]["figure"] == 8
    assert main(["gallery", "figures", "8"]) == 0
    assert "262,144" in capsys.readouterr().out
    assert main(["gallery", "figures", "x"]) == 2
    assert main(["gallery", "figures", "--markdown"]) == 2
