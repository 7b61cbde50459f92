"""Our two recorders behind the interface of the replay: that of the kernels before v5.10, and the later one.

Owns: what each must know before it begins, and the loop over its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kvm_mmu.errors import TraceError
from kvm_mmu.recorders.inputs import Input, Marker, read_inputs, read_shadow_inputs
from kvm_mmu.recorders.inputs_6x import Event, count_vcpus, iter_events, vcpus_of_tasks
from kvm_mmu.recorders.lane_5x import Lane5x
from kvm_mmu.recorders.lane_6x import Lane6x
from kvm_mmu.recorders.lane_tdp import lane_of
from kvm_mmu.recorders.recorder_5x import Recorder5x
from kvm_mmu.recorders.recorder_6x import Recorder6x
from kvm_mmu.recorders.recorder_shadow import RecorderShadow, shadows_guest_tables
from kvm_mmu.recorders.recorder_shadow_5x import RecorderShadow5x
from kvm_mmu.recorders.recorder_tdp import RecorderTdp
from kvm_mmu.trace.replay.recorder import Session, Survey, Unreplayable
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.markers import number
from kvm_mmu.trace.text.wording import wording_of

_MAX_VCPUS = 256
_IN_THE_MIDDLE = "no create_vm before line {}: the recording starts in the middle of a VM"


class Earlier:
    """Recordings of v5.0 to v5.4."""

    mark = "_mark_write: OP "
    made_on = "a kernel before v5.10"
    is_numbered = True

    def fits(self, kernel: str) -> bool:
        """Say whether the kernel has no event of a requested level."""
        return not wording_of(kernel).has_requests

    def survey(self, lines: Iterable[str], name: str) -> Survey | None:
        """Count the vCPUs."""
        vcpus = _vcpus(read_inputs(lines, name), name)
        return None if vcpus is None else Survey(vcpus)

    def drive(self, survey: Survey, lines: Iterable[str], session: Session) -> Mapping[str, int]:
        """Feed the operations and faults to the model."""
        facts = session.host
        made = RecorderShadow5x if facts.text("mmu") == "shadow" else Recorder5x
        try:
            translator = made(session.factory, session.kernel, facts, session.predict)
        except TraceError as err:
            raise Unreplayable(str(err)) from err
        translator.vcpus_needed = survey.vcpus
        if isinstance(translator, RecorderShadow5x):
            for shown in read_shadow_inputs(lines, session.name):
                translator.feed(shown, f"{session.name}:{shown.line}")
            translator.finish()
        else:
            for item in read_inputs(lines, session.name):
                translator.feed(item, f"{session.name}:{item.line}")
        if translator.quiet_updates:
            facts.inferred["memslot flag updates without a marker"] = translator.quiet_updates
        return translator.ignored

    def lane(self, kernel: str, host: HostFacts, survey: Survey) -> Lane5x | None:
        """The half of a lane for these recordings."""
        return None if host.text("mmu") == "shadow" else Lane5x(kernel, host, survey)


class Later:
    """Recordings of v5.10 and later."""

    mark = '_mark_write: {"i":'
    made_on = "v5.10 or later"
    is_numbered = False

    def fits(self, kernel: str) -> bool:
        """Say whether the kernel has the event of a requested level."""
        return wording_of(kernel).has_requests

    def survey(self, lines: Iterable[str], name: str) -> Survey | None:
        """Count the vCPUs, note the events there are and which task is which vCPU."""
        names: set[str] = set()
        probes: set[str] = set()
        tasks: dict[str, int] = {}
        events = _named(iter_events(lines, name, probes=probes), names)
        vcpus = count_vcpus(vcpus_of_tasks(events, tasks), name)
        return Survey(vcpus, frozenset(names | probes), tasks) if names else None

    def drive(self, survey: Survey, lines: Iterable[str], session: Session) -> Mapping[str, int]:
        """Feed the events to the model."""
        is_tdp = bool(session.host.number("tdp_mmu"))
        has_guest_tables = shadows_guest_tables(session.host)
        made = RecorderTdp if is_tdp else RecorderShadow if has_guest_tables else Recorder6x
        try:
            translator = made(session.factory, session.kernel, session.host, survey.events, session.predict)
        except TraceError as err:
            raise Unreplayable(str(err)) from err
        translator.vcpus_needed, translator.tasks = survey.vcpus, survey.tasks
        is_noted = False
        for event in iter_events(lines, session.name, is_tdp=is_tdp, has_guest_tables=has_guest_tables):
            translator.feed(event, f"{session.name}:{event.line}")
            if translator.starts_in_the_middle and not is_noted:
                is_noted = True
                session.note(_IN_THE_MIDDLE)
        translator.finish()
        return translator.ignored

    def lane(self, kernel: str, host: HostFacts, survey: Survey) -> Lane6x | None:
        """The half of a lane for these recordings."""
        return None if shadows_guest_tables(host) else lane_of(kernel, host, survey)


def _named(events: Iterable[Event], names: set[str]) -> Iterator[Event]:
    for event in events:
        names.add(event.name)
        yield event


def _vcpus(inputs: Iterable[Input], name: str) -> int | None:
    """How many vCPUs the busiest VM of the recording gets; None when there is no input."""
    most: int | None = None
    for item in inputs:
        most = most or 1
        if isinstance(item, Marker) and item.operation.get("op") in ("add_vcpu", "use_vcpu"):
            most = max(most, number(item.operation, "n", f"{name}:{item.line}") + 1)
    if most is not None and most > _MAX_VCPUS:
        raise TraceError(f"{name}: vCPU number {most - 1}: at most {_MAX_VCPUS} vCPUs are modelled")
    return most
