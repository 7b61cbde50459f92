"""A recording of a VM with a TDP MMU (v6.1 and later) -> operations of the scenario language.

Owns: what differs from a recording of direct shadow pages: nothing is prefetched, reclaimed or shrunk; the frame and
the level of a request go to the model, since the entries that it prints hold them; flushes are outputs; the bits that
the processor set are stated before KVM looks at them; recoveries of huge pages, KVM_PRE_FAULT_MEMORY and module
parameters are inputs. Everything that both recordings have is `Recorder6x`'s. Holds no rule of the MMU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvm_mmu.errors import TraceError
from kvm_mmu.recorders.inputs_6x import Event
from kvm_mmu.recorders.recorder_6x import LOG_DIRTY, READONLY, Fault, Recorder6x, Slot
from kvm_mmu.recorders.residency_tdp import HUGETLB_1G, ResidencyTdp
from kvm_mmu.trace.replay.engine import EngineFactory
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.narrator_tdp import NarratorTdp
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.kinds import FLUSHES
from kvm_mmu.trace.text.markers import Operation, number

_DISABLE_QUIRKS2, _SLOT_ZAP_ALL = 213, 1 << 7
_P, _RSVD, _FETCH = 1 << 0, 1 << 3, 1 << 4
_PAGES_2M = 512
#: Values of a module parameter that mean no.
_OFF = frozenset({"off", "never", "0", "N", "n"})
_RATIO_MAX = 1 << 32
#: Frames that a host of 52 bits has.
_FRAMES = 1 << 40


class RecorderTdp(Recorder6x):
    """Feeds a recording of the TDP MMU to an engine, one input at a time."""

    def __init__(
        self,
        factory: EngineFactory,
        kernel: str,
        host: HostFacts,
        names: frozenset[str],
        emit: Callable[[Prediction], None],
    ):
        super().__init__(factory, kernel, host, names, self._tell)
        self._say = emit
        if self._config["family"] == "shadow":
            raise TraceError("shadow paging uses no TDP MMU, whatever its parameter says")
        self._config["tdp_mmu"] = 1
        self._eager_split = int(host.number("eager_page_split") != 0)
        self._has_pml = bool(self._config.get("pml"))
        #: Module parameters that are written while the VM runs.
        self._nx_huge_pages, self._ratio = bool(self._config["nx_huge_pages"]), 0
        self._is_prefault = self._has_ended = False
        #: Flushes of this operation cannot be told from those of yields, which no probe shows.
        self._hides_flushes = False
        self._pfn = 0
        #: What waits for the leaves that the processor used or wrote; it gets them, or None.
        self._waiting: Callable[[str | None], None] | None = None
        #: The dirty log was read or cleared: a flush comes at the end.
        self._has_masked = False

    def feed(self, event: Event, where: str) -> None:
        """Execute one input line."""
        if self._waiting is not None and event.name not in (
            "leaves_found",
            "slot_clear_dirty",
            "set_memslot",
        ):
            self._run_waiting(None)
        super().feed(event, where)

    def finish(self) -> None:
        """The trace ends, and with it the VM."""
        if self._waiting is not None:
            self._run_waiting(None)
        super().finish()
        self._teardown()

    # -- faults
    # -----------------------------------------------------------------------------------------------

    def _on_kvm_mmu_spte_requested(self, gfn: str, pfn: str, level: str) -> None:
        if self._is_prefault:
            self._fault = Fault(self._current, int(gfn, 16) << 12, 0)
        super()._on_kvm_mmu_spte_requested(gfn, pfn, level)
        self._pfn = int(pfn, 16)

    def _map(self, answer: dict[str, object] | None) -> None:
        """The second half of a fault."""
        fault, level = self._fault, self._requested
        self._fault = self._requested = None
        if fault is None or level is None:
            return
        gfn = fault.gpa >> 12
        slot = self._vm.find(fault.vcpu, gfn)
        if slot is not None:
            self._note_level(slot, slot.page_of(gfn), gfn, level, is_fetch=bool(fault.error_code & _FETCH))
        host: dict[str, object] = {"level": level, "writable": 0}
        if slot is not None:
            if self._pfn >= _FRAMES:
                raise TraceError(
                    f"line {self._line} of the stripped trace: gfn {gfn:#x} has a slot, {self._pfn:#x} is no frame"
                )
            is_writable = not slot.flags & READONLY and self._vm.residency.is_resident(slot.page_of(gfn))
            host = {"level": level, "pfn": self._pfn, **(answer or {"writable": int(is_writable)})}
        host["found"] = None
        if self._is_prefault:
            self._apply(
                {"op": "prefault", "vcpu": fault.vcpu, "gpa": fault.gpa, "size": 1 << 12, "host": host}
            )
            return
        op: Operation = {"op": "fault", "vcpu": fault.vcpu, "gpa": fault.gpa, "host": host}
        self._apply({**op, "err": fault.error_code & ~(_P | _RSVD)}, is_second_half=True)

    def _note_level(self, slot: Slot, page: int, gfn: int, level: int, *, is_fetch: bool) -> None:
        """What a request says of the host's page; a level that was forced says nothing."""
        residency = self._tdp_residency
        residency.note_fault(page)
        if level > 1:
            residency.note_2m(page)
            return
        start = gfn & -_PAGES_2M
        is_aligned = (gfn ^ page) % _PAGES_2M == 0
        is_inside = slot.base <= start and start + _PAGES_2M <= slot.base + slot.npages
        is_forced = bool(slot.flags & LOG_DIRTY) or (is_fetch and self._nx_huge_pages)
        if is_aligned and is_inside and not is_forced:
            residency.note_4k(page)

    # -- other inputs
    # -----------------------------------------------------------------------------------------------

    def _on_kvm_unmap_hva_range(self, start: str, end: str) -> None:
        super()._on_kvm_unmap_hva_range(start, end)
        self._tdp_residency.unmap(int(start, 16) >> 12, (int(end, 16) + (1 << 12) - 1) >> 12)

    def _on_kvm_age_hva(self, start: str, end: str) -> None:
        op: Operation = {"op": "age_hva", "start": int(start, 16), "end": int(end, 16), "flush": 1}
        self._wait("accessed", lambda: self._apply(op))

    def _on_dirty_masked(self, offset: str, mask: str) -> None:
        self._has_masked = True
        masked = super()._on_dirty_masked
        if self._has_pml:
            self._wait("dirty", lambda: masked(offset, mask))
        else:
            masked(offset, mask)

    def _on_dirty_log(self) -> None:
        if self._has_masked and self._logged is not None:
            self._has_masked = False
            self._apply({"op": "slot", "as": self._logged[0], "id": self._logged[1], "what": "flush"})

    _on_clear_dirty_log_ret = _on_dirty_log

    def _on_nx_recovery(self) -> None:
        self._hides_flushes = self._wording.yields_unseen
        self._apply({"op": "nx_recover", "ratio": self._ratio})
        self._hides_flushes = False

    def _on_pre_fault_ret(self) -> None:
        self._is_prefault = False

    def _on_mmu_unload(self) -> None:
        if self._has_ended:
            self._teardown()

    def _on_leaves_found(self, found: str) -> None:
        if self._waiting is not None:
            self._run_waiting(found)

    def _on_zap_oldest(self, wanted: str) -> None:
        """The shrinker finds nothing."""

    def _wait(self, bit: str, then: Callable[[], object]) -> None:
        """Do something as soon as it is known in which leaves the processor has set a bit."""

        def run(found: str | None) -> None:
            if found is not None and found != "-":
                for as_id, gfns in _leaves(found):
                    self._apply({"op": "cpu_sets", "as": as_id, "gfns": gfns, "bit": bit})
            then()

        self._waiting = run

    def _run_waiting(self, found: str | None) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting(found)

    # -- operations
    # -----------------------------------------------------------------------------------------------

    def _operation(self, op: Operation, where: str) -> None:
        self._is_prefault = op["op"] == "pre_fault"
        match op["op"]:
            case "backing" if op.get("hugetlb") == HUGETLB_1G:
                hva, size = number(op, "hva", where), number(op, "size", where)
                self._tdp_residency.add_hugetlb(str(op.get("name")), hva, size)
                return
            case "host_kvm_param":
                self._parameter(str(op.get("name")), str(op.get("value")), where)
            case "enable_cap" if number(op, "cap", where) == _DISABLE_QUIRKS2:
                if op.get("rc", 0) == 0 and number(op, "arg0", where) & _SLOT_ZAP_ALL:
                    self._apply({"op": "quirk", "slot_zap_all": 0})
            case "vm_closed":
                self._teardown()
        super()._operation(op, where)

    def _parameter(self, name: str, value: str, where: str) -> None:
        """A module parameter is written."""
        if name == "nx_huge_pages":
            self._nx_huge_pages = value not in _OFF
            self._apply({"op": "set_nx", "on": int(self._nx_huge_pages)})
        elif name == "nx_huge_pages_recovery_ratio":
            if not value.isdigit() or int(value) >= _RATIO_MAX:
                raise TraceError(
                    f"{where}: operation 'host_kvm_param': {name}: expected a number, got {value[:40]!r}"
                )
            self._ratio = int(value)

    def _set_memslot(self, slot: Slot, size: int) -> None:
        old = self._vm.slots.get((slot.as_id, slot.id))
        is_change = old is not None and size and replace(old, flags=slot.flags) == slot
        was_logged, is_logged = (bool(one is not None and one.flags & LOG_DIRTY) for one in (old, slot))
        if is_change and is_logged and not was_logged and self._has_pml:
            self._wait("dirty", lambda: super(RecorderTdp, self)._set_memslot(slot, size))
            return
        self._hides_flushes = bool(is_change and was_logged and not is_logged) and self._wording.yields_unseen
        super()._set_memslot(slot, size)
        self._hides_flushes = False

    def _end(self) -> None:
        """Page tables live on until the VM's memory goes."""
        self._has_ended = True

    def _teardown(self) -> None:
        if self._made is not None and self._has_ended:
            self._has_ended = False
            super()._end()

    # -- the engine
    # -----------------------------------------------------------------------------------------------

    def _tell(self, prediction: Prediction) -> None:
        if not self._hides_flushes or prediction.event not in FLUSHES:
            self._say(prediction)

    def _begin(self) -> None:
        self._apply({"op": "eager_split", "on": self._eager_split})

    @property
    def _tdp_residency(self) -> ResidencyTdp:
        residency = self._vm.residency
        assert isinstance(residency, ResidencyTdp)
        return residency

    def _narrator(self) -> NarratorTdp:
        return NarratorTdp(self._wording, self._words, self._root_level)

    def _residency(self) -> ResidencyTdp:
        return ResidencyTdp(self._note_huge)


def _leaves(found: str) -> list[tuple[int, list[int]]]:
    """`AS:GFN,...` as the gfns of each address space."""
    spaces: dict[int, list[int]] = {}
    for leaf in found.split(","):
        as_id, _, gfn = leaf.partition(":")
        spaces.setdefault(int(as_id), []).append(int(gfn, 16))
    return sorted(spaces.items())
