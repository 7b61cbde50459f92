"""`kvm-mmu trace stalls|summary DIR_OR_GLOB`: a fleet of recordings as one table of hosts, the worst first."""

from __future__ import annotations

import argparse
import glob
import json
from pathlib import Path

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.fleet_columns import SORTS


def add_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options that only a fleet takes."""
    parser.add_argument(
        "--executor",
        metavar="E",
        help="of a folder or a pattern of files: who reads them: processes (default), dask://HOST:PORT, module:object",
    )
    parser.add_argument(
        "--worst",
        choices=SORTS[what],
        metavar="COLUMN",
        help=f"of a fleet, the largest first of: {', '.join(SORTS[what])} (default: {SORTS[what][0]})",
    )


def is_fleet(args: argparse.Namespace) -> bool:
    """True if the command is about a folder or a pattern of files, not about one file."""
    path = Path(args.file)
    try:
        is_many = not path.is_file() and (path.is_dir() or glob.has_magic(args.file))
    except (OSError, ValueError):
        is_many = False
    if not is_many and (args.executor is not None or args.worst is not None):
        raise UsageError(
            f"{args.file}: --executor and --worst: expected a folder of recordings, or a pattern"
        )
    return is_many


def run(args: argparse.Namespace, what: str, jobs: int | None = None) -> int:
    """Read the fleet with so many processes and print; exit status 1 when a file could not be read."""
    from kvm_mmu.cli.compare import clear_progress, reporter
    from kvm_mmu.lab.fleet import fleet

    found = fleet(what, args.file, sort=args.worst, executor=args.executor, jobs=jobs, progress=reporter())
    clear_progress()
    print(json.dumps(found.as_json(), indent=1) if args.json else found.as_text())
    return 1 if found.broken else 0
