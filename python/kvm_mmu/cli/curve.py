"""`kvm-mmu curve slot-removal|wrap`: what an event costs a guest, over its size, for every kernel since 5.0.

Exit status 1 when a point failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from typing import Any

from kvm_mmu.cli.compare import clear_progress, reporter, written_lines
from kvm_mmu.cli.sweep import add_executor, parse_kernels, words
from kvm_mmu.lab.curve import AXES, MEASURES, curve
from kvm_mmu.lab.named_workloads import WORKLOADS
from kvm_mmu.view import charts
from kvm_mmu.view.out_folder import OutFolder


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("curve", help="what an event costs, over VM size", description=__doc__)
    parser.add_argument("event", choices=("slot-removal", "wrap"), help="the event")
    parser.add_argument(
        "--of", choices=tuple(MEASURES), help="what it costs (default: lost of a removal, hold of a wrap)"
    )
    parser.add_argument("--over", choices=tuple(AXES), default="pages", help="against what (default: pages)")
    parser.add_argument("--values", metavar="A,B", help="where on that axis: 1k,10k or 0.1%%,1%% or 1,8")
    parser.add_argument(
        "--input", choices=tuple(WORKLOADS), default="boot", help="the workload (default: %(default)s)"
    )
    parser.add_argument("--kernels", metavar="R,S", default="all", help="rows or releases (default: all)")
    parser.add_argument(
        "--mmu",
        choices=("own", "shadow"),
        default="own",
        help="each kernel's own page table, or shadow pages",
    )
    add_executor(parser)
    parser.add_argument("-o", "--out", metavar="DIR", help="write the figure and its points here")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compute and print."""
    with nullcontext() if args.out is None else OutFolder(args.out) as folder:
        found = curve(
            args.event,
            of=args.of,
            over=args.over,
            values=words(args.values),
            input=args.input,
            kernels=parse_kernels(args.kernels),
            mmu=args.mmu,
            executor=args.executor,
            jobs=args.jobs,
            progress=reporter(),
        )
        clear_progress()
        written = [str(path) for path in found.write(folder)] if folder is not None else []
    lacks = charts.missing() if args.out is not None else None
    if lacks is not None:
        print(f"no picture: {lacks}", file=sys.stderr)
    if args.json:
        print(json.dumps({**found.to_dict(), "written": written}, indent=1))
    else:
        print(found)
        if written:
            print(written_lines(written))
    return 1 if found.cells.failed else 0
