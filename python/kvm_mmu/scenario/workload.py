"""Workloads: what a guest did, as a VM in the state it left and the distinct accesses that brought it there.

A workload comes from a scenario's operations, from a recording's inputs, or from the generator `mmio_mix`. Comparisons
run plans on clones of `Workload.vm` and repeat `Workload.touches` to see what must be faulted in again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import ScenarioError, UsageError
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.language import Scenario, in_header
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.scenario.operation_table import Checked
from kvm_mmu.types import MIB, PAGE_SIZE, AccessKind

#: What one level-1 table maps, bytes.
TABLE_SPAN = 2 * MIB
#: Where among the level-1 tables the flagged ones stand on the active list.
PLACES = ("head", "random", "tail", "even")

#: Operations after which a generation may have wrapped around.
_UPDATES = ("set_memslot", "invalidate_mmio")

Gpas = npt.NDArray[np.uint64]


class Touch(NamedTuple):
    """One guest access: vCPU, page (byte address of its first byte), kind."""

    vcpu: int
    gpa: int
    kind: AccessKind


class Batch(NamedTuple):
    """Consecutive accesses of one vCPU and kind; `gpas` uint64."""

    vcpu: int
    kind: AccessKind
    gpas: Gpas


def kind_of_error(error_code: int) -> AccessKind:
    """The access that a page-fault error code tells of (bit 1 write, bit 4 fetch)."""
    return "x" if error_code & 16 else "w" if error_code & 2 else "r"


def batches(touches: Sequence[Touch]) -> list[Batch]:
    """Touches in order, neighbours of one vCPU and kind together."""
    found: list[Batch] = []
    start = 0
    for i in range(1, len(touches) + 1):
        if i == len(touches) or (touches[i].vcpu, touches[i].kind) != (
            touches[start].vcpu,
            touches[start].kind,
        ):
            gpas = np.array([touch.gpa for touch in touches[start:i]], dtype=np.uint64)
            found.append(Batch(touches[start].vcpu, touches[start].kind, gpas))
            start = i
    return found


@dataclass(frozen=True)
class Population:
    """The live shadow pages of a VM, or tables of its TDP MMU: how many, how many caching MMIO, by level, and how old.

    Ages are places among the level-1 pages of the active list, from 0 (newest) to 1 (oldest): mean and standard
    deviation over those that cache MMIO; None when none does.
    """

    pages: int
    mmio_pages: int
    levels: Mapping[int, int]
    age_mmio: float | None
    age_spread: float | None

    @property
    def mmio_share(self) -> float:
        """Pages that cache MMIO, of all."""
        return self.mmio_pages / self.pages if self.pages else 0.0

    def level_share(self, level: int) -> float:
        """Pages of a level, of all."""
        return self.levels.get(level, 0) / self.pages if self.pages else 0.0


def population(vm: Vm) -> Population:
    """Count the live shadow pages of a VM, or the tables of its TDP MMU."""
    core = vm.core
    if vm.tdp_mmu:
        return _of_tables(core.tdp_tables())
    levels: dict[int, int] = {}
    places: list[int] = []
    nr_mmio = 0
    for page_id in core.active_page_ids():
        page = core.page(page_id)
        if page is None:
            continue
        level = int(page["level"])
        nr_mmio += bool(page["mmio_cached"])
        if level == 1 and page["mmio_cached"]:
            places.append(levels.get(1, 0))
        levels[level] = levels.get(level, 0) + 1
    ages = [(place + 0.5) / levels[1] for place in places]
    mean = fmean(ages) if ages else None
    return Population(
        sum(levels.values()), nr_mmio, dict(sorted(levels.items())), mean, pstdev(ages) if ages else None
    )


def _of_tables(tables: Sequence[tuple[int, int, bool]]) -> Population:
    """The same of the tables of the TDP MMU, the newest first; one caches MMIO while it holds an MMIO SPTE."""
    levels = Counter(level for _, level, _ in tables)
    places = [holds for _, level, holds in tables if level == 1]
    ages = [(place + 0.5) / len(places) for place, holds in enumerate(places) if holds]
    return Population(
        len(tables),
        sum(holds for _, _, holds in tables),
        dict(sorted(levels.items())),
        fmean(ages) if ages else None,
        pstdev(ages) if ages else None,
    )


def live_pages(vm: Vm) -> int:
    """Count the pages of page tables that live.

    Args:
        vm: the VM.

    Returns:
        Shadow pages on the active list, and roots and tables of the TDP MMU.
    """
    roots, tables = vm.core.nr_tdp_tables
    return vm.core.nr_active_pages + roots + tables


@dataclass
class Workload:
    """A VM after its guest ran, and the distinct accesses in order of their first time. The VM is never changed.

    `made` and `zapped` count the shadow pages that were made and zapped on the way (one that is zapped while in use
    as a root counts again when its last user drops it, as in a kernel's trace).
    """

    name: str
    vm: Vm
    touches: list[Batch]
    notes: list[str] = field(default_factory=list)
    #: Pages that were asked for, where the workload was made to a size.
    size: int | None = None
    #: Events that the guest's own operations brought, and how often.
    own_events: Mapping[str, int] = field(default_factory=dict)
    #: The slot that a forced removal takes, (address space, id); None: the largest.
    removed: tuple[int, int] | None = None
    #: Operations of a scenario that ran; 0 where none made it.
    ran: int = 0

    def __repr__(self) -> str:
        count = sum(batch.gpas.size for batch in self.touches)
        return f"<Workload {self.name} {self.vm.kernel}, {live_pages(self.vm)} pages, {count} accesses>"

    def population(self) -> Population:
        """The live shadow pages."""
        return population(self.vm)

    @property
    def made(self) -> int:
        """Shadow pages made on the way."""
        return self.vm.stats["created"]

    @property
    def zapped(self) -> int:
        """Shadow pages zapped on the way."""
        return self.vm.stats["zapped"]


class WorkloadEngine(MachineEngine):
    """A machine engine that notes every distinct guest access, also nested ones."""

    def __init__(
        self, kernel: str, config: Mapping[str, Any] | None = None, plans: Mapping[str, Any] | None = None
    ):
        self.noted: dict[Touch, None] = {}
        #: Events that the operations bring themselves, and how often.
        self.own_events: Counter[str] = Counter()
        super().__init__(kernel, config, plans)

    def step(self, op: Mapping[str, Any]) -> tuple[int, dict[str, Any] | None]:
        """Run one operation without a result line: what it returned, and its `out`."""
        self.vm.core.clear_events()
        return self._run(self.check(op))

    def _run(self, op: Checked) -> tuple[int, dict[str, Any] | None]:
        name, values = op.name, op.values
        as_id = values.get("as", 0)
        before = self.vm.generation(as_id) if name in _UPDATES and as_id in (0, 1) else None
        result = super()._run(op)
        if name in ("access", "fault"):
            kind = values["kind"] if name == "access" else kind_of_error(values["err"])
            self.noted[Touch(values["vcpu"], values["gpa"] & ~(PAGE_SIZE - 1), kind)] = None
        if name == "teardown":
            self.own_events["teardown"] += 1
        if before is not None and result[0] >= 0:
            self._note_update(op, as_id, before)
        return result

    def _note_update(self, op: Checked, as_id: int, before: int) -> None:
        after = self.vm.generation(as_id)
        is_checked = op.name == "invalidate_mmio" or after != before
        self.own_events["wrap"] += is_checked and self.vm.generation_policy.is_wrap(after)
        self.own_events["slot-removal"] += (
            op.name == "set_memslot" and after != before and not op.values["size"]
        )


def run_scenario_workload(
    scenario: Scenario,
    kernel: str | None = None,
    stop: int | None = None,
    config: Mapping[str, Any] | None = None,
    moment: str | None = None,
) -> Workload:
    """Run a scenario's operations (the first `stop` of them) once.

    Args:
        kernel: the kernel to model; default the scenario's.
        config: header keys that win over the scenario's.
        moment: `end`, or `peak`: after the operation that left the most live shadow pages (the first of such). Without
            it the end; of a recording at whose end no page lives, the peak.

    Raises:
        UsageError: no kernel anywhere. ScenarioError: an operation cannot be read, with file and line.
    """
    chosen = kernel or scenario.kernel
    if chosen is None:
        raise UsageError(f"{scenario.path}: no kernel: give --kernel, or a header with a variant")
    header = {**scenario.config, **(config or {})}
    try:
        name = kernel_profile(chosen).name
        run = _Run(scenario, name, header)
    except UsageError as error:
        raise in_header(scenario, error) from error
    run.run(stop)
    count = min(len(scenario.ops), len(scenario.ops) if stop is None else stop)
    notes = []
    is_empty = not _has_tables(run.engine.vm)
    if moment == "peak" or (moment is None and scenario.is_recorded and is_empty and run.peak[0]):
        pages, after = run.peak
        if after < count:
            why = "" if moment == "peak" else "no shadow page lives at its end: "
            notes.append(
                f"{why}taken after operation {after:,} of {count:,}, where the most lived ({pages:,})"
            )
            run = _Run(scenario, name, header)
            run.run(after)
            count = after
    run.engine.vm.clear_events()
    run.engine.vm.on_lock_break = None
    said = [f"{scenario.name}: {note}" for note in [*scenario.notes, *run.notes(), *notes]]
    touches = batches(list(run.engine.noted))
    return Workload(scenario.name, run.engine.vm, touches, said, own_events=+run.engine.own_events, ran=count)


def _has_tables(vm: Vm) -> bool:
    if vm.tdp_mmu:
        return vm.core.nr_tdp_tables[1] > 0
    return any(_lives(vm, page) for page in vm.core.active_page_ids())


def _lives(vm: Vm, page: int) -> bool:
    _, is_invalid, is_obsolete, _ = vm.core.page_facts(page)
    return not is_invalid and not is_obsolete


class _Run:
    """One run of a scenario's operations, and what of it was not as it was recorded."""

    def __init__(self, scenario: Scenario, kernel: str, config: Mapping[str, Any]):
        self._scenario = scenario
        self.engine = WorkloadEngine(kernel, config, scenario.plans)
        #: Most live pages, and after how many operations.
        self.peak = (0, 0)
        self._failed = 0
        self._refused = {False: 0, True: 0}

    def run(self, stop: int | None) -> None:
        """Run the first `stop` operations."""
        scenario, vm = self._scenario, self.engine.vm
        for i, op in enumerate(scenario.ops[:stop]):
            try:
                ret, out = self.engine.step(op)
            except ValueError as error:
                raise ScenarioError(f"{scenario.where(i)}: {error}") from error
            if (live := live_pages(vm)) > self.peak[0]:
                self.peak = (live, i + 1)
            if out is not None and out.get("outcome") in ("error", "stuck"):
                self._failed += 1
            recorded = scenario.returns[i] if scenario.returns else None
            if recorded is not None and (recorded < 0) != (ret < 0):
                self._refused[ret < 0] += 1

    def notes(self) -> list[str]:
        """What did not go as it was recorded, in sentences."""
        kernel = self.engine.vm.kernel
        said = []
        if self._scenario.is_recorded and self._failed:
            said.append(f"{self._failed:,} guest accesses do not get through on {kernel}")
        for is_refused, count in self._refused.items():
            if count:
                word = "refused" if is_refused else "accepted"
                said.append(f"{count:,} memslot updates are {word} by {kernel}, otherwise than recorded")
        return said


def flagged_tables(tables: int, share: float, place: str, seed: int = 1) -> list[bool]:
    """Which of `tables` level-1 tables cache MMIO, in the order the guest touches them (the first touched ends at the
    tail of the active list).

    Args:
        share: fraction of all tables, rounded to whole tables, at least one when above zero.
        place: `head`, `tail`, `random` (by `seed`) or `even`.
    """
    if tables < 1 or not 0.0 <= share <= 1.0:
        raise UsageError(
            f"{tables} tables with a share of {share}: expected at least 1 and a share from 0 to 1"
        )
    count = min(tables, max(1, round(tables * share))) if share else 0
    if place == "head":
        chosen = set(range(tables - count, tables))
    elif place == "tail":
        chosen = set(range(count))
    elif place == "even":
        chosen = {i * tables // count for i in range(count)}
    elif place == "random":
        dice = random.Random(seed)
        # Sorted by drawn numbers: the stream of random() is the same in every Python, sample()'s is not promised.
        chosen = set(sorted(range(tables), key=lambda _: dice.random())[:count])
    else:
        raise UsageError(f"place {place!r}: expected one of {', '.join(PLACES)}")
    return [i in chosen for i in range(tables)]


def mmio_mix(
    tables: int,
    share: float = 0.01,
    place: str = "random",
    *,
    seed: int = 1,
    leaves: int = 1,
    kernel: str = "v5.0",
    family: str = "npt",
    tdp_mmu: bool = False,
    vm: Vm | None = None,
) -> Workload:
    """A guest with `tables` level-1 tables, one entry each: a page of RAM, or an MMIO page in the flagged ones.

    RAM lies from 0 on, one page every 2 MiB; MMIO above it, one page every 2 MiB.

    Args:
        tables, share, place, seed: see `flagged_tables`. kernel, family, tdp_mmu: of the VM that is made.
        leaves: pages of RAM touched in each table that caches no MMIO, 1 to 512.
        vm: use this VM (without slots) instead.
    """
    flagged = np.array(flagged_tables(tables, share, place, seed))
    nr_ram = int((~flagged).sum())
    machine = vm or Vm(kernel=kernel, family=family, events="off", tdp_mmu=tdp_mmu)  # type: ignore[arg-type]
    ram_end = max(1, nr_ram) * TABLE_SPAN
    machine.memslots.create(slot=0, gpa=0, size=ram_end)
    machine.set_nr_mmu_pages(2 * tables + 1024)
    before = np.cumsum(flagged) - flagged
    order = np.arange(tables)
    gpas = np.where(flagged, ram_end + before * TABLE_SPAN, (order - before) * TABLE_SPAN).astype(np.uint64)
    if leaves > 1:
        pages = gpas[:, None] + np.arange(leaves, dtype=np.uint64) * np.uint64(PAGE_SIZE)
        first = np.arange(leaves) == 0
        gpas = pages[first[None, :] | ~flagged[:, None]]
    machine.vcpus[0].access_many(gpas, "r")
    name = f"{tables} tables, {share:.0%} MMIO, {place}" + (f" (seed {seed})" if place == "random" else "")
    return Workload(name, machine, [Batch(0, "r", gpas)], size=tables)
