"""Whether a trace can be replayed at all: what cannot be is refused, with the reason and what can be done instead.

Owns: the refusals that hold for every kernel. Those of one kernel's translator are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from kvm_mmu.errors import TraceError

#: Where in a line the event's name stands at the latest.
_HEAD = 600
_TDP_CHANGE = ": kvm_tdp_mmu_spte_changed: "
_EVENT = ": kvm_"
_MARKS = (": tracing_mark_write: ", ": print: ")
#: What else to do with a trace.
INSTEAD = "`kvm-mmu trace summary`, `decode`, `stalls` and `export` read it all the same"
TDP_MMU = "this VM used the TDP MMU, which is not modelled (load kvm with tdp_mmu=N to record without)"
NO_OPERATIONS = (
    "no operation of the VM in it: a replay needs to know its memslots and vCPUs, which no event tells; "
    f"the VMM writes them to trace_marker (the documentation of replay says how); {INSTEAD}"
)


def refuse_host(facts: Mapping[str, object], name: str, said_by: Callable[[str], str]) -> None:
    """Say so when the facts of the host rule a replay out.

    Args:
        said_by: of a fact's key, where it comes from, as the end of a sentence.

    Raises:
        TraceError: the TDP MMU was on.
    """
    if facts.get("tdp_mmu"):
        raise TraceError(f"{name}: {TDP_MMU}{said_by('tdp_mmu')}; {INSTEAD}")


def replayable(lines: Iterable[str], name: str) -> Iterator[str]:
    """The lines as they come.

    Raises:
        TraceError: the TDP MMU was used, or there are events of KVM and at the end no line was an operation of the VM.
    """
    has_events = has_operations = False
    for text in lines:
        head = text[:_HEAD]
        if _TDP_CHANGE in head:
            raise TraceError(f"{name}: {TDP_MMU}; {INSTEAD}")
        has_events = has_events or _EVENT in head
        has_operations = has_operations or any(mark in head for mark in _MARKS)
        yield text
    if has_events and not has_operations:
        raise TraceError(f"{name}: {NO_OPERATIONS}")
