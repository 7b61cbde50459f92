"""One zap beside running vCPUs in simulated time: holds of `mmu_lock`, waits for it, and whether the zap gets on.

Time is simulated twice, in work units and in nanoseconds of a cost model; nothing is measured. All vCPUs fault when the
zap has just taken the lock, at time 0, and as soon as it has it again: so a wait is the longest there can be. Somebody
always wants the lock: it is dropped at every n-th offer. Where it is held for reading only, nobody waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kvm_mmu.lab.cost import CostModel
from kvm_mmu.lab.latency.interleaving import Guest
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.zap_plan import ZapPlan
from kvm_mmu.scenario.workload import Touch, live_pages

#: Lock breaks after which a zap beside faults is left to go on alone: nobody waits for it.
SHARED_BREAKS = 1_000


class Span(NamedTuple):
    """A stretch of simulated time, in work units and in modelled nanoseconds."""

    units: int
    ns: float

    def __add__(self, other: object) -> Span:
        assert isinstance(other, Span)
        return Span(self.units + other.units, self.ns + other.ns)

    def since(self, earlier: Span) -> Span:
        """The time between."""
        return Span(self.units - earlier.units, self.ns - earlier.ns)


_START = Span(0, 0.0)


@dataclass
class Simulated:
    """What one run showed.

    Attributes:
        holds: how long the zap held the lock for writing, each time.
        waits: each vCPU's waits for the lock, in order; none of a vCPU that never faulted.
        progress: from each fault until its access got through, waiting included.
        end: when the zap was over; None where it never is.
        verdict: `ends`; `livelock` where pages that lived at its start stopped becoming fewer; `not ended` where a plan
            that has an end was still far from it after four lock breaks a page.
        lock_breaks: how often the lock was dropped.
        shared_units: work done while the lock was held for reading.
    """

    holds: list[Span] = field(default_factory=list)
    waits: dict[int, list[Span]] = field(default_factory=dict)
    progress: list[Span] = field(default_factory=list)
    end: Span | None = None
    verdict: str = "ends"
    lock_breaks: int = 0
    shared_units: int = 0


def simulate(
    vm: Vm,
    plan: ZapPlan,
    guest: Guest,
    *,
    slot: tuple[int, int] | None = None,
    every: int = 1,
    model: CostModel | None = None,
) -> Simulated:
    """Run a plan on a VM while its vCPUs fault.

    Args:
        vm: the VM where the event is about to happen; it is changed.
        plan: how the zap goes.
        guest: what the vCPUs do.
        slot: the slot that goes, of plans that need one.
        every: the lock is dropped at every n-th offer, 1 or more.
        model: what turns work into nanoseconds; None: nanoseconds stay 0.

    Returns:
        What it showed.
    """
    return _Run(vm, plan, guest, model).run(slot, every)


class _Run:
    def __init__(self, vm: Vm, plan: ZapPlan, guest: Guest, model: CostModel | None) -> None:
        self._vm, self._plan, self._guest, self._model = vm, plan, guest, model
        self._pages = live_pages(vm)
        self._newest = max(_living(vm), default=0)
        self._now = self._zap = _START
        #: When each vCPU asked for the lock, and when those that had it in this break let go of it.
        self._asked: dict[int, Span] = {}
        self._served: dict[int, Span] = {}
        self._found = Simulated()
        #: What has been counted: hits count nothing.
        self._work: Mapping[str, int] = {}
        self._is_shared = plan.lock == "shared"

    def run(self, slot: tuple[int, int] | None, every: int) -> Simulated:
        """Run the plan to its end, or until it is plain that it has none."""
        vm, found = self._vm, self._found
        # Pages enough: reclaim is another story.
        vm.set_nr_mmu_pages(1 << 22)
        if self._is_shared:
            self._take_for_writing(slot)
        vm.core.set_lock_break(every, every + 1)
        window, left = self._pages + 64, self._pages + 1
        before: Mapping[str, int] = vm.work
        for _ in vm.zap_steps(self._plan, slot=slot):
            self._held(before)
            found.lock_breaks += 1
            self._serve()
            if found.lock_breaks % window == 0 and self._plan.can_livelock:
                old = sum(page <= self._newest for page in _living(vm))
                if old >= left:
                    found.verdict = "livelock"
                    break
                left = old
            if self._is_shared and found.lock_breaks == SHARED_BREAKS:
                vm.core.set_lock_break(0, 0)
            if not self._is_shared and found.lock_breaks > 4 * window:
                found.verdict = "not ended"
                break
            before = self._work
        else:
            self._held(before)
            found.end = self._zap if self._is_shared else self._now
            self._serve(to_the_end=True)
        vm.core.set_lock_break(0, 0)
        return found

    def _take_for_writing(self, slot: tuple[int, int] | None) -> None:
        """What a zap beside faults does before it lets them in."""
        alone = self._vm.clone().zap(self._plan, slot=slot)
        self._found.shared_units = alone.shared_units
        self._now = Span(alone.work["units"] - alone.shared_units, 0.0)
        self._found.holds.append(self._now)

    def _held(self, before: Mapping[str, int]) -> None:
        """The zap worked until now, from when it had done what `before` counts."""
        span = self._span(before, self._vm.work)
        self._zap += span
        if not self._is_shared:
            self._now += span
            self._found.holds.append(span)

    def _serve(self, to_the_end: bool = False) -> None:
        """Let every vCPU that waits have the lock once; the others will ask for it when the zap has it again."""
        self._served.clear()
        self._work = self._vm.work
        self._guest.go_on(self._access, to_the_end)
        self._asked = {vcpu: self._served.get(vcpu, self._now) for vcpu in range(len(self._vm.vcpus))}

    def _access(self, touch: Touch) -> bool:
        result = self._vm.vcpus[touch.vcpu].access(touch.gpa, touch.kind)
        if not result.faults:
            return False  # and nothing was counted
        before, self._work = self._work, self._vm.work
        asked = self._asked.get(touch.vcpu, _START)
        self._found.waits.setdefault(touch.vcpu, []).append(self._now.since(asked))
        after = self._now + self._span(before, self._work)
        if result.outcome not in ("error", "stuck"):
            self._found.progress.append(after.since(asked))
        if not self._is_shared:
            self._now = after
        self._served[touch.vcpu] = self._now
        return True

    def _span(self, before: Mapping[str, int], after: Mapping[str, int]) -> Span:
        work = {name: after[name] - before[name] for name in after}
        ns = 0.0 if self._model is None else self._model.nanoseconds(work, self._pages)
        return Span(work["units"], ns)


def _living(vm: Vm) -> list[int]:
    """The numbers of the pages that live, of either page table."""
    return [*vm.core.active_page_ids(), *(table for table, _, _ in vm.core.tdp_tables())]
