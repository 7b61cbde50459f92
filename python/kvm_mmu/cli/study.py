"""`kvm-mmu study [NAME]`: an article whose every number is made by a run, each with its run's digest."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvm_mmu.cli.compare import clear_progress, reporter
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.studies.study import SCHEMA, Study, studies
from kvm_mmu.terminal import folded


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("study", help="articles made by runs of the model", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="which study; without it they are listed")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="only these sections, by number")
    parser.add_argument("--markdown", action="store_true", help="as a page (docs/studies)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the study; each answer as soon as it is there."""
    if args.markdown and args.json:
        raise UsageError("--markdown and --json: expected one of them")
    every = studies()
    if args.name is None:
        return _list(every, args.json)
    if args.name not in every:
        raise UsageError(f"study {shown(args.name)}: expected one of {', '.join(every)}")
    study = every[args.name]
    if args.markdown and args.questions:
        raise UsageError("--markdown: a page has every section")
    found = study.answers(args.questions, reporter())
    if args.markdown or args.json:
        whole = list(found)
        clear_progress()
        if args.markdown:
            print(study.page(whole), end="")
        else:
            told = {"schema": SCHEMA, "study": study.name, "answers": [one.to_dict() for one in whole]}
            print(json.dumps(told, indent=1))
        return 0
    for answer in found:
        clear_progress()
        print(answer.to_text() + "\n", flush=True)
    return 0


def _list(every: dict[str, Study], as_json: bool) -> int:
    if as_json:
        rows = [
            {"name": s.name, "title": s.title, "about": s.about, "questions": list(s.questions)}
            for s in every.values()
        ]
        print(json.dumps({"schema": SCHEMA, "studies": rows}, indent=1))
        return 0
    for study in every.values():
        print(folded(f"{study.name}: {study.title}, {study.about} ({', '.join(study.questions)})"))
    print("thread: the seed thread, claim by claim, is kvm-mmu gallery thread")
    return 0
