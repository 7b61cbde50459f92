"""A recording opened for stripping or replaying: its host facts, and its stripped lines as often as asked.

Owns: what has to be known of the whole text before its first line can be stripped (whether a probe shows memslot
updates, which scenario it is), and where facts and operations come from. The text is read again for every pass:
nothing of it is kept, so that memory does not grow with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay import guest_memory
from kvm_mmu.trace.replay.guest_memory import with_guest_memory
from kvm_mmu.trace.replay.operations import (
    KnownOperations,
    Operations,
    OperationsFile,
    first_operation,
    operations_file_beside,
)
from kvm_mmu.trace.replay.stripping import (
    Block,
    Kept,
    Recorded,
    is_stripped,
    looked_at,
    plain_text,
    scenario_of,
    strip_pieces,
    stripped_lines,
    wants_answers,
)
from kvm_mmu.trace.text import host as host_facts
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.kinds import FLUSHES, UPDATE_PROBES, outputs_of
from kvm_mmu.trace.text.line import parse_line
from kvm_mmu.trace.text.pieces import pieces_of
from kvm_mmu.trace.text.source import (
    LINE_MAX,
    STDIN,
    Source,
    Traced,
    display_name,
    is_opened,
    iter_chunks,
    iter_lines,
    readable_again,
)
from kvm_mmu.trace.text.wording import has_requests

_FAULT = re.compile(r"kvm_page_fault: .*error_code (?:0x)?([0-9a-f]{1,16})")
_MODE = re.compile(r'"mode":"(\w{1,16})"')
_EPT_EXIT = "reason EPT_"
_AD = re.compile(r" (!?)ad root -?\d")
#: How a probe stands in a line; a marker of the operation of that name has no colon behind it.
_PROBES = tuple(f"{probe}:" for probe in sorted(UPDATE_PROBES))
_PROBE_BYTES = tuple(probe.encode() for probe in _PROBES)
_BEGIN_BYTES = b'"op":"begin"'
_USER, _BEYOND_32_BITS = 1 << 2, 32


@dataclass
class Opened:
    """A recording; `source` must be readable more than once."""

    name: str
    source: Source
    facts: HostFacts
    is_stripped: bool
    operations: Mapping[int, str] | Source | None = None
    answers: bool = False
    outputs: frozenset[str] = field(default_factory=frozenset)
    #: The host facts found beside the trace: the file, and which of them the user did not say otherwise.
    facts_file: str | None = None
    facts_of_file: frozenset[str] = frozenset()
    #: What the guest's tables hold, where no event says it.
    guest_memory: Path | None = None

    def said_by(self, *keys: str) -> str:
        """` (FILE says so)` where one of these facts was found in a file that the user did not name, else nothing."""
        return f" ({self.facts_file} says so)" if self.facts_of_file.intersection(keys) else ""

    @property
    def is_tdp(self) -> bool:
        """Whether the VM used the TDP MMU, as a fact or by what the trace shows."""
        return bool(self.facts.values.get("tdp_mmu", self.facts.likely.get("tdp_mmu", 0)))

    def items(self) -> Iterator[Kept | Recorded]:
        """The lines of the stripped text in order, and among them the outputs that were removed."""
        if self.is_stripped:
            return (Kept(text, number) for number, text in enumerate(self.lines(), 1))
        stripped = stripped_lines(
            self.lines(), self._host(), self._operations(), answers=self.answers, outputs=self.outputs
        )
        return stripped if self.guest_memory is None else with_guest_memory(stripped, self.guest_memory)

    def _host(self) -> Mapping[str, object]:
        return {**self.facts.values, "tdp_mmu": 1} if self.is_tdp else self.facts.values

    def _needs_no_answers(self) -> bool:
        """Nothing is added to the text but operations: which lines stay, each of them says by itself."""
        if not self.is_tdp:
            return not self.answers
        from kvm_mmu.trace.replay.stripping_tdp import TELL_OF_RECOVERY, questions

        if questions(self._host(), answers=self.answers) or not self.outputs >= FLUSHES:
            return False
        texts: list[Iterable[bytes]] = [_blocks(self.source)]
        if isinstance(self.operations, Mapping):
            texts.append(text.encode("utf-8", "replace") for text in self.operations.values())
        elif self.operations is not None:
            texts.append(_blocks(self.operations))
        return not any(word in block for block in chain(*texts) for word in TELL_OF_RECOVERY)

    def stripped_text(self) -> Iterator[str]:
        """The stripped text in parts of whole lines; lines that stay and decide nothing are taken many at once."""
        items: Iterator[Kept | Recorded | Block]
        if self.is_stripped or self.guest_memory is not None:
            items = self.items()
        elif self._needs_no_answers():
            yield from plain_text(iter_chunks(self.source), self._host(), self._operations(), self.outputs)
            return
        elif self.is_tdp:
            items = self.items()
        else:
            pieces = pieces_of(iter_chunks(self.source), looked_at(self.outputs))
            items = strip_pieces(
                pieces, self._host(), self._operations(), answers=self.answers, outputs=self.outputs
            )
        for item in items:
            if isinstance(item, Kept):
                yield f"{item.text}\n"
            elif isinstance(item, Block):
                yield item.text

    def lines(self) -> Iterator[str]:
        """The lines of the recording as they are."""
        return iter_lines(self.source)

    def _operations(self) -> Operations | None:
        if isinstance(self.operations, Mapping):
            return KnownOperations(self.operations) if self.operations else None
        return None if self.operations is None else OperationsFile(self.operations)


@contextmanager
def open_recording(
    traced: Traced,
    host: Mapping[str, object] | None,
    operations: Mapping[int, str] | str | Path | None = None,
    *,
    answers: bool | None = None,
) -> Iterator[Opened]:
    """A recording, looked at as far as it takes to strip it; stdin and pipes are copied to a temporary file first.

    Args:
        host: facts that win over the trace's own line and over `host.json` beside it.
        operations: the full texts; without them those in the file beside the trace, on 6.x.
        answers: add what host memory answered; None: where residency does not follow from the operations.

    Raises:
        TraceError: it is empty or cannot be read, or the facts are none.
    """
    with ExitStack() as files:
        known: Mapping[int, str] | Source | None = operations
        if isinstance(operations, str | Path):
            known = files.enter_context(readable_again(operations))
            OperationsFile(known)  # says at once when there is nothing in it
        path = traced.source if is_opened(traced) else traced
        source = files.enter_context(readable_again(traced))
        yield _look(path if isinstance(path, str | Path) else STDIN, source, host, known, answers)


def _look(
    path: str | Path,
    source: Source,
    host: Mapping[str, object] | None,
    operations: Mapping[int, str] | Source | None,
    answers: bool | None,
) -> Opened:
    name = display_name(source)
    first = next(iter_lines(source), None)
    if first is None:
        raise TraceError(f"{name}: empty: expected ftrace text")
    if is_stripped([first]):
        given = host_facts.parse_facts(first[len(host_facts.PREFIX) :], f"{name}:1")
        values = {**given, **(host or {})}
        return Opened(name, source, HostFacts(values, likely=_likely(source, values)), is_stripped=True)
    found = host_facts.beside(path) or {}
    values = {**found, **(host or {})}
    if operations is None and has_requests(host_facts.kernel_of(values)):
        operations = operations_file_beside(path)
    probes, scenario = _survey(source)
    if scenario is not None and not scenario_of(scenario):
        # A short marker; its full text is the first operation.
        scenario = first_operation(operations) or scenario
    wanted = wants_answers(values, [] if scenario is None else [scenario]) if answers is None else answers
    facts = HostFacts(values, likely=_likely(source, values, scenario))
    opened = Opened(name, source, facts, False, operations, answers=wanted)
    opened.outputs = outputs_of(probes, is_tdp=opened.is_tdp)
    if not has_requests(host_facts.kernel_of(values)):
        opened.guest_memory = guest_memory.file_beside(path)
    opened.facts_file, opened.facts_of_file = host_facts.file_beside(path), frozenset(found) - set(host or {})
    return opened


def _likely(source: Source, values: Mapping[str, object], begin: str | None = None) -> dict[str, object]:
    """What the trace suggests about facts that nobody gave.

    Under NPT every fault has bit 2 or a bit above 31; on an Intel host exits have their own reasons, the pages say
    whether there are accessed and dirty bits, and only PML clears the dirty bits of a slot; the TDP MMU has an event
    of its own.
    """
    asks_tdp = "tdp_mmu" not in values and has_requests(host_facts.kernel_of(values))
    if "mmu" in values and not (values["mmu"] == "ept" and {"family", "pml"} - set(values)) and not asks_tdp:
        return {}
    codes, has_tdp_mmu, is_ept, has_pml = 0, False, values.get("mmu") == "ept", False
    signs: set[str] = set()
    is_npt = True
    for text in iter_lines(source):
        found = _FAULT.search(text, 0, 512)
        if found is not None:
            code, codes = int(found[1], 16), codes + 1
            is_npt &= bool(code & _USER or code >> _BEYOND_32_BITS)
        is_ept = is_ept or (_EPT_EXIT in text and ": kvm_exit: " in text)
        if " root " in text and (sign := _AD.search(text)):
            signs.add(sign[1])
        has_pml |= ": slot_clear_dirty: " in text[:256] or "reason PML_FULL " in text[:256]
        has_tdp_mmu |= ": kvm_tdp_mmu_spte_changed:" in text[:256]
        if begin is None and scenario_of(text) is not None:
            begin = text
    likely: dict[str, object] = {"mmu": "npt" if is_npt else "shadow"} if codes else {}
    if is_ept:
        likely = {} if values.get("mmu") else {"mmu": "ept"}
        if len(signs) == 1:
            likely["family"] = "ept_noad" if signs == {"!"} else "ept_ad"
        likely |= {"pml": 1} if has_pml else {}
    if has_tdp_mmu and "tdp_mmu" not in values:
        likely["tdp_mmu"] = 1
    mode = _MODE.search(begin or "")
    if mode is not None and "guest_mode" not in values:
        likely["guest_mode"] = mode[1]
    return likely


def _survey(source: Source) -> tuple[frozenset[str], str | None]:
    """A probe on memslot updates if there is one, and the line that names the scenario; reads no further than that.

    Lines are looked at only where a chunk has one of the two in it.
    """
    probes: frozenset[str] = frozenset()
    scenario: str | None = None
    for block in _blocks(source):
        wanted = () if probes else _PROBE_BYTES
        if not any(word in block for word in ((*wanted, _BEGIN_BYTES) if scenario is None else wanted)):
            continue
        for text in block.decode("utf-8", "replace").split("\n"):
            if not probes and any(probe in text for probe in _PROBES):
                line = parse_line(text)
                if line is not None:
                    probes = UPDATE_PROBES & {line.event}
            if scenario is None and scenario_of(text) is not None:
                scenario = text.removesuffix("\r")
            if probes and scenario is not None:
                return probes, scenario
    return probes, scenario


def _blocks(source: Source) -> Iterator[bytes]:
    """The text in whole lines, many at once; of a line that has no end for long, its beginning and no more."""
    carry = b""
    for chunk in iter_chunks(source):
        end = chunk.rfind(b"\n") + 1
        if end:
            yield carry + chunk[:end]
            carry = b""
        carry = (carry + chunk[end:])[:LINE_MAX]
    if carry:
        yield carry
