"""The report of a search, as text and as JSON."""

from __future__ import annotations

from typing import Any

from kvm_mmu.check.search import Result
from kvm_mmu.check.story import Story
from kvm_mmu.errors import KvmMmuError
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.terminal import one_line

SCHEMA = "kvm-mmu/check/1"


def row(result: Result) -> str:
    """The kernel as it was judged: its name, and its patch level where the name does not say it."""
    subject = result.prepared.subject
    try:
        release = kernel_profile(subject.kernel).release
    except KvmMmuError:
        release = ""
    return f"{subject.kernel} ({release})" if release and release not in subject.kernel else subject.kernel


def bound(result: Result) -> str:
    """What was exhausted, in words."""
    if result.is_interrupted:
        return "interrupted: what was complete counts"
    if result.mode == "random":
        return f"{result.depth} rounds"
    if result.closed:
        return f"closed at depth {result.depth}: no state is left, nothing was bounded inside this world"
    if result.found:
        return f"depth {result.depth}"
    return f"depth {result.depth} complete" if result.complete else f"cut off after depth {result.depth}"


def text(result: Result, story: Story | None) -> str:
    """The report for a person."""
    prepared = result.prepared
    world = prepared.world
    lines = [f"{result.verdict:<11} {row(result)}   {world.name}: {world.what}"]
    rate = result.transitions / max(result.seconds, 1e-9)
    if result.mode == "random":
        lines.append(
            f"  {result.transitions:,} steps in {result.depth:,} rounds, {result.states:,} kinds of states,"
            f" {result.seconds:.1f} s ({rate:,.0f} steps/s)"
        )
    else:
        lines.append(
            f"  {result.states:,} states, {result.transitions:,} transitions, {bound(result)},"
            f" {result.seconds:.1f} s ({rate:,.0f} transitions/s)"
        )
    constants = ", ".join(f"{name} {value}" for name, value in prepared.constants.items())
    lines.append(f"  made small: {constants}")
    if result.missed:
        lines.append(f"  not reached: {'; '.join(result.missed)}")
    if result.vacuous:
        lines.append(f"  nothing in this world is about: {', '.join(result.vacuous)}")
    for finding in result.found:
        shortest = f", no shorter one in {world.name}" if finding.is_shortest else ", shrunk"
        lines.append(f"  {finding.name}: {finding.operations} operations{shortest}")
    if story is not None:
        lines += ["", *story_lines(story)]
    return "\n".join(lines)


def story_lines(story: Story) -> list[str]:
    """A story, line by line."""
    finding = story.finding
    owner = f"   owed by {finding.owner}" if finding.owner else ""
    lines = [f"violation {finding.name}{owner}"]
    for number, step in enumerate(story.steps, 1):
        lines.append(f" {number:>2} {one_line(step.text):<58} {one_line(step.did)}".rstrip())
        lines += [f"      judge: {one_line(said)}" for said in step.said]
    lines.append(f"   {finding.name}: {one_line(finding.detail)}")
    lines += [f"   with {fact}: sound" for fact in story.repairs]
    if not story.scenario:
        lines.append("   the scenario language has no words for where this pauses")
    for title, picture in (("before", story.before), ("after", story.after)):
        if picture:
            lines += [f"   {title}:", *(f"     {one_line(line)}" for line in picture.splitlines())]
    return lines


def as_json(result: Result, story: Story | None) -> dict[str, Any]:
    """The report for a program."""
    prepared = result.prepared
    return {
        "verdict": result.verdict,
        "kernel": prepared.subject.kernel,
        "world": prepared.world.name,
        "mode": result.mode,
        "states": result.states,
        "transitions": result.transitions,
        "depth": result.depth,
        "closed": result.closed,
        "complete": result.complete,
        "interrupted": result.is_interrupted,
        "seconds": round(result.seconds, 3),
        "constants": dict(prepared.constants),
        "plans": {event: str(plan) for event, plan in prepared.plans.items()},
        "policy": type(prepared.policy).__name__,
        "goals": dict(result.goals),
        "missed": list(result.missed),
        "vacuous": list(result.vacuous),
        "premises": dict(result.premises),
        "found": [
            {
                "property": finding.name,
                "detail": finding.detail,
                "owner": finding.owner,
                "operations": finding.operations,
                "path": [list(choice) for choice in finding.path],
            }
            for finding in result.found
        ],
        "story": None
        if story is None
        else {
            "steps": [
                {"operation": step.text, "did": step.did, "judge": list(step.said)} for step in story.steps
            ],
            "repairs": list(story.repairs),
            "scenario": list(story.scenario),
            "before": story.before,
            "after": story.after,
        },
    }
