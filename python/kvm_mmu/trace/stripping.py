"""Removing the outputs from a recording, so that a replay can only use its inputs.

Owns: what stays, what goes, and the three things that are added: the host line, the full text of shortened
operation markers, and the answers of host memory after each requested mapping. The stripped text is what a
replay reads; line numbers of a prediction count its lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kvm_mmu.errors import TraceError
from kvm_mmu.trace import host as host_facts
from kvm_mmu.trace.kinds import outputs_of
from kvm_mmu.trace.line import Line, parse_line
from kvm_mmu.trace.raw_fields import in_kernel_text
from kvm_mmu.trace.source import read_lines

_INDEXED = re.compile(r'\{"i":(\d+)')
_OPERATION = re.compile(r'\{"i":(\d+),')
_SET_SPTE = re.compile(r"gfn (\w+) spte ([0-9a-fA-F]+)")
_ENDS_ANSWER = frozenset(
    {"kvm_page_fault", "tracing_mark_write", "kvm_entry", "kvm_mmu_spte_requested", "page_fault_ret"}
)
_ASKS_HOST = frozenset({"kvm_mmu_spte_requested", "invlpg"})
ANSWER = "replay_host_answer"


class Recorded(NamedTuple):
    """An output of the recording: the line it stood on and its text."""

    line: int
    event: str
    body: str


@dataclass
class Stripped:
    """A recording without its outputs.

    `lines` is the stripped text; `origin[i]` the line of the recording that `lines[i]` came from (0: added);
    `recorded` the outputs that were removed; `names` every event that occurred.
    """

    lines: list[str]
    origin: list[int]
    recorded: list[Recorded] = field(default_factory=list)
    names: frozenset[str] = frozenset()

    def text(self) -> str:
        """The stripped trace."""
        return "\n".join(self.lines) + "\n"


@dataclass
class _Answer:
    """What host memory said about one requested mapping."""

    was_set: int = 0
    writable: int = 1
    found: list[str] = field(default_factory=list)

    def note(self, body: str) -> None:
        spte = _SET_SPTE.match(body.strip())
        if spte is None:
            return
        value = int(spte[2], 16)
        if value & 0x20:
            self.writable, self.was_set = value >> 9 & 1, 1
        else:
            self.found.append(spte[1])

    def line(self, prefix: str) -> str:
        found = ",".join(self.found) or "-"
        return f"{prefix}{ANSWER}: set {self.was_set} writable {self.writable} found {found}"


def is_stripped(lines: list[str]) -> bool:
    """Whether these lines begin with the host line of a stripped trace."""
    return bool(lines) and lines[0].startswith(host_facts.PREFIX)


def strip(
    lines: Iterable[str],
    host: Mapping[str, object],
    operations: Mapping[int, str] | None = None,
    *,
    answers: bool,
) -> Stripped:
    """Take the outputs out of a recording.

    Args:
        host: the facts for the first line.
        operations: full text of the operations by number, where markers are shortened or left out.
        answers: add what host memory answered (only where residency does not follow from the operations).
    """
    known = operations or {}
    release = str(host.get("kernel", ""))
    if release:
        lines = in_kernel_text(lines, host_facts.kernel_name(release))
    parsed = [(text, parse_line(text)) for text in lines]
    names = frozenset(line.event for _, line in parsed if line is not None)
    outputs = outputs_of(names)
    kept: list[str | tuple[str, _Answer]] = [host_facts.PREFIX + json.dumps(dict(host))]
    origin = [0]
    recorded: list[Recorded] = []
    open_answer: _Answer | None = None
    last_operation = -1
    for number, (text, line) in enumerate(parsed, 1):
        event = line.event if line is not None else ""
        if line is not None and event in outputs:
            recorded.append(Recorded(number, event, line.body))
            if event == "kvm_mmu_set_spte" and open_answer is not None:
                open_answer.note(line.body)
            continue
        if line is not None and event == "tracing_mark_write" and known:
            inserted, text, last_operation = _complete(text, line, known, last_operation)
            kept.extend(inserted)
            origin.extend(0 for _ in inserted)
        if event in _ENDS_ANSWER:
            open_answer = None
        kept.append(text)
        origin.append(number)
        if line is not None and answers and event in _ASKS_HOST:
            open_answer = _Answer()
            kept.append((text[: line.event_at], open_answer))
            origin.append(0)
    return Stripped([k if isinstance(k, str) else k[1].line(k[0]) for k in kept], origin, recorded, names)


def _complete(text: str, line: Line, known: Mapping[int, str], last: int) -> tuple[list[str], str, int]:
    """Operations left out before this marker, the marker in full, and its number."""
    index = _INDEXED.match(line.body)
    if index is None or int(index[1]) not in known:
        return [], text, last
    number = int(index[1])
    prefix = text[: line.body_at]
    inserted = [prefix + known[j] for j in range(last + 1, number) if j in known]
    return inserted, prefix + known[number], number


def read_operations(path: str | Path) -> dict[int, str]:
    """The operations of an `ops.jsonl` file by their number."""
    operations: dict[int, str] = {}
    for text in read_lines(path):
        index = _OPERATION.match(text)
        if index is not None and len(index[1]) < 16:
            operations[int(index[1])] = text
    if not operations:
        raise TraceError(f'{path}: no operation found: expected lines that begin with {{"i":NUMBER,')
    return operations


def operations_beside(trace: str | Path) -> dict[int, str] | None:
    """The operations file that a recorder left beside its trace, where it numbers them as its markers do."""
    if str(trace) == "-":
        return None
    for name in ("ops.jsonl", "ops.jsonl.xz"):
        candidate = Path(trace).parent / name
        if candidate.is_file():
            return read_operations(candidate)
    return None


def wants_answers(host: Mapping[str, object], lines: Iterable[str]) -> bool:
    """Whether residency of host memory does not follow from the operations of this trace.

    True for shadow paging of guests with page tables on 6.x, for scenarios that fork, merge or page out
    memory, and for traces of users (no operations at all).
    """
    if host_facts.kernel_name(str(host.get("kernel", ""))).startswith("v5"):
        return False
    scenario: str | None = None
    for text in lines:
        if scenario is None and '"op":"begin"' in text:
            found = re.search(r'"scenario":"(\w+)"', text)
            scenario = found[1] if found else ""
            break
    if scenario is None or "notifier" in scenario:
        return True
    return host.get("mmu") == "shadow" and host.get("guest_mode") not in ("flat", "real")
