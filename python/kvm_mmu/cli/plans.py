"""`kvm-mmu plans`: the named zap plans, each with the words it is made of."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvm_mmu.cli.compare import parse_plan
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.zap_plan import DESCRIPTIONS, ZapPlan, plans

SCHEMA = "kvm-mmu/plans/1"


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "plans", help="the zap plans and what they are made of", description=__doc__
    )
    parser.add_argument("plan", nargs="*", help="only these: names, walk=..,only=.. or module:object")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def _value(text: str) -> ZapPlan:
    plan = parse_plan(text)
    if not isinstance(plan, ZapPlan):
        raise UsageError(f"plan {text!r}: expected a ZapPlan, found a function: it has no words to show")
    return plan


def run(args: argparse.Namespace) -> int:
    """Print the plans."""
    chosen = [_value(text) for text in args.plan] or list(plans.values())
    if args.json:
        rows = [
            {"name": p.name, **p.to_dict(), "spec": p.spec, "about": DESCRIPTIONS.get(p.name)} for p in chosen
        ]
        print(json.dumps({"schema": SCHEMA, "plans": rows}, indent=1))
        return 0
    for plan in chosen:
        print(f"{plan.name:<12} {DESCRIPTIONS.get(plan.name, 'a plan of your own')}")
        print(f"{'':<12}   {plan.spec}")
    return 0
