"""Write the measured part of docs/speed.md from the reports of one run.

    python benches/page.py --measure REF [--minutes 7]     # runs the two below, then writes
    python benches/run.py                                  # bench-out/speed.json
    python benches/against.py REF -o bench-out/against.json
    python benches/page.py [--speed FILE] [--against FILE]

A machine whose load was above half a processor when a run began is said to have been busy.
What stands outside the two marks of the page is kept as it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "speed.md"
BUSY = 0.5
BEGIN, END = "<!-- measured: benches/page.py -->", "<!-- measured: end -->"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def beside(values: dict[str, Any], show: Any) -> str:
    """What each kernel has, v5.0 | v5.2 (| seed)."""
    return " | ".join(show(values[kernel]) for kernel in run.KERNELS if kernel in values) or "-"


def core_rows(report: dict[str, Any]) -> list[list[str]]:
    rows, before = [], ""
    for one in report["rows"]:
        ours, theirs = one["core_ns"], one["kernel_c_ns"]
        ratios = {k: run.ratio(ours[k], theirs[k]) for k in ours if k in theirs}
        counted = next((run.counts(one["core"][k]) for k in run.KERNELS if k in one["core"]), "")
        slow = run.ns(one["reference_ns"]) if one["reference_ns"] is not None else ""
        name = "" if one["name"] == before else one["name"]
        before = one["name"]
        kernel_c, core = beside(theirs, run.ns), beside(ours, run.ns)
        rows.append([name, one["case"], kernel_c, core, beside(ratios, str), slow, counted])
    return rows


def busy(load: float) -> list[str]:
    """What to say of a machine that had something else to do."""
    if load <= BUSY:
        return []
    said = f"The machine was busy with other work (load {load} when the run began): read ratios, not times."
    return [f"**{said}**", ""]


def waits(report: dict[str, Any]) -> list[str]:
    """The rows that a dependent read limits, each once, and how many such reads an operation makes."""
    rows = {one["row"]: one["waits"] for one in report["rows"] if one.get("waits")}
    if not rows:
        return []
    reads = ", ".join(f"{size} {run.ns(spent)}" for size, spent in report["random_read_ns"].items())
    lines = [f"One dependent random read of a buffer, in the same run: {reads}. Rows that it limits:", ""]
    return [*lines, *table(["Row", "Dependent reads"], [list(row) for row in rows.items()]), ""]


def speed_lines(report: dict[str, Any]) -> list[str]:
    about = report["machine"]
    reads = ", ".join(f"{size} {run.ns(spent)}" for size, spent in report["random_read_ns"].items())
    memory = ", ".join(f"{case} {count:,}" for case, count in report["bytes_per_page"].items() if count)
    lines = [
        *busy(about["load_at_start"]),
        f"Run of {report['date']}, commit {report['commit'][:12]}: {about['cpu']}, {about['cores']} processors, "
        f"{about['memory_gib']} GiB, {about['rustc']}, Python {about['python']}; load {about['load_at_start']} at its "
        f"start. One dependent random read then: {reads}.",
        "",
        *table(
            ["Row", "Case", "Kernel's C", "Core", "Core / C", "Reference", "Counted, an operation"],
            core_rows(report),
        ),
        "",
        *waits(report),
        "Rows that the kernel's figures do not have:",
        "",
        *table(
            ["Row", "Case", "Kernel", "Core", "Reference", "Counted, an operation"],
            [
                [
                    one["name"],
                    one["case"],
                    one["kernel"],
                    run.ns(one["ns"]),
                    run.ns(one["reference_ns"]) if one.get("reference_ns") else "",
                    run.counts(one),
                ]
                for one in report["ours"]
            ],
        ),
        "",
        f"Bytes of header, links and table a direct shadow page (kernel: 4,264): {memory}.",
    ]
    python = ", ".join(f"{name} {run.ns(spent)}" for name, spent in report["python_ns"].items())
    if python:
        lines += ["", f"From Python, an access: {python}."]
    if report.get("decode_process_ns"):
        lines += ["", f"`kvm-mmu decode` as a process: {run.ns(report['decode_process_ns'])} of wall time."]
    if report["trace_bytes_per_s"]:
        each = (f"{name} {speed / 1e9:.2f} GB/s" for name, speed in report["trace_bytes_per_s"].items())
        lines += ["", f"Reading ftrace text, one thread: {', '.join(each)}."]
    if report["replay_lines_per_s"]:
        rows = [
            [name, *(f"{one[key]:,.0f}" for key in ("lines", "lane", "slow"))]
            for name, one in report["replay_lines_per_s"].items()
        ]
        lines += ["", "Replaying recordings:", ""]
        lines += table(["recording", "lines", "lane, lines/s", "slow way, lines/s"], rows)
    return lines


def against_lines(report: dict[str, Any]) -> list[str]:
    rows = []
    for one in report["cases"]:
        spread = f"{one['ratio']:.2f} ({min(one['ratios']):.2f}-{max(one['ratios']):.2f})"
        rows.append([one["case"], one["kernel"], spread])
    pairs = max(len(one["ratios"]) for one in report["cases"])
    head = f"Against {report['other'][:12]}, {pairs} alternating pairs on one processor: time over its (least-most):"
    return [*busy(report.get("load_at_start", 0)), head, "", *table(["Case", "Kernel", "Ratio"], rows)]


def measure(ref: str, minutes: float, speed: Path, against: Path) -> None:
    """Run the table, then pairs against the other commit for what is left of the time."""
    begun = time.monotonic()
    here = Path(__file__).resolve().parent
    subprocess.run([sys.executable, str(here / "run.py"), "-o", str(speed)], check=True)
    left = max(minutes - (time.monotonic() - begun) / 60, 0.1)
    command = [sys.executable, str(here / "against.py"), ref, "--minutes", f"{left:.2f}", "-o", str(against)]
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--measure", metavar="REF", help="measure first: this tree, and against that commit")
    parser.add_argument("--minutes", type=float, default=7.0, help="how long both may take (default: 7)")
    parser.add_argument("--speed", type=Path, default=run.OUT / "speed.json")
    parser.add_argument("--against", type=Path, help="a report of against.py, too")
    args = parser.parse_args()
    if args.measure:
        args.against = args.against or run.OUT / "against.json"
        measure(args.measure, args.minutes, args.speed, args.against)
    text = PAGE.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE}: the lines {BEGIN} and {END} are missing")
    lines = speed_lines(json.loads(args.speed.read_text(encoding="utf-8")))
    if args.against:
        lines += ["", *against_lines(json.loads(args.against.read_text(encoding="utf-8")))]
    PAGE.write_text("\n".join([head + BEGIN, "", *lines, "", END + tail]), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
