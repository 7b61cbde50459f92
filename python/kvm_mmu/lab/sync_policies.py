"""The lab of sync policies: one guest's writes to its page tables under several ways to keep their shadow in step.

A policy is how the guest flushes and whether KVM lets its level-1 tables go out of step: `cr3` (a table that is written
goes unsync; one write of CR3 after each change syncs), `invlpg` (unsync, too; INVLPG for each changed page), `never`
(no table goes unsync: every write to one is emulated; CR3 after each change). The limit of write flooding comes beside
it. Both are facts of the kernel (`has_unsync`, `write_flood_limit`), changed for the run. The stream and what the guest
sees are the same in all runs; what is counted is what the guest's work costs in exits, syncs and zaps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from kvm_mmu.errors import UsageError
from kvm_mmu.lab.guest_stream import GPA, GVA, PAGE, GuestStream, Step
from kvm_mmu.machine.guest import Guest
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.types import MIB

#: Sync policies: how the guest flushes, and whether tables go unsync.
POLICIES: dict[str, tuple[str, bool]] = {
    "cr3": ("cr3", True),
    "invlpg": ("invlpg", True),
    "never": ("cr3", False),
}
MEMORY = 64 * MIB
#: Where the guest sees its own tables, and how many pages of them.
WINDOW, WINDOW_PAGES = 0x1000_0000, 512
#: Faults that a page is tried again for, with the guest answering none of its own.
_FOUND = ("hit", "emulate", "guest_fault")


class Engine(Protocol):
    """An engine of the scenario language."""

    def apply(self, op: dict[str, Any], /) -> dict[str, Any]:
        """Run one operation."""

    def digest(self) -> str:
        """Digest of the state."""


@dataclass(frozen=True)
class SyncRow:
    """What one run cost.

    Attributes:
        kernel: the kernel.
        sync: the policy.
        flood_limit: emulated writes to an upper table that zap its shadow page.
        exits: of all kinds: faults, CR3 writes and INVLPGs.
        faults: page faults that KVM took.
        emulated_writes: writes that KVM emulated, of the guest to its tables.
        guest_faults: page faults that the guest got.
        cr3_writes: by the guest.
        invlpgs: by the guest.
        unsyncs: tables that went out of step.
        syncs: tables that were brought back into step.
        zaps: shadow pages zapped.
        pages_made: shadow pages made.
        flushes: of every vCPU's TLB.
    """

    kernel: str
    sync: str
    flood_limit: int
    exits: int
    faults: int
    emulated_writes: int
    guest_faults: int
    cr3_writes: int
    invlpgs: int
    unsyncs: int
    syncs: int
    zaps: int
    pages_made: int
    flushes: int


class _Counting:
    """An engine that counts what its operations did."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.counts: Counter[str] = Counter()

    def apply(self, op: dict[str, Any], /) -> Mapping[str, Any]:
        line = self.engine.apply(op)
        self.counts.update(line["ctr"])
        self.counts.update(f"event {event[0]}" for event in line["events"])
        self.counts[f"op {op['op']}"] += 1
        return line


class _Run:
    """One guest under one policy."""

    def __init__(self, engine: Engine, flush: str) -> None:
        self.machine = _Counting(engine)
        self.guest = Guest(self.machine)
        self.flush = flush
        self.answers: list[str] = []
        self.guest.add_memory(0, MEMORY)
        self.spaces = [self.guest.cr3]
        self.guest.map_tables(WINDOW, WINDOW_PAGES)
        self.machine.counts.clear()

    def do(self, step: Step) -> None:
        """Run a step; after a change the guest flushes."""
        getattr(self, f"_{step.does}")(step)

    def _space(self, step: Step) -> None:
        while len(self.spaces) <= step.page:
            root = self.guest.new_root()
            self.guest.map_tables(WINDOW, WINDOW_PAGES, cr3=root)
            self.spaces.append(root)
        if self.guest.cr3 != self.spaces[step.page]:
            self.guest.set_cr3(self.spaces[step.page])

    def _map(self, step: Step) -> None:
        self.guest.map(_gva(step), GPA + step.frame * PAGE, step.pages * PAGE, step.flags)
        self._flush(step)

    def _protect(self, step: Step) -> None:
        for page in range(step.page, step.page + step.pages):
            gpa = self.guest.translate(GVA + page * PAGE)
            if gpa is not None:
                self.guest.map(GVA + page * PAGE, gpa, PAGE, step.flags)
        self._flush(step)

    def _unmap(self, step: Step) -> None:
        for page in range(step.page, step.page + step.pages):
            if self.guest.translate(GVA + page * PAGE) is not None:
                self.guest.set_entry(GVA + page * PAGE, 0)
        self._flush(step)

    def _touch(self, step: Step) -> None:
        for page in range(step.page, step.page + step.pages):
            done = self.guest.access(GVA + page * PAGE, step.kind, user=True)  # type: ignore[arg-type]
            if done.outcome not in _FOUND:
                raise UsageError(f"a touch of page {page} ended as {done.outcome} ({done.ret})")
            self.answers.append(done.outcome)

    def _flush(self, step: Step) -> None:
        if self.flush == "cr3":
            self.guest.set_cr3(self.guest.cr3)
            return
        for page in range(step.page, step.page + step.pages):
            self.guest.invlpg(GVA + page * PAGE)


def _gva(step: Step) -> int:
    return GVA + step.page * PAGE


def run_policy(
    stream: GuestStream, kernel: str, sync: str, flood_limit: int, engine: Engine | None = None
) -> SyncRow:
    """Run a stream under one policy.

    Args:
        stream: what the guest does.
        kernel: a kernel that shadows guests' tables.
        sync: a name of `POLICIES`.
        flood_limit: emulated writes to an upper table that zap its shadow page; 0: none do.
        engine: an engine of the scenario language instead of the core, made for `altered(...)`.

    Returns:
        The counts.

    Raises:
        UsageError: an unknown policy, or a kernel whose shadow paging is not modelled.
    """
    return _run(stream, kernel, sync, flood_limit, engine)[0]


def altered(kernel: str, sync: str, flood_limit: int) -> str:
    """The kernel with the facts of a policy.

    Raises:
        UsageError: an unknown policy.
    """
    if sync not in POLICIES:
        raise UsageError(f"sync {shown(sync)}: expected {', '.join(POLICIES)}")
    facts = kernel_profile(kernel).facts
    changes = {"has_unsync": "yes" if POLICIES[sync][1] else "no", "write_flood_limit": str(flood_limit)}
    now = {
        "has_unsync": "yes" if facts["has_unsync"] else "no",
        "write_flood_limit": str(facts["write_flood_limit"]),
    }
    return kernel + "".join(f":{fact}={value}" for fact, value in changes.items() if now[fact] != value)


def _run(
    stream: GuestStream, kernel: str, sync: str, flood_limit: int, engine: Engine | None
) -> tuple[SyncRow, list[str]]:
    name = altered(kernel, sync, flood_limit)
    run = _Run(engine or MachineEngine(name, {"family": "shadow"}), POLICIES[sync][0])
    run.machine.engine.apply({"op": "set_max_raw", "n": 1 << 20})
    run.machine.counts.clear()
    for step in stream.steps:
        run.do(step)
    counts = run.machine.counts
    faults, cr3, invlpgs = counts["event fault"], counts["op set_cr3"], counts["op invlpg"]
    row = SyncRow(
        kernel=kernel,
        sync=sync,
        flood_limit=flood_limit,
        exits=faults + cr3 + invlpgs,
        faults=faults,
        emulated_writes=counts["event emulate"],
        guest_faults=counts["event inject_pf"],
        cr3_writes=cr3,
        invlpgs=invlpgs,
        unsyncs=counts["event unsync"],
        syncs=counts["event sync"],
        zaps=counts["zapped"],
        pages_made=counts["created"],
        flushes=counts["flush"],
    )
    return row, run.answers


def compare_sync(
    stream: GuestStream,
    kernels: Sequence[str] = ("v6.12",),
    policies: Sequence[str] = tuple(POLICIES),
    flood_limits: Sequence[int] = (3,),
) -> list[SyncRow]:
    """Run a stream under every policy, limit and kernel.

    Args:
        stream: what the guest does.
        kernels: names of kernels.
        policies: names of `POLICIES`.
        flood_limits: limits of write flooding.

    Returns:
        A row a run.

    Raises:
        UsageError: an unknown word, or a policy changed what the guest itself saw, which none may.
    """
    rows: list[SyncRow] = []
    seen: list[str] | None = None
    for kernel in kernels:
        for flood_limit in flood_limits:
            for sync in policies:
                row, answers = _run(stream, kernel, sync, flood_limit, None)
                if seen is not None and answers != seen:
                    raise UsageError(
                        f"{kernel}, {sync}, limit {flood_limit}: the guest saw something else than before"
                    )
                seen = answers
                rows.append(row)
    return rows


def columns(rows: Sequence[SyncRow]) -> dict[str, list[Any]]:
    """The rows as columns, in the order they are shown."""
    return {field.name: [getattr(row, field.name) for row in rows] for field in fields(SyncRow)}
