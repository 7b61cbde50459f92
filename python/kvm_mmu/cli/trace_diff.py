"""`kvm-mmu trace diff A [B]`: where two recordings part, or one under two kernels or plans.

Exit status 1 if they do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.profiles import EVENTS
from kvm_mmu.scenario.language import Scenario, make_engine
from kvm_mmu.trace.replay.engine import Engine
from kvm_mmu.trace.text.host import facts_from


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `diff` to the commands of `trace`."""
    parser = commands.add_parser(
        "diff",
        help="where two replays part: two recordings, or one under two kernels or plans",
        description=__doc__,
    )
    parser.add_argument("a", metavar="A", help="a recording")
    parser.add_argument("b", metavar="B", nargs="?", help="another; without it A again")
    for side in "ab":
        name = side.upper()
        parser.add_argument(
            f"--kernel-{side}", metavar="K", help=f"kernel for {name}; without it the one it was made on"
        )
        parser.add_argument(
            f"--plan-{side}",
            metavar="EVENT=PLAN",
            action="append",
            default=[],
            help=f"plan of {name}'s kernel for an event ({', '.join(EVENTS)}); several times",
        )
        parser.add_argument(
            f"--host-{side}",
            metavar="FILE|JSON",
            help=f"facts of {name}'s host that its recording does not hold",
        )
    parser.add_argument(
        "--vm", type=int, metavar="N", help="which VM, under other kernels or plans (default: the busiest)"
    )
    parser.add_argument("--backend", choices=("core", "reference"), default="core", help="the model to drive")
    parser.add_argument("--json", action="store_true", help="print the difference as JSON")
    parser.set_defaults(run=run)


def parse_event_plans(option: str, texts: list[str]) -> dict[str, str]:
    """`EVENT=PLAN` texts as a dict.

    Raises:
        UsageError: not of that form, or an event given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        event, equal, plan = text.partition("=")
        event = event.strip().replace("-", "_")
        if not equal or not plan or event not in EVENTS:
            raise UsageError(f"{option} {text!r}: expected EVENT=PLAN with one of {', '.join(EVENTS)}")
        if event in found:
            raise UsageError(f"{option} {text!r}: {event} is given twice")
        found[event] = plan
    return found


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from kvm_mmu.trace.replay.difference import diff

    if "-" in (args.a, args.b):
        raise UsageError("-: a difference reads a recording more than once: from a file, not from stdin")

    def make(kernel: str, config: Mapping[str, object], plans: Mapping[str, str]) -> Engine:
        scenario = Scenario(name="diff", config=dict(config), plans=dict(plans))
        return make_engine(scenario, kernel, args.backend)

    found = diff(
        args.a,
        args.b,
        make,
        kernels=(args.kernel_a, args.kernel_b),
        plans=(parse_event_plans("--plan-a", args.plan_a), parse_event_plans("--plan-b", args.plan_b)),
        hosts=tuple(None if text is None else facts_from(text) for text in (args.host_a, args.host_b)),
        vm=args.vm,
    )
    sys.stdout.write((json.dumps(found.as_json()) if args.json else found.as_text()) + "\n")
    return 0 if found.is_equal else 1
