"""The whole space of zap plans over one workload: every plan there is, into one data frame and one plot.

    python examples/sweep_plan_space.py [--tables 300] [--share 0.1] [--contend 2] [--add 1] [-o DIR]

With a lock that is wanted (--contend: every N-th offer is taken) by a vCPU that then builds tables (--add) plans part
that look alike when nobody disturbs them, and some never get anywhere: their outcome is `livelock`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import kvm_mmu as km
from kvm_mmu.lab.comparison import Comparison
from kvm_mmu.scenario.workload import mmio_mix


def sweep(tables: int, share: float, contend: int, added: int) -> Comparison:
    """Every plan that zaps the MMIO-caching pages at a wrap, and what it costs."""
    workload = mmio_mix(tables, share, "random", kernel="v5.0-seed")
    return km.compare(workload, km.ZapPlan.space(), at="wrap", contend=contend, added=added)


def main(argv: list[str] | None = None) -> Comparison:
    """Sweep, summarise, write; returns the `Comparison`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=300)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--contend", type=int, default=2)
    parser.add_argument("--add", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args(argv)

    found = sweep(args.tables, args.share, args.contend, args.add)
    outcomes: dict[str, int] = {}
    for outcome in found.column("outcome"):
        outcomes[outcome.split(":")[0]] = outcomes.get(outcome.split(":")[0], 0) + 1
    print(f"{len(found)} plans: " + ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())))
    done = sorted(
        (row for row in found.rows if row["outcome"] == "done"), key=lambda row: row["longest_hold"]
    )
    for row in (*done[:5], *done[-3:]):
        print(
            f"{row['longest_hold']:>9,} work units  {row['tables_rebuilt']:>5,} tables rebuilt  {row['plan']}"
        )
    try:
        frame = found.to_polars()
        print(frame.group_by("outcome").len().sort("outcome"))
    except ImportError:
        print("polars is not installed: found.columns is a dict of numpy arrays")
    if args.out:
        paths = found.write(args.out, "sweep")
        paths += scatter(found, args.out)
        print("written: " + ", ".join(str(path) for path in paths))
    return found


def scatter(found: Comparison, folder: Path) -> list[Path]:
    """Lock hold against damage, one point a plan, with matplotlib where it is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=(7, 5))
    ax = figure.subplots()
    rows = [row for row in found.rows if row["outcome"] == "done"]
    ax.scatter(
        [row["tables_rebuilt"] for row in rows], [row["longest_hold"] for row in rows], s=12, alpha=0.5
    )
    ax.set_xscale("symlog")
    ax.set_yscale("log")
    ax.set_xlabel("tables rebuilt afterwards")
    ax.set_ylabel("longest lock hold, work units")
    path = folder / "sweep-scatter.png"
    figure.savefig(path)
    return [path]


if __name__ == "__main__":
    main()
