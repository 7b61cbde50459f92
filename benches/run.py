"""The speed table: every row of the kernel's own figures, our core, the reference, in one run (`make bench`).

Builds and runs `core-speed` (the core, no Python in between), measures the reference and the way through Python
here, prints a line a case and writes bench-out/speed.json with machine and commit. Times are processor time of one
thread, medians; a row that nothing measures yet says `not yet`. It reports and never fails on a slow row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "bench-out"
KERNELS = ("v5.0", "v5.2", "v5.0-seed")
SHOWN = ("v5.0", "v5.2", "seed")
NOT_YET = "not yet"


def core_cases(parts: list[str], once: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """Measure the core; (case, kernel) -> what `core-speed` printed."""
    manifest = ["--manifest-path", str(HERE / "Cargo.toml"), "--target-dir", str(ROOT / "target" / "benches")]
    command = ["cargo", "run", "--quiet", "--release", *manifest, "--bin", "core-speed", "--"]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with subprocess.Popen(
        [*command, *(["--once"] if once else []), *parts], stdout=subprocess.PIPE, text=True
    ) as run:
        for line in run.stdout or ():
            one = json.loads(line)
            found[one["case"], one["kernel"]] = one
    if run.returncode:
        sys.exit(run.returncode)
    for (name, kernel), one in list(found.items()):
        if name.startswith("zap-full/"):
            by_spte = {key: one[key] / 512 for key in ("ns", "min", "max")}
            found[name.replace("zap-full", "zap-full-spte"), kernel] = {**one, **by_spte}
    return found


def python_cases(once: bool) -> dict[str, float]:
    """Nanoseconds an access through the Python face: one numpy array, and one call each."""
    import kvm_mmu as km

    def fresh(npages: int) -> Any:
        vm = km.Vm(kernel="v5.0", family="ept_ad", events="off")
        vm.memslots.create(slot=0, gpa=0, size=npages << 12)
        vm.core.set_max_raw(1 << 30)
        return vm

    many, few = 1 << 18, 1 << 14
    gpas = np.arange(many, dtype=np.uint64) << np.uint64(12)

    def hits(vm: Any) -> None:
        vm.vcpus[0].access_many(gpas, "w")

    def singly(vm: Any) -> None:
        access = vm.vcpus[0].access
        for gpa in range(0, few << 12, 1 << 12):
            access(gpa, "w")

    def warm(npages: int) -> Any:
        vm = fresh(npages)
        vm.vcpus[0].access_many(gpas[:npages], "w")
        return vm

    cases: dict[str, tuple[int, Callable[[], Any], Callable[[Any], None]]] = {
        "access_many, a fault each": (many, lambda: fresh(many), hits),
        "access_many, hits": (many, lambda: warm(many), hits),
        "access, one call each, hits": (few, lambda: warm(few), singly),
    }
    return {name: median(count, make, work, 1 if once else 5) for name, (count, make, work) in cases.items()}


def median(count: int, make: Callable[[], Any], work: Callable[[Any], None], runs: int) -> float:
    spent = []
    for _ in range(runs):
        made = make()
        start = time.thread_time_ns()
        work(made)
        spent.append((time.thread_time_ns() - start) / count)
    return sorted(spent)[runs // 2]


def reference_cases(wanted: Callable[[str], bool]) -> dict[str, float]:
    sys.path.insert(0, str(HERE / "python"))
    import reference_rows

    return {name: measure() for name, measure in reference_rows.rows().items() if wanted(name)}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / (1 << 30), 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "rustc": said("rustc", "--version"),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def said(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def ns(value: float | list[float] | None) -> str:
    """Nanoseconds with three digits and the unit that fits; a range as it is."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return "-".join(ns(one) for one in value)
    for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} ns"


def ratio(ours: float, kernel: float | list[float] | None) -> str:
    """Ours over the kernel's C; against the nearer end of a range."""
    if kernel is None:
        return "-"
    low, high = kernel if isinstance(kernel, list) else (kernel, kernel)
    against = low if ours < low else high if ours > high else ours
    return f"{ours / against:.2f}"


def print_row(
    row: dict[str, Any], core: dict[tuple[str, str], Any], reference: dict[str, float]
) -> list[Any]:
    """One row with its cases; gives the same as data."""
    print(f"\n{row['name']}")
    data = []
    for case in row["cases"]:
        name = f"{row['row']}/{case['case']}"
        ours = {kernel: core[name, kernel]["ns"] for kernel in KERNELS if (name, kernel) in core}
        plans = {"indexed": core[name, "indexed"]["ns"]} if (name, "indexed") in core else {}
        slow = reference.get(name)
        columns = [" | ".join(ns(case["kernel"].get(kernel)) for kernel in KERNELS)]
        if ours:
            columns.append(" | ".join(ns(ours.get(kernel)) for kernel in KERNELS))
            ratios = [ratio(ours[k], case["kernel"].get(k)) if k in ours else "-" for k in KERNELS]
            columns.append(" | ".join(ratios))
        else:
            columns += [NOT_YET, "-"]
        columns.append(ns(slow) if slow is not None else "-")
        print(f"  {case['case']:<14} {columns[0]:<32} {columns[1]:<32} {columns[2]:<20} {columns[3]:>8}")
        for kernel in ours:
            if said := counts(core[name, kernel]):
                print(f"  {'':<14} counted, {kernel}: {said}")
                break
        if "waits" in row and case is row["cases"][-1]:
            print(f"  {'':<14} waits for memory: {row['waits']}")
        for plan, spent in plans.items():
            print(f"  {case['case']:<14} {'':<32} plan {plan}: {ns(spent)}")
        data.append(
            {
                "row": row["row"],
                "name": row["name"],
                "case": case["case"],
                "waits": row.get("waits", ""),
                "kernel_c_ns": case["kernel"],
                "core_ns": ours,
                "core": {k: core[name, k] for k in (*KERNELS, "indexed") if (name, k) in core},
                "reference_ns": slow,
            }
        )
    return data


def print_ours(
    rows: list[dict[str, Any]], core: dict[tuple[str, str], dict[str, Any]], reference: dict[str, float]
) -> list[dict[str, Any]]:
    """Rows that the kernel's figures do not have, and what they cost; gives the same as data."""
    data = []
    for row in rows:
        found = {key: one for key, one in core.items() if key[0].startswith(f"{row['row']}/")}
        if found:
            print(f"\n{row['name']}")
        for (name, kernel), one in found.items():
            case = name.partition("/")[2]
            slow = reference.get(name)
            beside = "" if slow is None else f", reference {ns(slow)}"
            print(f"  {case:<24} {kernel:<10} {ns(one['ns']):>10}   {counts(one)}{beside}")
            own = {"row": row["row"], "name": row["name"], "case": case, "kernel": kernel}
            data.append({**own, **one, "reference_ns": slow})
    return data


def counts(one: dict[str, Any]) -> str:
    """What the core counted, an operation."""
    return ", ".join(f"{name} {count:.4g}" for name, count in one.get("work", {}).items())


def print_indexed(core: dict[tuple[str, str], Any]) -> dict[str, float]:
    """The index of MMIO-caching pages: nanoseconds a zapped page."""
    found = {}
    for (name, kernel), one in core.items():
        if kernel == "indexed" and not name.startswith("wrap-15-"):
            row, percent = name.split("/")
            pages = int(row.removeprefix("wrap-").removesuffix("k")) * 10 * int(percent.split()[0])
            found[name] = one["ns"] / pages
    if found:
        print("\nplan indexed, per zapped page (aim: 1.3 us)")
        for name, spent in found.items():
            print(f"  {name:<20} {ns(spent)}")
    return found


def trace_cases(once: bool) -> dict[str, float]:
    """Bytes of ftrace text a second: counted, made into columns, and split by Python's `re` (all one thread)."""
    sys.path.insert(0, str(HERE / "python"))
    import test_trace_reader

    found = test_trace_reader.speeds(1 if once else 5)
    print("\nreading ftrace text, one core (aims: 1.5 GB/s counted, 0.8 GB/s into columns)")
    for name, speed in found.items():
        print(f"  {name:<24} {speed / 1e9:.3f} GB/s   {speed / found['re']:.1f} times Python's re")
    return found


def replay_cases(once: bool) -> dict[str, dict[str, float]]:
    """Lines of recordings a second: replayed in a lane of the core, and the slow way."""
    sys.path.insert(0, str(HERE / "python"))
    import replay_speed

    found = replay_speed.speeds(1 if once else 5)
    print("\nreplaying recordings, lines a second of one core (aim: 1,000,000)")
    for name, one in found.items():
        print(
            f"  {name:<34} {one['lines']:>8,.0f} lines {one['lane']:>12,.0f} {one['slow']:>10,.0f} the slow way"
        )
    return found


def decode_process(runs: int) -> float:
    """Nanoseconds of wall time from the start of `kvm-mmu decode` to its end, the best of some runs."""
    command = [sys.executable, "-m", "kvm_mmu", "decode", "spte", "0x600000100000c77", "--kernel", "v5.0"]
    spent = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        subprocess.run(command, check=True, capture_output=True)
        spent.append(time.perf_counter_ns() - start)
    print(f"\n`kvm-mmu decode` as a process: {ns(min(spent))} of wall time")
    return min(spent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", nargs="*", help="only cases whose row/case name contains one of these")
    parser.add_argument("--once", action="store_true", help="one run a case instead of a median")
    parser.add_argument("-o", type=Path, default=OUT / "speed.json", help="where the JSON goes")
    args = parser.parse_args()

    def wanted(name: str) -> bool:
        return not args.part or any(part in name for part in args.part)

    figures = json.loads((HERE / "kernel_speed.json").read_text(encoding="utf-8"))
    about = machine()
    print(
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB; Python {about['python']}; {about['rustc']}"
    )
    print("measuring the core (about a minute and a half)", file=sys.stderr)
    core = core_cases(args.part, args.once)
    print("measuring the reference", file=sys.stderr)
    reference = reference_cases(wanted)

    shown = " | ".join(SHOWN)
    print("processor time of one thread, medians; ratio below 1: ours is faster")
    print(f"{'':<16} {f'kernel C {shown}':<32} {f'core {shown}':<32} {'core / kernel C':<20} reference")
    rows: list[Any] = []
    for row in figures["rows"]:
        if any(wanted(f"{row['row']}/{case['case']}") for case in row["cases"]):
            rows += print_row(row, core, reference)
    ours = print_ours(figures["ours"], core, reference)
    indexed = print_indexed(core)

    reads = {name.split("/")[1]: one["ns"] for (name, kernel), one in core.items() if kernel == "machine"}
    if reads:
        shown_reads = ", ".join(f"{size} {ns(spent)}" for size, spent in reads.items())
        print(f"\nthis machine now, one dependent random read of a buffer: {shown_reads}")
        limited = [row["row"] for row in figures["rows"] if "waits" in row]
        print(f"  it limits {', '.join(limited)}")
    print("\nbytes per direct shadow page (kernel: 4,096 of table + 160 of header + 8)")
    memory = {}
    for case, kernel in figures["bytes_per_page"].items():
        one = core.get((f"bytes-per-page/{case}", "v5.0"))
        memory[case] = one["bytes"] if one else None
        print(f"  {case:<20} kernel C {kernel['v5.0']:>6}   core {one['bytes'] if one else NOT_YET}")
    traces = trace_cases(args.once) if wanted("trace") else {}
    replays = replay_cases(args.once) if wanted("replay") else {}
    python = {} if args.part else python_cases(args.once)
    if python:
        print("\nthrough Python, per access (ours only)")
        for name, spent in python.items():
            print(f"  {name:<32} {ns(spent)}")

    decode_ns = decode_process(1 if args.once else 7) if wanted("decode") else None
    report = {
        "schema": "kvm_mmu-speed/2",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": about,
        "commit": said("git", "rev-parse", "HEAD"),
        "is_tree_clean": not said("git", "status", "--porcelain", "--", "src", "benches"),
        "clock": "thread processor time",
        "random_read_ns": reads,
        "rows": rows,
        "ours": ours,
        "indexed_ns_per_zapped_page": indexed,
        "bytes_per_page": memory,
        "python_ns": python,
        "decode_process_ns": decode_ns,
        "trace_bytes_per_s": traces,
        "replay_lines_per_s": replays,
    }
    args.o.parent.mkdir(parents=True, exist_ok=True)
    part = args.o.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(args.o)
    print(f"\nwrote {args.o}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
