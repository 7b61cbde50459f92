"""`kvm-mmu demo`: a recording replayed, its wrap and slot removal under every plan, scaled; what is missing is said.

Exit status 1 when the replay differs from the recording, or a section is missing. That some of history's plans are not
enough for an event is what the demonstration shows, not a finding of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kvm_mmu.cli.compare import clear_progress, reporter, written_lines
from kvm_mmu.studies.demo import Demo, run_demo
from kvm_mmu.view import charts
from kvm_mmu.view.out_folder import OutFolder


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "demo", help="show what this does, on a real recording", description=__doc__
    )
    parser.add_argument(
        "-o", "--out", metavar="DIR", default="demo-out", help="for SVG and JSON (default: demo-out)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; each section as soon as it is there."""
    with OutFolder(args.out) as folder:
        return _run(args, folder)


def _run(args: argparse.Namespace, folder: OutFolder) -> int:
    demo = Demo()
    for part in run_demo(folder, reporter()):
        clear_progress()
        if isinstance(part, Demo):
            demo = part
        elif not args.json:
            title, text = part
            print(f"== {title}\n{text}\n", flush=True)
    lacks = charts.missing()
    if lacks is not None:
        print(f"no picture: {lacks}", file=sys.stderr if args.json else sys.stdout)
    found = demo.to_dict()
    demo.written += folder.write({"demo.json": json.dumps(found, indent=1) + "\n"})
    if args.json:
        print(json.dumps({**found, "written": [str(path) for path in demo.written]}, indent=1))
    else:
        print("not there yet: " + "; ".join(demo.missing) if demo.missing else "nothing is missing")
        print(written_lines(demo.written))
    return 1 if demo.findings or demo.missing else 0
