"""A run as a page to travel in: a slider over its steps, each with operation, events, counters, lists and picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvm_mmu.view.document import document, figure, table, text
from kvm_mmu.view.picture import vm_svg

#: Events and list entries that a step shows; the rest is counted.
MOST_EVENTS, MOST_LISTED = 60, 40
#: Shadow pages above which no picture of a step is drawn: nothing could be read in it.
MOST_DRAWN = 400

#: What each counter of a step counts.
COUNTERS: dict[str, str] = {
    "flush": "full flushes of all TLBs",
    "flush_range": "flushes of a range of guest memory",
    "reload": "requests to all vCPUs to load their roots again",
    "lock_breaks": "times mmu_lock was dropped in the middle of work",
    "cond_resched": "times the lock was offered",
    "need_resched": "times it was asked whether somebody needs the processor",
    "needbreak": "times it was asked whether somebody waits for the lock",
    "warn": "warnings of the kernel",
    "zapped": "shadow pages prepared for a zap",
    "recycled": "reverse-map heads that grew too long and were dropped",
    "cache_miss": "shadow pages that were asked for and not found",
    "created": "shadow pages made",
    "freed": "shadow pages freed",
    "lpages": "large leaves, net",
    "max_collisions": "the most pages met in one hash bucket",
    "pfn_accessed": "host pages marked as accessed",
    "pfn_dirty": "host pages marked as dirty",
    "walk_starts": "passes of zap loops over the active list",
    "walk_visited": "list entries that they looked at",
    "srcu_sync": "waits for everybody who may use the old memslots",
    "spte_changed": "entries of the TDP MMU whose change was reported",
    "tdp_walks": "walks of the TDP MMU",
    "tdp_steps": "entries that they came to",
}


@dataclass(frozen=True)
class Frame:
    """A step of a run.

    Attributes:
        number: of the operation, from 0; -1 is the state before the first.
        operation: as the scenario has it.
        result: what it returned: `ret`, and `out` where it has one.
        events: each a list that begins with its name.
        counters: how each changed.
        state: the whole state after it.
        findings: what the audit found, as (name, text).
    """

    number: int
    operation: Mapping[str, Any]
    result: Mapping[str, Any]
    events: Sequence[Sequence[Any]]
    counters: Mapping[str, int]
    state: Mapping[str, Any]
    findings: Sequence[tuple[str, str]] = field(default_factory=tuple)


def time_travel(title: str, about: Mapping[str, object], frames: Sequence[Frame], left_out: int = 0) -> str:
    """Write a run as a page.

    Args:
        title: what ran.
        about: name to value, at the head of the page: kernel, configuration, plans.
        frames: the steps, in order.
        left_out: operations that the page has no step for.

    Returns:
        The text of an HTML file.
    """
    head = table({"what": list(about), "value": [str(value) for value in about.values()]})
    last = max(0, len(frames) - 1)
    nav = (
        "<nav class='steps' hidden aria-label='steps'><button class='before'>before</button> "
        f"<input type='range' min='0' max='{last}' value='0' aria-label='step'> "
        "<button class='after'>after</button> <output></output></nav>"
    )
    said = [f"<p>{left_out:,} operations are not shown.</p>"] if left_out else []
    meanings = "".join(
        f"<dt id='counter-{name}'>{name}</dt><dd>{text(says)}</dd>" for name, says in COUNTERS.items()
    )
    parts = [head, *said, nav, *map(_step, frames), f"<h2>Counters</h2><dl>{meanings}</dl>"]
    return document(title, parts)


def _step(frame: Frame) -> str:
    name = "before the first operation" if frame.number < 0 else _words(frame.operation)
    parts = [
        f"<section class='step' id='step-{frame.number + 1}' aria-label='step {frame.number + 1}'>",
        f"<h2>{frame.number + 1}: {text(name)}</h2>",
    ]
    if frame.number >= 0:
        parts.append(f"<pre>{text(json.dumps(frame.operation))}</pre>")
        parts.append(f"<p>returned {text(json.dumps(frame.result))}</p>")
    parts += [f"<p class='bad'>{text(name)}: {text(detail)}</p>" for name, detail in frame.findings]
    if frame.counters:
        cells = ", ".join(
            f"<a href='#counter-{text(name)}'>{text(name)}</a> {value:+,}"
            for name, value in frame.counters.items()
        )
        parts.append(f"<p>counters: {cells}</p>")
    parts.append(_events(frame.events))
    parts.append(_state(frame.state))
    parts.append("</section>")
    return "\n".join(part for part in parts if part)


def _words(operation: Mapping[str, Any]) -> str:
    rest = " ".join(
        f"{key} {value}"
        for key, value in operation.items()
        if key != "op" and not isinstance(value, list | dict)
    )
    return f"{operation.get('op', '?')} {rest}".strip()[:160]


def _events(events: Sequence[Sequence[Any]]) -> str:
    if not events:
        return ""
    shown = events[:MOST_EVENTS]
    more = f" (and {len(events) - len(shown):,} more)" if len(events) > len(shown) else ""
    columns = {
        "event": [str(event[0]) for event in shown],
        "fields": [" ".join(map(str, event[1:])) for event in shown],
    }
    return f"<details open><summary>{len(events):,} events{more}</summary>{table(columns)}</details>"


def _state(state: Mapping[str, Any]) -> str:
    spaces = state.get("as") or []
    generations = ", ".join(f"space {number}: {space['gen']}" for number, space in enumerate(spaces))
    lists = [("active list, newest first", [page["id"] for page in state.get("active") or ()])]
    lists.append(("zapped obsolete pages", [_id(page) for page in state.get("zapped_obsolete") or ()]))
    lists.append(("roots", [_id(root) for root in state.get("roots") or ()]))
    parts = [f"<p>generations: {text(generations)}</p>"]
    for name, ids in lists:
        if ids:
            shown = " ".join(map(str, ids[:MOST_LISTED]))
            more = f" and {len(ids) - MOST_LISTED:,} more" if len(ids) > MOST_LISTED else ""
            parts.append(f"<p>{name} ({len(ids):,}): <code>{text(shown)}</code>{more}</p>")
    slots = [(number, slot) for number, space in enumerate(spaces) for slot in space["slots"]]
    if slots:
        columns = {
            "space": [number for number, _ in slots],
            "slot": [slot["id"] for _, slot in slots],
            "first gfn": [hex(slot["base"]) for _, slot in slots],
            "pages": [slot["npages"] for _, slot in slots],
            "flags": [slot["flags"] for _, slot in slots],
        }
        parts.append(f"<details><summary>{len(slots)} memslots</summary>{table(columns)}</details>")
    live = len(state.get("active") or ()) + len(state.get("tdp") or ())
    if live > MOST_DRAWN:
        parts.append(f"<p>no picture: {live:,} pages live, {MOST_DRAWN} at most are drawn</p>")
    else:
        parts.append(figure(vm_svg(state), "the page tables after this step"))
    return "\n".join(parts)


def _id(entry: Any) -> Any:
    return entry["id"] if isinstance(entry, Mapping) else entry
