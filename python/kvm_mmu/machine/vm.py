"""`Vm`: the machine. It owns a core, applies policy to it, and drives what may drop `mmu_lock`.

The core returns at every lock break; `Vm` runs `on_lock_break` there and resumes. Models the parts of a KVM VM that
decide: `virt/kvm/kvm_main.c` memslots and the x86 commit hooks, v5.0 to v7.3.

Long: most of it says in words what each method of the machine takes and gives back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from kvm_mmu import _core
from kvm_mmu.errors import RunStateError, SnapshotError, UsageError
from kvm_mmu.machine import from_live, memory_region
from kvm_mmu.machine.generation import STARTS, GenerationPolicy
from kvm_mmu.machine.guest import Guest
from kvm_mmu.machine.guest_machine import TablePool
from kvm_mmu.machine.memslots import Memslots
from kvm_mmu.machine.numbers import flag, integer, pair, word
from kvm_mmu.machine.profiles import KernelProfile, as_plan, kernel_profile, with_plans
from kvm_mmu.machine.vcpu import ACCESS_KINDS, OUTCOMES, AccessResult, Vcpu, Vcpus
from kvm_mmu.machine.zap_batch import ActivePages, Page, ZapBatch
from kvm_mmu.machine.zap_plan import ZapPlan
from kvm_mmu.machine.zap_run import Pause, ZapRun
from kvm_mmu.types import (
    KVM_ADDRESS_SPACE_NUM,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_SLOTS_NUM,
    AccessKind,
    Family,
)

if TYPE_CHECKING:
    from kvm_mmu.view.guest_picture import GuestView

#: Defaults of the scenario header (units: bits, levels, counts).
DEFAULTS: dict[str, Any] = {
    "family": "ept_ad",
    "phys_bits": 46,
    "execonly": 1,
    "pml": 0,
    "tdp_level": 4,
    "lpage_level": 3,
    "vcpus": 1,
    "flush_range": 0,
}

#: Keys that a header has only where they matter; `l1tf` None: as the kernel does.
OPTIONAL: dict[str, Any] = {
    "l1tf": None,
    "nx_huge_pages": 0,
    "mmio_caching": 1,
    "guest_paging": 1,
    "tdp_mmu": 0,
}


#: Defaults of a scenario header of format 6.
STEPPED_DEFAULTS: dict[str, Any] = {
    **DEFAULTS,
    "tdp_mmu": 1,
    "nx_huge": 0,
    "eager_split": 1,
    "slot_zap_all": 1,
    "l1tf": 0,
}

#: What a walk over a slot's reverse maps does.
SLOT_WALKS = (
    "remove_write_access",
    "leaf_clear_dirty",
    "largepage_remove_write_access",
    "set_dirty",
    "zap_collapsible",
    "split_4k",
    "split_2m",
)
FAMILIES: tuple[str, ...] = get_args(Family)
U32 = (1 << 32) - 1


def _slot_id(as_id: int, slot: int) -> tuple[int, int]:
    return integer("as_id", as_id, 0, KVM_ADDRESS_SPACE_NUM - 1), integer("slot", slot, 0, U32)


def _event_limit(events: str | int) -> int:
    if events == "all":
        return -1
    if events == "off":
        return 0
    if isinstance(events, str):
        raise UsageError(f"events={events!r}: expected 'all', 'off' or the length of a ring")
    return integer("events", events, 0, (1 << 31) - 1)


#: Shadow pages and pages of memslots (64 GiB) up to which a notebook draws a VM unasked.
GLANCE_PAGES, GLANCE_SLOT_PAGES = 1000, 1 << 24


class Vm:
    """One virtual machine's MMU, memslots and vCPUs.

    Args:
        kernel: profile name (`kvm-mmu kernels` lists them) or a `KernelProfile`.
        family: `npt`, `ept_ad` or `ept_noad`; `shadow` (no two-dimensional paging) only with `guest_paging=False` and
            a
            6.x kernel.
        phys_bits: host physical address width, 36 to 52.
        execonly: EPT can map execute-only.
        pml: the dirty logging hooks of Intel PML are installed.
        tdp_level: level of the root, 4 or 5.
        lpage_level: largest leaf, 1 (4 KiB), 2 (2 MiB) or 3 (1 GiB).
        vcpus: number of vCPUs.
        flush_range: the host has a flush of a range of gfns.
        generation: a generation policy of one's own; None: the kernel's.
        plans: replaces the plan of an event (`wrap`, `slot_removal`, `teardown`, `flush_all`, `create_move`).
        events: `"all"`, `"off"`, or how many of the last events are kept.
        max_memslots: above the kernel's own number only on purpose: results are then not the kernel's.
        gfn_hash: `"kernel"` (4,096 buckets) or `"wide"` (a faster one, ours).
        l1tf: MMIO SPTEs are made safe against L1TF; None: up to v5.4 always, later not.
        nx_huge_pages: the module parameter of v6.x.
        mmio_caching: the module parameter of v6.x.
        guest_paging: the guest uses page tables of its own.
        tdp_mmu: the TDP MMU serves the guest, not shadow pages (v6.1 and later, under two-dimensional paging); None: as
            on a host of that kernel whose parameters are as they were, which is True there.
        probes: functions without a tracepoint are logged, as recordings with kprobes show them; None: as the recordings
            of that kernel were made.
        format: the scenario format of events, counters and state: 1, or 6 for v6.1 and later.

    Raises:
        UsageError: an unknown word or a value out of range.
    """

    def __init__(
        self,
        kernel: str | KernelProfile = "v5.0",
        family: Family = "ept_ad",
        phys_bits: int = 46,
        execonly: bool = True,
        pml: bool = False,
        tdp_level: int = 4,
        lpage_level: int = 3,
        vcpus: int = 1,
        flush_range: bool = False,
        *,
        generation: GenerationPolicy | None = None,
        plans: Mapping[str, ZapPlan | str | Mapping[str, object]] | None = None,
        events: str | int = 1024,
        max_memslots: int | None = None,
        gfn_hash: str = "kernel",
        l1tf: bool | None = None,
        nx_huge_pages: bool = False,
        mmio_caching: bool = True,
        guest_paging: bool = True,
        tdp_mmu: bool | None = None,
        probes: bool | None = None,
        format: int = 1,
    ) -> None:
        profile = kernel_profile(kernel)
        if plans:
            profile = with_plans(profile, plans)
        if generation is not None and not isinstance(generation, GenerationPolicy):
            raise UsageError(f"generation={generation!r}: expected a GenerationPolicy")
        self.profile = profile
        self.generation_policy = generation if generation is not None else profile.generation()
        limit = (
            int(profile.facts.get("mem_slots", KVM_MEM_SLOTS_NUM)) if max_memslots is None else max_memslots
        )
        self.max_memslots = integer("max_memslots", limit, 1, 1 << 20)
        self.pml = flag("pml", pml)
        if integer("format", format) not in (1, 6):
            raise UsageError(f"format={format!r}: expected 1 or 6")
        if tdp_mmu is None:
            tdp_mmu = bool(profile.facts["has_tdp_mmu"]) and family != "shadow"
        self.core = _core.Mmu(
            kernel=profile.name,
            family=word("family", family, FAMILIES),
            phys_bits=integer("phys_bits", phys_bits, 36, 52),
            execonly=flag("execonly", execonly),
            pml=self.pml,
            tdp_level=integer("tdp_level", tdp_level, 4, 5),
            lpage_level=integer("lpage_level", lpage_level, 1, 3),
            vcpus=integer("vcpus", vcpus, 1, 4096),
            flush_range=flag("flush_range", flush_range),
            generation=self.generation_policy.layout,
            plans=profile.plans,
            events=_event_limit(events),
            gfn_hash=word("gfn_hash", gfn_hash, ("kernel", "wide")),
            max_memslots=self.max_memslots,
            l1tf=None if l1tf is None else flag("l1tf", l1tf),
            nx_huge_pages=flag("nx_huge_pages", nx_huge_pages),
            mmio_caching=flag("mmio_caching", mmio_caching),
            guest_paging=flag("guest_paging", guest_paging),
            tdp_mmu=flag("tdp_mmu", tdp_mmu),
            probes=None if probes is None else flag("probes", probes),
            format=int(format),
        )
        for as_id in range(KVM_ADDRESS_SPACE_NUM):
            self.core.set_generation(as_id, self.generation_policy.initial(as_id))
        self._finish()

    def _finish(self) -> None:
        # Nothing that the VM holds may hold the VM: its native memory is back when its last reference goes.
        self.vcpus = Vcpus(Vcpu(self.core, i) for i in range(self.core.nr_vcpus))
        #: Where the guest puts its page tables.
        self.table_pool = TablePool()
        #: Called at every lock break, with the lock dropped; it may do anything to this VM.
        self.on_lock_break: Callable[[Vm], None] | None = None
        self._slots_lock = threading.RLock()
        self._is_judged = False
        config = self.core.config()
        phys_bits, self._tdp_mmu = int(config["phys_bits"]), bool(config["tdp_mmu"])
        self._max_gfn = (1 << (phys_bits - 12)) - 1 if self.profile.facts["has_max_gfn"] else None

    def __repr__(self) -> str:
        stats = self.core.stats()
        held = f"{stats['used']} of {stats['max']} shadow pages"
        if self.tdp_mmu:
            held = f"{self.memory['tdp_tables']} tables of the TDP MMU"
        about = f"{self.profile.name} {self.core.family} {len(self.vcpus)} vcpus, {len(self.memslots)} slots"
        return f"<Vm {about}, {held}>"

    def _repr_html_(self) -> str:
        from kvm_mmu.view.html import vm_html

        pages, mapped = self.core.nr_active_pages, self.core.total_slot_pages()
        tables = self.memory["tdp_tables"]
        if pages + tables > GLANCE_PAGES or mapped > GLANCE_SLOT_PAGES:
            held = f"{tables:,} tables of the TDP MMU" if self.tdp_mmu else f"{pages:,} shadow pages"
            return vm_html(self, f"{held}, {mapped:,} pages in memslots: vm.to_svg() draws them")
        return vm_html(self, self.to_svg())

    def to_svg(self, title: str = "", before: Vm | None = None) -> str:
        """Draw the roots, tables, links, leaves and memslots; large states are capped.

        Of a guest that pages its tables, their shadow and the reverse map are drawn side by side.

        Args:
            title: a line above the picture.
            before: this VM as it was before a step, from `clone`; both are drawn, and what differs is marked. Only of a
                guest that pages.

        Returns:
            The picture as SVG text.

        Raises:
            UsageError: `before` is given, and one of the two has no page tables of a guest.
        """
        from kvm_mmu.view.guest_picture import guest_svg
        from kvm_mmu.view.picture import vm_svg

        if self.shadows_guest:
            return guest_svg(self._guest_view(), None if before is None else before._guest_view(), title)
        if before is not None:
            raise UsageError("to_svg: before is for a VM that shadows a guest's page tables")
        return vm_svg(self.snapshot(), title)

    def _guest_view(self) -> GuestView:
        from kvm_mmu.view.guest_picture import GuestView

        if not self.shadows_guest:
            raise UsageError("to_svg: before is for a VM that shadows a guest's page tables")
        entries = {
            (found.level, found.table, found.index): found
            for vcpu in range(len(self.vcpus))
            for found in Guest(self, vcpu).tables()
        }
        rows = [(*place, found.flags, found.gpa, found.is_leaf) for place, found in entries.items()]
        return GuestView(self.snapshot(), rows)

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    # -- what it is made of -------------------------------------------------------------------------------------

    @property
    def memslots(self) -> Memslots:
        """The memslots of this VM; what is returned keeps the VM alive, the VM does not keep it."""
        return Memslots(self)

    @property
    def guest(self) -> Guest:
        """The guest on vCPU 0 of a VM of family `shadow`; what is returned keeps the VM alive, the VM does not keep it.

        Raises:
            UsageError: the VM shadows no page tables of a guest.
        """
        return Guest(self)

    @property
    def kernel(self) -> str:
        """The name of the kernel that this VM models."""
        return self.profile.name

    @property
    def family(self) -> str:
        """The paging family (`npt`, `ept_ad`, `ept_noad`, `shadow`)."""
        return self.core.family

    @property
    def tdp_mmu(self) -> bool:
        """True if the TDP MMU serves the guest and not shadow pages."""
        return self._tdp_mmu

    @property
    def splits_eagerly(self) -> bool:
        """True if a dirty log that starts splits the slot's large leaves first."""
        return self.tdp_mmu and self.eager_split and bool(self.profile.facts["has_eager_split"])

    @property
    def max_gfn(self) -> int | None:
        """The last gfn that a memslot may have, by the host's address width (None where the kernel does not look)."""
        return self._max_gfn

    @property
    def masks(self) -> dict[str, int]:
        """The SPTE masks at run time, by the names of the scenario header."""
        return self.core.masks()

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, as in a scenario header."""
        found = self.core.config()
        facts = self.profile.facts
        default = {**OPTIONAL, "l1tf": int(facts.l1tf), "probes": int(facts.logs_silent_calls)}
        return {key: value for key, value in found.items() if key not in default or value != default[key]}

    # -- what can be read ---------------------------------------------------------------------------------------

    @property
    def events(self) -> list[list[Any]]:
        """The events kept so far, oldest first, each `[name, field, ...]`; the page on events, counters and state has
        the fields.
        """
        found: list[list[Any]] = json.loads(self.core.events_json())
        return found

    @property
    def rich_events(self) -> list[dict[str, Any]]:
        """The same events as dicts; those of pages, MMIO SPTEs and fast page faults with every field by name."""
        found: list[dict[str, Any]] = json.loads(self.core.events_json_rich())
        return found

    def clear_events(self) -> None:
        """Forget the events kept so far."""
        self.core.clear_events()

    @property
    def stats(self) -> dict[str, int]:
        """Statistics under the kernel's names, running numbers since the start."""
        return self.core.stats()

    @property
    def work(self) -> dict[str, int]:
        """Exact work counters, running numbers since the start; the page on events, counters and state says what each
        counts.
        """
        return self.core.work()

    def snapshot(self) -> dict[str, Any]:
        """Take the whole state as plain data.

        Returns:
            Both address spaces, the limits, the active list and the vCPUs, as on a result line of a scenario.
        """
        found: dict[str, Any] = json.loads(self.core.state_json())
        return found

    def digest(self) -> str:
        """Hash the state.

        Returns:
            The first 16 hex digits of SHA-256 over the canonical JSON of the state.
        """
        return self.core.digest()

    def fingerprint(self) -> str:
        """Hash the state at the cost of what was changed since it was last asked for, whatever the VM weighs.

        VMs that went the same way have the same fingerprint, and VMs of one fingerprint have the same state but for
        the order in reverse maps and lists of parents. Another version of the package may give other values; only
        `digest` is that of the vectors. From the first call on, the first change of a part copies that part.

        Returns:
            32 hex digits.
        """
        return self.core.fingerprint()

    def audit(self) -> list[tuple[str, str]]:
        """Check every invariant.

        Returns:
            The broken ones as (name, what was found); empty when all hold. The page on invariants has the names.
        """
        return self.core.audit()

    def set_judged(self, on: bool = True) -> None:
        """Begin to remember what `judge` needs, or forget it; results, events and digests stay as they are.

        Args:
            on: whether a ghost listens from now on. What is mapped at that moment counts as sound.
        """
        self._is_judged = flag("on", on)
        self.core.set_judged(self._is_judged)

    def judge(self) -> list[tuple[str, str]]:
        """Check every property of soundness: what was found as it happened, and what the state shows now.

        Returns:
            The broken ones as (name, what was found); empty when all hold. The page on invariants has the names.

        Raises:
            UsageError: `set_judged` was not called before.
        """
        if not self._is_judged:
            raise UsageError("judge: call set_judged first: a VM remembers nothing unless it is asked to")
        return self.core.judge()

    @property
    def memory(self) -> dict[str, int]:
        """The bytes that this VM's structures take, by kind."""
        return self.core.memory()

    def page(self, page_id: int) -> Page:
        """Give the live shadow page with a creation number.

        Args:
            page_id: the number, as in events and snapshots.

        Returns:
            The page; its fields are read when asked.

        Raises:
            UsageError: there is none.
        """
        return Page(self, integer("page_id", page_id, 0, U32))

    # -- the whole MMU ------------------------------------------------------------------------------------------

    def clone(self) -> Vm:
        """Copy the VM with its state and its policy; the hook `on_lock_break` is not copied.

        Returns:
            An independent VM.
        """
        twin = object.__new__(Vm)
        twin.profile = self.profile
        twin.generation_policy = self.generation_policy
        twin.max_memslots = self.max_memslots
        twin.pml = self.pml
        twin.core = self.core.clone()
        twin._finish()
        twin._is_judged = self._is_judged
        twin.table_pool = replace(self.table_pool)
        return twin

    def to_bytes(self) -> bytes:
        """Write the whole VM as bytes: state, profile, plans, the name of its generation policy, and a checksum.

        Events and the hook `on_lock_break` are left out.

        Returns:
            What `from_bytes` reads.

        Raises:
            SnapshotError: a zap run is paused, or a batch is open.
        """
        note = {
            "kernel": self.profile.name,
            "plans": {
                event: plan.to_dict() | {"name": plan.name} for event, plan in self.profile.plans.items()
            },
            "policy": self.generation_policy.name,
            "start": self.generation_policy.start_name,
            "max_memslots": self.max_memslots,
            "tables": astuple(self.table_pool),
        }
        return self.core.to_bytes(json.dumps(note))

    @classmethod
    def from_bytes(cls, data: bytes, generation: GenerationPolicy | None = None) -> Vm:
        """Make the VM of bytes that `to_bytes` wrote.

        Args:
            data: the bytes.
            generation: the policy again, where it was one of one's own: those cannot be written down.

        Returns:
            The VM, equal to the one written.

        Raises:
            SnapshotError: foreign, damaged or cut bytes, or a policy that is not the one they name.
        """
        if not isinstance(data, bytes):
            raise SnapshotError(f"a snapshot is bytes, found {type(data).__name__}")
        core, text = _core.Mmu.from_bytes(data)
        try:
            note = json.loads(text)
            profile = with_plans(
                kernel_profile(note["kernel"]), {k: ZapPlan.from_dict(p) for k, p in note["plans"].items()}
            )
            named, start, max_memslots = str(note["policy"]), str(note["start"]), int(note["max_memslots"])
            next_page, has_tables, (first, end) = note["tables"]
            pool = TablePool(int(next_page), bool(has_tables), (int(first), int(end)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SnapshotError(f"the snapshot's note is damaged: {error!r}") from error
        policy = generation
        if policy is None and profile.generation.name == named and start in STARTS:
            policy = profile.generation(start)
        if policy is None or policy.name != named:
            raise SnapshotError(
                f"the snapshot was taken under the generation policy {named!r} (start {start}): give it as generation="
            )
        vm = object.__new__(cls)
        vm.profile, vm.generation_policy, vm.core = profile, policy, core
        vm.max_memslots, vm.pml = max_memslots, bool(core.config()["pml"])
        vm._finish()
        vm.table_pool = pool
        return vm

    @classmethod
    def from_snapshot(
        cls, live: object, kernel: str | KernelProfile | None = None, events: str | int = 1024
    ) -> Vm:
        """Make a VM of a real one's state: its list order, levels, links, MMIO SPTEs, slots and vCPUs.

        Plans, their costs and soundness can then be asked of a production VM. Host memory is not taken over, nor what
        a TLB may hold.

        Args:
            live: what `kvm_mmu.live` read (`LiveVm`), its snapshot, or an element of `vms` of its JSON.
            kernel: the kernel to go on with; None: its own row.
            events: as of `Vm`.

        Returns:
            The VM; `snapshot()` of it has the same pages, entries, lists, slots and vCPUs.

        Raises:
            SnapshotError: it is no such state, was torn or busy so that an invariant is broken, or its kernel keeps
                something that the model does not.
        """
        found = from_live.plain(live)
        try:
            profile = from_live.profile_of(found, kernel)
            vm = cls(profile, events=events, **from_live.config_of(found, profile))
            for as_id, space in enumerate(found["as"]):
                generation = int(space["gen"], 16)
                for slot in space["slots"]:
                    row = (slot["id"], slot["base"], slot["npages"], int(slot["hva"], 16), slot["flags"])
                    vm.install_slot(as_id, generation, row)
                vm.set_generation(as_id, generation)
            vm.core.restore(from_live.rows_of(found))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, SnapshotError):
                raise
            raise SnapshotError(f"a live VM's snapshot: {type(error).__name__}: {error}") from error
        vm.clear_events()
        return vm

    def __reduce__(self) -> tuple[Callable[[bytes], Vm], tuple[bytes]]:
        return Vm.from_bytes, (self.to_bytes(),)

    def destroy(self) -> ZapRun:
        """Tear the VM down: flush all shadow pages by the profile's teardown plan, then drop every root.

        Returns:
            The run of the teardown plan.
        """
        run = self.zap(self.profile.teardown)
        for vcpu in self.vcpus:
            vcpu.unload()
        return run

    def zap(
        self,
        plan: ZapPlan | str | Mapping[str, object],
        slot: tuple[int, int] | None = None,
        gfn_range: tuple[int, int] | None = None,
    ) -> ZapRun:
        """Run a plan to its end, with `on_lock_break` at every lock break.

        Args:
            plan: a plan, its name, its text or its dict.
            slot: (address space, slot id) for `only=slot` and `walk=slot`.
            gfn_range: first gfn and end (exclusive) for `only=gfn_range`.

        Returns:
            The finished run with its counts.

        Raises:
            UsageError: an unknown plan, or one that lacks its slot or range.
        """
        return self._drive(self._start_zap(plan, slot, gfn_range))

    def zap_steps(
        self,
        plan: ZapPlan | str | Mapping[str, object],
        slot: tuple[int, int] | None = None,
        gfn_range: tuple[int, int] | None = None,
    ) -> Iterator[Pause]:
        """Run a plan as `zap` does, stopping at every lock break so that other vCPUs can act; leaving the loop early
        commits.

        Args:
            plan: a plan, its name, its text or its dict.
            slot: (address space, slot id) for `only=slot` and `walk=slot`.
            gfn_range: first gfn and end (exclusive) for `only=gfn_range`.

        Yields:
            A pause at each lock break, with the run in it.
        """
        run = self._start_zap(plan, slot, gfn_range)
        try:
            while run.paused:
                yield Pause(run)
                run.resume()
        finally:
            run.close()

    def zap_batch(self) -> ZapBatch:
        """Begin a zap loop of one's own: `prepare` pages in a `with` block; on exit flush, then free.

        Returns:
            The context manager.
        """
        return ZapBatch(self)

    def active_pages(self, from_tail: bool = False) -> ActivePages:
        """Walk the active list safely; the walk is counted like a plan's.

        Args:
            from_tail: oldest first instead of newest first.

        Returns:
            An iterable of the live shadow pages.
        """
        return ActivePages(self, flag("from_tail", from_tail))

    def _start_zap(
        self,
        plan: ZapPlan | str | Mapping[str, object],
        slot: tuple[int, int] | None,
        gfn_range: tuple[int, int] | None,
    ) -> ZapRun:
        chosen = as_plan(plan)
        if chosen.needs_slot and slot is None:
            field = "only" if chosen.only == "slot" else "walk"
            raise UsageError(f"plan {chosen}: {field}=slot needs slot=(as_id, id)")
        if chosen.only == "gfn_range" and gfn_range is None:
            raise UsageError(f"plan {chosen}: only=gfn_range needs gfn_range=(start, end)")
        if slot is not None:
            slot = pair("slot", slot, ("as_id", "id"), (KVM_ADDRESS_SPACE_NUM - 1, U32))
        if gfn_range is not None:
            gfn_range = pair("gfn_range", gfn_range, ("start", "end"))
        return ZapRun(self, chosen, self.core.start_zap(chosen, slot, gfn_range))

    @property
    def shadows_guest(self) -> bool:
        """True if the guest has page tables of its own and they are shadowed."""
        return self.core.family == "shadow" and bool(self.core.config()["guest_paging"])

    def run_guest(
        self, vcpu: int, work: str, gva: int = 0, kind: AccessKind = "r", is_user: bool = False
    ) -> AccessResult:
        """Enter a vCPU whose guest has page tables of its own, with `on_lock_break` where syncing drops the lock.

        Args:
            vcpu: its number.
            work: `enter`, `load`, `access`, `invlpg`, or `sync_roots` (CR3 is written with the value it has).
            gva: the guest-virtual address of an `access` or `invlpg`; 32 bits outside long mode.
            kind: `r`, `w` or `x`, of an `access`.
            is_user: from privilege level 3.

        Returns:
            How it ended.

        Raises:
            UsageError: there is no such vCPU or work, or the modelled kernel stops with a BUG.
        """
        begun = self.core.start_guest(
            integer("vcpu", vcpu, 0, (1 << 16) - 1),
            word("work", work, ("enter", "load", "access", "invlpg", "sync_roots")),
            integer("gva", gva),
            word("kind", kind, ACCESS_KINDS),
            flag("is_user", is_user),
        )
        self._drive(ZapRun(self, None, begun))
        outcome, faults, ret = self.core.take_guest_result()
        return AccessResult(OUTCOMES[outcome], faults, ret)

    def _drive(self, run: ZapRun) -> ZapRun:
        try:
            while run.paused:
                if self.on_lock_break is not None:
                    self.on_lock_break(self)
                run.resume()
        except BaseException:
            run.close()
            raise
        return run

    # -- memory_region's backend --------------------------------------------------------------------------------

    def updating(self) -> AbstractContextManager[object]:
        """Give `slots_lock`: one memslot update at a time, also between threads.

        Returns:
            The lock; it is held inside a `with` block.
        """
        return self._slots_lock

    @contextmanager
    def judged_update(self, as_id: int, slot: int, takes: bool) -> Iterator[None]:
        """Tell the judge that a memslot update runs; nothing where no ghost listens.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            slot: slot id.
            takes: the slot as it is goes: a delete or a move.

        Returns:
            The context in which the update runs.
        """
        if not self._is_judged:
            yield
            return
        self.core.begin_update(as_id, slot, takes)
        try:
            yield
        finally:
            self.core.end_update()

    def install_slot(self, as_id: int, generation: int, slot: tuple[int, int, int, int, int]) -> None:
        """Make an array with this slot visible; the first half of a memslot update, without its zaps.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            generation: the generation of the new array.
            slot: (id, base gfn, npages, hva, flags).
        """
        self.core.install_slot(as_id, generation, *slot)

    def alternate_flags(
        self,
        as_id: int,
        turns: Sequence[tuple[tuple[int, int, int, int, int], bool, Sequence[str], bool]],
        in_flight: tuple[int, int],
        published: tuple[int, int],
        count: int,
    ) -> None:
        """Make two updates of a slot's flags in turn, without their policy.

        Args:
            as_id: address space.
            turns: for each the slot `(id, base gfn, npages, hva, flags)`, whether vCPUs switch the processor's own log,
                the walks of its reverse maps, and whether it is flushed behind them.
            in_flight: the first generation in flight, and the step to the next one.
            published: the same of what follows each.
            count: how many updates.
        """
        numbers = np.arange(count, dtype=np.uint64)
        first, second = (
            np.uint64(start) + numbers * np.uint64(step) for start, step in (in_flight, published)
        )
        rows = [(slot, switches, list(walks), is_flushed) for slot, switches, walks, is_flushed in turns]
        self.core.repeat_flag_updates(as_id, rows, first, second)

    def remove_slot(self, as_id: int, generation: int, slot_id: int) -> None:
        """Make an array without this slot visible, without zapping what it mapped.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            generation: the generation of the new array.
            slot_id: the slot to leave out.
        """
        self.core.remove_slot(as_id, generation, slot_id)

    def generation(self, as_id: int) -> int:
        """Look up the memslot generation that is visible now.

        Args:
            as_id: address space, 0 normal, 1 SMM.

        Returns:
            The generation, unsigned 64 bits.
        """
        return self.core.generation(as_id)

    def set_generation(self, as_id: int, generation: int) -> None:
        """Make a generation visible, without an update.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            generation: the value, unsigned 64 bits.
        """
        self.core.set_generation(as_id, generation)

    def total_slot_pages(self) -> int:
        """Sum the pages of all slots.

        Returns:
            4 KiB pages, both address spaces together.
        """
        return self.core.total_slot_pages()

    def requested_mmu_pages(self) -> int:
        """Look up the limit of shadow pages that user space asked for.

        Returns:
            The limit, 0 where none was asked for.
        """
        return self.core.requested_mmu_pages()

    def memslots_updated(self, generation: int) -> None:
        """Note in the event log that the architecture is told of a new generation.

        Args:
            generation: the new generation.
        """
        self.core.push_memslots_updated(generation)

    def invalidate_mmio(self, generation: int) -> None:
        """Note in the event log that a generation is looked at for a wrap; `check_wrap` looks.

        Args:
            generation: the generation.
        """
        self.core.push_invalidate_mmio(generation)

    def makes_mmio_sptes(self) -> bool:
        """Tell whether this VM has MMIO SPTEs: an NPT host of 52 physical bits, or the parameter, may leave none.

        Returns:
            True if accesses without a slot are remembered in SPTEs.
        """
        return self.core.masks()["mmio_value"] != 0

    def flush_shadow_memslot(self) -> None:
        """Note in the event log that a slot is about to be zapped; `flush_slot` zaps."""
        self.core.push_flush_shadow_memslot()

    def flush_slot_tlbs(self, as_id: int, slot_id: int) -> None:
        """Flush the gfns of a slot from every TLB, and zap nothing.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            slot_id: the slot.
        """
        self.core.flush_slot(as_id, slot_id)

    def update_cpu_dirty_logging(self, is_on: bool) -> None:
        """Ask the vCPUs to switch the processor's own log, where a slot's dirty log made that necessary (PML).

        Args:
            is_on: a slot's dirty log went on; False: off.
        """
        if not self.pml:
            return
        logging = sum(1 for _, slot in self.memslots if slot.flags & KVM_MEM_LOG_DIRTY_PAGES)
        if (is_on and logging == 1) or not logging:
            self.core.request_cpu_dirty_logging()

    def slot_walk(self, as_id: int, slot_id: int, what: str) -> ZapRun:
        """Walk what is mapped of a slot.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            slot_id: the slot.
            what: `remove_write_access`, `leaf_clear_dirty`, `largepage_remove_write_access`, `set_dirty`,
                `zap_collapsible`, or `split_4k` and `split_2m`, which do nothing to shadow pages.

        Returns:
            The finished run with its counts.
        """
        as_id, slot_id = _slot_id(as_id, slot_id)
        what = word("what", what, SLOT_WALKS)
        return self._drive(ZapRun(self, None, self.core.start_slot_walk(as_id, slot_id, what)))

    # -- the ioctls and notifiers that are not memslots ----------------------------------------------------------

    def check_wrap(self, as_id: int) -> bool:
        """Look whether the current generation is a wrap, and zap by the profile's plan if it is.

        Args:
            as_id: address space, 0 normal, 1 SMM.

        Returns:
            True if it was a wrap.
        """
        as_id = integer("as_id", as_id, 0, KVM_ADDRESS_SPACE_NUM - 1)
        return memory_region.check_wrap(
            self, self.profile, self.generation_policy, as_id, self.core.generation(as_id)
        )

    def flush_all(self) -> ZapRun:
        """Flush all shadow pages by the profile's plan.

        Returns:
            The finished run with its counts.
        """
        return self.zap(self.profile.flush_all)

    def flush_slot(self, slot: int, as_id: int = 0) -> ZapRun:
        """Run the profile's slot removal plan on a slot, as the memslot-flush notifier does.

        Args:
            slot: slot id.
            as_id: address space, 0 normal, 1 SMM.

        Returns:
            The finished run with its counts.
        """
        as_id, slot = _slot_id(as_id, slot)
        self.core.push_flush_shadow_memslot()
        return self.zap(self.profile.slot_removal, slot=(as_id, slot))

    def unmap_hva(
        self, start: int, end: int, block: bool = True, during: Callable[[], None] | None = None
    ) -> None:
        """The host takes memory back: every mapping of the range goes, and faults of it retry until it is gone.

        Args:
            start: First host address.
            end: The address after the last.
            block: Whether the lock may be dropped on the way (v6.12).
            during: Called when the mappings are gone and the memory is not.
        """
        start, end, block = integer("start", start), integer("end", end), flag("block", block)
        try:
            self._drive(ZapRun(self, None, self.core.start_unmap_hva(start, end, block)))
            if during is not None:
                during()
        finally:
            self.core.finish_unmap(start, end)

    def nx_recover(self, ratio: int = 60) -> ZapRun:
        """One run of the recovery of NX huge pages: zaps one in `ratio` of the tables made for them, none if it is 0.

        Args:
            ratio: The module parameter nx_huge_pages_recovery_ratio.

        Returns:
            What the run did.
        """
        return self._drive(ZapRun(self, None, self.core.start_nx_recovery(integer("ratio", ratio))))

    def set_nx_huge_pages(self, on: bool) -> None:
        """The module parameter nx_huge_pages is written: where it changes, everything is zapped.

        Args:
            on: Whether large leaves are kept from being executable.

        Raises:
            UsageError: The kernel has no such parameter.
        """
        on = flag("on", on)
        if not self.profile.facts["has_nx_huge_pages"]:
            raise UsageError(f"{self.profile.name} has no NX huge pages: expected v5.10 or later")
        if on != bool(self.core.config()["nx_huge_pages"]):
            self.core.set_nx_huge_pages(on)
            self.zap(self.profile.wrap)

    def set_slot_zap_all(self, on: bool) -> None:
        """The quirk KVM_X86_QUIRK_SLOT_ZAP_ALL: a removed slot zaps everything, or only what maps it (v6.12 and later).

        Args:
            on: Whether the quirk is on, as it is at first.
        """
        on = flag("on", on)
        if self.profile.facts["has_slot_zap_all_quirk"]:
            plan = self.profile.wrap if on else as_plan("v6.12-slot")
            self.profile = with_plans(self.profile, {"slot_removal": plan})

    def zap_gfn_range(self, start: int, end: int) -> ZapRun:
        """Zap the reverse maps of a range of gfns in every slot.

        Args:
            start: first gfn.
            end: end of the range, exclusive.

        Returns:
            The finished run with its counts.
        """
        start, end = integer("start", start), integer("end", end)
        return self._drive(ZapRun(self, None, self.core.start_zap_gfn_range(start, end)))

    def set_nr_mmu_pages(self, n: int) -> None:
        """Set the limit of shadow pages, as KVM_SET_NR_MMU_PAGES does.

        Args:
            n: the limit, at least 64.

        Raises:
            UsageError: fewer (EINVAL in the kernel).
        """
        n = integer("n", n)
        if n < memory_region.KVM_MIN_ALLOC_MMU_PAGES:
            raise UsageError(
                f"set_nr_mmu_pages({n}): expected at least {memory_region.KVM_MIN_ALLOC_MMU_PAGES}"
            )
        self.core.change_mmu_pages(n)
        self.core.set_requested_mmu_pages(n)

    def change_mmu_pages(self, goal: int) -> None:
        """Resize: zap the oldest pages until at most `goal` are used, then set the limit.

        Args:
            goal: the limit.
        """
        self.core.change_mmu_pages(integer("goal", goal))

    def zap_oldest(self, nr_to_zap: int) -> int:
        """Zap the oldest pages that are no roots in use (v6.x).

        Args:
            nr_to_zap: at least so many, where there are so many.

        Returns:
            How many were zapped.

        Raises:
            UsageError: an older kernel.
        """
        return self.core.zap_oldest(integer("nr_to_zap", nr_to_zap))

    @property
    def dirty_log_initially_set(self) -> bool:
        """True if new dirty bitmaps start full (KVM_DIRTY_LOG_INITIALLY_SET)."""
        return self.core.dirty_log_initially_set

    @dirty_log_initially_set.setter
    def dirty_log_initially_set(self, on: bool) -> None:
        self.core.set_dirty_log_initially_set(flag("dirty_log_initially_set", on))

    @property
    def eager_split(self) -> bool:
        """True if large leaves of the TDP MMU are split when a dirty log starts (eager_page_split)."""
        return self.core.eager_split

    @eager_split.setter
    def eager_split(self, on: bool) -> None:
        self.core.set_eager_split(flag("eager_split", on))

    def shrink(self, nr_to_scan: int) -> int:
        """Run a shrinker scan over this VM.

        Args:
            nr_to_scan: how many objects the shrinker is asked to look at.

        Returns:
            How many pages it freed.
        """
        return self.core.shrink(integer("nr_to_scan", nr_to_scan))

    def get_dirty_log(self, slot: int, as_id: int = 0, manual: bool = False) -> list[int]:
        """Read the dirty bitmap of a slot; it is cleared and its pages are write-protected again unless `manual`.

        Args:
            slot: slot id.
            as_id: address space, 0 normal, 1 SMM.
            manual: only copy, as with manual dirty log protection.

        Returns:
            64-bit words, the slot's first page in bit 0 of the first.

        Raises:
            UsageError: no such slot, or it has no dirty log (ENOENT in the kernel).
        """
        as_id, slot = _slot_id(as_id, slot)
        ret, nr_words, spans = self.read_dirty_log(as_id, slot, manual)
        if ret:
            raise UsageError(f"slot {slot} of address space {as_id} has no dirty log")
        words = [0] * nr_words
        for first, count, value in spans:
            words[first : first + count] = [value] * count
        return words

    def read_dirty_log(
        self, as_id: int, slot_id: int, manual: bool
    ) -> tuple[int, int, list[tuple[int, int, int]]]:
        """Read the dirty bitmap of a slot as the ioctl does, with `on_lock_break` where a split drops the lock.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            slot_id: slot id.
            manual: only copy.

        Returns:
            What the ioctl returns, how many words there are, and those that are not zero: the first, how many equal
            ones follow, their value.
        """
        as_id, slot_id = _slot_id(as_id, slot_id)
        manual = flag("manual", manual)
        self._drive(ZapRun(self, None, self.core.start_get_dirty_log(as_id, slot_id, manual)))
        return self.core.take_dirty_log()

    def clear_dirty_log(self, as_id: int, slot_id: int, first: int, num: int, mask: list[int]) -> int:
        """Clear bits of a slot's dirty bitmap and protect those pages, as KVM_CLEAR_DIRTY_LOG does.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            slot_id: slot id.
            first: first page, a multiple of 64.
            num: pages.
            mask: 64-bit words of the bits to clear, from `first` on.

        Returns:
            0, or a negative errno.
        """
        as_id, slot_id = _slot_id(as_id, slot_id)
        first, num = integer("first", first), integer("num", num)
        words = [integer("mask word", word) for word in mask]
        begun = self.core.start_clear_dirty_log(as_id, slot_id, first, num, words)
        return self._drive(ZapRun(self, None, begun)).ret

    def dirty_masked(self, as_id: int, slot_id: int, offset: int, mask: int) -> int:
        """Protect up to 64 pages as reading or clearing the dirty log does, without the flush.

        Args:
            as_id: address space, 0 normal, 1 SMM.
            slot_id: slot id.
            offset: first page.
            mask: which of the 64 pages from there.

        Returns:
            0.
        """
        as_id, slot_id = _slot_id(as_id, slot_id)
        offset, mask = integer("offset", offset), integer("mask", mask)
        return self._drive(ZapRun(self, None, self.core.start_dirty_masked(as_id, slot_id, offset, mask))).ret

    def require_idle(self) -> None:
        """Refuse to go on while a zap run is paused at a lock break.

        Raises:
            RunStateError: one is.
        """
        if self.core.paused_runs:
            raise RunStateError("a zap run is paused at a lock break; resume or close it first")
