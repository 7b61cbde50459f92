"""`kvm-mmu kernels`: the kernels that are modelled, and the plan each uses for which event."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvm_mmu.machine.profiles import EVENTS, kernels

SCHEMA = "kvm-mmu/kernels/1"


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("kernels", help="the kernels that are modelled", description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the kernels."""
    if args.json:
        rows = [
            {
                "name": p.name,
                "title": p.title,
                "plans": {event: plan.name for event, plan in p.plans.items()},
                "generation": {
                    "policy": p.generation.name,
                    "start": p.generation.default_start,
                    "width": p.generation.layout.width,
                },
            }
            for p in kernels.values()
        ]
        print(json.dumps({"schema": SCHEMA, "kernels": rows}, indent=1))
        return 0
    for profile in kernels.values():
        print(f"{profile.name:<10} {profile.title}")
        policy = profile.generation()
        print(f"{'':<10}   generation: {policy.layout.width} bits, starts at {policy.start_name}")
        for event in EVENTS:
            if event in profile.plans:
                print(f"{'':<10}   {event.replace('_', ' '):<13} {profile.plans[event]}")
    return 0
