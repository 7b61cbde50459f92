"""The inputs of a stripped 5.x trace: operations of the recorder and page faults, with their line numbers.

Owns: which lines of a trace are inputs of that family and how a fault line reads. Everything else is skipped.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kvm_mmu.errors import TraceError
from kvm_mmu.machine import json_object
from kvm_mmu.trace.text.line import Line, clean_body, lost_events, parse_line
from kvm_mmu.trace.text.markers import Operation, parse_marker

_FAULT = re.compile(r"address (?:0x)?([0-9a-f]{1,16}) error_code (?:0x)?([0-9a-f]{1,16})$")


class Fault(NamedTuple):
    """A page fault: guest physical address and error code."""

    line: int
    gpa: int
    error_code: int


class Marker(NamedTuple):
    """An operation of the recorder."""

    line: int
    operation: Operation


class Walk(NamedTuple):
    """A walk of the guest's tables: address and what was wanted."""

    line: int
    gva: int
    error_code: int


class Given(NamedTuple):
    """What was put into the text besides: `regs`, `memory` or `huge_slots`, and its JSON value."""

    line: int
    kind: str
    value: object


Input = Fault | Marker
ShadowInput = Fault | Marker | Walk | Given

#: Lines that are put into the text of a recording of shadow paging, and what each gives.
GIVEN = {
    "replay_guest_regs": "regs",
    "replay_guest_memory": "memory",
    "replay_host_huge_slots": "huge_slots",
}
_WALK = re.compile(r"addr ([0-9a-f]{1,16}) pferr ([0-9a-f]{1,16})")


def read_shadow_inputs(lines: Iterable[str], name: str) -> Iterator[ShadowInput]:
    """The inputs of a recording of shadow paging, in order.

    Raises:
        TraceError: as `read_inputs`.
    """
    kept = deque[tuple[int, str]]()
    for item in read_inputs(_numbered(lines, kept), name):
        yield from _between(kept, item.line, name)
        yield item
    yield from _between(kept, None, name)


def _numbered(lines: Iterable[str], kept: deque[tuple[int, str]]) -> Iterator[str]:
    for number, text in enumerate(lines, 1):
        if any(mark in text for mark in _KEPT):
            kept.append((number, text))
        yield text


_KEPT = (": kvm_mmu_pagetable_walk: ", *(f": {event}: " for event in GIVEN))


def _between(kept: deque[tuple[int, str]], before: int | None, name: str) -> Iterator[Walk | Given]:
    while kept and (before is None or kept[0][0] < before):
        number, text = kept.popleft()
        line = parse_line(text)
        if line is None:
            continue
        if line.event in GIVEN:
            try:
                yield Given(number, GIVEN[line.event], json_object.loads(line.body))
            except ValueError as err:
                raise TraceError(f"{name}:{number}: {line.event}: not JSON: {err}") from err
            continue
        found = _WALK.match(clean_body(line.body)) if line.event == "kvm_mmu_pagetable_walk" else None
        if found is not None:
            yield Walk(number, int(found[1], 16), int(found[2], 16))


def read_inputs(lines: Iterable[str], name: str) -> Iterator[Input]:
    """The inputs among these lines, in order.

    Raises:
        TraceError: an input line cannot be read, or events were lost; the message names the line.
    """
    for number, text in enumerate(lines, 1):
        line = parse_line(text)
        if line is None:
            lost = lost_events(text)
            if lost is not None:
                raise TraceError(
                    f"{name}:{number}: events were lost here ({lost or 'number unknown'}): not replayable"
                )
            continue
        item = _input(line, number, f"{name}:{number}")
        if item is not None:
            yield item


def _input(line: Line, number: int, where: str) -> Input | None:
    if line.event == "tracing_mark_write":
        operation = parse_marker(clean_body(line.body), where)
        return None if operation is None else Marker(number, operation)
    if line.event == "kvm_page_fault":
        found = _FAULT.search(clean_body(line.body))
        if found is None:
            raise TraceError(
                f"{where}: kvm_page_fault: expected 'address HEX error_code HEX', got {line.body[:80]!r}"
            )
        return Fault(number, int(found[1], 16), int(found[2], 16))
    return None
