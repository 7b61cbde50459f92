"""Percentiles of samples by nearest rank: each is one of the samples, never a value between two."""

from __future__ import annotations

from collections.abc import Sequence

#: Which are told, by the end of a column's name; the last is the largest sample.
RANKS = {"p50": 500, "p99": 990, "p999": 999, "max": 1000}


def percentiles(samples: Sequence[float]) -> dict[str, float | None]:
    """Tell percentiles of some samples.

    Args:
        samples: in any order.

    Returns:
        Each name of `RANKS`, with the smallest sample that so many thousandths are not above; None without samples.
    """
    ordered = sorted(samples)
    # Whole numbers: the rank of 99 % of 100 samples is 99, whatever 0.99 is in binary.
    return {
        name: ordered[-(-rank * len(ordered) // 1000) - 1] if ordered else None
        for name, rank in RANKS.items()
    }
