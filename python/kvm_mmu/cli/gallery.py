"""`kvm-mmu gallery thread|figures`: claims and published figures answered by runs, each line with its run's digest."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvm_mmu.cli.compare import clear_progress, parse_sizes, reporter
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.studies import fixes
from kvm_mmu.studies.figures import SCHEMA as figures_schema
from kvm_mmu.studies.figures import figures
from kvm_mmu.studies.gallery import SCHEMA
from kvm_mmu.studies.thread import CLAIMS, answers, page
from kvm_mmu.studies.thread_restart import SIZES


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("gallery", help="claims and figures answered by runs", description=__doc__)
    parser.add_argument("gallery", choices=("thread", "figures", "fixes"), help="which gallery")
    parser.add_argument("claims", nargs="*", metavar="S1|1|FACT", help="only these claims, figures or fixes")
    parser.add_argument("--scale", default=None, metavar="N,N", help="sizes of S4 (default: 1k,10k,100k)")
    parser.add_argument("--markdown", action="store_true", help="as a page (docs/the-thread.md)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the gallery; each answer as soon as it is there."""
    if args.markdown and args.json:
        raise UsageError("--markdown and --json: expected one of them")
    if args.gallery == "fixes":
        return _fixes(args)
    return _figures(args) if args.gallery == "figures" else _thread(args)


def _figures(args: argparse.Namespace) -> int:
    if args.markdown or args.scale is not None:
        raise UsageError("gallery figures: --markdown and --scale belong to the thread")
    for number in args.claims:
        if not number.isdecimal():
            raise UsageError(f"figure {number!r}: expected a number of the published figures")
    found = figures([int(number) for number in args.claims], reporter())
    if args.json:
        whole = [figure.to_dict() for figure in found]
        clear_progress()
        print(json.dumps({"schema": figures_schema, "gallery": "figures", "figures": whole}, indent=1))
        return 0
    for figure in found:
        clear_progress()
        print(figure.to_text() + "\n", flush=True)
    return 0


def _fixes(args: argparse.Namespace) -> int:
    if args.scale is not None:
        raise UsageError("gallery fixes: --scale belongs to the thread")
    known = [fix.fact for fix in fixes.FIXES]
    for name in args.claims:
        if name not in known:
            raise UsageError(f"fix {shown(name)}: expected one of {', '.join(known)}")
    if args.markdown:
        whole = fixes.page(reporter())
        clear_progress()
        print(whole, end="")
        return 0
    found = []
    for proof in fixes.proofs(args.claims, reporter()):
        clear_progress()
        found.append(proof)
        if not args.json:
            print(fixes.to_text(proof) + "\n", flush=True)
    if args.json:
        print(json.dumps({"schema": fixes.SCHEMA, "fixes": [proof.to_dict() for proof in found]}, indent=1))
    return 0 if all(proof.holds for proof in found) else 1


def _thread(args: argparse.Namespace) -> int:
    sizes = SIZES if args.scale is None else parse_sizes(args.scale)
    found = answers(args.claims or CLAIMS, sizes, reporter())
    if args.markdown or args.json:
        whole = list(found)
        clear_progress()
        if args.markdown:
            print(page(whole), end="")
        else:
            print(
                json.dumps(
                    {"schema": SCHEMA, "gallery": "thread", "answers": [a.to_dict() for a in whole]}, indent=1
                )
            )
        return 0
    for answer in found:
        clear_progress()
        print(answer.to_text() + "\n", flush=True)
    return 0
