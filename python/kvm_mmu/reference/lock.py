"""mmu_lock: polls, offers and the breaks a scenario asks for.

Owns `LockBreaks`. A poll (need_resched) and an offer (cond_resched_lock) are counted; the running counts decide
when the lock really breaks, and the operations a scenario listed run inside the break, with the lock dropped.
Models need_resched, spin_needbreak (always false) and cond_resched_lock as the scenario language defines them.
"""

from __future__ import annotations

from .state import Kvm, LockBreaks, Op

NESTED_IN_LOCK_BREAK = 1
NESTED_IN_PUBLICATION = 2


def need_resched(kvm: Kvm) -> bool:
    """One poll; true every `need`-th time, and then the next offer breaks the lock."""
    kvm.ctr["need_resched"] += 1
    if kvm.lock.need and kvm.ctr["need_resched"] % kvm.lock.need == 0:
        kvm.lock.armed = True
        return True
    return False


def cond_resched_lock(kvm: Kvm) -> bool:
    """One offer of the lock; true when it was really dropped."""
    kvm.ctr["cond_resched"] += 1
    kvm.work["lock_offers"] += 1
    is_nth = kvm.lock.cond != 0 and kvm.ctr["cond_resched"] % kvm.lock.cond == 0
    if not kvm.lock.armed and not is_nth:
        return False
    kvm.lock.armed = False
    kvm.events.append(["lock_break"])
    kvm.ctr["lock_breaks"] += 1
    kvm.work["lock_breaks"] += 1
    number = kvm.lock.breaks
    kvm.lock.breaks += 1
    if number < len(kvm.lock.do):
        run_nested_ops(kvm, NESTED_IN_LOCK_BREAK, kvm.lock.do[number])
    return True


def run_nested_ops(kvm: Kvm, kind: int, ops: list[Op]) -> None:
    """Run operations in the middle of another one; an empty list leaves no trace."""
    if not ops:
        return
    kvm.events.append(["nested_begin", kind])
    for op in ops:
        kvm.run_nested(kvm, op)
    kvm.events.append(["nested_end", kind])


def set_lock_breaks(kvm: Kvm, cond: int, need: int, do: list[list[Op]]) -> None:
    """Start the running counts again; the number of breaks so far stays in the counters."""
    kvm.lock = LockBreaks(cond=cond, need=need, do=do)
    kvm.ctr["cond_resched"] = 0
    kvm.ctr["need_resched"] = 0
