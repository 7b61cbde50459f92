"""`kvm-mmu kernels`: the kernels that are modelled, what each does, and how two of them differ."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from kvm_mmu.machine.kernel_bugs import markdown
from kvm_mmu.machine.profiles import (
    EVENTS,
    KernelProfile,
    assumed,
    difference,
    facts,
    kernel_profile,
    kernels,
)
from kvm_mmu.scenario.fact_scenarios import fact_scenario, reason, value_text
from kvm_mmu.studies.fixes import FIXES

SCHEMA = "kvm-mmu/kernels/1"
_WIDTH = 78


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("kernels", help="the kernels that are modelled", description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)
    below = parser.add_subparsers(metavar="COMMAND")
    show = below.add_parser("show", help="every fact of one kernel, in words")
    show.add_argument("kernel", help="a row or a release: v6.12, 6.12.94, 6.1.0-56-amd64")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(run=run_show)
    diff = below.add_parser("diff", help="every fact that differs between two kernels")
    diff.add_argument("a", metavar="A", help="a row or a release")
    diff.add_argument("b", metavar="B", help="another")
    diff.add_argument("--json", action="store_true", help="as JSON")
    diff.set_defaults(run=run_diff)
    table = below.add_parser("table", help="every fact of every kernel, as a Markdown table")
    table.set_defaults(run=run_table)
    bugs = below.add_parser("bugs", help="the kernels' bugs that are part of the model, as a Markdown table")
    bugs.set_defaults(run=run_bugs)


def run(args: argparse.Namespace) -> int:
    """Print the kernels."""
    if args.json:
        rows = [_row(profile) for profile in kernels.values()]
        print(json.dumps({"schema": SCHEMA, "kernels": rows}, indent=1))
        return 0
    for profile in kernels.values():
        print(f"{profile.name:<10} {profile.title}")
        policy = profile.generation()
        print(f"{'':<10}   generation: {policy.layout.width} bits, starts at {policy.start_name}")
        for event in EVENTS:
            if event in profile.plans:
                print(f"{'':<10}   {event.replace('_', ' '):<13} {_plan(profile, event)}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print every fact of one kernel."""
    profile = kernel_profile(args.kernel)
    if args.json:
        found = _row(profile) | {
            "schema": "kvm-mmu/kernel/1",
            "assumed": assumed(args.kernel),
            "fault_order": list(profile.fault_order),
            "facts": {name: _described(name) | {"value": profile.facts[name]} for name in facts},
        }
        print(json.dumps(found, indent=1))
        return 0
    print(_folded(_heading(args.kernel, profile), ""))
    for event in profile.plans:
        print(f"  {event.replace('_', ' '):<13} {_plan(profile, event)}")
    print(_folded(f"{'fault':<13} {_order(profile)}", "  ", " " * 16))
    for name in facts:
        print(f"\n{name} = {_shown(profile.facts[name])}")
        print(_in_words(name))
    return 0


def run_diff(args: argparse.Namespace) -> int:
    """Print every fact that differs between two kernels."""
    a, b = kernel_profile(args.a), kernel_profile(args.b)
    found = difference(a, b)
    near = (b.name, a.name)
    changed = {
        event: (str(a.plans.get(event)), str(b.plans.get(event)))
        for event in EVENTS
        if a.plans.get(event) != b.plans.get(event)
    }
    if args.json:
        document = {
            "schema": "kvm-mmu/kernels-diff/1",
            "a": {"name": a.name, "release": a.release, "assumed": assumed(args.a)},
            "b": {"name": b.name, "release": b.release, "assumed": assumed(args.b)},
            "plans": {event: {"a": was, "b": now} for event, (was, now) in changed.items()},
            "fault_order": {}
            if a.fault_order == b.fault_order
            else {"a": list(a.fault_order), "b": list(b.fault_order)},
            "facts": [
                {"name": name} | _described(name) | {"a": was, "b": now} | _evidence(name, was, now, near)
                for name, (was, now) in found.items()
            ],
        }
        print(json.dumps(document, indent=1))
        return 0
    print(_folded(f"A  {_heading(args.a, a)}", "", "   "))
    print(_folded(f"B  {_heading(args.b, b)}", "", "   "))
    for event, (plan, other) in changed.items():
        print(f"\nplan for {event.replace('_', ' ')}: {plan} -> {other}")
    if a.fault_order != b.fault_order:
        print("\nsteps of a page fault:")
        print(_folded(f"A  {_order(a)}", "  ", "     "))
        print(_folded(f"B  {_order(b)}", "  ", "     "))
    for name, (was, now) in found.items():
        print(f"\n{name}: {_shown(was)} -> {_shown(now)}")
        print(_in_words(name))
        print(_evidence_in_words(name, was, now, near))
        if any(fix.fact == name for fix in FIXES):
            print(f"  found by the judge: kvm-mmu gallery fixes {name} (docs/soundness.md)")
    if not found and not changed:
        print("\nno fact and no plan differs")
    return 0


def run_table(args: argparse.Namespace) -> int:
    """Print which kernel follows which rule, as the documentation has it."""
    print("| fact | rule | kernels | change | known by |\n|---|---|---|---|---|")
    for name, fact in facts.items():
        change = ", ".join(f"`{text}`" for text in (fact.commit, fact.cve) if text) or "-"
        print(f"| `{name}` | {fact.rule} | {_by_kernel(name)} | {change} | {fact.known} |")
    return 0


def run_bugs(_args: argparse.Namespace) -> int:
    """Print which kernel has which bug, as the documentation has it."""
    print(markdown())
    return 0


def _by_kernel(name: str) -> str:
    """Each value with the kernels that have it, in their order; neighbours are told by the first and the last."""
    spans: dict[str, list[list[str]]] = {}
    before = None
    for kernel, profile in kernels.items():
        value = _shown(profile.facts[name])
        if value != before:
            spans.setdefault(value, []).append([])
        spans[value][-1].append(kernel)
        before = value
    if len(spans) == 1:
        return f"all: `{next(iter(spans))}`"
    if set(spans) == {"yes", "no"}:
        del spans["no"]
    return "; ".join(
        f"`{value}`: {', '.join(' to '.join(dict.fromkeys((part[0], part[-1]))) for part in parts)}"
        for value, parts in spans.items()
    )


def _order(profile: KernelProfile) -> str:
    return ", ".join(profile.fault_order)


def _plan(profile: KernelProfile, event: str) -> str:
    """The plan of an event, and that of the TDP MMU where there is one."""
    under_tdp = profile.tdp_plans.get(event)
    return str(profile.plans[event]) + (f", under the TDP MMU {under_tdp}" if under_tdp else "")


def _row(profile: KernelProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "release": profile.release,
        "title": profile.title,
        "plans": {event: plan.name for event, plan in profile.plans.items()},
        "tdp_plans": {event: plan.name for event, plan in profile.tdp_plans.items()},
        "generation": {
            "policy": profile.generation.name,
            "start": profile.generation.default_start,
            "width": profile.generation.layout.width,
        },
    }


def _described(name: str) -> dict[str, Any]:
    fact = facts[name]
    return {"rule": fact.rule, "commit": fact.commit, "cve": fact.cve, "known": fact.known}


def _heading(asked: str, profile: KernelProfile) -> str:
    said = assumed(asked)
    return f"{profile.name} ({profile.release})" + (f": {said}" if said else "")


def _in_words(name: str) -> str:
    fact = facts[name]
    notes = [f"commit {fact.commit}"] if fact.commit else []
    notes += [fact.cve] if fact.cve else []
    notes.append(f"known by: {fact.known}")
    text = f"{fact.rule} ({', '.join(notes)})"
    return _folded(text)


def _evidence(
    name: str, was: bool | int | str, now: bool | int | str, near: tuple[str, ...]
) -> dict[str, Any]:
    """The scenario that shows a fact, and the two kernels to run it under, or why there is none."""
    found = fact_scenario(name)
    if found is None:
        return {"scenario": None, "not_shown": reason(name)}
    kernels = list(found.kernels(_shown(was), _shown(now), near))
    return {"scenario": {"file": found.path.name, "shows": found.shows, "kernels": kernels}}


def _evidence_in_words(name: str, was: bool | int | str, now: bool | int | str, near: tuple[str, ...]) -> str:
    found = fact_scenario(name)
    if found is None:
        return _folded(f"no scenario shows it: {reason(name)}")
    kernel, other = found.kernels(_shown(was), _shown(now), near)
    return "\n".join(
        (
            _folded(f"shown by: {found.shows}"),
            f"    kvm-mmu scenario sample --fact {name} > {name}.jsonl",
            f"    kvm-mmu run {name}.jsonl --kernel {kernel}",
            f"    kvm-mmu run {name}.jsonl --kernel {other}",
        )
    )


def _folded(text: str, first: str = "  ", other: str = "  ") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )


_shown = value_text
