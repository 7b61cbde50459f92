"""`kvm-mmu check`: search small worlds for a state that is not sound, and tell how it comes to that.

Exhaustive and breadth first unless --steps asks for a random search. Exit status: 0 sound (no state is left, or the
bound is exhausted), 1 a violation, 2 usage, 3 not judged (cut off, or the search did not reach what the world is for).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from kvm_mmu.check.engine import Subject, fits, load_policy
from kvm_mmu.check.report import SCHEMA, as_json, text
from kvm_mmu.check.search import Result, check
from kvm_mmu.check.story import Story, tell
from kvm_mmu.check.worlds import WORLDS, World, read_world
from kvm_mmu.cli.compare import clear_progress, reporter
from kvm_mmu.errors import UsageError
from kvm_mmu.lab.ring import Ring, ring
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import as_plan, kernel_profile
from kvm_mmu.terminal import folded
from kvm_mmu.view.whole_file import write_whole

KERNEL = "v6.12"


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("check", help="search for unsound states", description=__doc__)
    parser.add_argument(
        "--kernel", default=KERNEL, metavar="ROW", help=f"kernel, also with changed facts (default {KERNEL})"
    )
    parser.add_argument("--plan", metavar="P", help="a zap plan: a name, or walk=..,only=..")
    parser.add_argument(
        "--at",
        metavar="EVENT",
        help="the event that the plan serves: wrap, slot_removal, teardown, flush_all",
    )
    parser.add_argument("--policy", metavar="module:Class", help="a generation policy")
    parser.add_argument(
        "--world",
        action="append",
        metavar="W|FILE",
        help=f"{', '.join(WORLDS)}, or a file; again for more (default: all that the row can have)",
    )
    parser.add_argument(
        "--depth",
        type=_positive,
        metavar="N",
        help="most operations (default: the world's own, else until no state is new)",
    )
    parser.add_argument("--steps", type=_positive, metavar="N", help="search at random, so many steps")
    parser.add_argument("--seed", type=_positive, default=1, metavar="S", help="of the random search")
    parser.add_argument(
        "--jobs", type=_positive, default=1, metavar="N", help="threads; the result does not depend on it"
    )
    parser.add_argument(
        "--states",
        type=_positive,
        metavar="N",
        help="end after the level that reaches so many states",
    )
    parser.add_argument("--all", action="store_true", help="go on to one violation of each property")
    parser.add_argument(
        "--resume", metavar="DIR", help="keep the search there, and go on with one that is there"
    )
    parser.add_argument("--scenario", metavar="FILE", help="write the first violation as a scenario file")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def _positive(given: str) -> int:
    value = int(given.replace("_", "").replace(",", ""))
    if value < 1:
        raise ValueError
    return value


def _worlds(args: argparse.Namespace, subject: Subject) -> list[World]:
    if not args.world:
        return [world for world in WORLDS.values() if fits(world, args.kernel, subject.plan)]
    return [WORLDS[name] if name in WORLDS else _file(name) for name in args.world]


def _file(name: str) -> World:
    if not Path(name).exists():
        raise UsageError(f"--world {shown(name)}: expected one of {', '.join(WORLDS)}, or a file")
    return read_world(name)


def _ring(args: argparse.Namespace, subject: Subject) -> Ring | None:
    """The whole ring of a policy of one's own, before worlds are searched in which it is scaled down."""
    if subject.policy is None:
        return None
    found = ring(subject.policy(), kernel=args.kernel)
    if not args.json:
        print(found, flush=True)
    return found


def run(args: argparse.Namespace) -> int:
    """Search world after world, up to the first that is not sound."""
    kernel_profile(args.kernel)
    subject = Subject(
        args.kernel,
        None if args.plan is None else as_plan(args.plan),
        args.at,
        None if args.policy is None else load_policy(args.policy),
    )
    worlds = _worlds(args, subject)
    if args.resume and len(worlds) != 1:
        raise UsageError("--resume: give one world: --world W")
    around = _ring(args, subject)
    done: list[tuple[Result, Story | None]] = []
    progress = reporter()
    for world in worlds:
        result = check(
            subject,
            world,
            depth=args.depth or world.depth,
            states=args.states,
            steps=args.steps,
            seed=args.seed,
            jobs=min(args.jobs, os.cpu_count() or 1),
            keep=args.all,
            folder=args.resume,
            progress=progress,
        )
        story = tell(result.prepared, result.found[0]) if result.found else None
        clear_progress()
        done.append((result, story))
        if not args.json:
            print(folded(text(result, story), "      "), flush=True)
        if result.found or result.is_interrupted:
            break
    if args.json:
        found = {"ring": around.to_dict()} if around is not None else {}
        print(json.dumps({"schema": SCHEMA, **found, "results": [as_json(*one) for one in done]}, indent=1))
    last, story = done[-1]
    if args.scenario and story is not None:
        if not story.scenario:
            print(
                "kvm-mmu: no scenario is written: the language has no words for where this pauses",
                file=sys.stderr,
            )
        else:
            write_whole(args.scenario, "\n".join(story.scenario) + "\n")
    if last.is_interrupted:
        return 130
    if last.found or (around is not None and not around.is_safe):
        return 1
    return max(result.code for result, _ in done)
