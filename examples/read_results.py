"""Results in polars and pandas: a comparison as data frames, and the files of `kvm-mmu compare -o DIR` read back.

python examples/read_results.py [--tables 500]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import kvm_mmu as km
from kvm_mmu.scenario.workload import mmio_mix


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Compare, write, read back; returns the frames by name (those whose library is installed)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=500)
    tables = parser.parse_args(argv).tables

    mixes = [mmio_mix(tables, share, "even", kernel="v5.0-seed") for share in (0.01, 0.1)]
    found = km.compare(mixes, ["seed", "merged", "indexed", "zap-all"], at="wrap")
    # Without any library: a dict of numpy arrays.
    print({name: array.dtype.name for name, array in list(found.columns.items())[:8]})
    frames: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        csv, whole, *_ = found.write(folder)
        print(f"{len(json.loads(whole.read_text())['rows'])} rows in {whole.name}")
        _polars(found, csv, frames)
        _pandas(found, csv, frames)
    return frames


def _polars(found: object, csv: Path, frames: dict[str, object]) -> None:
    try:
        import polars
    except ImportError:
        print("polars is not installed")
        return
    frame = polars.read_csv(csv)
    worst = frame.group_by("input").agg(
        polars.col("plan").sort_by("longest_hold").last().alias("holds_longest")
    )
    print(worst.sort("input"))
    frames["polars"] = frame
    try:
        frames["arrow"] = polars.DataFrame(found)  # through the Arrow stream, where pyarrow is installed
    except ImportError:
        print("pyarrow is not installed")


def _pandas(found: object, csv: Path, frames: dict[str, object]) -> None:
    try:
        import pandas
    except ImportError:
        print("pandas is not installed")
        return
    frame = pandas.read_csv(csv)
    print(frame.pivot(index="plan", columns="input", values="nodes_visited"))
    frames["pandas"] = frame


if __name__ == "__main__":
    main()
