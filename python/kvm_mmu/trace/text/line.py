"""One line of ftrace text: `TASK-PID [CPU] FLAGS TIMESTAMP: event: body`, as tracefs and `trace-cmd report`
print it.

Owns: the grammar of the prefix, as the recording's checker reads it. The fast reader of whole files is the
Rust core's `ftrace`; this one exists because strip must keep the prefix of a line verbatim and must add lines
with the same prefix.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

#: The prefix is short; looking no further keeps a hostile 10 MB line from costing more than any other.
_PREFIX_MAX = 512
#: A task's column has 16 characters at least, and a blank behind it.
_TASK_MIN = 16
_FROM_CPU = re.compile(r"\[(\d+)\]\s+(?:\S+\s+)?(\d+\.\d+):\s+(\w+):\s?")
_PROBE_ADDRESS = re.compile(r"\([\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+( \[\w+\])?( <- [^)]*)?\)\s*")
#: `trace-cmd report` calls what a program wrote into the trace `print`.
_PRINT = re.compile(r"\s*(?:tracing_mark_write: |ip=0x[0-9a-f]+ buf=)")
#: `options/record-tgid`: the process behind the task.
_PROCESS = re.compile(r"\(\s*(\d+)\)$")
_LOST = re.compile(r"^CPU:\d+ \[LOST (?:(\d+) )?EVENTS\]")


class Line(NamedTuple):
    """A line that names an event. `event_at` and `body_at` are positions in the text of the line."""

    task: str
    cpu: int
    timestamp: str
    event: str
    body: str
    event_at: int
    body_at: int


@lru_cache(maxsize=2)  # one line goes through several hands, each of which asks
def parse_line(text: str) -> Line | None:
    """The event of a line, or None: a header, a comment, a lost-events note, or not ftrace text at all."""
    bracket = text.find("[", _TASK_MIN + 1, _PREFIX_MAX)
    while bracket > 0:
        found = _FROM_CPU.match(text, bracket, bracket + _PREFIX_MAX)
        if found is not None and text[bracket - 1].isspace():
            cpu = int(found[1]) if len(found[1]) < 10 else -1
            task = text[:bracket].strip()
            event, body_at = found[3], found.end()
            marker = _PRINT.match(text, body_at) if event == "print" else None
            if marker is not None:
                event, body_at = "tracing_mark_write", marker.end()
            return Line(task, cpu, found[2], event, text[body_at:], found.start(3), body_at)
        bracket = text.find("[", bracket + 1, _PREFIX_MAX)
    return None


def clean_body(body: str) -> str:
    """The body without the NUL bytes some kernels print and without a kprobe's `(symbol+0x..)`."""
    return (
        _PROBE_ADDRESS.sub("", body.replace("\0", "").strip(), count=1)
        if body.startswith("(")
        else _no_nul(body)
    )


def process_of(task: str) -> str:
    """The process of a task as the trace says it (`options/record-tgid`), empty where it does not."""
    found = _PROCESS.search(task)
    return found[1] if found else ""


def nanoseconds(timestamp: str) -> int:
    """`seconds.fraction` of a trace line in nanoseconds."""
    seconds, _, fraction = timestamp.partition(".")
    return int(seconds[:12]) * 1_000_000_000 + int((fraction + "000000000")[:9])


def lost_events(text: str) -> int | None:
    """How many events this line says were lost (0 when it does not say how many), None when it says no such
    thing."""
    found = _LOST.match(text)
    if found is None:
        return None
    return int(found[1]) if found[1] and len(found[1]) < 20 else 0


def _no_nul(body: str) -> str:
    return (body.replace("\0", "") if "\0" in body else body).strip()
