"""The registers and table memory of a guest that no event of its recording tells: a file beside it, put into its text.

Owns: the file (`guest_memory.jsonl`, a JSON object a line) and the lines that it becomes. Each has `before`, the number
of the operation it comes before, and one of `regs` (cr0, cr3, cr4, efer), `w` (pairs of an address and an 8-byte
word) and `huge_slots` (slots whose memory is one transparent huge page each).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.machine import json_object
from kvm_mmu.trace.replay.stripping import Kept, Recorded
from kvm_mmu.trace.text.line import parse_line
from kvm_mmu.trace.text.source import Source, iter_lines

NAMES = ("guest_memory.jsonl", "guest_memory.jsonl.xz")
_OPERATION = re.compile(r"OP (\d{1,15}) ")
_EVENTS = {"regs": "replay_guest_regs", "w": "replay_guest_memory", "huge_slots": "replay_host_huge_slots"}


def file_beside(trace: Source) -> Path | None:
    """The file that lies beside a trace."""
    if not isinstance(trace, str | Path) or str(trace) == "-":
        return None
    candidates = (Path(trace).parent / name for name in NAMES)
    return next((path for path in candidates if path.is_file()), None)


def with_guest_memory(items: Iterable[Kept | Recorded], path: Path) -> Iterator[Kept | Recorded]:
    """The lines of a stripped text, with what the file says in front of the operation that it comes before.

    Raises:
        TraceError: the file cannot be read.
    """
    waiting = _entries(path)
    for item in items:
        if isinstance(item, Kept) and "_mark_write: OP " in item.text:
            line = parse_line(item.text)
            found = None if line is None else _OPERATION.match(line.body)
            while line is not None and found is not None and waiting and waiting[0][0] <= int(found[1]):
                _, event, value = waiting.pop(0)
                yield Kept(f"{item.text[: line.event_at]}{event}: {json.dumps(value)}", 0)
        yield item


def _entries(path: Path) -> list[tuple[int, str, object]]:
    found = []
    for number, text in enumerate(iter_lines(path), 1):
        if not text.strip():
            continue
        try:
            entry = json_object.loads(text)
        except ValueError as err:
            raise TraceError(f"{path}:{number}: not JSON: {err}") from err
        keys = [key for key in _EVENTS if isinstance(entry, dict) and key in entry]
        if not keys or not isinstance(entry.get("before"), int):
            raise TraceError(
                f"{path}:{number}: expected an object of 'before' and one of {', '.join(_EVENTS)}"
            )
        found.append((entry["before"], _EVENTS[keys[0]], entry[keys[0]]))
    return found
