"""`kvm-mmu scenario sample`: a scenario to begin with, or the one that shows a fact of the kernels, on stdout."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.profiles import facts
from kvm_mmu.scenario.fact_scenarios import fact_scenario, reason
from kvm_mmu.scenario.language import SAMPLE
from kvm_mmu.terminal import folded


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("scenario", help="a scenario to begin with", description=__doc__)
    commands = parser.add_subparsers(dest="scenario_command", required=True, metavar="COMMAND")
    sample = commands.add_parser(
        "sample", help="write a scenario that ships with the package", description=__doc__
    )
    which = sample.add_mutually_exclusive_group()
    which.add_argument(
        "--fact",
        metavar="NAME",
        help="the one that shows this fact (`kvm-mmu kernels show KERNEL` names them)",
    )
    which.add_argument(
        "--list", action="store_true", help="list the facts that have one, and why others do not"
    )
    sample.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write it."""
    if args.list:
        for fact in facts:
            found = fact_scenario(fact)
            said = f"none: {reason(fact)}" if found is None else found.shows
            print(folded(f"{fact}: {said}"))
        return 0
    path = SAMPLE
    if args.fact is not None:
        found = fact_scenario(args.fact)
        if found is None:
            raise UsageError(f"fact {args.fact}: no scenario shows it: {reason(args.fact)}")
        path = found.path
    sys.stdout.write(path.read_text(encoding="utf-8"))
    return 0
