"""The fit of a power law: exact laws come back exactly, the interval holds the truth, nothing to fit is None."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvm_mmu.lab.fit import fit_power


@given(st.floats(-2, 3), st.floats(0.1, 1000))
def test_an_exact_law_comes_back(exponent: float, factor: float) -> None:
    xs = [10.0, 100.0, 1000.0, 5000.0]
    fit = fit_power(xs, [factor * x**exponent for x in xs])
    assert fit is not None and fit.low is not None and fit.high is not None
    assert fit.exponent == pytest.approx(exponent, abs=1e-9)
    assert fit.factor == pytest.approx(factor, rel=1e-6)
    assert fit.low <= fit.exponent + 1e-6 and fit.high >= fit.exponent - 1e-6


def test_the_interval_of_three_points_is_students() -> None:
    # Slope and standard error by hand: logarithms 0, 1, 2 against 0, 1.1, 1.9.
    xs = [1.0, 10.0, 100.0]
    ys = [10**0.0, 10**1.1, 10**1.9]
    fit = fit_power(xs, ys)
    assert fit is not None and fit.low is not None and fit.high is not None
    assert fit.exponent == pytest.approx(0.95)
    residuals = [0 - (1 - 0.95), 1.1 - 1.0, 1.9 - 1.95]
    error = math.sqrt(sum(r * r for r in residuals) / 1 / 2)
    assert fit.high - fit.exponent == pytest.approx(12.7062 * error, rel=1e-6)
    assert fit.exponent - fit.low == pytest.approx(fit.high - fit.exponent)


def test_two_points_have_no_interval() -> None:
    fit = fit_power([10, 1000], [10, 100_000])
    assert fit is not None and fit.low is None and fit.high is None
    assert fit.exponent == pytest.approx(2.0)
    assert "no interval" in str(fit)


@pytest.mark.parametrize(
    ("xs", "ys"), [([], []), ([10], [10]), ([10, 10], [1, 2]), ([1, 10, 100], [0, 0, 5])]
)
def test_nothing_to_fit(xs: list[float], ys: list[float]) -> None:
    assert fit_power(xs, ys) is None
