"""Removing the outputs from a recording, so that a replay can only use its inputs.

Owns: what stays, what goes, and the three things that are added: the host line, the full text of shortened
operation markers, and the answers of host memory after each requested mapping. The stripped text is what a
replay reads; line numbers of a prediction count its lines. Goes line by line: what is held back are the lines behind
one request for a mapping, until its answer is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvm_mmu.trace.replay.operations import KnownOperations, Operations, operations_beside, read_operations
from kvm_mmu.trace.text import host as host_facts
from kvm_mmu.trace.text.kinds import outputs_of
from kvm_mmu.trace.text.line import parse_line
from kvm_mmu.trace.text.pieces import Piece, pieces_of
from kvm_mmu.trace.text.raw_fields import in_kernel_text
from kvm_mmu.trace.text.source import Traced, lines_of
from kvm_mmu.trace.text.spte_words import SpteWords, words_of
from kvm_mmu.trace.text.wording import has_requests

__all__ = [
    "ANSWER",
    "YIELD",
    "Kept",
    "Recorded",
    "Stripped",
    "is_stripped",
    "operations_beside",
    "read_operations",
    "strip",
    "strip_lines",
    "wants_answers",
]

_INDEXED = re.compile(r'\{"i":(\d{1,15})(?!\d)')
_SET_SPTE = re.compile(r"gfn ([0-9a-fA-F]{1,16}) spte ([0-9a-fA-F]{1,16})(?!\w)")
_ENDS_ANSWER = frozenset(
    {"kvm_page_fault", "tracing_mark_write", "kvm_entry", "kvm_mmu_spte_requested", "page_fault_ret"}
)
_ASKS_HOST = frozenset({"kvm_mmu_spte_requested", "invlpg"})
ANSWER = "replay_host_answer"
#: In place of an output: a flush that a yield made. It is not predicted, and may stand for a later one.
YIELD = "flush of a yield"
#: Scenarios of the TDP MMU in which host memory changes behind the operations.
_CHANGES_HOST_MEMORY = frozenset({"age", "hugelog", "mix", "prefault", "roots", "unaligned"})
#: An answer is looked for in so many lines behind its request: in recordings it comes within some dozens.
_ANSWER_WITHIN = 1 << 14


class Recorded(NamedTuple):
    """An output of the recording: the line it stood on and its text."""

    line: int
    event: str
    body: str


class Kept(NamedTuple):
    """A line of the stripped text, and the line of the recording it came from (0: added)."""

    text: str
    origin: int


@dataclass
class Stripped:
    """A recording without its outputs.

    Attributes:
        lines: the stripped text.
        origin: the line of the recording that each came from (0: added).
        recorded: the outputs that were removed.
        names: every event that occurred.
    """

    lines: list[str]
    origin: list[int]
    recorded: list[Recorded] = field(default_factory=list)
    names: frozenset[str] = frozenset()

    def text(self) -> str:
        """Join the lines.

        Returns:
            The stripped trace.
        """
        return "\n".join(self.lines) + "\n"


@dataclass
class _Answer:
    """What host memory said about one requested mapping."""

    prefix: str
    until: int
    words: SpteWords
    was_set: int = 0
    writable: int = 1
    found: list[str] = field(default_factory=list)

    def note(self, body: str) -> None:
        spte = _SET_SPTE.match(body.strip())
        if spte is None:
            return
        value = int(spte[2], 16)
        if self.words.is_demanded(value):
            self.writable, self.was_set = int(bool(value & self.words.host_writable)), 1
        else:
            self.found.append(spte[1])

    def line(self) -> Kept:
        found = ",".join(self.found) or "-"
        return Kept(f"{self.prefix}{ANSWER}: set {self.was_set} writable {self.writable} found {found}", 0)


def is_stripped(lines: Sequence[str]) -> bool:
    """Whether these lines begin with the host line of a stripped trace."""
    return bool(lines) and lines[0].startswith(host_facts.PREFIX)


def strip(
    trace: Traced,
    host: Mapping[str, object],
    operations: Mapping[int, str] | None = None,
    *,
    answers: bool,
) -> Stripped:
    """Takes the outputs out of a recording, in memory.

    Args:
        trace: A path, an open `Trace`, or lines.
        host: The facts for the first line.
        operations: Full text of the operations by number, where markers are shortened or left out.
        answers: Add what host memory answered (only where residency does not follow from the operations).

    Returns:
        The lines that stay, and apart from them the outputs that were removed.

    Raises:
        TraceError: the file is missing, damaged or cut.
    """
    lines = list(lines_of(trace))
    parsed = (parse_line(text) for text in lines)
    names = frozenset(line.event for line in parsed if line is not None)
    known = KnownOperations(operations) if operations else None
    done = Stripped([], [], [], names)
    outputs = outputs_of(names, is_tdp=bool(host.get("tdp_mmu")))
    for item in stripped_lines(lines, host, known, answers=answers, outputs=outputs):
        if isinstance(item, Recorded):
            if item.event != YIELD:
                done.recorded.append(item)
        else:
            done.lines.append(item.text)
            done.origin.append(item.origin)
    return done


def stripped_lines(
    lines: Iterable[str],
    host: Mapping[str, object],
    operations: Operations | None,
    *,
    answers: bool,
    outputs: frozenset[str],
) -> Iterator[Kept | Recorded]:
    """The recording line by line, by the rules of the MMU that its host used (`strip_lines` says how)."""
    if host.get("tdp_mmu"):
        from kvm_mmu.trace.replay.stripping_tdp import strip_tdp_lines

        return strip_tdp_lines(lines, host, operations, answers=answers, outputs=outputs)
    return strip_lines(lines, host, operations, answers=answers, outputs=outputs)


def strip_lines(
    lines: Iterable[str],
    host: Mapping[str, object],
    operations: Operations | None,
    *,
    answers: bool,
    outputs: frozenset[str],
) -> Iterator[Kept | Recorded]:
    """The recording line by line: what stays in the order of the stripped text, and each output that goes.

    An output may come before lines that stand above it, when those wait for an answer of host memory.

    Args:
        outputs: the events that go (`kinds.outputs_of` the events of the whole recording).
    """
    for item in strip_pieces(lines, host, operations, answers=answers, outputs=outputs):
        assert not isinstance(item, Block)  # lines come one by one
        yield item


class Block(NamedTuple):
    """Lines of the stripped text, with their ends, that stand so in the recording."""

    text: str


def looked_at(outputs: frozenset[str]) -> frozenset[str]:
    """The events whose lines decide what stays."""
    return outputs | _ENDS_ANSWER | _ASKS_HOST


def strip_pieces(
    pieces: Iterable[Piece],
    host: Mapping[str, object],
    operations: Operations | None,
    *,
    answers: bool,
    outputs: frozenset[str],
) -> Iterator[Kept | Recorded | Block]:
    """As `strip_lines`, of a recording in pieces: `pieces_of` its text and the events that are `looked_at`."""
    yield Kept(host_facts.PREFIX + json.dumps(dict(host)), 0)
    kernel, words = host_facts.kernel_of(host), words_of(host)
    asked: _Answer | None = None
    held: list[Kept | Block] = []
    number = 0
    for piece in pieces:
        event = ""
        if isinstance(piece, str):
            text, body, event_at, body_at = piece, "", 0, 0
            if kernel:
                text, *_ = in_kernel_text([piece], kernel)
            line = parse_line(text)
            if line is not None:
                _, _, _, event, body, event_at, body_at = line
        elif len(piece) == 2:
            count, block = piece
            if asked is not None:
                room = min(asked.until - number, count)
                within, block = _first_lines(block, room)
                held.append(Block(within.decode("utf-8", "replace")))
                if room < count:
                    yield asked.line()
                    yield from held
                    asked, held = None, []
            number += count
            if block and asked is None:
                yield Block(block.decode("utf-8", "replace"))
            continue
        else:
            text, _, event, event_at, body_at = piece
            body = text[body_at:]
        number += 1
        if event in outputs:
            yield Recorded(number, event, body)
            if asked is not None:
                if event == "kvm_mmu_set_spte":
                    asked.note(body)
                if number > asked.until:
                    yield asked.line()
                    yield from held
                    asked, held = None, []
            continue
        if asked is not None and (event in _ENDS_ANSWER or number > asked.until):
            yield asked.line()
            yield from held
            asked, held = None, []
        if event == "tracing_mark_write" and operations is not None:
            yield from completed(text, body, body_at, operations, number)
            continue
        if asked is not None:
            held.append(Kept(text, number))
            if event not in _ASKS_HOST:
                continue
            # It ends the answer of the request before it, too.
            yield asked.line()
            yield from held
            held = []
        else:
            yield Kept(text, number)
        if answers and event in _ASKS_HOST:
            asked = _Answer(text[:event_at], number + _ANSWER_WITHIN, words)
    if asked is not None:
        yield asked.line()
        yield from held


def plain_text(
    chunks: Iterable[bytes],
    host: Mapping[str, object],
    operations: Operations | None,
    outputs: frozenset[str],
) -> Iterator[str]:
    """The stripped text in parts of whole lines, of a recording to which no answers are added: each line by itself.

    Args:
        chunks: The text of the recording.
        outputs: The events that go.
    """
    yield f"{host_facts.PREFIX}{json.dumps(dict(host))}\n"
    kernel = host_facts.kernel_of(host)
    markers = {"tracing_mark_write"} - outputs if operations is not None else ()
    for piece in pieces_of(chunks, markers, outputs):
        if isinstance(piece, str):
            text = next(iter(in_kernel_text([piece], kernel))) if kernel else piece
            line = parse_line(text)
            if line is not None and line.event in outputs:
                continue
            is_marker = line is not None and line.event == "tracing_mark_write"
            body, body_at = ("", 0) if line is None else (line.body, line.body_at)
        elif len(piece) == 2:
            yield piece[1].decode("utf-8", "replace")
            continue
        else:
            text, _, _, _, body_at = piece
            body, is_marker = text[body_at:], True
        if operations is not None and is_marker:
            for kept in completed(text, body, body_at, operations, 1):
                yield f"{kept.text}\n"
        else:
            yield f"{text}\n"


def _first_lines(block: bytes, count: int) -> tuple[bytes, bytes]:
    """So many lines of a block, and the rest."""
    at = 0
    for _ in range(count):
        at = block.find(b"\n", at) + 1
        if not at:
            return block, b""
    return block[:at], block[at:]


def completed(text: str, body: str, body_at: int, operations: Operations, number: int) -> Iterator[Kept]:
    """Operations left out before this marker, and the marker in full."""
    index = _INDEXED.match(body)
    found = None if index is None else operations.upto(int(index[1]))
    if found is None:
        yield Kept(text, number)
        return
    prefix = text[:body_at]
    last: str | None = None
    for full in found:
        if last is not None:
            yield Kept(prefix + last, 0)
        last = full
    yield Kept(prefix + (last or ""), number)


def scenario_of(text: str) -> str | None:
    """The scenario in a recorder's first marker (empty when it names none), None when this line is not that one."""
    if '"op":"begin"' not in text:
        return None
    found = re.search(r'"scenario":"(\w+)"', text)
    return found[1] if found else ""


def wants_answers(host: Mapping[str, object], lines: Iterable[str]) -> bool:
    """Whether residency of host memory does not follow from the operations of this trace.

    True for shadow paging of guests with page tables from v5.10 on, for scenarios that fork, merge, page out or give
    back memory, and for traces of users (no operations at all).
    """
    if not has_requests(host_facts.kernel_of(host)):
        return False
    scenario = next((found for text in lines if (found := scenario_of(text)) is not None), None)
    if scenario is None or "notifier" in scenario or scenario == "age":
        return True
    if host.get("tdp_mmu") and scenario.removeprefix("tdp_") in _CHANGES_HOST_MEMORY:
        return True
    return host.get("mmu") == "shadow" and host.get("guest_mode") not in ("flat", "real")
