"""mmu_lock: polls, offers and the breaks a scenario asks for.

Owns `LockBreaks`. A poll (need_resched, in v6 then also the lock's contention) and an offer (cond_resched_lock) are
counted; the running counts decide when the lock really breaks, and the operations a scenario listed run inside the
break, with the lock dropped. Models need_resched, rwlock_needbreak and cond_resched_lock as the scenario language
defines them.
"""

from __future__ import annotations

from .events import note_lock_break
from .state import Kvm, LockBreaks, Op

NESTED_IN_LOCK_BREAK = 1
NESTED_IN_PUBLICATION = 2
NESTED_IN_INVALIDATION = 3
WRITE_LOCK = 0
READ_LOCK = 1
DROPPED_TO_ALLOCATE = 3


def may_break(kvm: Kvm) -> bool:
    """Whether any poll can come out true."""
    return bool(kvm.lock.need or kvm.lock.contend)


def need_resched(kvm: Kvm) -> bool:
    """One poll; true every `need`-th time, and then the next offer breaks the lock."""
    return is_poll_true(kvm, "need_resched") or (kvm.format == 6 and is_poll_true(kvm, "needbreak"))


def is_poll_true(kvm: Kvm, name: str) -> bool:
    lock = kvm.lock
    kvm.ctr[name] += 1
    if name == "needbreak":
        lock.contend_polls += 1
        every, number = lock.contend, lock.contend_polls
    else:
        lock.need_polls += 1
        every, number = lock.need, lock.need_polls
    if every and number % every == 0:
        lock.armed = True
        return True
    return False


def polls_before_a_true_one(kvm: Kvm) -> int:
    """How many polls are false from now on."""
    lock = kvm.lock
    number = 1 << 64
    if lock.need:
        number = lock.need - lock.need_polls % lock.need - 1
    if lock.contend and kvm.format == 6:
        number = min(number, lock.contend - lock.contend_polls % lock.contend - 1)
    return number


def count_polls(kvm: Kvm, number: int) -> None:
    """So many polls, none of which can be true."""
    kvm.ctr["need_resched"] += number
    kvm.lock.need_polls += number
    if kvm.format == 6:
        kvm.ctr["needbreak"] += number
        kvm.lock.contend_polls += number


def cond_resched_lock(kvm: Kvm, kind: int = WRITE_LOCK) -> bool:
    """One offer of the lock; true when it was really dropped."""
    lock = kvm.lock
    kvm.ctr["cond_resched"] += 1
    lock.cond_calls += 1
    kvm.work["lock_offers"] += 1
    is_nth = lock.cond != 0 and lock.cond_calls % lock.cond == 0
    if not lock.armed and not is_nth:
        return False
    lock.armed = False
    break_lock(kvm, kind)
    return True


def drop_lock_to_allocate(kvm: Kvm) -> None:
    """The lock is dropped for an allocation; every `alloc`-th counts as a break."""
    lock = kvm.lock
    lock.allocations += 1
    if lock.alloc and lock.allocations % lock.alloc == 0:
        break_lock(kvm, DROPPED_TO_ALLOCATE)


def break_lock(kvm: Kvm, kind: int) -> None:
    """The lock is free: the operations listed for this break run, unless the break is in such a list itself."""
    lock = kvm.lock
    note_lock_break(kvm, kind)
    kvm.ctr["lock_breaks"] += 1
    kvm.work["lock_breaks"] += 1
    if kvm.format == 6 and lock.is_nested:
        return
    number = lock.breaks
    lock.breaks += 1
    if number < len(lock.do):
        lock.is_nested = True
        run_nested_ops(kvm, NESTED_IN_LOCK_BREAK, lock.do[number])
        lock.is_nested = False


def run_nested_ops(kvm: Kvm, kind: int, ops: list[Op]) -> None:
    """Run operations in the middle of another one; an empty list leaves no trace, but in a lock break of format 6."""
    if not ops and not (kvm.format == 6 and kind == NESTED_IN_LOCK_BREAK):
        return
    kvm.events.append(["nested_begin", kind])
    for op in ops:
        kvm.run_nested(kvm, op)
    kvm.events.append(["nested_end", kind])


def set_lock_breaks(kvm: Kvm, lock: LockBreaks) -> None:
    """Start the running counts again; the number of breaks so far stays in the counters."""
    kvm.lock = lock
    if kvm.format == 1:
        kvm.ctr["cond_resched"] = 0
        kvm.ctr["need_resched"] = 0
