"""Worlds: a VM to begin with, operations that may happen to it, and how far they interrupt each other.

Constants that would hide everything are made small, and a report names them: the generation has a few bits, a plan
offers the lock after each page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown

Operation = Mapping[str, Any]

#: Where the worlds' host memory lies.
HVA = 0x1000_0000
PAGE = 0x1000
LARGE = 0x20_0000


@dataclass(frozen=True)
class World:
    """What may happen.

    Args:
        name: its name.
        what: what it is for, a line.
        actions: operations of the scenario language, each without nested ones.
        config: keys of a scenario header.
        start: operations before the search begins.
        depth: most operations where nobody says otherwise; None: until no state is new.
        bits: bits of the generation that are kept.
        windows: memslot updates stop at each publication, notifiers before the memory is gone.
        polls: the lock may be dropped at each of the first so many polls of a run.
        inside: operations inside one pause.
        nesting: operations that wait at the same time.
        accessed: accessed bits decide about something.
        goals: what the search must have met, or it did not reach what the world is for.
    """

    name: str
    what: str
    actions: tuple[Operation, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    start: tuple[Operation, ...] = ()
    depth: int | None = None
    bits: int = 3
    windows: bool = False
    polls: int = 0
    inside: int = 1
    nesting: int = 0
    accessed: bool = False
    goals: tuple[str, ...] = ()

    @property
    def is_tdp(self) -> bool:
        """Whether the TDP MMU serves its guest."""
        return bool(self.config.get("tdp_mmu"))

    @property
    def is_shadowed(self) -> bool:
        """Whether the guest has page tables of its own that are shadowed."""
        return self.config.get("family") == "shadow"


def access(gpa: int, kind: str = "r", vcpu: int = 0) -> Operation:
    """A guest access."""
    return {"op": "access", "vcpu": vcpu, "gpa": gpa, "kind": kind}


def slot(id: int, gpa: int, size: int = PAGE, flags: int = 0, as_id: int = 0) -> Operation:
    """A memslot as it is to be; size 0 deletes."""
    return {
        "op": "set_memslot",
        "as": as_id,
        "id": id,
        "gpa": gpa,
        "size": size,
        "hva": HVA + gpa if size else 0,
        "flags": flags,
    }


def delete(id: int, as_id: int = 0) -> Operation:
    """A memslot that goes."""
    return slot(id, 0, 0, 0, as_id)


def unmap(gpa: int, size: int = PAGE) -> Operation:
    """The host takes the memory of a slot at this address."""
    return {"op": "unmap_hva", "start": HVA + gpa, "end": HVA + gpa + size}


def smm(on: int, vcpu: int = 0) -> Operation:
    """A vCPU enters or leaves SMM."""
    return {"op": "smm", "vcpu": vcpu, "on": on}


def track(gfn: int, on: int, as_id: int = 0) -> Operation:
    """A gfn is tracked, or not any more."""
    return {"op": "track", "as": as_id, "gfn": gfn, "on": on}


def get_log(id: int, as_id: int = 0) -> Operation:
    """A dirty log is read."""
    return {"op": "get_dirty_log", "as": as_id, "id": id}


def vaccess(gva: int, kind: str = "r", vcpu: int = 0, user: int = 0) -> Operation:
    """A guest access through the guest's own tables."""
    return {"op": "vaccess", "vcpu": vcpu, "gva": gva, "kind": kind, "user": user}


def poke(gpa: int, val: int) -> Operation:
    """Guest memory changes, and the MMU is not told."""
    return {"op": "poke", "vcpu": 0, "gpa": gpa, "val": val, "bytes": 8}


def gwrite(gpa: int, val: int, vcpu: int = 0) -> Operation:
    """The guest writes to memory that lies where its address says."""
    return {"op": "gwrite", "vcpu": vcpu, "gva": gpa, "gpa": gpa, "val": val, "bytes": 8, "user": 0}


def _shadowed() -> tuple[World, ...]:
    """Worlds of guests with page tables of their own, in long mode. Entries: 67 is writable, 25 and 65 are not."""
    fault = "the guest gets a page fault of its own"
    zapped, mmio = "pages are zapped", "MMIO is answered"
    s1 = (
        vaccess(0),
        vaccess(0x5000),
        vaccess(0x5000, "w"),
        vaccess(0x8000),
        poke(0x1000, 0x1067),
        poke(0x1000, 0x2067),
        poke(0x1028, 0x6025),
        poke(0x1028, 0x900_0067),
        poke(0x2000, 0x3067),
        poke(0x3000, 0x40_00E7),
        poke(0x3000, 0x6067),
        poke(0x3000, 0x40_0067),
        poke(0x6000, 0x5067),
        poke(0x40_0000, 0x5067),
        {"op": "invlpg", "vcpu": 0, "gva": 0x5000},
        {"op": "set_cr3", "vcpu": 0, "cr3": 0x1000},
    )
    tables = (
        slot(0, 0, 0x80_0000),
        slot(0, 0, 0x80_0000, as_id=1),
        poke(0x1000, 0x2067),
        poke(0x2000, 0x3067),
        poke(0x3000, 0x4067),
        poke(0x4018, 0x3067),
        poke(0x4020, 0x4067),
        poke(0x4028, 0x6067),
        poke(0x7000, 0x2067),
    )
    regs = {"op": "set_regs", "vcpu": 0, "cr4": 0x20, "efer": 0xD00}
    s2 = (
        vaccess(0x5000, "w"),
        vaccess(0x5000, "r", 1, 1),
        gwrite(0x4028, 0x6067),
        gwrite(0x4028, 0x6025),
        gwrite(0x4028, 0x8067),
        gwrite(0x4028, 0),
        gwrite(0x3000, 0x4067),
        gwrite(0x3000, 0x4065),
        gwrite(0x3000, 0x40_00E7),
        {"op": "invlpg", "vcpu": 0, "gva": 0x5000},
        {"op": "set_cr3", "vcpu": 0, "cr3": 0x1000},
        {"op": "set_cr3", "vcpu": 0, "cr3": 0x7000},
        {"op": "sync_roots", "vcpu": 1},
        smm(1, 1),
        smm(0, 1),
        {**regs, "cr0": 0x8001_0001},
        {**regs, "cr0": 0x8000_0001},
        unmap(0x6000),
    )
    shadow = {"family": "shadow"}
    return (
        World(
            "S1",
            "a guest's own tables, changed behind the MMU's back",
            s1,
            shadow,
            start=(slot(0, 0, 0x80_0000),),
            depth=7,
            goals=(mmio, fault),
        ),
        World(
            "S2",
            "a guest's own tables, written by the guest: out of sync, synced, two vCPUs in two address spaces",
            s2,
            {"vcpus": 2, **shadow},
            start=tables,
            depth=5,
            polls=1,
            nesting=1,
            goals=(
                "a table is out of sync",
                "a table is synced",
                "a write to a table is emulated",
                fault,
                zapped,
            ),
        ),
    )


def _all() -> tuple[World, ...]:
    removed = "a slot with leaves is removed, and no wrap is in it"
    wrap = "the generation wraps in space 0"
    mmio = "MMIO is answered"
    w1 = (access(0x5000), access(0x9000), slot(0, 0x5000), delete(0), unmap(0x5000))
    w2 = (
        access(0x5000),
        access(0, "w"),
        access(0),
        slot(0, 0),
        slot(0, 0, flags=1),
        slot(1, 0x5000),
        delete(1),
        get_log(0),
    )
    w3 = (
        access(0, "w"),
        access(0x5000, "r", 1),
        access(0, "r", 1),
        slot(0, 0),
        slot(1, 0x5000),
        delete(1),
        delete(0),
        unmap(0),
        {"op": "zap_all"},
    )
    w4 = (
        access(0),
        access(0, "w"),
        access(0x5000),
        smm(1),
        smm(0),
        slot(0, 0),
        slot(0, 0, as_id=1),
        slot(1, 0x5000, as_id=1),
        delete(1, as_id=1),
        delete(0),
        track(0, 1),
        track(0, 0),
    )
    w5 = (
        access(0, "w"),
        access(0x5000),
        access(0x5000, "r", 1),
        smm(1, 1),
        smm(0, 1),
        slot(0, 0),
        slot(1, 0x5000),
        delete(1),
        slot(1, 0x5000, as_id=1),
        delete(1, as_id=1),
        unmap(0x5000),
        {"op": "zap_all"},
    )
    w6 = (
        access(LARGE),
        access(LARGE + PAGE, "w"),
        access(LARGE + PAGE, "x"),
        slot(0, LARGE, LARGE),
        slot(0, LARGE, LARGE, 1),
        delete(0),
        unmap(LARGE, LARGE),
        get_log(0),
        {"op": "clear_dirty_log", "as": 0, "id": 0, "first": 0, "num": 64, "mask": [(1 << 64) - 1]},
        track((LARGE >> 12) + 1, 1),
        track((LARGE >> 12) + 1, 0),
        {"op": "set_nx", "on": 1},
        {"op": "set_nx", "on": 0},
    )
    huge = ({"op": "host_huge", "hva": HVA, "npages": 1024, "kind": "hugetlb2m"},)
    t1 = (
        access(LARGE, "w"),
        access(LARGE, "x", 1),
        access(0x5000),
        slot(0, LARGE, LARGE),
        slot(0, LARGE, LARGE, 1),
        delete(0),
        slot(1, 0x5000),
        delete(1),
        unmap(LARGE, LARGE),
        get_log(0),
        smm(1, 1),
        smm(0, 1),
        {"op": "set_nx", "on": 1},
        {"op": "set_nx", "on": 0},
    )
    r1 = (access(0), access(0x5000), slot(0, 0), delete(0), {"op": "set_max_raw", "n": 4})
    return (
        World("W1", "smoke: one slot, memory and MMIO at the same gfn", w1, goals=(removed, wrap, mmio)),
        World("W2", "the dirty log", w2, goals=(wrap, mmio, "a guest write hits", "a dirty log is read")),
        World(
            "W3",
            "lock breaks, and a second vCPU inside them",
            w3,
            {"vcpus": 2},
            depth=8,
            windows=False,
            polls=1,
            nesting=1,
            goals=(removed, "the lock is dropped in an operation", "an operation runs inside another"),
        ),
        World(
            "W4",
            "two address spaces, SMM, write tracking",
            w4,
            depth=10,
            goals=(removed, mmio, "the generation wraps in space 1", "a guest write hits"),
        ),
        World(
            "W5",
            "publication windows, breaks, two vCPUs in two address spaces",
            w5,
            {"vcpus": 2},
            depth=9,
            windows=True,
            polls=1,
            nesting=1,
            goals=("an operation runs inside another", mmio, wrap),
        ),
        World(
            "W6",
            "large pages: log, collapse, tracking, NX",
            w6,
            start=huge,
            goals=(removed, "a guest write hits"),
        ),
        World(
            "T1",
            "the TDP MMU: roots, yields, two address spaces",
            t1,
            {"vcpus": 2, "tdp_mmu": 1},
            start=huge,
            depth=6,
            polls=1,
            nesting=1,
            goals=("an operation runs inside another", "pages are zapped", "a guest write hits"),
        ),
        World(
            "R1", "four pages at most: a fault whose own root is reclaimed", r1, goals=("pages are zapped",)
        ),
        *_shadowed(),
    )


#: Every world, the smallest first, by name.
WORLDS: dict[str, World] = {world.name: world for world in _all()}

_KEYS = {
    "name",
    "what",
    "actions",
    "config",
    "depth",
    "start",
    "bits",
    "windows",
    "polls",
    "inside",
    "nesting",
    "accessed",
    "goals",
}


def read_world(path: str | Path) -> World:
    """Read a world of one's own.

    Args:
        path: a JSON file with the fields of `World`; `actions` and `start` are lists of operations.

    Returns:
        The world.

    Raises:
        UsageError: it cannot be read, or a field is not what it should be.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"world {shown(str(path))}: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("actions"), list):
        raise UsageError(f"world {shown(str(path))}: expected an object with a list `actions`")
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        raise UsageError(
            f"world {shown(str(path))}: key {shown(unknown[0])}: expected {', '.join(sorted(_KEYS))}"
        )
    for key in ("actions", "start", "goals"):
        if not isinstance(given.get(key, []), list):
            raise UsageError(f"world {shown(str(path))}: {key}: expected a list")
        given[key] = tuple(given.get(key, []))
    for key, most in (("bits", 20), ("polls", 8), ("inside", 4), ("nesting", 2)):
        value = given.get(key, getattr(World, key))
        if type(value) is not int or not 0 <= value <= most:
            raise UsageError(f"world {shown(str(path))}: {key}={shown(value)}: expected 0 to {most}")
    for operation in (*given["actions"], *given["start"]):
        if not isinstance(operation, dict) or "op" not in operation:
            raise UsageError(
                f"world {shown(str(path))}: {shown(operation)}: expected an operation, an object with `op`"
            )
    return World(**{"name": Path(path).name, "what": "a world of one's own", **given})
