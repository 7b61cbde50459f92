"""The scenario language's operations on the machine layer and the core: one small function an operation.

Nested operations run at lock breaks and at memslot publications; `ret`, `out`, events and counters are those of the
vectors README, sections 4 to 6.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from kvm_mmu.errors import MemslotError, ScenarioError, UsageError
from kvm_mmu.machine.profiles import as_plan
from kvm_mmu.machine.vm import DEFAULTS, OPTIONAL, Vm

ENOENT, EINVAL = 2, 22
SLOT_WALKS = (
    "remove_write_access",
    "leaf_clear_dirty",
    "largepage_remove_write_access",
    "set_dirty",
    "zap_collapsible",
)
#: Counters of a result line, by the core's statistic of the same name (vectors README, section 6).
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

#: How deep operations may stand inside operations.
MAX_NESTING = 16
_HEX = re.compile(r"0[xX][0-9a-fA-F]{1,32}")

Op = Mapping[str, Any]
Handler = Callable[["MachineEngine", Op], "int | tuple[int, dict[str, Any]]"]


def number(op: Op, key: str, default: int | None = None, limit: int = 1 << 64) -> int:
    """An unsigned number of an operation, as int or hex string.

    Raises:
        ScenarioError: missing, negative, too large or not a number.
    """
    value = op.get(key, default)
    if value is None:
        raise ScenarioError(f"operation {op.get('op')!r}: {key} is missing")
    found = int(value, 16) if isinstance(value, str) and _HEX.fullmatch(value) else value
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < limit:
        top = f"{limit - 1:#x}" if limit > 1 << 16 else str(limit - 1)
        raise ScenarioError(f"operation {op.get('op')!r}: {key}={value!r}, expected a number from 0 to {top}")
    return found


def check_nesting(op: object, depth: int = 0) -> None:
    """Refuse operations that stand too deep inside operations, before anything runs."""
    if depth > MAX_NESTING:
        raise ScenarioError(f"operations stand more than {MAX_NESTING} deep inside operations")
    if isinstance(op, Mapping):
        for key in ("during", "do"):
            lists = op.get(key)
            for inner in lists if isinstance(lists, list) else ():
                for nested in inner if isinstance(inner, list) else ():
                    check_nesting(nested, depth + 1)


def word(op: Op, key: str, words: tuple[str, ...]) -> str:
    """A word of an operation out of a closed list."""
    value = op.get(key)
    if value not in words:
        raise ScenarioError(
            f"operation {op.get('op')!r}: {key}={value!r}, expected one of {', '.join(words)}"
        )
    return str(value)


def _ops(value: object, where: str) -> list[list[dict[str, Any]]]:
    if not isinstance(value, list) or not all(
        isinstance(inner, list)
        and all(isinstance(op, dict) and isinstance(op.get("op"), str) for op in inner)
        for inner in value
    ):
        raise ScenarioError(f"{where}: expected a list of operation lists")
    return value


def _host_answer(op: Op) -> tuple[tuple[int, bool, list[int] | None] | None, bool | None]:
    """What a fault's `host` says the host lookup found (None: it failed), and whether the leaf was written."""
    host = op.get("host")
    if host is None:
        return None, None
    if not isinstance(host, dict):
        raise ScenarioError(f"operation 'fault': host={host!r}, expected an object or null")
    where: Op = {"op": "fault host", **host}
    found = host.get("found")
    if found is not None and not isinstance(found, list):
        raise ScenarioError(f"operation 'fault': host found={found!r}, expected a list of gfns or null")
    gfns = None if found is None else [number({"op": "fault host", "found": gfn}, "found") for gfn in found]
    level = number(where, "level", 1, limit=4)
    if not level:
        raise ScenarioError("operation 'fault': host level=0, expected 1 to 3")
    is_written = None if host.get("set") is None else bool(number(where, "set", limit=2))
    return (level, bool(number(where, "writable", 0)), gfns), is_written


class MachineEngine:
    """Applies scenario operations to a `Vm`."""

    def __init__(
        self,
        kernel: str,
        config: Mapping[str, Any] | None = None,
        plans: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        values = {**DEFAULTS, **(config or {})}
        for key in ("execonly", "pml", "flush_range", *OPTIONAL):
            if values.get(key) is not None:
                values[key] = bool(values[key])
        self.vm = Vm(kernel=kernel, plans=plans or None, events="all", **values, **more)
        self._manual = False
        self._breaks: list[list[dict[str, Any]]] = []
        self._break_index = 0
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

    def apply(self, op: Op) -> dict[str, Any]:
        """Run one operation and what it runs nested; events are taken from the VM.

        Raises:
            ScenarioError: an unknown operation or field. MemslotError never: it becomes a negative `ret`.
        """
        core = self.vm.core
        core.clear_events()
        before = core.stats()
        self._nested = []
        check_nesting(op)
        result = self._run(op)
        after = core.stats()
        line: dict[str, Any] = {"ret": result[0]}
        if result[1] is not None:
            line["out"] = result[1]
        if self._nested:
            line["nested"] = self._nested
        line["events"] = json.loads(core.events_json())
        line["ctr"] = {name: after[name] - before[name] for name in COUNTERS if after[name] != before[name]}
        return line

    def rich_events(self) -> list[dict[str, Any]]:
        """Events of the last operation with every field."""
        return self.vm.rich_events

    def _run(self, op: Op) -> tuple[int, dict[str, Any] | None]:
        name = op.get("op")
        handler = OPERATIONS.get(name) if isinstance(name, str) else None
        if handler is None:
            raise ScenarioError(
                f"unknown operation {name!r}, expected one of {', '.join(sorted(OPERATIONS))}"
            )
        try:
            result = handler(self, op)
        except MemslotError as error:
            return -(error.errno or EINVAL), None
        except UsageError as error:
            raise ScenarioError(f"operation {name!r}: {error}") from error
        return result if isinstance(result, tuple) else (result, None)

    def _run_nested(self, kind: int, ops: list[dict[str, Any]]) -> None:
        if not ops:
            return
        core = self.vm.core
        core.push_nested_begin(kind)
        for op in ops:
            ret, out = self._run(op)
            record: dict[str, Any] = {"op": op, "ret": ret}
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
        index = self._break_index
        self._break_index += 1
        if index < len(self._breaks):
            self._run_nested(1, self._breaks[index])

    # -- operations ---------------------------------------------------------------------------------------------

    def _set_memslot(self, op: Op) -> int:
        during = _ops(op.get("during", []), "set_memslot during")
        publication = iter(during)
        self.vm.memslots.set_region(
            slot=number(op, "id"),
            gpa=number(op, "gpa"),
            size=number(op, "size"),
            hva=number(op, "hva", 0),
            flags=number(op, "flags", 0),
            as_id=number(op, "as", 0),
            published=lambda: self._run_nested(2, next(publication, [])),
        )
        return 0

    def _vcpu(self, op: Op) -> int:
        return number(op, "vcpu", 0, limit=len(self.vm.vcpus))

    def _access(self, op: Op) -> tuple[int, dict[str, Any]]:
        kind = word({"op": op["op"], "kind": op.get("kind", "r")}, "kind", ("r", "w", "x"))
        done = self.vm.vcpus[self._vcpu(op)].access(number(op, "gpa"), kind)  # type: ignore[arg-type]
        return done.ret, {"outcome": done.outcome, "faults": done.faults}

    def _fault(self, op: Op) -> int:
        if "host" in op:
            vcpu = self.vm.vcpus[self._vcpu(op)]
            found, is_written = _host_answer(op)
            return vcpu.fault_with(number(op, "gpa"), number(op, "err"), found, is_written=is_written)
        return self.vm.vcpus[self._vcpu(op)].fault(number(op, "gpa"), number(op, "err"))

    def _enter(self, op: Op) -> int:
        return self.vm.vcpus[self._vcpu(op)].enter()

    def _load(self, op: Op) -> int:
        return self.vm.vcpus[self._vcpu(op)].load()

    def _unload(self, op: Op) -> int:
        self.vm.vcpus[self._vcpu(op)].unload()
        return 0

    def _smm(self, op: Op) -> int:
        self.vm.vcpus[self._vcpu(op)].set_smm(bool(number(op, "on")))
        return 0

    def _set_regs(self, op: Op) -> int:
        regs = {key: number(op, key) for key in ("cr0", "cr4", "efer") if op.get(key) is not None}
        smm = None if op.get("smm") is None else bool(number(op, "smm"))
        self.vm.vcpus[self._vcpu(op)].set_regs(smm=smm, **regs)
        return 0

    def _get_dirty_log(self, op: Op) -> tuple[int, dict[str, Any]]:
        ret, words = self.vm.core.get_dirty_log(
            self._as_id(op), number(op, "id", limit=1 << 32), self._manual
        )
        return ret, {"bitmap": [hex(value) for value in words]}

    def _clear_dirty_log(self, op: Op) -> int:
        words = op.get("mask", [])
        if not isinstance(words, list):
            raise ScenarioError(
                f"operation 'clear_dirty_log': mask={words!r}, expected a list of 64-bit words"
            )
        mask = [number({"op": op["op"], "mask": value}, "mask") for value in words]
        return self.vm.core.clear_dirty_log(
            self._as_id(op), number(op, "id", limit=1 << 32), number(op, "first"), number(op, "num"), mask
        )

    def _manual_protect(self, op: Op) -> int:
        on = number(op, "on")
        self._manual = bool(on)
        self.vm.dirty_log_initially_set = self.vm.profile.has_probes and bool(on & 2)
        return 0

    def _as_id(self, op: Op) -> int:
        return number(op, "as", 0, limit=2)

    def _has_slot(self, op: Op) -> bool:
        wanted = number(op, "id")
        return any(slot.id == wanted for slot in self.vm.memslots.of(self._as_id(op)))

    def _slot(self, op: Op) -> int:
        what = word(op, "what", (*SLOT_WALKS, "flush_shadow_memslot"))
        if not self._has_slot(op):
            return -ENOENT
        if what == "flush_shadow_memslot":
            self.vm.flush_slot(number(op, "id"), self._as_id(op))
        else:
            self.vm.slot_walk(self._as_id(op), number(op, "id"), what)
        return 0

    def _pt_masked(self, op: Op) -> int:
        what = word(op, "what", ("write_protect", "clear_dirty"))
        if not self._has_slot(op):
            return -ENOENT
        return self.vm.core.pt_masked(
            self._as_id(op), number(op, "id", limit=1 << 32), number(op, "offset"), number(op, "mask"), what
        )

    def _gfn_write_protect(self, op: Op) -> int:
        return self.vm.core.gfn_write_protect(self._as_id(op), number(op, "gfn"))

    def _track(self, op: Op) -> int:
        return self.vm.core.track(self._as_id(op), number(op, "gfn"), bool(number(op, "on")))

    def _set_nr_mmu_pages(self, op: Op) -> int:
        try:
            self.vm.set_nr_mmu_pages(number(op, "n"))
        except UsageError:
            return -EINVAL
        return 0

    def _change_mmu_pages(self, op: Op) -> int:
        self.vm.change_mmu_pages(number(op, "n"))
        return 0

    def _set_max_raw(self, op: Op) -> int:
        self.vm.core.set_max_raw(number(op, "n"))
        return 0

    def _shrink(self, op: Op) -> int:
        return self.vm.shrink(number(op, "n"))

    def _zap_oldest(self, op: Op) -> int:
        return self.vm.zap_oldest(number(op, "n"))

    def _dirty_masked(self, op: Op) -> int:
        if not self._has_slot(op):
            return -ENOENT
        return self.vm.core.dirty_masked(
            self._as_id(op), number(op, "id", limit=1 << 32), number(op, "offset"), number(op, "mask")
        )

    def _zap_all(self, _op: Op) -> int:
        self.vm.flush_all()
        return 0

    def _invalidate_mmio(self, op: Op) -> int:
        self.vm.check_wrap(self._as_id(op))
        return 0

    def _zap_gfn_range(self, op: Op) -> int:
        self.vm.zap_gfn_range(number(op, "start"), number(op, "end"))
        return 0

    def _unmap_hva(self, op: Op) -> int:
        self.vm.core.unmap_hva(number(op, "start"), number(op, "end"))
        return 0

    def _age_hva(self, op: Op) -> int:
        return self.vm.core.age_hva(number(op, "start"), number(op, "end"), bool(number(op, "flush", 0)))

    def _test_age_hva(self, op: Op) -> int:
        return self.vm.core.test_age_hva(number(op, "hva"))

    def _change_pte(self, op: Op) -> int:
        self.vm.core.change_pte(number(op, "hva"), number(op, "pfn"), bool(number(op, "write", 0)))
        return 0

    def _set_generation(self, op: Op) -> int:
        self.vm.core.set_generation(self._as_id(op), number(op, "gen"))
        return 0

    def _set_lock_break(self, op: Op) -> int:
        breaks = _ops(op.get("do", []), "lock_break do")
        self.vm.core.set_lock_break(number(op, "cond", 0), number(op, "need", 0))
        self._breaks, self._break_index = breaks, 0
        return 0

    def _host_state(self, op: Op) -> int:
        self.vm.core.set_host_state(number(op, "hva"), number(op, "npages", 1), str(op.get("state")))
        return 0

    def _host_huge(self, op: Op) -> int:
        self.vm.core.set_host_huge(number(op, "hva"), number(op, "npages", 1), str(op.get("kind")))
        return 0

    def _clear_mmio_info(self, op: Op) -> int:
        self.vm.vcpus[self._vcpu(op)].clear_mmio_info()
        return 0

    def _dump(self, _op: Op) -> int:
        return 0

    def _zap(self, op: Op) -> int | tuple[int, dict[str, Any]]:
        plan = op.get("plan")
        if not isinstance(plan, str | dict):
            raise ScenarioError(f"operation 'zap': plan={plan!r}, expected a name, text or object")
        chosen = as_plan(plan)
        slot = gfns = None
        if chosen.needs_slot:
            slot = (self._as_id(op), number(op, "id"))
            if not self._has_slot(op):
                return -ENOENT
        elif chosen.only == "gfn_range":
            gfns = (number(op, "start"), number(op, "end"))
        run = self.vm.zap(chosen, slot, gfns)
        out: dict[str, Any] = {"outcome": run.outcome, "restarts": run.work["restarts"]}
        if run.outcome == "stale_next":
            out |= {"page": run.page, "step": run.step}
        return run.nr_zapped, out

    def _teardown(self, _op: Op) -> int:
        self.vm.destroy()
        return 0


OPERATIONS: dict[str, Handler] = {
    "access": MachineEngine._access,
    "age_hva": MachineEngine._age_hva,
    "change_mmu_pages": MachineEngine._change_mmu_pages,
    "change_pte": MachineEngine._change_pte,
    "clear_dirty_log": MachineEngine._clear_dirty_log,
    "clear_mmio_info": MachineEngine._clear_mmio_info,
    "dirty_masked": MachineEngine._dirty_masked,
    "dump": MachineEngine._dump,
    "enter": MachineEngine._enter,
    "fault": MachineEngine._fault,
    "get_dirty_log": MachineEngine._get_dirty_log,
    "gfn_write_protect": MachineEngine._gfn_write_protect,
    "host_huge": MachineEngine._host_huge,
    "host_state": MachineEngine._host_state,
    "invalidate_mmio": MachineEngine._invalidate_mmio,
    "load": MachineEngine._load,
    "lock_break": MachineEngine._set_lock_break,
    "manual_protect": MachineEngine._manual_protect,
    "pt_masked": MachineEngine._pt_masked,
    "set_generation": MachineEngine._set_generation,
    "set_max_raw": MachineEngine._set_max_raw,
    "set_memslot": MachineEngine._set_memslot,
    "set_nr_mmu_pages": MachineEngine._set_nr_mmu_pages,
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
