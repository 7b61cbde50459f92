"""Rules of the texts that no recorded vector runs, and what the engine refuses."""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.reference import Engine, ScenarioError

HVA = 0x200000000
PFN = HVA >> 12
SLOT = {"op": "set_memslot", "id": 0, "gpa": 0, "size": 0x400000, "hva": HVA}


def vm(kernel: str = "v5.2", **config: Any) -> Engine:
    engine = Engine(kernel, {"family": "npt", **config})
    engine.apply(SLOT)
    return engine


def names(line: dict[str, Any]) -> list[str]:
    return [event[0] for event in line["events"]]


def leaf(engine: Engine, index: int = 0) -> int:
    table = next(page for page in engine.state()["active"] if page["level"] == 1)
    return int(dict(table["sptes"])[index], 16)


def test_a_write_through_a_guest_table_returns_without_the_emulator() -> None:
    engine = vm()
    engine.apply({"op": "access", "gpa": 0, "kind": "r"})
    engine.apply({"op": "track", "gfn": 0, "on": 1})
    assert names(engine.apply({"op": "fault", "gpa": 0, "err": 3}))[-1] == "emulate"
    line = engine.apply({"op": "fault", "gpa": 0, "err": 3 | 1 << 33})
    assert line["ret"] == 1
    assert "emulate" not in names(line)


def test_change_pte_to_read_only_keeps_the_mapping_and_to_writable_drops_it() -> None:
    engine = vm()
    engine.apply({"op": "access", "gpa": 0, "kind": "w"})
    line = engine.apply({"op": "change_pte", "hva": HVA, "pfn": 0x77, "write": 0})
    assert names(line) == ["pfn_accessed", "pfn_dirty", "flush"]
    spte = leaf(engine)
    assert spte >> 12 & (1 << 40) - 1 == 0x77
    assert not spte & (1 << 1 | 1 << 10)
    assert spte & 1 << 11
    line = engine.apply({"op": "change_pte", "hva": HVA, "pfn": 0x78, "write": 1})
    assert names(line)[-1] == "flush"
    assert engine.state()["as"][0]["slots"][0]["rmap"] == []


@pytest.mark.parametrize("kernel", ["v5.0", "v5.2"])
def test_a_range_hook_flushes_ranges(kernel: str) -> None:
    engine = vm(kernel, flush_range=1)
    for gfn in (3, 7):
        engine.apply({"op": "access", "gpa": gfn << 12, "kind": "w"})
    line = engine.apply({"op": "zap_gfn_range", "start": 2, "end": 9})
    ranges = [event for event in line["events"] if event[0] == "flush_range"]
    # v5.0 flushes once over everything, end included; v5.2 what the walk went over.
    assert ranges == [["flush_range", 2, 8 if kernel == "v5.0" else 7]]
    assert "flush" not in names(line)
    assert engine.state()["vcpus"][0]["requests"] == "0x0"


def test_clear_dirty_log_takes_a_short_tail_only_in_v5_2() -> None:
    op = {"op": "clear_dirty_log", "id": 1, "first": 64, "num": 36, "mask": ["0xffffffffffffffff"]}
    slot = {
        "op": "set_memslot",
        "id": 1,
        "gpa": 0x10000000,
        "size": 100 << 12,
        "hva": 0x300000000,
        "flags": 1,
    }
    for kernel, ret in (("v5.0", -22), ("v5.2", 0)):
        engine = vm(kernel)
        engine.apply(slot)
        engine.apply({"op": "access", "gpa": 0x10000000 + (70 << 12), "kind": "w"})
        assert engine.apply(op)["ret"] == ret
    assert engine.apply({**op, "num": 35})["ret"] == -22
    assert engine.apply({**op, "id": 0})["ret"] == -2
    assert engine.apply({"op": "get_dirty_log", "id": 9})["out"] == {"bitmap": ["0x0"]}


def test_a_run_that_can_be_pinned_in_part_is_mapped_in_part() -> None:
    engine = vm()
    engine.apply({"op": "host_state", "hva": HVA + 0x4000, "npages": 1, "state": "cow"})
    engine.apply({"op": "access", "gpa": 0x7000, "kind": "w"})
    table = next(page for page in engine.state()["active"] if page["level"] == 1)
    assert [index for index, _ in table["sptes"]] == [0, 1, 2, 3, 7]


def test_slots_must_fit() -> None:
    engine = vm()
    base = {"op": "set_memslot", "id": 1, "gpa": 0x10000000, "size": 0x1000, "hva": 0x300000000}
    for change, ret in (
        ({"gpa": 0x3FF000}, -17),
        ({"flags": 4}, -22),
        ({"as": 2}, -22),
        ({"id": 512}, -22),
        ({"size": 0x800}, -22),
        ({"hva": 0x300000800}, -22),
        ({"hva": 0x300000800, "id": 509}, 0),
        ({"gpa": (1 << 64) - 0x1000}, -22),
        ({"size": 1 << 43}, -22),
        ({"size": 0}, -22),
        ({}, 0),
        ({"size": 0x2000}, -22),
    ):
        fresh = {**base, **change}
        if change.get("id") == 509:
            fresh["gpa"] = 0x20000000
        assert engine.apply(fresh)["ret"] == ret, change


def test_a_moved_slot_vetoes_the_large_page_over_its_new_end() -> None:
    engine = vm()
    before = [[3, 0, 1]]
    assert engine.state()["as"][0]["slots"][0]["disallow"] == before
    engine.apply({**SLOT, "gpa": 0x1000})
    assert engine.state()["as"][0]["slots"][0]["disallow"] == [[2, 2, 1], *before]


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ({"op": "fly"}, "unknown operation"),
        ({}, "unknown operation"),
        (7, "an operation is an object"),
        ({"op": "access"}, "needs a field 'gpa'"),
        ({"op": "access", "gpa": "0xzz"}, "hex string"),
        ({"op": "access", "gpa": -1}, "0 to 2"),
        ({"op": "access", "gpa": 1 << 64}, "0 to 2"),
        ({"op": "access", "gpa": 1.5}, "a number"),
        ({"op": "access", "gpa": 0, "vcpu": 3}, "1 vCPUs"),
        ({"op": "access", "gpa": 0, "kind": "z"}, "one of r, w, x"),
        ({"op": "access", "gpa": 0, "speed": 1}, "no field 'speed'"),
        ({"op": "lock_break", "do": [{"op": "dump"}]}, "list of lists"),
        ({"op": "lock_break", "do": [[{"op": "fly"}]]}, "unknown operation"),
        ({"op": "host_huge", "hva": 0, "npages": 1, "kind": "giant"}, "one of none"),
    ],
)
def test_what_is_no_operation_is_refused_and_changes_nothing(op: Any, said: str) -> None:
    engine = vm()
    before = engine.digest()
    with pytest.raises(ScenarioError, match=said):
        engine.apply(op)
    assert engine.digest() == before


@pytest.mark.parametrize(
    "config",
    [{"family": "arm"}, {"phys_bits": 60}, {"vcpus": 0}, {"tdp_level": 3}, {"colour": 1}, {"pml": "x"}],
)
def test_what_is_no_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError):
        Engine("v5.0", config)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ScenarioError, match="expected one of v5"):
        Engine("v4.4")


def test_a_clone_goes_its_own_way() -> None:
    engine = vm()
    copy = engine.clone()
    assert copy.digest() == engine.digest()
    copy.apply({"op": "access", "gpa": 0x1000, "kind": "w"})
    assert engine.work()["faults"] == 0
    assert copy.work()["faults"] == 1
    assert copy.digest() != engine.digest()


def test_work_counts_what_was_done() -> None:
    engine = vm()
    engine.apply({"op": "access", "gpa": 0, "kind": "w"})
    work = engine.work()
    assert work["get_page_created"] == 4
    assert work["parent_steps"] == 3
    assert work["rmap_steps"] == 1
    engine.apply({"op": "zap_all"})
    work = engine.work()
    assert work["sptes_cleared"] + work["rmap_steps"] + work["parent_steps"] >= 4
    assert work["pages_zapped"] == 4
    assert work["pages_freed"] == 3
    assert (work["flushes"], work["walk_starts"], work["walk_visited"]) == (1, 1, 4)
