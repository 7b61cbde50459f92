"""A run as a page to travel in: a slider over its steps, each with operation, events, counters, lists and picture.

Owns how a step looks, and how much of a run a page may hold: what is more is counted, never cut off in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvm_mmu.view import meanings
from kvm_mmu.view.document import definitions, document, figure, linked, table, text
from kvm_mmu.view.meanings import COUNTERS, EVENTS, WORK
from kvm_mmu.view.picture import vm_svg

#: Events and list entries that a step shows; the rest is counted.
MOST_EVENTS, MOST_LISTED = 60, 40
#: Shadow pages above which no picture of a step is drawn: nothing could be read in it.
MOST_DRAWN = 400


@dataclass(frozen=True)
class Frame:
    """A step of a run.

    Attributes:
        number: of the operation, from 0; -1 is a state that no operation led to.
        operation: as the scenario has it.
        result: what it returned: `ret`, and `out` where it has one.
        events: each a list that begins with its name.
        counters: how each changed.
        state: the whole state after it.
        findings: what the audit found, as (name, text).
        name: what the step is called; "": its operation in words.
        work: counts of work, where the step is a zap.
        picture: SVG text of our own making; "": drawn from the state.
        since: the state that it is compared with; None: that of the step before.
    """

    number: int
    operation: Mapping[str, Any]
    result: Mapping[str, Any]
    events: Sequence[Sequence[Any]]
    counters: Mapping[str, int]
    state: Mapping[str, Any]
    findings: Sequence[tuple[str, str]] = field(default_factory=tuple)
    name: str = ""
    work: Mapping[str, int] = field(default_factory=dict)
    picture: str = ""
    since: Mapping[str, Any] | None = None

    @property
    def words(self) -> str:
        """What the step is, in one line."""
        if self.name:
            return self.name
        return "before the first operation" if self.number < 0 else meanings.operation(self.operation)


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
    head = table({"what": list(about), "value": [str(value) for value in about.values()]}, "what ran")
    said = [f"<p>{left_out:,} operations are not shown.</p>"] if left_out else []
    return document(title, [head, *said, travel(frames, title), *glossary(frames)])


def travel(frames: Sequence[Frame], title: str, prefix: str = "", start: int = 0) -> str:
    """Write the steps of a run as part of a page.

    Args:
        frames: the steps, in order.
        title: what ran, for those who cannot see the page.
        prefix: before the names of the steps, where a page has several runs.
        start: the step that is shown first where scripts run.

    Returns:
        HTML.
    """
    last = max(0, len(frames) - 1)
    names = [_place(frame, at, prefix) for at, frame in enumerate(frames)]
    buttons = {
        way: f"<button type='button' class='{way}' aria-label='{label}'>{shown}</button>"
        for way, label, shown in (
            ("first", "first step", "|&lt;"),
            ("before", "step before", "&lt;"),
            ("after", "step after", "&gt;"),
            ("last", "last step", "&gt;|"),
        )
    }
    nav = (
        f"<div class='steps' hidden role='group' aria-label='steps of {text(title)}'><div class='row'>"
        f"{buttons['first']}{buttons['before']}"
        f"<input type='range' min='0' max='{last}' value='{start}' aria-label='step; arrow keys move'>"
        f"{buttons['after']}{buttons['last']}</div><output></output></div>"
    )
    listed = "".join(
        f"<li><a href='#{name}'>{text(_numbered(frame))}</a></li>"
        for name, frame in zip(names, frames, strict=True)
    )
    contents = (
        f"<details class='contents'><summary>all {len(frames):,} steps</summary><ol>{listed}</ol></details>"
    )
    before: Mapping[str, Any] | None = None
    steps = []
    for name, frame in zip(names, frames, strict=True):
        steps.append(_step(frame, name, before if frame.since is None else frame.since))
        before = frame.state
    return "\n".join([f"<div class='travel'>{nav}{contents}", *steps, "</div>"])


def glossary(frames: Sequence[Frame]) -> list[str]:
    """List what the counters and events of some steps mean.

    Args:
        frames: the steps of a page.

    Returns:
        HTML, a part for each kind of name.
    """
    counted = {name for frame in frames for name in frame.counters}
    worked = {name for frame in frames for name, count in frame.work.items() if count}
    logged = {str(event[0]) for frame in frames for event in frame.events[:MOST_EVENTS]}
    return [
        definitions("Counters", {n: says for n, says in COUNTERS.items() if n in counted}, "counter"),
        definitions("Work", {n: says for n, says in WORK.items() if n in worked}, "work"),
        definitions("Events", {n: says for n, (_, says) in EVENTS.items() if n in logged}, "event"),
    ]


def _place(frame: Frame, at: int, prefix: str) -> str:
    """The name of a step's place in the page."""
    return f"{prefix}step-{at if frame.name or prefix else frame.number + 1}"


def _numbered(frame: Frame) -> str:
    return frame.words if frame.name else f"{frame.number + 1}: {frame.words}"


def _step(frame: Frame, place: str, before: Mapping[str, Any] | None) -> str:
    name = _numbered(frame)
    parts = [
        f"<section class='step' id='{place}' aria-label='{text(name)}'>",
        f"<h3>{text(name)}</h3>",
    ]
    if frame.operation:
        parts.append(f"<pre>{text(json.dumps(frame.operation))}</pre>")
    if frame.result:
        told = ", ".join(
            f"{key} {json.dumps(value) if isinstance(value, list) else value}"
            for key, value in _flat(frame.result).items()
        )
        parts.append(f"<p>result: {text(told)}</p>")
    parts += [f"<p class='bad'>{text(found)}: {text(detail)}</p>" for found, detail in frame.findings]
    for kind, counts, sign in (("counter", frame.counters, "+,"), ("work", frame.work, ",")):
        cells = ", ".join(f"{linked(kind, key)} {value:{sign}}" for key, value in counts.items() if value)
        if cells:
            parts.append(f"<p>{'counters' if kind == 'counter' else kind}: {cells}</p>")
    if before is not None:
        parts.append(_difference(before, frame.state))
    parts.append(_events(frame.events))
    parts.append(_state(frame))
    parts.append("</section>")
    return "\n".join(part for part in parts if part)


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with its `out` beside what it returned."""
    found: dict[str, Any] = {}
    for key, value in result.items():
        found |= value if isinstance(value, Mapping) else {key: value}
    return found


def _tables(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(state.get("active") or ()), *(state.get("tdp") or ())]


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Which pages came, went and changed, in a line."""
    old = {table["id"]: table for table in _tables(before)}
    new = {table["id"]: table for table in _tables(after)}
    parts = []
    for word, ids in (
        ("made", sorted(new.keys() - old.keys())),
        ("gone", sorted(old.keys() - new.keys())),
        ("changed", sorted(key for key in old.keys() & new.keys() if old[key] != new[key])),
    ):
        if ids:
            parts.append(f"{word} {_listed(ids)}")
    for space, (was, now) in enumerate(zip(before.get("as") or (), after.get("as") or (), strict=False)):
        if was["gen"] != now["gen"]:
            parts.append(f"generation of space {space} {was['gen']} to {now['gen']}")
    return f"<p>pages: {text('; '.join(parts))}</p>" if parts else ""


def _listed(ids: Sequence[Any]) -> str:
    more = f" and {len(ids) - MOST_LISTED:,} more" if len(ids) > MOST_LISTED else ""
    return " ".join(map(str, ids[:MOST_LISTED])) + more


def _events(events: Sequence[Sequence[Any]]) -> str:
    if not events:
        return ""
    shown = events[:MOST_EVENTS]
    more = f", the first {len(shown)} shown" if len(events) > len(shown) else ""
    rows = "".join(
        f"<tr><td>{linked('event', str(event[0])) if event[0] in EVENTS else text(event[0])}</td>"
        f"<td>{text(meanings.fields(event))}</td></tr>"
        for event in shown
    )
    count = "1 event" if len(events) == 1 else f"{len(events):,} events"
    return (
        f"<details open><summary>{count}{more}</summary><div class='wide' tabindex='0' role='region' "
        "aria-label='events'><table><thead><tr><th scope='col'>event</th><th scope='col'>fields</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _state(frame: Frame) -> str:
    state = frame.state
    spaces = state.get("as") or []
    generations = ", ".join(f"space {number}: {space['gen']}" for number, space in enumerate(spaces))
    lists = [("active list, newest first", [page["id"] for page in state.get("active") or ()])]
    for key, name in (
        ("zapped_obsolete", "zapped, not freed yet"),
        ("roots", "roots of the TDP MMU"),
        ("nx_list", "NX huge page tables"),
    ):
        lists.append((name, [_id(entry) for entry in state.get(key) or ()]))
    parts = [f"<p>memslot generations: {text(generations)}</p>"]
    for name, ids in lists:
        if ids:
            parts.append(f"<p>{name} ({len(ids):,}): <code>{text(_listed(ids))}</code></p>")
    parts += [_slots(spaces), _vcpus(state.get("vcpus") or ()), _pages(state)]
    live = len(_tables(state))
    if frame.picture:
        parts.append(figure(frame.picture, "the page tables after this step"))
    elif live > MOST_DRAWN:
        parts.append(f"<p>no picture: {live:,} pages live, {MOST_DRAWN} at most are drawn</p>")
    else:
        parts.append(figure(vm_svg(state), "the page tables after this step"))
    return "\n".join(part for part in parts if part)


def _slots(spaces: Sequence[Mapping[str, Any]]) -> str:
    slots = [(number, slot) for number, space in enumerate(spaces) for slot in space["slots"]]
    columns = {
        "space": [str(number) for number, _ in slots],
        "slot": [str(slot["id"]) for _, slot in slots],
        "first gfn": [hex(slot["base"]) for _, slot in slots],
        "pages": [slot["npages"] for _, slot in slots],
        "flags": [str(slot["flags"]) for _, slot in slots],
    }
    return _folded(columns, "memslot")


def _vcpus(vcpus: Sequence[Mapping[str, Any]]) -> str:
    def shown(value: Any) -> str:
        return "-" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)

    columns = {"vCPU": [str(number) for number in range(len(vcpus))]}
    for key in ("root", "requests", "smm", "mmio"):
        if any(key in vcpu for vcpu in vcpus):
            columns[key] = [shown(vcpu.get(key)) for vcpu in vcpus]
    return _folded(columns, "vCPU")


def _pages(state: Mapping[str, Any]) -> str:
    """The page tables in text, for those who cannot see the picture."""
    every = sorted(_tables(state), key=lambda table: (-table["level"], table["id"]))
    marks = ("mmio_cached", "invalid", "unsync")
    shown = every[:MOST_LISTED]
    columns = {
        "page": [str(page["id"]) for page in shown],
        "level": [page["level"] for page in shown],
        "gfn": [hex(page["gfn"]) for page in shown],
        "entries": [sum(spte[3] if len(spte) > 3 else 1 for spte in page["sptes"]) for page in shown],
        "links to": [
            _listed([s[2] for s in page["sptes"] if len(s) > 2 and s[2] is not None]) for page in shown
        ],
        "marks": [" ".join(mark for mark in marks if page.get(mark)) for page in shown],
    }
    return _folded(columns, "page table", len(every))


def _folded(columns: Mapping[str, Sequence[Any]], what: str, count: int | None = None) -> str:
    shown = len(next(iter(columns.values())))
    of = shown if count is None else count
    if not of:
        return ""
    name = f"{of:,} {what}{'' if of == 1 else 's'}"
    more = f", the first {shown} shown" if of > shown else ""
    return f"<details><summary>{name}{more}</summary>{table(columns, name)}</details>"


def _id(entry: Any) -> Any:
    return entry["id"] if isinstance(entry, Mapping) else entry
