"""The recorder of v5.10 and later in a lane of the core: the lane makes faults, entries and reclaims, this the rest.

Owns: which events the lane deals with and which come here, what passes between the two at a stop, and the runs of
updates that no marker announced. What an operation or a notifier does is the recorder's own rule, in `recorder_6x`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from kvm_mmu import _core
from kvm_mmu.errors import MemslotError
from kvm_mmu.recorders.inputs_6x import Event, event_of, operation_of
from kvm_mmu.recorders.quiet_updates import FLAGS
from kvm_mmu.recorders.recorder_6x import GROUP, HEARD, LEVEL_MAX, REFILL_PAGES, Recorder6x, Slot
from kvm_mmu.recorders.residency_6x import Residency
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.scenario.operation_table import SLOT_ID_LIMIT
from kvm_mmu.trace.replay.lane import LaneStop, Rules, Unsure
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.recorder import Survey
from kvm_mmu.trace.text.exit_qualification import BITS, MISCONFIGURATION
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.kinds import OUTPUTS
from kvm_mmu.trace.text.markers import Operation
from kvm_mmu.types import KVM_ADDRESS_SPACE_NUM, PAGE_SHIFT

#: What the lane does at an event. Where a recording lacks one, the markers say it, here as in the slow way.
DEEDS = {
    "kvm_page_fault": "fault",
    "kvm_mmu_spte_requested": "request",
    "free_roots": "free_roots",
    "mmu_load": "load",
    "zap_oldest": "zap_oldest",
    "set_memslot": "slot_change",
    "kvm_smm_transition": "handed",
    "kvm_age_hva": "handed",
    "kvm_unmap_hva_range": "handed",
    "dirty_masked": "handed",
}
#: The same on a host with EPT, whose misconfigurations are told in two lines.
_EPT_DEEDS = {
    "mmu_fault": "mmu_fault",
    "kvm_exit": "exit",
    "vcpu_match_mmio": "address",
    "kvm_mmio": "address",
}
#: Two address spaces share the numbers of generations.
_PUBLICATION_STEP = 2
#: Fewer changes are made one by one.
_MANY = 4
_WHERE = "a line of the recording"
#: What a memslot request says, and what a field is that lacks; None: it must be there.
_SLOT_FIELDS = [("as_id", 0), ("slot", None), ("gpa", None), ("size", None), ("hva", 0), ("flags", 0)]
_A_SLOT: Operation = {"op": "set_memslot"}
_NOTHING = Event(0, "", (), None)


class Lane6x(Recorder6x):
    """The recorder's half of a lane."""

    deeds: Mapping[str, str] = DEEDS
    outputs: frozenset[str] = OUTPUTS
    heard: frozenset[str] = HEARD - {"guest_run"}

    def __init__(self, kernel: str, host: HostFacts, survey: Survey):
        super().__init__(_engine, kernel, host, survey.events, _unheard)
        self.vcpus_needed, self.tasks = survey.vcpus, survey.tasks
        self._lane: _core.ReplayLane | None = None

    @property
    def rules(self) -> Rules:
        """The recorder's part of the rules."""
        deeds = dict(self.deeds)
        if self._given_generations:
            deeds["invalidate_mmio"] = "publication"
        if self._is_ept:
            deeds |= _EPT_DEEDS
        told = (
            self.outputs - self._wording.unsaid - ({"invalidate_mmio"} if self._given_generations else set())
        )
        return {
            "has_nx_huge_pages": False,
            "has_pml": False,
            "yields_unseen": False,
            "notes": [],
            "deeds": list(deeds.items()),
            "told": list(told),
            "heard": sorted(self.heard),
            "numeric": ("set_memslot", _SLOT_FIELDS),
            "enters": ["guest_run"],
            "news_field": "ncmds",
            "enter_loads": not self._has_loads,
            "is_whole_fault": False,
            "level_max": min(LEVEL_MAX, self._root_level),
            "publication_step": _PUBLICATION_STEP,
            "refill_pages": REFILL_PAGES,
            "group": GROUP,
            "qualification": list(BITS) if self._is_ept else [],
            "misconfiguration": MISCONFIGURATION,
        }

    def begin(self, lane: _core.ReplayLane) -> None:
        """Take the lane."""
        self._lane = lane

    @property
    def lane(self) -> _core.ReplayLane:
        """The lane."""
        if self._lane is None:
            raise Unsure("the lane has not begun")
        return self._lane

    @property
    def core(self) -> _core.Mmu:
        """The model of the VM there is now."""
        return _core_of(self._vm.engine)

    def hear(self, stop: LaneStop) -> None:
        """Deal with what the lane stopped at, as the slow way would."""
        lane, quiet = self.lane, self._quiet
        self._current, self._announced = lane.current, lane.announced
        quiet.pending, as_id = lane.pending
        quiet.as_id = as_id if quiet.pending else quiet.as_id
        if stop.what == "quiet":
            self._make_quiet_updates(_NOTHING, _WHERE)
        elif stop.what == "numbers":
            self._begin_operation("set_memslot", _A_SLOT, _WHERE)
            as_id, slot_id, gpa, size, hva, flags = stop.numbers
            self._request_slot(Slot(as_id, slot_id, gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, hva, flags), size)
        elif stop.what == "input":
            self.feed(event_of(stop.name, stop.body, _WHERE), _WHERE)
        else:
            event = operation_of(stop.body, _WHERE)
            if event is not None:
                self._hear_operation(event)
        lane.current, lane.announced = self._current, self._announced
        lane.pending = (quiet.pending, quiet.as_id)

    def finish(self) -> None:
        """Make the updates that no marker followed."""
        self._quiet.pending, self._quiet.as_id = self.lane.pending
        super().finish()

    def _hear_operation(self, event: Event) -> None:
        name = "" if event.operation is None else event.operation.get("op")
        if name == "smi" and not self._has_transitions:
            raise Unsure("nothing tells when a vCPU leaves SMM")
        self.feed(event, _WHERE)
        if name == "create_vm":
            self.lane.begin_vm()

    def _set_memslot(self, slot: Slot, size: int) -> None:
        """The request as the machine layer takes it; of what the table of operations refuses the slow way tells."""
        if slot.as_id >= KVM_ADDRESS_SPACE_NUM or slot.id >= SLOT_ID_LIMIT:
            raise Unsure("a memslot of a number that none has")
        engine = self._vm.engine
        assert isinstance(engine, MachineEngine)
        engine.vm.core.clear_events()
        is_refused = False
        try:
            engine.vm.memslots.set_region(
                slot=slot.id,
                gpa=slot.base << PAGE_SHIFT,
                size=size,
                hva=slot.hva,
                flags=slot.flags,
                as_id=slot.as_id,
            )
        except MemslotError:
            is_refused = True
        self._after(is_expected=True)
        if not is_refused:
            self._note_slot(slot, size)

    def _update_all_quietly(self, changes: list[int]) -> None:
        """Many changes of one slot's flags are made at once."""
        touched, engine = self._touched, self._vm.engine
        known = None if touched is None else self._vm.slots.get((touched.as_id, touched.id))
        assert isinstance(engine, MachineEngine)
        if known is None or len(changes) < _MANY or changes.count(FLAGS) != len(changes):
            super()._update_all_quietly(changes)
            return
        self.core.clear_events()
        now = engine.vm.memslots.alternate_log(known.id, len(changes), known.as_id)
        self._vm.slots[known.as_id, known.id] = replace(known, flags=now.flags)
        self.lane.take(self.core, True)

    # -- the engine: events stay in the core and are compared there ----------------------------------------------

    def _residency(self) -> Residency:
        return _LaneResidency(self._note_huge, self)

    def _apply(self, op: Operation, *, is_second_half: bool = False) -> dict[str, object]:
        return self._do(op, is_expected=False)

    def _expect(self, op: Operation) -> dict[str, object]:
        return self._do(op, is_expected=True)

    def _do(self, op: Operation, *, is_expected: bool) -> dict[str, object]:
        engine = self._vm.engine
        assert isinstance(engine, MachineEngine)
        ret = engine.do(op)
        self._after(is_expected=is_expected)
        return {"ret": ret}

    def _after(self, *, is_expected: bool) -> None:
        """What was done to the model goes into the comparison."""
        core = self.core
        self.lane.take(core, is_expected)
        if self._given_generations:
            self._vm.generations[:] = core.generation(0), core.generation(1)


class _LaneResidency(Residency):
    """Host pages that the lane knows; what the recorder touches goes there."""

    def __init__(self, note_huge: Callable[[int, int], None], driver: Lane6x):
        super().__init__(note_huge)
        self._driver = driver

    def add_backing(self, name: str, hva: int, size: int, thp: bool) -> None:
        """The recorder made a backing and wrote some of it."""
        self._driver.lane.add_backing(hva >> 12, size >> 12, thp, self.is_fully_written(name))
        super().add_backing(name, hva, size, thp)

    def touch(self, page: int) -> None:
        """A write made the page resident."""
        self._driver.lane.touch(self._driver.core, page)


def _engine(kernel: str, config: Mapping[str, object]) -> MachineEngine:
    return MachineEngine(kernel=kernel, config=dict(config))


def _core_of(engine: object) -> _core.Mmu:
    assert isinstance(engine, MachineEngine)
    return engine.vm.core


def _unheard(prediction: Prediction) -> None:
    raise AssertionError(f"a prediction as text in a lane: {prediction}")
