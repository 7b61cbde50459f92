"""What vCPUs do between two stretches of a zap: the three interleavings, each exact for a seed.

The lock is a queue. When a zap drops it, every vCPU that waits gets it in its turn, and the zap comes last. A vCPU goes
on until it faults again, which puts it behind the zap, or for `MOST_HITS` accesses that do not fault.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.workload import TABLE_SPAN, Batch, Touch

#: Each interleaving in a sentence.
INTERLEAVINGS = {
    "round-robin": "every vCPU repeats what it touched over and over, in an order drawn by the seed",
    "adversarial": "every vCPU touches what no page maps yet, 2 MiB apart and without a slot: a new table each, which "
    "caches MMIO and stands where a walk from the newest page begins",
    "recorded": "the guest repeats its accesses over and over in the order in which it made them; nobody overtakes",
}
#: Accesses without a fault that a vCPU makes at most while the zap holds the lock once.
MOST_HITS = 16
#: Makes an access; whether it faulted.
Access = Callable[[Touch], bool]


class Guest(Protocol):
    """What vCPUs do while a zap runs."""

    def go_on(self, access: Access, to_the_end: bool = False) -> None:
        """Let every vCPU go on until it has faulted once, in the order in which they get the lock.

        Args:
            access: makes an access.
            to_the_end: the zap is over: a vCPU may make all its accesses to find one that faults.
        """
        ...


def guest_of(interleaving: str, vm: Vm, touches: Iterable[Batch], seed: int) -> Guest:
    """The guest of an interleaving.

    Args:
        interleaving: a name of `INTERLEAVINGS`.
        vm: the VM, for its physical addresses and how many vCPUs it has.
        touches: what its guest touched, in order.
        seed: of the orders that are drawn.

    Raises:
        UsageError: no such interleaving.
    """
    flat = (Touch(batch.vcpu, int(gpa), batch.kind) for batch in touches for gpa in batch.gpas)
    match interleaving:
        case "round-robin":
            return _Listed(flat, random.Random(seed))
        case "recorded":
            return _InOrder(flat)
        case "adversarial":
            return _Adversary(vm)
    raise UsageError(f"interleaving {interleaving!r}: expected one of {', '.join(INTERLEAVINGS)}")


class _Listed:
    """Each vCPU has a list of its own; the order within it is drawn."""

    def __init__(self, touches: Iterable[Touch], dice: random.Random) -> None:
        lists: dict[int, list[Touch]] = {}
        for touch in touches:
            lists.setdefault(touch.vcpu, []).append(touch)
        # Sorted by drawn numbers: the stream of random() is the same in every Python, shuffle()'s is not promised.
        self._lists = [deque(sorted(mine, key=lambda _: dice.random())) for _, mine in sorted(lists.items())]

    def go_on(self, access: Access, to_the_end: bool = False) -> None:
        for mine in self._lists:
            for _ in range(len(mine) if to_the_end else MOST_HITS):
                touch = mine[0]
                mine.rotate(-1)
                if access(touch):
                    break


class _InOrder:
    """One list for all: a vCPU that has to fault a second time stops everybody behind it."""

    def __init__(self, touches: Iterable[Touch]) -> None:
        self._touches = list(touches)
        self._most = MOST_HITS * len({touch.vcpu for touch in self._touches})
        self._at = 0

    def go_on(self, access: Access, to_the_end: bool = False) -> None:
        served: set[int] = set()
        for _ in range(len(self._touches) if to_the_end else self._most):
            touch = self._touches[self._at]
            if touch.vcpu in served:
                return
            self._at = (self._at + 1) % len(self._touches)
            if access(touch):
                served.add(touch.vcpu)


class _Adversary:
    """Every access is to memory that nobody touched before."""

    def __init__(self, vm: Vm) -> None:
        self._vcpus = range(len(vm.vcpus))
        # Above all memory that a slot may have, below the end of the VM's physical addresses.
        self._fresh = 3 << (min(int(vm.config["phys_bits"]), 48) - 2)

    def go_on(self, access: Access, to_the_end: bool = False) -> None:
        for vcpu in self._vcpus:
            access(Touch(vcpu, self._fresh, "r"))
            self._fresh += TABLE_SPAN
