"""The repairs of shadow paging, both sides of each: what the model comes to, and what the audit says of it.

Each is a row fact; a run is made on core and reference under both values, and they must be equal after each operation.
The old side runs on: nothing stops, and what is wrong has a name.
"""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu import kernels
from kvm_mmu.errors import KvmMmuError
from kvm_mmu.scenario.language import Scenario, make_engine
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.scenario.verify import first_difference, plain

Ops = list[dict[str, Any]]
HVA = 0x1000_0000
SHADOWING = [name for name, row in kernels.items() if row.facts["has_guest_tables"]]
NEWER = [name for name in SHADOWING if kernels[name].facts["is_role_fixed"]]
OLDER = [name for name in SHADOWING if name not in NEWER]


def slot(size: int = 0x80_0000, **more: int) -> dict[str, Any]:
    return {"op": "set_memslot", "id": 0, "gpa": 0, "size": size, "hva": HVA, "flags": 0, **more}


def poke(gpa: int, value: int) -> dict[str, Any]:
    return {"op": "poke", "gpa": gpa, "val": value}


def read(gva: int) -> dict[str, Any]:
    return {"op": "vaccess", "gva": gva, "kind": "r"}


def write(gva: int) -> dict[str, Any]:
    return {"op": "vaccess", "gva": gva, "kind": "w"}


#: A read-only leaf of memory, then the guest's entry leads to a gfn without a slot, and is written through.
MMIO_OVER_LEAF: Ops = [
    slot(),
    poke(0x1000, 0x1067),
    poke(0x1028, 0x6025),
    read(0x5000),
    poke(0x1028, 0x900_0067),
    write(0x5000),
]
#: A large page of the guest, mapped small, becomes a table of other frames.
ANOTHER_GFN: Ops = [
    slot(),
    poke(0x1000, 0x2067),
    poke(0x2000, 0x3067),
    poke(0x3000, 0x40_00E7),
    read(0x8000),
    poke(0x3000, 0x6067),
    poke(0x6000, 0x5067),
    read(0),
]
#: The same, and the table is the large page's first frame: only the role is another.
ANOTHER_ROLE: Ops = [*ANOTHER_GFN[:5], poke(0x3000, 0x40_0067), poke(0x40_0000, 0x5067), read(0)]
FIVE_LEVELS: Ops = [slot(0x1_0000), {"op": "set_regs", "cr4": 0x1020}, read(0), read(0), {"op": "enter"}]
INIT: Ops = [slot(0x1000), {"op": "smm", "on": 1}, {"op": "access", "gpa": 0, "kind": "r"}, {"op": "init"}]
#: What comes after: both spaces have memory then, and the log, the host and a removal meet what stands in wrong lists.
AFTER_INIT: Ops = [
    slot(0x1000, **{"as": 1}),
    {"op": "access", "gpa": 0, "kind": "w"},
    slot(0x1000, flags=1),
    {"op": "unmap_hva", "start": HVA, "end": HVA + 0x1000},
    {"op": "access", "gpa": 0, "kind": "w"},
    {"op": "zap_all"},
    {"op": "enter"},
    {"op": "access", "gpa": 0, "kind": "w"},
    slot(0, hva=0),
    {"op": "smm", "on": 0},
    {"op": "access", "gpa": 0, "kind": "r"},
    {"op": "teardown"},
]
MANY_PARENTS: Ops = [
    slot(),
    poke(0x1000, 0x2067),
    poke(0x2000, 0x3067),
    *(poke(0x3000 + 8 * at, 0x4067) for at in range(3)),
    poke(0x4028, 0x6067),
    *(read(0x5000 + (at << 21)) for at in range(3)),
]
#: Whatever is left of a run meets every walk over reverse maps.
AFTERMATH: Ops = [
    write(0x5000),
    slot(flags=1),
    {"op": "get_dirty_log", "id": 0},
    {"op": "age_hva", "start": HVA, "end": HVA + 0x80_0000},
    {"op": "test_age_hva", "hva": HVA + 0x6000},
    slot(),
    {"op": "unmap_hva", "start": HVA, "end": HVA + 0x80_0000},
    read(0x5000),
    {"op": "invlpg", "gva": 0x5000},
    {"op": "unprotect", "gfn": 1},
    {"op": "zap_all"},
    {"op": "enter"},
    write(0x5000),
    slot(0, hva=0),
    {"op": "teardown"},
]


def lockstep(kernel: str, ops: Ops, family: str = "shadow") -> tuple[MachineEngine, list[Any], list[str]]:
    """The core at the end, what each operation gave, and the names that the audit found on the way."""
    scenario = Scenario(
        name="fix", kernel=None, format=1, config={"family": family}, plans={}, masks=None, ops=ops
    )
    core, reference = (make_engine(scenario, kernel, backend) for backend in ("core", "reference"))
    assert isinstance(core, MachineEngine)
    lines: list[Any] = []
    found: list[str] = []
    stops: list[str] = []
    for number, op in enumerate(ops, 1):
        given: list[Any] = []
        for engine in (core, reference):
            try:
                given.append(plain({**engine.apply(op), "state": engine.state()}))
            except (KvmMmuError, ValueError) as error:
                given.append({"stopped": True})
                stops.append(str(error))
        assert first_difference(*given) is None, f"{kernel}, operation {number}: {given}"
        lines.append({**given[0], "stops": stops[-2:]})
        found += [name for name, _ in core.vm.audit()]
    return core, lines, found


@pytest.mark.parametrize("kernel", NEWER)
def test_an_mmio_spte_over_a_leaf(kernel: str) -> None:
    _, lines, found = lockstep(f"{kernel}:mmio_over_leaf=overwrite", [*MMIO_OVER_LEAF, *AFTERMATH])
    assert set(found) == {"rmap_leaf"}
    assert not any(event[0].startswith("flush") for event in lines[5]["events"])
    _, lines, found = lockstep(f"{kernel}:mmio_over_leaf=drop_first", [*MMIO_OVER_LEAF, *AFTERMATH])
    assert found == []
    assert any(event[0].startswith("flush") for event in lines[5]["events"])


@pytest.mark.parametrize("kernel", NEWER)
@pytest.mark.parametrize(
    ("ops", "unsound"), [(ANOTHER_GFN, ("any",)), (ANOTHER_ROLE, ("any", "gfn"))], ids=["gfn", "role"]
)
def test_a_child_of_another_gfn_or_role(kernel: str, ops: Ops, unsound: tuple[str, ...]) -> None:
    for reuse in ("any", "access", "gfn", "gfn_role"):
        _, _, found = lockstep(f"{kernel}:child_reuse={reuse}", [*ops, *AFTERMATH])
        assert set(found) == ({"leaf_gfn"} if reuse in (*unsound, "access") else set()), reuse


@pytest.mark.parametrize("kernel", OLDER)
def test_older_kernels_stop_there_or_are_given_the_rule(kernel: str) -> None:
    for ops in (ANOTHER_GFN, ANOTHER_ROLE):
        assert all("BUG" in text for text in lockstep(kernel, ops)[1][-1]["stops"])
        assert lockstep(f"{kernel}:child_reuse=gfn_role", [*ops, *AFTERMATH])[2] == []


@pytest.mark.parametrize("kernel", SHADOWING)
def test_a_guest_of_more_levels_than_the_walk_has_room_for(kernel: str) -> None:
    old = f"{kernel}:walk_levels=4:walk_bound=none"
    _, lines, _ = lockstep(old, FIVE_LEVELS[:3])
    assert all("room for 4 levels" in text for text in lines[2]["stops"])
    _, lines, found = lockstep(f"{kernel}:walk_levels=4:walk_bound=template", FIVE_LEVELS)
    assert [line["ret"] for line in lines[2:]] == [-5, -5, -5] and found == []
    _, lines, found = lockstep(f"{kernel}:walk_levels=5", FIVE_LEVELS)
    assert lines[2]["ret"] >= 0 and found == []


@pytest.mark.parametrize("kernel", list(kernels))
@pytest.mark.parametrize("family", ["npt", "ept_ad"])
def test_init_in_smm(kernel: str, family: str) -> None:
    _, _, found = lockstep(f"{kernel}:init_resets=no", [*INIT, *AFTER_INIT], family)
    assert "root_alive" in found
    assert lockstep(f"{kernel}:init_resets=yes", [*INIT, *AFTER_INIT], family)[2] == []


@pytest.mark.parametrize("kernel", SHADOWING)
def test_init_of_a_guest_that_pages(kernel: str) -> None:
    begin = [slot(), poke(0x1000, 0x1067), poke(0x1028, 0x6067), read(0x5000)]
    _, lines, found = lockstep(f"{kernel}:init_resets=no", [*begin, {"op": "init"}, *AFTERMATH])
    assert lines[4]["state"]["vcpus"][0]["root"] is not None
    _, lines, found = lockstep(f"{kernel}:init_resets=yes", [*begin, {"op": "init"}, *AFTERMATH])
    assert lines[4]["state"]["vcpus"][0]["root"] is None and found == []


@pytest.mark.parametrize("kernel", SHADOWING)
def test_a_bound_on_parents(kernel: str) -> None:
    def most(lines: list[Any]) -> int:
        return max(len(page["parents"]) for page in lines[len(MANY_PARENTS) - 1]["state"]["active"])

    assert most(lockstep(f"{kernel}:max_parents=0", MANY_PARENTS)[1]) == 3
    for bound in (1, 2):
        _, lines, found = lockstep(f"{kernel}:max_parents={bound}", [*MANY_PARENTS, *AFTERMATH])
        assert most(lines) <= bound and found == []


@pytest.mark.parametrize("kernel", list(kernels))
@pytest.mark.parametrize("flags", [0, 1])
def test_a_leaf_that_is_mapped_the_quick_way_has_its_event(kernel: str, flags: int) -> None:
    again: Ops = [
        slot(0x1000, flags=flags),
        write_gpa := {"op": "access", "gpa": 0, "kind": "w"},
        {"op": "unmap_hva", "start": HVA, "end": HVA + 0x1000},
        write_gpa,
    ]
    _, lines, _ = lockstep(kernel, again, "npt")
    has_event = kernels[kernel].facts["has_set_spte_event"]
    assert any(event[0] == "set_spte" for event in lines[-1]["events"]) is has_event


@pytest.mark.parametrize("kernel", SHADOWING)
@pytest.mark.parametrize("registers", [{}, {"cr0": 1, "cr4": 0, "efer": 0}], ids=["long", "none"])
def test_a_fault_without_a_root_makes_room_first_where_the_row_does(
    kernel: str, registers: dict[str, int]
) -> None:
    """Room is made before a missing root is seen, or after; without any room left it is an errno or a retry."""
    begin: Ops = [
        slot(),
        poke(0x1000, 0x1067),
        poke(0x1028, 0x6067),
        {"op": "set_regs", **registers},
        read(0x5000),
    ]
    full: Ops = [{"op": "unload"}, {"op": "set_max_raw", "n": 1}, {"op": "fault", "gpa": 0x5000, "err": 0}]
    line = lockstep(kernel, [*begin, *full])[1][-1]
    is_first = kernels[kernel].facts["stale_test"] != "before_reclaim"
    assert any(event[0] == "prepare_zap" for event in line["events"]) is is_first
    none_left: Ops = [{"op": "set_max_raw", "n": 0}, {"op": "fault", "gpa": 0x5000, "err": 0}]
    line = lockstep(kernel, [*begin, full[0], *none_left])[1][-1]
    assert line["ret"] == (-28 if is_first and kernels[kernel].facts["enospc_to_user"] else 1)


@pytest.mark.parametrize("kernel", SHADOWING)
def test_the_end_of_a_log_leaves_what_shadows_a_guest_entry(kernel: str) -> None:
    """That the host's memory is one large page says nothing of what the guest maps small (a recording of 5.2)."""
    ops: Ops = [
        {"op": "host_huge", "hva": HVA, "npages": 0x800, "kind": "thp"},
        slot(flags=1),
        *(poke(0x1000 * at, 0x1067 + 0x1000 * at) for at in range(1, 4)),
        poke(0x4028, 0x6067),
        write(0x5000),
        slot(flags=0),
        read(0x5000),
    ]
    _, lines, found = lockstep(kernel, ops)
    assert found == []
    assert lines[-1]["stops"] == [] and lines[-1]["out"]["faults"] == 0


#: A root at 0x1000 over 0x2000, 0x3000 and two page tables of the guest: 0x4000 and, for 2 MiB and up, 0x6000.
TWO_TABLES: Ops = [
    slot(),
    poke(0x1000, 0x2067),
    poke(0x2000, 0x3067),
    poke(0x3000, 0x4067),
    poke(0x3008, 0x6067),
]
SECOND = 0x20_0000


@pytest.mark.parametrize("kernel", SHADOWING)
def test_a_walk_that_marks_an_entry_accessed_dirties_its_table(kernel: str) -> None:
    unused = [slot(flags=1), poke(0x1000, 0x2007), *TWO_TABLES[2:], poke(0x4028, 0x6007), read(0x5000)]
    _, lines, found = lockstep(kernel, [*unused, {"op": "get_dirty_log", "id": 0}])
    assert found == []
    # What was poked is not logged: only tables whose entries the walk marked, at the root and at the leaf.
    assert [word for word in lines[-1]["out"]["bitmap"] if word] == [0b1_0010]


@pytest.mark.parametrize("kernel", SHADOWING)
def test_a_sync_makes_no_other_table_unsync(kernel: str) -> None:
    ops: Ops = [
        *TWO_TABLES,
        poke(0x6000, 0x7067),
        poke(0x3010, 0x8067),  # a third page table, which maps the first
        poke(0x8000, 0x4067),
        poke(0x4028, 0x6025),  # the first table maps the second, read only
        read(SECOND),
        read(0x5000),
        write(2 * SECOND),  # the first is unsync now
        poke(0x4028, 0x6067),  # through the leaf, which is writable
        {"op": "set_cr3", "cr3": 0x1000},
        {"op": "enter"},
        write(0x5000),
    ]
    _, lines, found = lockstep(kernel, ops)
    assert found == [] and lines[-1]["stops"] == []
    events = [event[0] for line in lines[-3:-1] for event in line["events"]]
    assert "sync" in events and "unsync" not in events
