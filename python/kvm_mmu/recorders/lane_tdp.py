"""The recorder of the TDP MMU in a lane of the core, for recordings whose every input their own lines tell.

Owns: which recordings those are, and what of the recorder's memory the lane knows. What an operation does is the
recorder's own rule, in `recorder_tdp`. What the host answered and the processor set, the lane takes from the outputs
behind a question; where huge pages are recovered, a parameter changes or memory is faulted in ahead the slow way looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.recorders.inputs_6x import Event, operation_of
from kvm_mmu.recorders.lane_6x import DEEDS, Lane6x
from kvm_mmu.recorders.recorder_6x import LOG_DIRTY, Slot
from kvm_mmu.recorders.recorder_tdp import RecorderTdp
from kvm_mmu.recorders.residency_tdp import ResidencyTdp
from kvm_mmu.trace.replay.lane import LaneStop, Rules, Unsure
from kvm_mmu.trace.replay.recorder import Survey
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.kinds import TDP_OUTPUTS
from kvm_mmu.trace.text.markers import Operation

#: Notes behind operations that are inputs here.
_NOTES = ("dirty_log", "clear_dirty_log_ret")
#: Inputs that say nothing but their name.
_BARE = ("mmu_unload", "slot_clear_dirty")
#: Operations after which inputs come that no line of theirs tells.
_UNTOLD = frozenset({"host_kvm_param", "pre_fault"})
#: What the lane does at an event; nothing is reclaimed.
_DEEDS: Mapping[str, str] = {
    **DEEDS,
    "zap_oldest": "ignored",
    "mmu_unload": "handed",
    "slot_clear_dirty": "handed",
}
_WHERE = "a line of the recording"


class LaneTdp(Lane6x, RecorderTdp):
    """The recorder's half of a lane."""

    deeds = _DEEDS
    outputs = TDP_OUTPUTS
    heard = Lane6x.heard | _UNTOLD | {"vm_closed"}

    @property
    def rules(self) -> Rules:
        """The recorder's part of the rules."""
        return {
            **super().rules,
            "has_nx_huge_pages": self._nx_huge_pages,
            "has_pml": self._has_pml,
            "yields_unseen": self._wording.yields_unseen,
            "notes": list(_NOTES),
            # What an operation means here is more than its fields say.
            "numeric": ("", []),
        }

    def hear(self, stop: LaneStop) -> None:
        """Deal with what the lane stopped at, as the slow way would."""
        if stop.what == "input" and stop.name in _BARE:
            self.lane.waiting = False
            self.feed(Event(0, stop.name, (), None), _WHERE)
            self._run_waiting(None)
            return
        if stop.what == "operation":
            noted = operation_of(stop.body, _WHERE, noted_by="")
            if noted is not None and noted.operation is None:
                if self.lane.pending[0]:
                    raise Unsure("updates without a marker before a note")
                self.feed(noted, _WHERE)
                return
        super().hear(stop)

    def _operation(self, op: Operation, where: str) -> None:
        if op["op"] in _UNTOLD:
            raise Unsure(f"inputs that no line tells, after {op['op']}")
        super()._operation(op, where)

    def _wait(self, bit: str, then: Callable[[], object]) -> None:
        """The lane tells the model what the processor set, before it stops at the input that asks."""
        del bit
        then()

    def _set_memslot(self, slot: Slot, size: int) -> None:
        old = self._vm.slots.get((slot.as_id, slot.id))
        is_change = old is not None and size and replace(old, flags=slot.flags) == slot
        was_logged, is_logged = (bool(one is not None and one.flags & LOG_DIRTY) for one in (old, slot))
        if is_change and is_logged and not was_logged and self._has_pml:
            # What the processor wrote is known where its log begins.
            self._waiting = lambda _found: super(LaneTdp, self)._set_memslot(slot, size)
            self.lane.waiting = True
            return
        self.lane.hides_flushes = (
            bool(is_change and was_logged and not is_logged) and self._wording.yields_unseen
        )
        super()._set_memslot(slot, size)
        self.lane.hides_flushes = False

    def _residency(self) -> ResidencyTdp:
        return _LaneResidencyTdp(self._note_huge, self)


class _LaneResidencyTdp(ResidencyTdp):
    """Host pages that the lane knows; what the recorder touches or the host takes away goes there."""

    def __init__(self, note_level: Callable[[int, int, str], None], driver: LaneTdp):
        super().__init__(note_level)
        self._driver = driver

    def add_backing(self, name: str, hva: int, size: int, thp: bool) -> None:
        """The recorder made a backing and wrote some of it."""
        self._driver.lane.add_backing(hva >> 12, size >> 12, thp, self.is_fully_written(name))
        super().add_backing(name, hva, size, thp)

    def add_hugetlb(self, name: str, hva: int, size: int) -> None:
        """The recorder made a backing of 1 GiB pages."""
        self._driver.lane.add_hugetlb(hva >> 12, size >> 12)
        super().add_hugetlb(name, hva, size)

    def touch(self, page: int) -> None:
        """A write made the page resident."""
        self._driver.lane.touch(self._driver.core, page)

    def unmap(self, first: int, end: int) -> None:
        """The host took pages away."""
        self._driver.lane.unmap_pages(self._driver.core, first, end)


def lane_of(kernel: str, host: HostFacts, survey: Survey) -> Lane6x | None:
    """The recorder's half of a lane for a later recording.

    Args:
        kernel: the row that is replayed.
        host: facts of the host.
        survey: what must be known beforehand.

    Returns:
        It; None where the slow way is needed: roots that depend on more than SMM.
    """
    if not kernel_profile(kernel).facts.is_role_fixed:
        return None
    if not host.number("tdp_mmu"):
        return Lane6x(kernel, host, survey)
    return LaneTdp(kernel, host, survey)
