"""`kvm-mmu run FILE|-`: run a scenario and write its results, in the format of the vectors."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import chain
from typing import Any

from kvm_mmu.errors import ScenarioError, UsageError
from kvm_mmu.scenario.language import DIGESTS, open_scenario, run_scenario


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("run", help="run a scenario, write its results", description=__doc__)
    parser.add_argument("file", help="scenario or result file, .gz and .xz too; - for stdin")
    parser.add_argument("--kernel", help="kernel to model (default: the header's variant)")
    parser.add_argument(
        "--backend", choices=("core", "reference"), default="core", help="which model runs it"
    )
    parser.add_argument("--dump", choices=("all", "sparse"), help="which lines carry the state")
    parser.add_argument(
        "--digest",
        choices=DIGESTS,
        help="which lines carry the digest of the state: each, those with the state, or the last",
    )
    parser.add_argument("--json", action="store_true", help="always so: one JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the scenario; complete lines only on stdout."""
    encoder = json.JSONEncoder(separators=(",", ":"))
    with open_scenario(args.file) as (scenario, steps):
        first = next(steps, None)
        if scenario.header_line is None and first is None:
            raise ScenarioError(f"{scenario.path}: empty: expected a scenario")
        if args.kernel is None and scenario.kernel is None:
            raise UsageError(f"{scenario.path}: no kernel: give --kernel, or a header with a variant")
        steps = chain(() if first is None else (first,), steps)
        for line in run_scenario(
            scenario, args.kernel, args.backend, args.dump, digest=args.digest, steps=steps
        ):
            sys.stdout.write(encoder.encode(line) + "\n")
    return 0
