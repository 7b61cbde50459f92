"""Whether a trace can be replayed at all: what cannot be is refused, with the reason and what can be done instead.

Owns: the refusals that hold for every kernel. Those of one kernel's translator are its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvm_mmu.errors import TraceError

#: Where in a line the event's name stands at the latest.
_HEAD = 600
_EVENT = ": kvm_"
_MARKS = (": tracing_mark_write: ", ": print: ")
#: What else to do with a trace.
INSTEAD = "`kvm-mmu trace summary`, `decode`, `stalls` and `export` read it all the same"
NO_OPERATIONS = (
    "no operation of the VM in it: a replay needs to know its memslots and vCPUs, which no event tells; "
    f"the VMM writes them to trace_marker (the documentation of replay says how); {INSTEAD}"
)


def replayable(lines: Iterable[str], name: str) -> Iterator[str]:
    """The lines as they come.

    Raises:
        TraceError: there are events of KVM and at the end no line was an operation of the VM.
    """
    has_events = has_operations = False
    for text in lines:
        head = text[:_HEAD]
        has_events = has_events or _EVENT in head
        has_operations = has_operations or any(mark in head for mark in _MARKS)
        yield text
    if has_events and not has_operations:
        raise TraceError(f"{name}: {NO_OPERATIONS}")
