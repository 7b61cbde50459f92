"""Two commits of the core side by side in one run: their times and the ratio (`make bench AGAINST=REF`).

Builds the other commit's own benches in a worktree with a target directory of its own, then runs each row of both in
turn, pinned to one processor, as often as there are pairs. A ratio is that of a pair, ours over the other; shown are
medians, and the least and most of the ratios. A case that only one of the two has is left out. It reports and never
fails on a slow row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TARGET = ROOT / "target"
Case = tuple[str, str]


def git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"against: git {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def build(tree: Path, target: Path) -> Path:
    """Build the benches of a tree into a directory of their own; the program."""
    manifest = ["--manifest-path", str(tree / "benches" / "Cargo.toml"), "--target-dir", str(target)]
    command = ["cargo", "build", "--quiet", "--release", *manifest, "--bin", "core-speed"]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"against: {tree} does not build")
    return target / "release" / "core-speed"


def other_commit(ref: str) -> Path:
    """Check the other commit out beside the objects; its program."""
    commit = git("rev-parse", "--verify", f"{ref}^{{commit}}")
    tree = TARGET / "against" / commit[:12]
    if not tree.exists():
        git("worktree", "prune")
        git("worktree", "add", "--quiet", "--detach", str(tree), commit)
    return build(tree, TARGET / "against" / f"{commit[:12]}-target")


def once(program: Path, part: str) -> dict[Case, float]:
    """Run the cases whose name holds the part, each once; (case, kernel) -> nanoseconds or bytes."""
    done = subprocess.run([program, "--once", part], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {(one["case"], one["kernel"]): one.get("ns", one.get("bytes")) for one in found}


def rows() -> list[str]:
    """The rows of the table in its order, and the bytes a page."""
    figures = json.loads((HERE / "kernel_speed.json").read_text(encoding="utf-8"))
    return [f"{row['row']}/" for row in figures["rows"] if row["row"] != "zap-full-spte"] + [
        "bytes-per-page/"
    ]


def compare(
    other: Path, ours: Path, parts: list[str], pairs: int, minutes: float = math.inf
) -> list[dict[str, Any]]:
    """Run both in turn, row after row, pair after pair, and print a line a case.

    No pair is begun when the last one would not have fitted into so many minutes; a row has one pair at least.
    """
    seen: dict[Case, list[tuple[float, float]]] = {}
    begun = time.monotonic()
    longest = 0.0
    for pair in range(pairs):
        before = time.monotonic()
        if pair and before - begun + longest > minutes * 60:
            break
        # Turn about: neither is always the first.
        programs = (other, ours) if pair % 2 == 0 else (ours, other)
        for part in parts:
            runs = {program: once(program, part) for program in programs}
            for case in runs[ours]:
                if case in runs[other]:
                    seen.setdefault(case, []).append((runs[other][case], runs[ours][case]))
        longest = max(longest, time.monotonic() - before)
        print(f"pair {pair + 1} took {time.monotonic() - before:.0f} s", file=sys.stderr, flush=True)
    report = []
    print(f"{'':<34}{'':>10} {'other':>10} {'ours':>10}   ours / other (least-most), pairs")
    for (name, kernel), times in seen.items():
        ratios = [mine / theirs for theirs, mine in times if theirs]
        if not ratios:
            continue
        theirs, mine = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(ratios)
        spread = f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(
            f"{name:<34}{kernel:>10} {theirs:>10.4g} {mine:>10.4g}   {spread:<22} {len(ratios)}", flush=True
        )
        report.append(
            {
                "case": name,
                "kernel": kernel,
                "other": theirs,
                "ours": mine,
                "ratio": ratio,
                "ratios": ratios,
            }
        )
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ref", help="the other commit, or a built core-speed of it")
    parser.add_argument("part", nargs="*", help="only cases whose row/case name contains one of these")
    parser.add_argument("--pairs", type=int, default=5, help="how often each is run (default: 5)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no pair that would not fit into so many"
    )
    parser.add_argument("--processor", type=int, default=max(os.sched_getaffinity(0)), help="which to run on")
    parser.add_argument("--ours", type=Path, help="a built core-speed instead of this tree's")
    parser.add_argument("-o", type=Path, help="where a JSON report goes")
    args = parser.parse_intermixed_args()

    is_program = Path(args.ref).is_file()
    other = Path(args.ref).resolve() if is_program else other_commit(args.ref)
    ours = args.ours.resolve() if args.ours else build(ROOT, TARGET / "benches")
    load = round(os.getloadavg()[0], 2)
    os.sched_setaffinity(0, {args.processor})
    report = compare(other, ours, args.part or rows(), args.pairs, args.minutes)
    if args.o:
        args.o.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "schema": "kvm_mmu-against/1",
            "other": args.ref,
            "ours": git("rev-parse", "HEAD"),
            "load_at_start": load,
            "cases": report,
        }
        args.o.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
