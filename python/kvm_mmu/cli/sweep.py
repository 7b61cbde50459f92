"""`kvm-mmu sweep INPUT...`: every combination of inputs, kernels, sizes and plans, as one table.

Exit status 1 when a cell failed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvm_mmu.cli.compare import clear_progress, parse_plan, parse_share, reporter, written_lines
from kvm_mmu.errors import UsageError
from kvm_mmu.lab.forced_event import EVENTS, Plan
from kvm_mmu.lab.named_workloads import WORKLOADS
from kvm_mmu.lab.sweep.grid import OWN, OWN_SHADOW
from kvm_mmu.lab.sweep.run import sweep
from kvm_mmu.machine.profiles import kernels
from kvm_mmu.machine.zap_plan import plans
from kvm_mmu.terminal import folded


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("sweep", help="many comparisons as one table", description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help=f"a workload by name ({', '.join(WORKLOADS)}), a scenario, a recording, or a dump",
    )
    parser.add_argument(
        "--plans",
        default=OWN,
        metavar="A,B",
        help=f"{OWN} (each kernel's own, the default), {OWN_SHADOW} (its own on shadow pages), names "
        f"({', '.join(plans)}, or all), module:object",
    )
    parser.add_argument("--kernels", metavar="R,S", help="rows or releases, or all")
    parser.add_argument(
        "--pages", metavar="N,N", help="sizes in shadow pages: 1k, 10k, or 0.1x of the input's own"
    )
    parser.add_argument("--mmio", metavar="P,P", help="shares of pages that cache MMIO: 0.1%%, 1%%")
    parser.add_argument("--vcpus", metavar="N,N", help="vCPUs of workloads by name")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds of each workload by name")
    parser.add_argument(
        "--at",
        choices=EVENTS,
        default="slot-removal",
        help="the event forced at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--contend", type=int, default=0, metavar="N", help="every N-th offer of the lock is taken"
    )
    parser.add_argument(
        "--sample", metavar="P", help="run only this share of a file's gfns, as 1%%: counts are estimates"
    )
    add_executor(parser)
    parser.add_argument(
        "-o", "--out", metavar="DIR", help="the table as JSON lines, CSV and Parquet; rows as they finish"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in DIR")
    parser.add_argument("--list", action="store_true", help="print the workloads that have a name")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def add_executor(parser: argparse.ArgumentParser) -> None:
    """Add the two options that say who computes."""
    parser.add_argument(
        "--executor", metavar="E", help="processes (default), dask://HOST:PORT, or module:object"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one a processor)")


def words(text: str | None) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def parse_kernels(text: str | None) -> list[str]:
    """Kernels of a list; `all` means every row."""
    return [name for word in words(text) for name in (kernels if word == "all" else [word])]


def parse_plans(text: str) -> list[Plan | str]:
    """Plans of a list; `all` means every named one."""
    found: list[Plan | str] = []
    for word in words(text):
        found += (
            list(plans.values())
            if word == "all"
            else [word if word in (OWN, OWN_SHADOW) else parse_plan(word)]
        )
    return found


def parse_numbers(name: str, texts: Sequence[str]) -> list[int]:
    """Whole numbers of a list.

    Raises:
        UsageError: something else; the message says of which option.
    """
    if not all(text.isdecimal() for text in texts):
        raise UsageError(f"{name} {','.join(texts)!r}: expected numbers as 1,2,8")
    return [int(text) for text in texts]


def run(args: argparse.Namespace) -> int:
    """Sweep and print."""
    if args.list:
        for one in WORKLOADS.values():
            print(folded(f"{one.name:<11} {one.about} ({one.source})", " " * 12))
        return 0
    result = sweep(
        args.inputs,
        parse_plans(args.plans),
        kernels=parse_kernels(args.kernels),
        pages=words(args.pages),
        mmio=[parse_share(word) for word in words(args.mmio)],
        vcpus=parse_numbers("--vcpus", words(args.vcpus)),
        seeds=args.seeds,
        at=args.at,
        contend=args.contend,
        sample=None if args.sample is None else parse_share(args.sample, "--sample"),
        executor=args.executor,
        jobs=args.jobs,
        out=args.out,
        resume=args.resume,
        progress=reporter(),
    )
    clear_progress()
    written = [str(path) for path in result.written]
    if args.json:
        print(json.dumps({**result.to_dict(), "written": written}, indent=1))
    else:
        print(result.to_text())
        if written:
            print(written_lines([Path(path) for path in written]))
    return 1 if result.failed else 0
