"""Tell what a search found: each step, what the model did, what the judge says, what repairs it; and a scenario."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvm_mmu import _core
from kvm_mmu.check.engine import Prepared, Subject, prepare
from kvm_mmu.check.search import Finding
from kvm_mmu.errors import KvmMmuError
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.scenario.machine_engine import MachineEngine

GO_ON = 255
#: Rules that are known to let something pass and are exempt by name: they are not offered as the repair of anything.
EXEMPT = ("old_entry_exempts",)


@dataclass(frozen=True)
class Step:
    """One line of a story.

    Args:
        text: the operation, or that the one that waits goes on.
        did: what the model did.
        said: what the judge says after it.
    """

    text: str
    did: str
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Story:
    """A finding told.

    Args:
        finding: what was found.
        steps: step by step.
        repairs: `fact=value` with which the same steps break nothing.
        scenario: the lines of a scenario file, header first; empty where the language has no words for a pause.
        before: picture of the tables before the last step.
        after: picture after it.
    """

    finding: Finding
    steps: tuple[Step, ...]
    repairs: tuple[str, ...]
    scenario: tuple[str, ...]
    before: str
    after: str


def sentence(op: Mapping[str, Any]) -> str:
    """An operation in words."""
    parts = []
    for key, value in op.items():
        if key == "op" or isinstance(value, (list, tuple)):
            continue
        shown = (
            hex(value)
            if key in ("gpa", "size", "hva", "start", "end", "gen") and isinstance(value, int)
            else value
        )
        parts.append(f"{key} {shown}")
    return " ".join([str(op["op"]), *parts])


def operations(prepared: Prepared, finding: Finding) -> list[dict[str, Any]] | None:
    """The operations of a path in the scenario language; None where it has no words for a pause."""
    waits = prepared.search.waits(list(finding.path))
    top: list[dict[str, Any]] = []
    stack: list[tuple[dict[str, Any], list[dict[str, Any]], int]] = []
    depth = 0
    for (action, poll), (after, kind) in zip(finding.path, waits, strict=True):
        target = stack[-1][1] if stack else top
        if action != GO_ON:
            op = dict(prepared.actions[action])
            if poll and after > depth and kind == 2:
                if stack:
                    return None
                target.append({"op": "lock_break", "cond": poll, "need": poll, "do": []})
            target.append(op)
            current = op
        else:
            if not stack:
                return None
            current, inner, _ = stack.pop()
            if poll:
                return None
            del inner
        if after > depth or (action == GO_ON and after == depth):
            if kind == 1:
                inner = []
                current.setdefault("during", []).append(inner)
            elif kind == 2:
                breaks = [given for given in top if given["op"] == "lock_break"]
                if not breaks:
                    return None
                inner = []
                breaks[-1]["do"].append(inner)
            else:
                return None
            stack.append((current, inner, kind))
        depth = after
    while stack:
        stack.pop()
    return _without_breaks(top)


def _without_breaks(ops: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lock is dropped in the operation that follows a `lock_break`, and in no later one."""
    found: list[dict[str, Any]] = []
    for number, op in enumerate(ops):
        found.append(op)
        if number and ops[number - 1]["op"] == "lock_break" and number + 1 < len(ops):
            found.append({"op": "lock_break", "cond": 0, "need": 0})
    return found


def on_the_real_ring(prepared: Prepared, ops: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same on the kernel's own ring: where the small one comes round, the generation is set to just before that."""
    profile = kernel_profile(prepared.subject.kernel)
    real = (prepared.subject.policy or profile.generation)()
    small = prepared.policy
    size, whole = 1 << small.layout.width, 1 << real.layout.width
    if size >= whole:
        return [dict(op) for op in ops]
    generation = [small.initial(0), small.initial(1)]
    found: list[dict[str, Any]] = []
    begin = [{"op": "set_generation", "as": as_id, "gen": generation[as_id] % size} for as_id in range(2)]
    has_lapped = False
    live: dict[tuple[int, int], int] = {}
    for op in ops:
        if op["op"] == "set_memslot":
            as_id, key = int(op["as"]), (int(op["as"]), int(op["id"]))
            is_gone = not op["size"]
            is_moved = key in live and not is_gone and live[key] != op["gpa"]
            swaps = 2 if is_gone or is_moved else 1
            for swap in range(swaps):
                before = generation[as_id] % size
                generation[as_id] = small.next(small.begin(generation[as_id]))
                if generation[as_id] % size < before:
                    has_lapped = True
                    # Between the two publications of one update nothing can be said.
                    steps = small.next(small.begin(0)) * swap
                    found.append(
                        {"op": "set_generation", "as": as_id, "gen": whole - (size - before) - steps}
                    )
            if is_gone:
                live.pop(key, None)
            else:
                live[key] = int(op["gpa"])
        found.append(dict(op))
    return [*begin, *found] if has_lapped else found


def _header(prepared: Prepared, name: str) -> dict[str, Any]:
    config = {key: value for key, value in prepared.config.items() if key != "gfn_hash"}
    return {
        "scenario": name,
        "format": 1,
        "variant": prepared.subject.kernel,
        "config": config,
        "plans": {event: str(plan) for event, plan in prepared.plans.items()},
        "dump": "sparse",
    }


def _did(line: Mapping[str, Any]) -> str:
    out = line.get("out") or {}
    words = []
    if "outcome" in out:
        words.append(f"{out['outcome']} after {out['faults']} faults")
    if "bitmap" in out:
        words.append(f"bitmap {out['bitmap']}")
    counted: dict[str, int] = {}
    for event in line.get("events", ()):
        counted[event[0]] = counted.get(event[0], 0) + 1
    for event in (
        "mark_mmio",
        "check_mmio",
        "get_page",
        "set_spte",
        "prepare_zap",
        "flush",
        "flush_range",
        "reload_mmus",
    ):
        if event in counted:
            words.append(event if counted[event] == 1 else f"{event} x{counted[event]}")
    if not words and line.get("ret"):
        words.append(f"ret {line['ret']}")
    return ", ".join(words)


def _picture(engine: MachineEngine) -> str:
    pages = engine.state().get("active", [])
    lines = []
    for page in pages:
        entries = ", ".join(f"[{entry[0]}] {entry[1]}" for entry in page.get("sptes", [])[:4])
        lines.append(f"page {page.get('id')} gfn {page.get('gfn')} role {page.get('role')}: {entries}")
    return "\n".join(lines)


def replay(
    subject: Subject,
    config: Mapping[str, Any],
    plans: Mapping[str, Any],
    ops: Sequence[Mapping[str, Any]],
    policy: Any = None,
) -> tuple[list[Step], list[str], str, str]:
    """Run operations on a judged VM: the steps, the properties that broke, pictures before and after the last step."""
    more = {} if policy is None else {"generation": policy}
    engine = MachineEngine(subject.kernel, dict(config), dict(plans), **more)
    engine.vm.set_judged()
    steps: list[Step] = []
    broken: list[str] = []
    before = after = ""
    for op in ops:
        before = _picture(engine)
        try:
            did = _did(engine.apply(op))
        except KvmMmuError as error:
            did = f"the model stops: {error}"
            broken.append("slot_bounds" if "outside the slot" in str(error) else "no_bug")
        after = _picture(engine)
        found = [*engine.vm.judge(), *engine.vm.audit()]
        said = tuple(dict.fromkeys(f"{name}: {detail}" for name, detail in found))
        new = tuple(text for text in said if text not in {old for step in steps for old in step.said})
        broken += [name for name, _ in found if name not in broken]
        steps.append(Step(sentence(op), did, new))
    return steps, broken, before, after


def repairs(prepared: Prepared, finding: Finding) -> list[str]:
    """Facts of the row that, each changed alone, make the same steps sound: `fact=value`."""
    profile = kernel_profile(prepared.subject.kernel)
    found = []
    for fact in _core.facts():
        name, words, now = fact["name"], fact["words"], profile.facts[fact["name"]]
        if name in EXEMPT or name.endswith(("_layout", "_event")) or name in ("mem_slots", "pte_list_ext"):
            continue
        others: list[str] = (
            ["no" if now else "yes"] if isinstance(now, bool) else [word for word in words if word != now]
        )
        for value in others:
            changed = f"{prepared.subject.kernel}:{name}={value}"
            try:
                twin = prepare(
                    Subject(changed, prepared.subject.plan, prepared.subject.event, prepared.subject.policy),
                    prepared.world,
                )
                if twin.actions != prepared.actions:
                    continue
                path = list(finding.path)
                if len(twin.search.waits(path)) < len(path):
                    continue
                again = twin.search.replay(path)
            except KvmMmuError:
                continue
            if again is None:
                found.append(f"{name}={value}")
    return found


def tell(prepared: Prepared, finding: Finding, with_repairs: bool = True) -> Story:
    """The story of a finding."""
    ops = operations(prepared, finding)
    fixed = tuple(repairs(prepared, finding)) if with_repairs else ()
    if ops is None:
        waits = prepared.search.waits(list(finding.path))
        steps = []
        for (action, poll), (depth, _) in zip(finding.path, waits, strict=True):
            text = "what waits goes on" if action == GO_ON else sentence(prepared.actions[action])
            if poll:
                text += f" (the lock is dropped at poll {poll})"
            steps.append(Step(text, f"{depth} wait" if depth else ""))
        last = steps[-1]
        steps[-1] = Step(last.text, last.did, (f"{finding.name}: {finding.detail}",))
        return Story(finding, tuple(steps), fixed, (), "", "")
    start = list(prepared.world.start)
    whole = [*start, *on_the_real_ring(prepared, ops)]
    config = {key: value for key, value in prepared.config.items() if key != "gfn_hash"}
    told, broken, before, after = replay(
        prepared.subject, config, prepared.plans, whole, prepared.subject.policy
    )
    name = f"{prepared.world.name}-{finding.name}".lower()
    lines: tuple[str, ...] = ()
    if finding.name in broken:
        lines = tuple(json.dumps(line) for line in (_header(prepared, name), *({"op": op} for op in whole)))
    elif told:
        last = told[-1]
        told[-1] = Step(last.text, last.did, (*last.said, f"{finding.name}: {finding.detail}"))
    return Story(finding, tuple(told), fixed, lines, before, after)


def story_text(prepared: Prepared, finding: Finding) -> list[str]:
    """The steps of a finding, with what the judge says, and nothing that is looked for."""
    story = tell(prepared, finding, with_repairs=False)
    lines = []
    for number, step in enumerate(story.steps, 1):
        lines.append(f"{number:>2} {step.text:<62} {step.did}".rstrip())
        lines += [f"   judge: {said}" for said in step.said]
    return lines
