"""`kvm-mmu compare GUEST --sync cr3|invlpg|never|all`: one guest's page-table writes under several sync policies."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.guest_stream import STREAMS, read_stream
from kvm_mmu.lab.sync_policies import POLICIES, columns, compare_sync
from kvm_mmu.machine.profiles import kernel_profile, kernels
from kvm_mmu.view.out_folder import OutFolder, write_all
from kvm_mmu.view.tables import csv_text, text_table

SCHEMA = "kvm-mmu/compare-sync/1"
#: The kernel of a run that names none.
KERNEL = "v6.12"
#: Options of `compare` that say nothing here.
_OTHER = ("plan", "scale", "mmio_share", "mmio_place", "contend", "add", "cost", "host", "vm", "moment")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of sync policies to those of `compare`."""
    parser.add_argument(
        "--sync",
        action="append",
        default=[],
        metavar="POLICY",
        help=f"sync policies of a guest's page tables: {', '.join(POLICIES)}, or all; INPUT is then "
        f"what the guest does: {', '.join(STREAMS)}, or a file",
    )
    parser.add_argument(
        "--flood",
        metavar="N,N",
        help="with --sync: emulated writes that zap an upper table (default: the kernel's)",
    )


def run(args: argparse.Namespace) -> int:
    """Run every input under every policy, limit and kernel.

    Raises:
        UsageError: an option of zap plans, or an unknown word.
    """
    for name in _OTHER:
        if getattr(args, name) not in (None, []):
            raise UsageError(f"--{name.replace('_', '-')}: belongs to zap plans, not to --sync")
    policies = [
        name
        for word in args.sync
        for text in word.split()
        for name in (POLICIES if text == "all" else [text])
    ]
    names = [word for text in args.kernel for word in text.split()] or [KERNEL]
    if names == ["all"]:
        names = [name for name, profile in kernels.items() if profile.facts["has_guest_tables"]]
    tables = []
    for text in args.inputs:
        stream = read_stream(text)
        rows = [
            row
            for kernel in names
            for row in compare_sync(stream, [kernel], policies, _limits(args.flood, kernel))
        ]
        tables.append((stream, rows))
    written = []
    if args.out is not None:
        with OutFolder(args.out) as folder:
            files = {f"sync_{stream.name}.csv": csv_text(columns(rows)) for stream, rows in tables}
            written = [str(path) for path in write_all(folder, files)]
    if args.json:
        guests = [{"guest": stream.name, "rows": [asdict(row) for row in rows]} for stream, rows in tables]
        print(json.dumps({"schema": SCHEMA, "guests": guests, "written": written}, indent=1))
        return 0
    for number, (stream, rows) in enumerate(tables):
        print(("\n" if number else "") + f"{stream.name}: {stream.about}")
        print(text_table(columns(rows)))
    for path in written:
        print(f"written: {path}")
    return 0


def _limits(text: str | None, kernel: str) -> list[int]:
    """The limits of write flooding: `3,1`.

    Raises:
        UsageError: not such a list.
    """
    if text is None:
        return [int(kernel_profile(kernel).facts["write_flood_limit"])]
    limits = text.split(",")
    if not all(part.isdecimal() and len(part) < 10 for part in limits):
        raise UsageError(f"--flood {text!r}: expected numbers of writes as 3,1")
    return [int(part) for part in limits]
