"""How a cost grows with the size: the exponent of a power law, by least squares on logarithms, with its interval.

The interval is the 95 % confidence interval of the slope by Student's t; with two points there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; 1.96 beyond.
_T95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Fit:
    """`y = factor * x ** exponent`; `low` and `high` bound the exponent (None with two points); `points` were used."""

    exponent: float
    factor: float
    low: float | None
    high: float | None
    r2: float
    points: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"n^{self.exponent:.2f} (two points, no interval)"
        return f"n^{self.exponent:.2f} (95 %: {self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def fit_power(xs: Sequence[float], ys: Sequence[float]) -> Fit | None:
    """Fit a power law; points with a zero have no logarithm and are left out.

    Returns:
        None when fewer than two different sizes remain.
    """
    pairs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if x > 0 and y > 0]
    count = len(pairs)
    if count < 2:
        return None
    mean_x = math.fsum(x for x, _ in pairs) / count
    mean_y = math.fsum(y for _, y in pairs) / count
    sxx = math.fsum((x - mean_x) ** 2 for x, _ in pairs)
    if sxx < 1e-12:
        return None
    sxy = math.fsum((x - mean_x) * (y - mean_y) for x, y in pairs)
    syy = math.fsum((y - mean_y) ** 2 for _, y in pairs)
    slope = sxy / sxx
    rest = max(0.0, syy - slope * sxy)
    low = high = None
    if count > 2:
        spread = math.sqrt(rest / (count - 2) / sxx)
        t = _T95[count - 3] if count - 2 <= len(_T95) else 1.96
        low, high = slope - t * spread, slope + t * spread
    r2 = 1.0 if syy < 1e-18 else 1.0 - rest / syy
    return Fit(slope, math.exp(mean_y - slope * mean_x), low, high, r2, count)
