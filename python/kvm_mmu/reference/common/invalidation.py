"""An invalidation of the host: open from before the mappings go until after.

Owns `Kvm.invalidation`. Models kvm_mmu_invalidate_begin, kvm_mmu_invalidate_range_add, kvm_mmu_invalidate_end and
mmu_invalidate_retry of v5.0 to v6.12. A fault that looked up its page meanwhile must come again. Up to v6.1 the range
is of host addresses; later it is of gfns.
"""

from __future__ import annotations

from .state import Kvm


def has_gfn_range(kvm: Kvm) -> bool:
    """Whether an open invalidation knows its gfns, not its host addresses."""
    return kvm.rules.retry_before_pin


def kvm_mmu_invalidate_begin(kvm: Kvm) -> None:
    kvm.invalidation.in_progress += 1
    if kvm.invalidation.in_progress == 1:
        kvm.invalidation.start = None


def kvm_mmu_invalidate_range_add(kvm: Kvm, start: int, end: int) -> None:
    """The joint range of all that are open; it is forgotten when a first one begins."""
    state = kvm.invalidation
    if state.start is None:
        state.start, state.end = start, end
    else:
        state.start, state.end = min(state.start, start), max(state.end, end)


def kvm_mmu_invalidate_end(kvm: Kvm) -> None:
    kvm.invalidation.sequence += 1
    kvm.invalidation.in_progress -= 1


def mmu_invalidate_retry(kvm: Kvm, sequence: int, gfn: int, hva: int) -> bool:
    """Whether a fault that began at this sequence number must come again."""
    state = kvm.invalidation
    if state.in_progress:
        where = gfn if has_gfn_range(kvm) else hva
        if state.start is None or state.start <= where < state.end:
            return True
    return state.sequence != sequence
