"""The recorder of v5.0 to v5.4 in a lane of the core: the lane makes what its guest does, this the rest.

Owns: which operations the lane deals with, and the host pages at which it stops: those that are absent, the zero page
or write-protected, whose faults change them. What an operation does is the recorder's own rule, in `recorder_5x`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from kvm_mmu import _core
from kvm_mmu.recorders.inputs import Fault, Marker
from kvm_mmu.recorders.recorder_5x import GUEST_OPERATIONS, Recorder5x
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.trace.replay.lane import LaneStop, Rules, Unsure
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.recorder import Survey
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.line import clean_body
from kvm_mmu.trace.text.markers import Operation, parse_marker

#: What these kernels say of direct pages.
_TOLD = (
    "check_mmio_spte",
    "fast_page_fault",
    "handle_mmio_page_fault",
    "kvm_mmu_get_page",
    "kvm_mmu_invalidate_zap_all_pages",
    "kvm_mmu_prepare_zap_page",
    "kvm_mmu_set_spte",
    "kvm_mmu_zap_all_fast",
    "mark_mmio_spte",
)
_WHERE = "a line of the recording"


class Lane5x(Recorder5x):
    """The recorder's half of a lane."""

    def __init__(self, kernel: str, host: HostFacts, survey: Survey):
        super().__init__(_engine, kernel, host, _unheard)
        self.vcpus_needed = survey.vcpus
        self._lane: _core.ReplayLane | None = None
        #: Stands for a model while there is no VM.
        self._nothing = _engine(kernel, {"family": "npt"}).vm.core

    @property
    def rules(self) -> Rules:
        """The recorder's part of the rules."""
        return {
            "has_nx_huge_pages": False,
            "has_pml": False,
            "yields_unseen": False,
            "notes": [],
            "deeds": [("kvm_page_fault", "fault")],
            "told": list(_TOLD),
            "heard": [],
            "numeric": ("", []),
            "enters": sorted(GUEST_OPERATIONS),
            "news_field": "",
            "enter_loads": True,
            "is_whole_fault": True,
            "level_max": 0,
            "publication_step": 0,
            "refill_pages": 0,
            "group": 1,
            "qualification": [],
            "misconfiguration": 0,
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
        if self._vm is None:
            return self._nothing
        assert isinstance(self._vm.engine, MachineEngine)
        return self._vm.engine.vm.core

    def hear(self, stop: LaneStop) -> None:
        """Deal with what the lane stopped at, as the slow way would."""
        lane = self.lane
        self._last_number = lane.last_number
        if stop.what == "fault":
            gpa, error_code = stop.numbers
            self.feed(Fault(0, gpa, error_code), _WHERE)
        else:
            operation = parse_marker(clean_body(stop.body), _WHERE)
            if operation is not None:
                self.feed(Marker(0, operation), _WHERE)
        vm = self._vm
        lane.begun, lane.last_number = vm is not None, self._last_number
        if vm is not None:
            lane.current = vm.current
            memory = vm.memory
            odd = [*memory.absent.ranges(), *memory.zero.ranges()]
            lane.set_odd_pages([*odd, *((page, page + 1) for page in sorted(memory.read_only))])

    def finish(self) -> None:
        """Nothing is left at the end; what the recorder inferred is a fact of the host."""
        if self.quiet_updates:
            self._host.inferred["memslot flag updates without a marker"] = self.quiet_updates

    def _apply(self, op: Operation) -> dict[str, object]:
        vm, core = self._vm, self.core
        if vm is None or not isinstance(vm.engine, MachineEngine):
            raise Unsure("an operation without a VM")
        ret = vm.engine.do(op)
        # Faults come here at pages that they change; what they did is told by their events.
        events = json.loads(core.events_json()) if op["op"] == "fault" else []
        self.lane.take(core, False)
        return {"ret": ret, "events": events}


def _engine(kernel: str, config: Mapping[str, object]) -> MachineEngine:
    return MachineEngine(kernel=kernel, config=dict(config))


def _unheard(prediction: Prediction) -> None:
    raise AssertionError(f"a prediction as text in a lane: {prediction}")
