"""The scenario language's operations on the machine layer and the core: one small function an operation.

Nested operations run at lock breaks and at memslot publications; `ret`, `out`, events and counters are those of the
docs/reference/scenario.md and docs/reference/state.md.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kvm_mmu.errors import MemslotError, ScenarioError, UsageError
from kvm_mmu.machine.vcpu import Vcpu
from kvm_mmu.machine.vm import DEFAULTS, OPTIONAL, STEPPED_DEFAULTS, Vm
from kvm_mmu.machine.zap_plan import ZapPlan
from kvm_mmu.scenario.guest_operations import GUEST_OPERATIONS
from kvm_mmu.scenario.operation_table import FORMATS, STEPPED, Checked, HostAnswer, checked_operation

ENOENT, EINVAL, EOPNOTSUPP = 2, 22, 95
#: Counters of a result line, by the core's statistic of the same name (docs/reference/state.md).
COUNTERS = (
    "flush",
    "reload",
    "lock_breaks",
    "cond_resched",
    "need_resched",
    "warn",
    "zapped",
    "recycled",
    "cache_miss",
    "created",
    "lpages",
    "max_collisions",
    "pfn_accessed",
    "pfn_dirty",
    "walk_starts",
    "walk_visited",
)

#: The same in format 6.
STEPPED_COUNTERS = (
    "flush",
    "flush_range",
    "lock_breaks",
    "cond_resched",
    "need_resched",
    "needbreak",
    "warn",
    "zapped",
    "created",
    "freed",
    "pfn_accessed",
    "pfn_dirty",
    "srcu_sync",
    "spte_changed",
    "tdp_walks",
    "tdp_steps",
)
#: Words of format 6 that the core has under other names.
STEPPED_STATES = {"absent": "on_demand"}

Values = Mapping[str, Any]
Handler = Callable[["MachineEngine", Values], "int | tuple[int, dict[str, Any]]"]
Lists = Sequence[Sequence[Checked]]

#: A bitmap of more words is given as runs of pages: that of a slot above 1 GiB.
MOST_WORDS = 4096
_FULL = (1 << 64) - 1


def page_runs(spans: Iterable[tuple[int, int, int]]) -> list[list[int]]:
    """Set bits of a bitmap as runs [first page, count].

    Args:
        spans: words that are not zero, ascending: the first, how many, what each is.

    Returns:
        The runs, none of which touches the next.
    """
    runs: list[list[int]] = []
    for first, count, value in spans:
        for word in range(first, first + (1 if value == _FULL else count)):
            left, page = value, word * 64
            while left:
                page += (left & -left).bit_length() - 1
                left >>= (left & -left).bit_length() - 1
                length = count * 64 if value == _FULL else (~left & -~left).bit_length() - 1
                left >>= length
                if runs and sum(runs[-1]) == page:
                    runs[-1][1] += length
                else:
                    runs.append([page, length])
                page += length
    return runs


def _stepped_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The VM's configuration of a header of format 6.

    Raises:
        UsageError: it asks for what is not modelled.
    """
    values = {**STEPPED_DEFAULTS, **config}
    values["nx_huge_pages"] = values.pop("nx_huge")
    # Of an extended page table this is the most the processor has; five levels are used where they are needed.
    if values["family"] in ("ept_ad", "ept_noad") and values["phys_bits"] <= 48:
        values["tdp_level"] = min(values["tdp_level"], 4)
    return values


class MachineEngine:
    """Applies scenario operations to a `Vm`."""

    def __init__(
        self,
        kernel: str,
        config: Mapping[str, Any] | None = None,
        plans: Mapping[str, Any] | None = None,
        format: int = FORMATS[0],
        **more: Any,
    ) -> None:
        values = _stepped_config(config or {}) if format == STEPPED[0] else {**DEFAULTS, **(config or {})}
        # A scenario that does not say so has shadow pages, whatever hosts of its kernel have.
        values["tdp_mmu"] = bool(values.get("tdp_mmu"))
        self._is_traced = bool(values.pop("traced", 0))
        slot_zap_all, eager_split = values.pop("slot_zap_all", 1), values.pop("eager_split", 1)
        # A plan that the header names for slot removals stands; the quirk would put its own in that place.
        has_removal_plan = "slot_removal" in (plans or {})
        for key in ("execonly", "pml", "flush_range", *OPTIONAL):
            if values.get(key) is not None:
                values[key] = bool(values[key])
        self.vm = Vm(kernel=kernel, plans=plans or None, events="all", format=format, **values, **more)
        if not has_removal_plan:
            self.vm.set_slot_zap_all(bool(slot_zap_all))
        self.vm.eager_split = bool(eager_split)
        self.format = format
        self._is_stepped = format == STEPPED[0]
        self._is_paging = self.vm.shadows_guest
        self._manual = False
        self._breaks: Lists = ()
        self._break_index = 0
        self._in_break = False
        self._nested: list[dict[str, Any]] = []
        self._watch_lock_breaks()

    def clone(self) -> MachineEngine:
        """An independent engine in the same state."""
        twin = object.__new__(MachineEngine)
        twin.__dict__.update(self.__dict__)
        twin.vm = self.vm.clone()
        twin._nested = []
        twin._watch_lock_breaks()
        return twin

    def masks(self) -> dict[str, Any]:
        """The SPTE masks of the header, as hex strings."""
        if self._is_stepped:
            return self.vm.core.stepped_masks()
        return {name: hex(value) for name, value in self.vm.masks.items()}

    def state(self) -> dict[str, Any]:
        """The whole state."""
        return self.vm.snapshot()

    def digest(self) -> str:
        """Digest of the state."""
        return self.vm.digest()

    def audit(self) -> list[tuple[str, str]]:
        """Broken invariants of the core."""
        return self.vm.audit()

    def work(self) -> dict[str, int]:
        """Exact work counters of the core."""
        return self.vm.work

    def apply(self, op: Mapping[str, Any]) -> dict[str, Any]:
        """Run one operation and what it runs nested; events are taken from the VM.

        Raises:
            ScenarioError: the table of operations refuses it. MemslotError never: it becomes a negative `ret`.
        """
        checked = self.check(op)
        core = self.vm.core
        core.clear_events()
        before = core.stats()
        self._nested = []
        result = self._run(checked)
        after = core.stats()
        line: dict[str, Any] = {"ret": result[0]}
        if result[1] is not None:
            line["out"] = result[1]
        if self._nested:
            line["nested"] = self._nested
        line["events"] = json.loads(core.events_json_traced() if self._is_traced else core.events_json())
        counters = STEPPED_COUNTERS if self._is_stepped else COUNTERS
        line["ctr"] = {name: after[name] - before[name] for name in counters if after[name] != before[name]}
        return line

    def do(self, op: Mapping[str, Any]) -> int:
        """Run one operation whose events stay in the core's log, for one who reads them there.

        Returns:
            As `ret` of `apply`.

        Raises:
            ScenarioError: the table of operations refuses it.
        """
        checked = self.check(op)
        self.vm.core.clear_events()
        self._nested = []
        return self._run(checked)[0]

    def rich_events(self) -> list[dict[str, Any]]:
        """Events of the last operation with every field."""
        return self.vm.rich_events

    def check(self, op: object) -> Checked:
        """The operation as the table of operations reads it.

        Raises:
            ScenarioError: the table refuses it; nothing has changed.
        """
        return checked_operation(op, len(self.vm.vcpus), self.format, is_paging=self._is_paging)

    def _run(self, op: Checked) -> tuple[int, dict[str, Any] | None]:
        try:
            of_guest = GUEST_OPERATIONS.get(op.name)
            result = (
                OPERATIONS[op.name](self, op.values) if of_guest is None else of_guest(self.vm, op.values)
            )
        except MemslotError as error:
            return -(error.errno or EINVAL), None
        except UsageError as error:
            refused = ScenarioError(f"operation {op.name!r}: {error}")
            refused.where = error.where
            raise refused from error
        return result if isinstance(result, tuple) else (result, None)

    def _run_nested(self, kind: int, ops: Sequence[Checked]) -> None:
        # The stepped code tells of a lock break with a list of no operations, too.
        if not ops and not (self._is_stepped and kind == 1):
            return
        core = self.vm.core
        core.push_nested_begin(kind)
        for op in ops:
            ret, out = self._run(op)
            record: dict[str, Any] = {"op": op.name if self._is_stepped else op.given, "ret": ret}
            if out is not None:
                record["out"] = out
            self._nested.append(record)
        core.push_nested_end(kind)

    def _watch_lock_breaks(self) -> None:
        """Be called at lock breaks. The hook knows the engine weakly: a cycle would keep a dropped engine's VM."""
        known = weakref.ref(self)

        def lock_break(_vm: Vm) -> None:
            engine = known()
            if engine is not None:
                engine._lock_break()

        self.vm.on_lock_break = lock_break

    def _lock_break(self) -> None:
        if self._is_stepped and self._in_break:
            return
        index = self._break_index
        self._break_index += 1
        if index < len(self._breaks):
            self._in_break = True
            try:
                self._run_nested(1, self._breaks[index])
            finally:
                self._in_break = False

    # -- operations ---------------------------------------------------------------------------------------------

    def _set_memslot(self, op: Values) -> int:
        publication = iter(op["during"])
        self.vm.memslots.set_region(
            slot=op["id"],
            gpa=op["gpa"],
            size=op["size"],
            hva=op["hva"],
            flags=op["flags"],
            as_id=op["as"],
            published=lambda: self._run_nested(2, next(publication, ())),
        )
        return 0

    def _vcpu(self, op: Values) -> Vcpu:
        return self.vm.vcpus[op["vcpu"]]

    def _access(self, op: Values) -> tuple[int, dict[str, Any]]:
        done = self._vcpu(op).access(op["gpa"], op["kind"])
        return done.ret, {"outcome": done.outcome, "faults": done.faults}

    def _fault(self, op: Values) -> int:
        host: HostAnswer | None = op["host"]
        if host is None:
            return self._vcpu(op).fault(op["gpa"], op["err"])
        return self._vcpu(op).fault_with(
            op["gpa"], op["err"], host.found, is_written=host.is_written, frame=host.pfn
        )

    def _enter(self, op: Values) -> int:
        if self._is_paging:
            return self.vm.run_guest(op["vcpu"], "enter").ret
        return self._vcpu(op).enter()

    def _load(self, op: Values) -> int:
        if self._is_paging:
            return self.vm.run_guest(op["vcpu"], "load").ret
        return self._vcpu(op).load()

    def _unload(self, op: Values) -> int:
        self._vcpu(op).unload()
        return 0

    def _smm(self, op: Values) -> int:
        self._vcpu(op).set_smm(bool(op["on"]))
        return 0

    def _init(self, op: Values) -> int:
        self._vcpu(op).init()
        return 0

    def _set_regs(self, op: Values) -> int:
        regs = {key: op[key] for key in ("cr0", "cr4", "efer") if op[key] is not None}
        smm = None if op["smm"] is None else bool(op["smm"])
        if self._is_paging:
            ac = None if op["ac"] is None else bool(op["ac"])
            self.vm.core.store_regs(op["vcpu"], op["cr3"], ac)
        return self._vcpu(op).set_regs(smm=smm, **regs)

    def _get_dirty_log(self, op: Values) -> tuple[int, dict[str, Any]]:
        ret, nr_words, spans = self.vm.read_dirty_log(op["as"], op["id"], self._manual)
        if nr_words > MOST_WORDS:
            return ret, {"bitmap": {"words": nr_words, "runs": page_runs(spans)}}
        words = ["0x0"] * nr_words
        for first, count, value in spans:
            words[first : first + count] = [hex(value)] * count
        return ret, {"bitmap": words}

    def _clear_dirty_log(self, op: Values) -> int:
        return self.vm.clear_dirty_log(op["as"], op["id"], op["first"], op["num"], list(op["mask"]))

    def _manual_protect(self, op: Values) -> int:
        on = op["on"]
        if self._is_stepped and on not in (0, 1, 3):
            return -EINVAL
        self._manual = bool(on)
        self.vm.dirty_log_initially_set = self.vm.profile.facts.has_initially_set and bool(on & 2)
        return 0

    def _has_slot(self, op: Values) -> bool:
        wanted = op["id"]
        return any(slot.id == wanted for slot in self.vm.memslots.of(op["as"]))

    def _slot(self, op: Values) -> int:
        if not self._has_slot(op):
            return -ENOENT
        if op["what"] == "flush":
            self.vm.core.flush_slot_tlbs(op["as"], op["id"])
        elif op["what"] == "set_dirty" and self._is_stepped and self._is_paging:
            return -EOPNOTSUPP  # The function is gone.
        elif op["what"] == "flush_shadow_memslot":
            self.vm.flush_slot(op["id"], op["as"])
        else:
            self.vm.slot_walk(op["as"], op["id"], op["what"])
        return 0

    def _pt_masked(self, op: Values) -> int:
        if not self._has_slot(op):
            return -ENOENT
        if op["what"] == "enable_log_dirty":
            return self.vm.dirty_masked(op["as"], op["id"], op["offset"], op["mask"])
        return self.vm.core.pt_masked(op["as"], op["id"], op["offset"], op["mask"], op["what"])

    def _gfn_write_protect(self, op: Values) -> int:
        if op.get("id") is not None and not self._has_slot(op):
            return -ENOENT
        return self.vm.core.gfn_write_protect(op["as"], op["gfn"], op.get("level", 1))

    def _track(self, op: Values) -> int:
        if self._is_stepped and not self._is_paging:
            return -EOPNOTSUPP  # Slots have no counters of write tracking under two-dimensional paging.
        return self.vm.core.track(op["as"], op["gfn"], bool(op["on"]))

    def _set_nr_mmu_pages(self, op: Values) -> int:
        try:
            self.vm.set_nr_mmu_pages(op["n"])
        except UsageError:
            return -EINVAL
        return 0

    def _change_mmu_pages(self, op: Values) -> int:
        self.vm.change_mmu_pages(op["n"])
        return 0

    def _set_max_raw(self, op: Values) -> int:
        self.vm.core.set_max_raw(op["n"])
        return 0

    def _shrink(self, op: Values) -> int:
        return self.vm.shrink(op["n"])

    def _zap_oldest(self, op: Values) -> int:
        return self.vm.zap_oldest(op["n"])

    def _dirty_masked(self, op: Values) -> int:
        if not self._has_slot(op):
            return -ENOENT
        return self.vm.dirty_masked(op["as"], op["id"], op["offset"], op["mask"])

    def _zap_all(self, _op: Values) -> int:
        if self._is_stepped:
            self.vm.zap(self.vm.profile.wrap)
        else:
            self.vm.flush_all()
        return 0

    def _invalidate_mmio(self, op: Values) -> int:
        self.vm.check_wrap(op["as"])
        return 0

    def _zap_gfn_range(self, op: Values) -> int:
        self.vm.zap_gfn_range(op["start"], op["end"])
        return 0

    def _unmap_hva(self, op: Values) -> int:
        lists: Lists = op.get("during", ())
        during = lists[0] if lists else ()
        block = bool(op.get("block", 1))
        self.vm.unmap_hva(op["start"], op["end"], block, lambda: self._run_nested(3, during))
        return 0

    def _age_hva(self, op: Values) -> int:
        return self.vm.core.age_hva(op["start"], op["end"], bool(op["flush"]))

    def _test_age_hva(self, op: Values) -> int:
        return self.vm.core.test_age_hva(op["hva"])

    def _change_pte(self, op: Values) -> int:
        if self._is_stepped and not self.vm.profile.facts["has_change_pte"]:
            return -EOPNOTSUPP
        self.vm.core.change_pte(op["hva"], op["pfn"], bool(op["write"]))
        return 0

    def _set_generation(self, op: Values) -> int:
        self.vm.core.set_generation(op["as"], op["gen"])
        return 0

    def _set_lock_break(self, op: Values) -> int:
        self.vm.core.set_lock_break(op["cond"], op["need"], op.get("contend", 0), op.get("alloc", 0))
        self._breaks, self._break_index = op["do"], 0
        return 0

    def _host_state(self, op: Values) -> int:
        state: str = op["state"]
        if self._is_stepped:
            state = STEPPED_STATES.get(state, state)
        self.vm.core.set_host_state(op["hva"], op["npages"], state)
        return 0

    def _host_huge(self, op: Values) -> int:
        self.vm.core.set_host_huge(op["hva"], op["npages"], op["kind"])
        return 0

    def _clear_mmio_info(self, op: Values) -> int:
        self._vcpu(op).clear_mmio_info()
        return 0

    def _flush_shadow_all(self, _op: Values) -> int:
        self.vm.zap(self.vm.profile.teardown)
        return 0

    def _set_nx(self, op: Values) -> int:
        self.vm.set_nx_huge_pages(bool(op["on"]))
        return 0

    def _nx_recover(self, op: Values) -> int:
        self.vm.nx_recover(op["ratio"])
        return 0

    def _eager_split(self, op: Values) -> int:
        self.vm.eager_split = bool(op["on"])
        return 0

    def _quirk(self, op: Values) -> int:
        self.vm.set_slot_zap_all(bool(op["slot_zap_all"]))
        return 0

    def _prefault(self, op: Values) -> int:
        if not self.vm.profile.facts["has_prefault"]:
            return -EOPNOTSUPP
        host: HostAnswer | None = op["host"]
        found, frame = (None, None) if host is None else (host.found, host.pfn)
        return self.vm.core.prefault(op["vcpu"], op["gpa"], op["size"], found, frame)

    def _cpu_sets(self, op: Values) -> int:
        if not self.vm.tdp_mmu:
            return -EOPNOTSUPP  # Leaves of shadow pages tell the processor's doings by themselves.
        self.vm.core.processor_sets(op["as"], list(op["gfns"]), op["bit"] == "dirty")
        return 0

    def _dump(self, _op: Values) -> int:
        return 0

    def _zap(self, op: Values) -> int | tuple[int, dict[str, Any]]:
        chosen: ZapPlan = op["plan"]
        slot = gfns = None
        if chosen.needs_slot:
            slot = (op["as"], op["id"])
            if not self._has_slot(op):
                return -ENOENT
        elif chosen.only == "gfn_range":
            gfns = (op["start"], op["end"])
        run = self.vm.zap(chosen, slot, gfns)
        out: dict[str, Any] = {"outcome": run.outcome, "restarts": run.work["restarts"]}
        if run.outcome == "stale_next":
            out |= {"page": run.page, "step": run.step}
        return run.nr_zapped, out

    def _teardown(self, _op: Values) -> int:
        self.vm.destroy()
        return 0


OPERATIONS: dict[str, Handler] = {
    "access": MachineEngine._access,
    "age_hva": MachineEngine._age_hva,
    "change_mmu_pages": MachineEngine._change_mmu_pages,
    "change_pte": MachineEngine._change_pte,
    "clear_dirty_log": MachineEngine._clear_dirty_log,
    "clear_mmio_info": MachineEngine._clear_mmio_info,
    "cpu_sets": MachineEngine._cpu_sets,
    "dirty_masked": MachineEngine._dirty_masked,
    "dump": MachineEngine._dump,
    "eager_split": MachineEngine._eager_split,
    "enter": MachineEngine._enter,
    "fault": MachineEngine._fault,
    "flush_shadow_all": MachineEngine._flush_shadow_all,
    "get_dirty_log": MachineEngine._get_dirty_log,
    "gfn_write_protect": MachineEngine._gfn_write_protect,
    "host_huge": MachineEngine._host_huge,
    "host_state": MachineEngine._host_state,
    "invalidate_mmio": MachineEngine._invalidate_mmio,
    "load": MachineEngine._load,
    "lock_break": MachineEngine._set_lock_break,
    "manual_protect": MachineEngine._manual_protect,
    "nx_recover": MachineEngine._nx_recover,
    "prefault": MachineEngine._prefault,
    "pt_masked": MachineEngine._pt_masked,
    "quirk": MachineEngine._quirk,
    "set_generation": MachineEngine._set_generation,
    "set_max_raw": MachineEngine._set_max_raw,
    "set_memslot": MachineEngine._set_memslot,
    "set_nr_mmu_pages": MachineEngine._set_nr_mmu_pages,
    "set_nx": MachineEngine._set_nx,
    "init": MachineEngine._init,
    "set_regs": MachineEngine._set_regs,
    "shrink": MachineEngine._shrink,
    "slot": MachineEngine._slot,
    "smm": MachineEngine._smm,
    "teardown": MachineEngine._teardown,
    "test_age_hva": MachineEngine._test_age_hva,
    "track": MachineEngine._track,
    "unload": MachineEngine._unload,
    "unmap_hva": MachineEngine._unmap_hva,
    "zap": MachineEngine._zap,
    "zap_all": MachineEngine._zap_all,
    "zap_gfn_range": MachineEngine._zap_gfn_range,
    "zap_oldest": MachineEngine._zap_oldest,
}
