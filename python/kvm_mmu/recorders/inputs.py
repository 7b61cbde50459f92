"""The inputs of a stripped 5.x trace: operations of the recorder and page faults, with their line numbers.

Owns: which lines of a trace are inputs of that family and how a fault line reads. Everything else is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kvm_mmu.errors import TraceError
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


Input = Fault | Marker


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
