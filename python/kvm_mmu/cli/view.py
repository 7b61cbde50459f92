"""`kvm-mmu view SCENARIO|RECORDING -o PAGE.html`: a run step by step as one page for a browser."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_mmu.cli.compare import clear_progress, reporter
from kvm_mmu.lab.time_travel import MOST_STEPS, travel
from kvm_mmu.view.whole_file import check_output, is_stdout, write_whole


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("view", help="a run step by step, as a page", description=__doc__)
    parser.add_argument("input", metavar="INPUT", help="scenario or result file, or a recording")
    parser.add_argument("--kernel", metavar="K", help="kernel to model (default: the input's)")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="first operation to show (default: 0)"
    )
    parser.add_argument(
        "--steps", type=int, default=MOST_STEPS, metavar="N", help="how many to show (default: %(default)s)"
    )
    parser.add_argument(
        "-o",
        "--out",
        default="view.html",
        metavar="FILE",
        help="the page, - for stdout (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run and write the page."""
    check_output(args.out)
    page = travel(args.input, kernel=args.kernel, first=args.first, steps=args.steps, progress=reporter())
    clear_progress()
    path = write_whole(args.out, page.encode())
    if not is_stdout(args.out):
        print(path)
    return 0
