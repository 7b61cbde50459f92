"""A Hypothesis state machine over a VM: it draws operations, and after each of them the VM must be sound.

What a guest may see is worked out from the memslots alone, by a model of a few lines that knows no page tables. The
core's audit and its judge run as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kvm_mmu.machine.zap_plan import ZapPlan
from kvm_mmu.scenario.machine_engine import MachineEngine

if TYPE_CHECKING:
    from kvm_mmu.machine.generation import GenerationPolicy

PAGE = 4096
LOG, READ_ONLY = 1, 2
#: Where slots may lie, in pages: as far apart as to need other tables, and across one's end.
PLACES = ((0, 4), (0x200, 2), (0x3FE, 4))
GFNS = (*(base + page for base, pages in PLACES for page in range(pages)), 0x1000)
_HVA = 0x2_0000_0000

_vcpu = st.integers(0, 1)
_space = st.integers(0, 1)
_slot = st.integers(0, 1)
_which = st.integers(0, 7)
_gfn = st.sampled_from(GFNS)
_kind = st.sampled_from("rwx")


class Unsound(AssertionError):
    """The VM showed its guest what the memslots do not allow, or its bookkeeping is broken.

    The message ends with the operations as a scenario file that `kvm-mmu run` takes.
    """


class VmMachine(RuleBasedStateMachine):
    """Draws memslot updates, accesses, notifiers, dirty-log calls and zaps, and judges a VM after each of them.

    Subclass it and set what is to be tried; `VmMachine.TestCase` is the test, as with every machine of Hypothesis.

    Attributes:
        kernel: a row or a release.
        config: arguments of `Vm`, such as family and phys_bits; two vCPUs unless it says otherwise.
        plans: a zap plan, or a function that takes a `Vm` and zaps, by event.
        generation: a generation policy; None: the kernel's.
        expected_findings: names of the audit and the judge that the modelled kernel itself breaks.
    """

    kernel: ClassVar[str] = "v6.12"
    config: ClassVar[Mapping[str, Any]] = {"family": "npt"}
    plans: ClassVar[Mapping[str, Any]] = {}
    generation: ClassVar[GenerationPolicy | None] = None
    expected_findings: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        more: dict[str, Any] = {} if self.generation is None else {"generation": self.generation}
        self.engine = MachineEngine(self.kernel, {"vcpus": 2, **self.config}, self.plans, **more)
        self.engine.vm.set_judged()
        self.operations: list[dict[str, Any]] = []
        self._slots: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._tracked: dict[tuple[int, int], int] = {}
        self._space_of = [0, 0]
        self._last = GFNS[0]

    # ---- what is drawn ----

    @initialize(place=st.sampled_from(PLACES))
    def start(self, place: tuple[int, int]) -> None:
        """Begin with one slot, so that there is something to map."""
        self._set_memslot(0, 0, place, 0)

    @rule(space=_space, slot=_slot, place=st.sampled_from(PLACES), flags=st.sampled_from((0, LOG, READ_ONLY)))
    def create_memslot(self, space: int, slot: int, place: tuple[int, int], flags: int) -> None:
        """Create a slot, or move one; the kernel may refuse."""
        self._set_memslot(space, slot, place, flags)

    @precondition(lambda self: bool(self._slots))
    @rule(which=_which)
    def delete_memslot(self, which: int) -> None:
        """Delete a slot."""
        self._set_memslot(*self._slot(which), (0, 0), 0)

    @precondition(lambda self: bool(self._slots))
    @rule(which=_which)
    def change_logging(self, which: int) -> None:
        """Switch the dirty log of a slot on or off."""
        space, slot = self._slot(which)
        base, pages, flags = self._slots[space, slot]
        self._set_memslot(space, slot, (base, pages), flags ^ LOG)

    @rule(vcpu=_vcpu, gfn=_gfn, kind=_kind)
    def access(self, vcpu: int, gfn: int, kind: str) -> None:
        """Let the guest read, write or execute, and compare what it got with what the memslots say."""
        line = self._apply({"op": "access", "vcpu": vcpu, "gpa": hex(gfn * PAGE), "kind": kind})
        outcome = line["out"]["outcome"]
        space = self._space_of[vcpu]
        flags = self._backing(space).get(gfn)
        if outcome in ("stuck", "error"):
            self._fail("progress", f"the access of gfn {gfn:#x} ended {outcome}")
        if flags is None and outcome == "hit":
            self._fail("stale_ram", f"gfn {gfn:#x} of space {space} has no slot and was mapped")
        if flags is not None and outcome == "emulate":
            is_refused = kind == "w" and (flags & READ_ONLY or any(self._tracked.values()))
            if not is_refused:
                self._fail("stale_mmio", f"gfn {gfn:#x} of space {space} is RAM and was taken for MMIO")
        self._last = gfn

    @precondition(lambda self: bool(self._backing(0)))
    @rule(vcpu=_vcpu, which=_which, kind=_kind)
    def access_memory(self, vcpu: int, which: int, kind: str) -> None:
        """Access a page that has a slot."""
        backed = sorted(self._backing(self._space_of[vcpu])) or GFNS
        self.access(vcpu, backed[which % len(backed)], kind)

    @rule(vcpu=_vcpu, kind=_kind)
    def access_again(self, vcpu: int, kind: str) -> None:
        """Access the page of the last access: a cache may answer that is stale by now."""
        self.access(vcpu, self._last, kind)

    @rule(vcpu=_vcpu, on=st.integers(0, 1))
    def smm(self, vcpu: int, on: int) -> None:
        """Enter or leave system-management mode: another address space."""
        self._apply({"op": "smm", "vcpu": vcpu, "on": on})
        self._space_of[vcpu] = on

    @rule(gfn=_gfn, pages=st.sampled_from((1, 2, 512)))
    def unmap_hva(self, gfn: int, pages: int) -> None:
        """Take host pages away."""
        start = _HVA + gfn * PAGE
        self._apply({"op": "unmap_hva", "start": hex(start), "end": hex(start + pages * PAGE)})

    @rule(gfn=_gfn, pages=st.sampled_from((1, 2, 512)))
    def age_hva(self, gfn: int, pages: int) -> None:
        """Age host pages."""
        start = _HVA + gfn * PAGE
        self._apply({"op": "age_hva", "start": hex(start), "end": hex(start + pages * PAGE), "flush": 1})

    @precondition(lambda self: any(flags & LOG for _, _, flags in self._slots.values()))
    @rule(which=_which)
    def get_dirty_log(self, which: int) -> None:
        """Get and clear a slot's dirty log."""
        logged = sorted(name for name, slot in self._slots.items() if slot[2] & LOG)
        space, slot = logged[which % len(logged)]
        self._apply({"op": "get_dirty_log", "as": space, "id": slot})

    @precondition(lambda self: bool(self._slots))
    @rule(which=_which, page=_which)
    def track(self, which: int, page: int) -> None:
        """Track writes to a gfn, or stop tracking it."""
        space, slot = self._slot(which)
        base, pages, _ = self._slots[space, slot]
        gfn = base + page % pages
        on = not self._tracked.get((space, gfn), 0)
        self._apply({"op": "track", "as": space, "gfn": gfn, "on": int(on)})
        self._tracked[space, gfn] = int(on)

    @rule()
    def zap_all(self) -> None:
        """Zap everything."""
        self._apply({"op": "zap_all"})

    @rule(pages=st.sampled_from((1, 8, 128)))
    def shrink(self, pages: int) -> None:
        """Let the shrinker scan."""
        self._apply({"op": "shrink", "n": pages})

    @rule(pages=st.sampled_from((20, 64, 200)))
    def limit(self, pages: int) -> None:
        """Change the limit of shadow pages."""
        self._apply({"op": "change_mmu_pages", "n": pages})

    @precondition(lambda self: bool(self._slots))
    @rule(polls=st.integers(0, 3), inside=st.lists(st.tuples(_vcpu, _gfn, _kind), max_size=2))
    def lock_break(self, polls: int, inside: list[tuple[int, int, str]]) -> None:
        """Break the lock in what follows, with accesses in the gap."""
        do = [{"op": "access", "vcpu": v, "gpa": hex(g * PAGE), "kind": k} for v, g, k in inside]
        self._apply({"op": "lock_break", "cond": polls, "need": 0, "do": [do]})

    # ---- what must hold ----

    def _set_memslot(self, space: int, slot: int, place: tuple[int, int], flags: int) -> None:
        base, pages = place
        line = self._apply(
            {
                "op": "set_memslot",
                "as": space,
                "id": slot,
                "gpa": hex(base * PAGE),
                "size": hex(pages * PAGE),
                "hva": hex(_HVA + base * PAGE),
                "flags": flags,
            }
        )
        if line["ret"] != 0:
            return
        if pages:
            self._slots[space, slot] = (base, pages, flags)
        else:
            self._slots.pop((space, slot), None)
        backed = self._backing(space)
        self._tracked = {
            (of, gfn): on for (of, gfn), on in self._tracked.items() if of != space or gfn in backed
        }

    def _slot(self, which: int) -> tuple[int, int]:
        names = sorted(self._slots)
        return names[which % len(names)]

    def _backing(self, space: int) -> dict[int, int]:
        return {
            base + page: flags
            for (of, _), (base, pages, flags) in self._slots.items()
            if of == space
            for page in range(pages)
        }

    def _apply(self, operation: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        line = self.engine.apply(operation)
        for name, detail in (*self.engine.audit(), *self.engine.vm.judge()):
            self._fail(name, detail)
        return line

    def _fail(self, name: str, detail: str) -> None:
        if name in self.expected_findings:
            return
        plans = {
            event: plan.to_dict() if isinstance(plan, ZapPlan) else str(plan)
            for event, plan in self.plans.items()
        }
        header = {
            "scenario": name,
            "format": 1,
            "variant": self.kernel,
            "config": {"vcpus": 2, **self.config},
            **({"plans": plans} if plans else {}),
        }
        lines = [json.dumps(header), *(json.dumps({"op": op}) for op in self.operations)]
        raise Unsound(f"{name}: {detail}\n" + "\n".join(lines))
