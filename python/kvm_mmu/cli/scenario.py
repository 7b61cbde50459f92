"""`kvm-mmu scenario sample`: a scenario to begin with, on stdout."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from kvm_mmu.scenario.language import SAMPLE


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("scenario", help="a scenario to begin with", description=__doc__)
    commands = parser.add_subparsers(dest="scenario_command", required=True, metavar="COMMAND")
    sample = commands.add_parser(
        "sample", help="write the scenario that ships with the package", description=__doc__
    )
    sample.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write it."""
    del args
    sys.stdout.write(SAMPLE.read_text(encoding="utf-8"))
    return 0
