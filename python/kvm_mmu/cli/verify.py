"""`kvm-mmu verify FILE...`: run result files again and say where the model differs; exit status 1 if it does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.scenario.verify import verify_files
from kvm_mmu.terminal import directly

SCHEMA = "kvm-mmu/verify/1"


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("verify", help="compare result files with the model", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="result files, .gz and .xz too")
    parser.add_argument("--kernel", help="kernel to model (default: each header's variant)")
    parser.add_argument(
        "--backend", choices=("core", "reference"), default="core", help="which model runs them"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a CPU)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, one object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify; one line per file."""
    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: expected 1 or more")
    verdicts = []
    show = sys.stderr.isatty() and len(args.files) > 1
    for verdict in verify_files(args.files, args.kernel, args.backend, args.jobs):
        verdicts.append(verdict)
        if verdict.error is not None:
            print(f"kvm-mmu verify: {verdict}", file=sys.stderr, flush=True)
        elif not args.json:
            print(verdict, flush=True)
        if show:
            print(f"\r{len(verdicts)} of {len(args.files)}", end="", file=directly(sys.stderr), flush=True)
    if show:
        print(file=sys.stderr)
    equal = sum(v.equal for v in verdicts)
    steps = sum(v.steps for v in verdicts)
    if args.json:
        files = [v.to_dict() for v in verdicts]
        print(
            json.dumps({"schema": SCHEMA, "equal": equal, "of": len(files), "steps": steps, "files": files})
        )
    elif len(verdicts) > 1:
        print(f"{equal} of {len(verdicts)} files equal, {steps} steps, backend {args.backend}")
    if any(v.error is not None for v in verdicts):
        return 2
    return 0 if equal == len(verdicts) else 1
