"""The operations of a replay, for another kernel: what the guest and the VMM did, without what its own kernel decided.

Owns: which operations every kernel has, what stands for those it has not, and the sentences that say so. A recorded
fault becomes the guest access behind it: whether it faults again is the other kernel's to decide. What the recording
shows of host memory is stated before the access.

Under the kernel of the recording nothing is translated; host memory is stated all the same, since accesses that are
repeated later ask for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvm_mmu.machine.profiles import kernels
from kvm_mmu.scenario.workload import kind_of_error
from kvm_mmu.trace.replay.host_ranges import HostRanges, used_by

Op = dict[str, Any]

_LOG_DIRTY, _READONLY = 1 << 0, 1 << 1
_PAGE, _MASK_PAGE = 12, (1 << 12) - 1
_PREFETCH = 8
#: Configuration that only some kernels have: the fact that says so, and the value where nothing has to be said.
_PARAMETERS = {
    "tdp_mmu": ("has_tdp_mmu", 0),
    "nx_huge_pages": ("has_nx_huge_pages", 0),
    "mmio_caching": ("has_mmio_caching", 1),
}

#: What is counted as changed, in words for one and for several.
_CHANGES = {
    "fault": ("fault as a guest access", "faults as guest accesses"),
    "large": ("range of host memory in pages of 2 MiB", "ranges of host memory in pages of 2 MiB"),
    "split": ("range of host memory split to 4 KiB", "ranges of host memory split to 4 KiB"),
    "parameter": (
        "change or recovery of NX huge pages left out",
        "changes or recoveries of NX huge pages left out",
    ),
    "prefault": (
        "page of KVM_PRE_FAULT_MEMORY as a guest's read",
        "pages of KVM_PRE_FAULT_MEMORY as a guest's reads",
    ),
    "scan": ("scan by this kernel's own shrinker", "scans by this kernel's own shrinker"),
    "dirty": (
        "step of the dirty log as write protection of the same pages",
        "steps of the dirty log as write protection of the same pages",
    ),
    "initially set": (
        "manual protect without a log that is set from the start",
        "manual protects without a log that is set from the start",
    ),
    "quiet": (
        "memslot update without a marker, as a change of the flags of the slot last touched",
        "memslot updates without a marker, as changes of the flags of the slot last touched",
    ),
    "no slot": ("memslot update without a slot left out", "memslot updates without a slot left out"),
}


@dataclass
class Translated:
    """Operations for a kernel; `returns` holds what a memslot update returned where it was recorded, else None.

    `notes` are about the recording, `changes` about the kernel it is run for.
    """

    config: dict[str, Any]
    ops: list[Op] = field(default_factory=list)
    returns: list[int | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def translate(
    config: Mapping[str, Any],
    ops: Sequence[Op],
    returns: Sequence[int],
    recorded: str,
    target: str,
    *,
    as_accesses: bool = False,
) -> Translated:
    """The operations of a VM that was recorded on one kernel, for another (or the same).

    Args:
        as_accesses: guest accesses also under the kernel of the recording, for instance because its plans are others.
    """
    used = [r for op, ret in zip(ops, returns, strict=True) if not ret and (r := used_by(op)) is not None]
    ranges = HostRanges(used)
    made = Translated(dict(config))
    if ranges.phys_bits > int(config.get("phys_bits", 0)):
        made.notes.append(f"physical width lifted from {config.get('phys_bits')} to {ranges.phys_bits} bits")
        made.config["phys_bits"] = ranges.phys_bits
    work = (_Same if recorded == target and not as_accesses else _Other)(made, recorded, target)
    work.configure()
    for op, ret in zip(ops, returns, strict=True):
        # A refused update stays as it was asked for, so that it is refused for the same reason.
        work.feed(op if ret and op["op"] == "set_memslot" else ranges.moved(op), ret)
    work.finish()
    made.changes += work.said()
    return made


@dataclass
class _Slot:
    """A live memslot: base and npages in pages."""

    id: int
    base: int
    npages: int
    hva: int
    op: Op


class _Same:
    """Everything as it is, with host memory stated."""

    def __init__(self, made: Translated, recorded: str, target: str):
        self._made = made
        self._target = kernels[target]
        self._recorded = kernels[recorded]
        self.counts: Counter[str] = Counter()
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._touched: dict[int, _Slot] = {}
        self._smm: set[int] = set()
        #: host page -> what the model was told of it last: `rw` or `cow` (not there, or not writable)
        self._told: dict[int, str] = {}
        #: host pages that an answer has shown since they were last given back
        self._shown: set[int] = set()

    def configure(self) -> None:
        """Fit the configuration to the kernel."""

    def feed(self, op: Op, ret: int) -> None:
        """Take one operation of the recording."""
        self._follow(op, ret)
        if op["op"] == "fault" and op.get("host") is not None:
            self._state_host(op)
        self._keep(op, ret)

    def finish(self) -> None:
        """The recording is at its end."""

    def said(self) -> list[str]:
        """What was changed, in sentences."""
        return []

    def _keep(self, op: Op, ret: int | None = None) -> None:
        self._made.ops.append(op)
        self._made.returns.append(ret if op["op"] == "set_memslot" else None)

    def _follow(self, op: Op, ret: int) -> None:
        """What slots and address spaces are, as far as host memory needs it."""
        match op["op"]:
            case "set_memslot" if ret == 0:
                key = (int(op["as"]), int(op["id"]))
                self._slots.pop(key, None)
                if op["size"]:
                    slot = _Slot(
                        key[1], int(op["gpa"]) >> _PAGE, int(op["size"]) >> _PAGE, int(op["hva"]), op
                    )
                    self._slots[key] = self._touched[key[0]] = slot
            case "smm":
                (self._smm.add if op["on"] else self._smm.discard)(int(op["vcpu"]))
            case "unmap_hva":
                first, last = int(op["start"]) >> _PAGE, int(op["end"]) - 1 >> _PAGE
                self._shown = {page for page in self._shown if not first <= page <= last}

    def _slot_at(self, vcpu: int, gfn: int) -> _Slot | None:
        as_id = int(vcpu in self._smm)
        return next(
            (
                slot
                for (of, _), slot in self._slots.items()
                if of == as_id and slot.base <= gfn < slot.base + slot.npages
            ),
            None,
        )

    def _state_host(self, op: Op) -> None:
        """Say what the recording shows of the host pages around a mapping; 6.x only."""
        gfn, answer = int(op["gpa"]) >> _PAGE, op["host"]
        slot = self._slot_at(int(op["vcpu"]), gfn)
        if slot is None:
            return
        is_large = int(answer.get("level", 1)) > 1
        found = set(answer.get("found") or ())
        looked_up = answer.get("found") is not None
        for near in range(gfn & -_PREFETCH, (gfn & -_PREFETCH) + _PREFETCH):
            if not slot.base <= near < slot.base + slot.npages:
                continue
            page = (slot.hva >> _PAGE) + near - slot.base
            if near == gfn:
                is_writable = bool(answer.get("writable")) or bool(slot.op["flags"] & _READONLY)
                self._say(page, "rw" if is_writable else "cow")
            elif near in found:
                self._say(page, "rw")
            elif looked_up and not is_large and page not in self._shown:
                # The recording's lookup did not find it; later answers may.
                self._say(page, "cow")

    def _say(self, page: int, state: str) -> None:
        if self._told.get(page, "rw") != state:
            self._keep({"op": "host_state", "hva": page << _PAGE, "npages": 1, "state": state})
        self._told[page] = state
        self._shown.add(page)


class _Other(_Same):
    """For another kernel: accesses in place of faults, and what it lacks by something it has."""

    def __init__(self, made: Translated, recorded: str, target: str):
        super().__init__(made, recorded, target)
        #: The first half of a 6.x fault, whose second half may come.
        self._half: Op | None = None
        #: 5.x: the next fault waits until host memory is as the fault leaves it.
        self._is_held = False
        self._held: Op | None = None
        self._notes: list[str] = []

    def configure(self) -> None:
        config, facts = self._made.config, self._target.facts
        if config.get("family") == "shadow" and not facts.is_level_requested:
            config["family"] = "npt"
            config.pop("guest_paging", None)
            self._notes.append(
                "a guest without paging on shadow tables: run under two-dimensional paging (npt)"
            )
        for key, (fact, usual) in _PARAMETERS.items():
            if not facts[fact] and (value := config.pop(key, usual)) != usual:
                self._notes.append(f"{key}={value} is left out, {self._target.name} has no such parameter")
        if facts.l1tf:
            config.pop("l1tf", None)

    def feed(self, op: Op, ret: int) -> None:
        name = op["op"]
        if name == "fault":
            self._fault(op)
            return
        if name == "host_state" and (self._is_held or self._held is not None):
            self._host_state(op)
            return
        if self._held is not None and name == "unmap_hva":
            self._keep(op)
            return
        if name != "host_huge":
            self._settle()
        self._follow(op, ret)
        match name:
            case "host_state" if op["state"] == "hwpoison":
                self._is_held = True
            case "zap_oldest" if not self._target.facts.logs_silent_calls:
                self._change("scan")
                self._keep({"op": "shrink", "n": op["n"]})
            case "dirty_masked" if not self._target.facts.logs_silent_calls:
                self._change("dirty")
                self._keep({**op, "op": "pt_masked", "what": "write_protect"})
            case "manual_protect" if op["on"] & 2 and not self._target.facts.has_initially_set:
                self._change("initially set")
                self._keep({**op, "on": op["on"] & 1})
            case "cpu_sets":
                pass  # the accesses set these bits
            case "nx_recover" | "set_nx" if not self._target.facts.has_nx_huge_pages:
                self._change("parameter")
            case "prefault" if not self._target.facts.has_prefault:
                self._change("prefault")
                self._keep({"op": "access", "vcpu": op["vcpu"], "gpa": op["gpa"], "kind": "r"})
            case "prefault":
                self._keep({key: value for key, value in op.items() if key != "host"})
            case "set_generation" if not self._target.facts.logs_silent_calls:
                self._quiet_update(op)
            case "invalidate_mmio" if not self._target.facts.logs_silent_calls:
                pass
            case "host_huge":
                self._change("large" if op["kind"] != "none" else "split")
                self._keep(op)
            case _:
                self._keep(op, ret)

    def finish(self) -> None:
        self._settle()

    def said(self) -> list[str]:
        counted = [f"{count:,} {_CHANGES[what][count != 1]}" for what, count in self.counts.items()]
        unseen = f"what took no fault on {self._recorded.name} is not in it"
        return ["; ".join([*counted, *self._notes, unseen])]

    def _change(self, what: str) -> None:
        self.counts[what] += 1

    # -- faults -------------------------------------------------------------------------------------------------

    def _fault(self, op: Op) -> None:
        if "host" not in op:
            self._settle()
            if self._is_held:
                self._held = op
            else:
                self._access(op)
        elif op["host"] is None:
            self._settle()
            self._half = op
        else:
            half, self._half = self._half, None
            self._state_host(op)
            self._access(half or op)

    def _settle(self) -> None:
        """A fault that never asked for a mapping was an access all the same."""
        half, self._half = self._half, None
        held, self._held = self._held, None
        for op in (half, held):
            if op is not None:
                self._access(op)
        if held is not None:
            self._is_held = False

    def _access(self, op: Op) -> None:
        self._change("fault")
        fields = {"vcpu": op["vcpu"], "gpa": int(op["gpa"]) & ~_MASK_PAGE}
        self._keep({"op": "access", **fields, "kind": kind_of_error(int(op["err"]))})

    def _host_state(self, op: Op) -> None:
        """5.x: a write to the zero page. The replay makes its fault come again; here the page is as it is after it."""
        self._is_held = False
        self._keep(op)
        self._settle()

    def _quiet_update(self, op: Op) -> None:
        """A memslot update without a marker: the flags of the slot last touched, as the recorder makes them."""
        slot = self._touched.get(int(op["as"]))
        if slot is None:
            self._change("no slot")
            return
        self._change("quiet")
        slot.op = {**slot.op, "flags": slot.op["flags"] ^ _LOG_DIRTY}
        self._keep(slot.op, 0)
