"""What the code of 6.1.192 and 6.12.117 does and the model once did not: each test fails on the old rule.

The old rule is there to compare with in an older kernel, or in the row before the fixes of 2026.
"""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.scenario.machine_engine import MachineEngine

NEW = ("v6.1", "v6.12")
MIB2 = 0x20_0000


def engine(kernel: str, **config: Any) -> MachineEngine:
    return MachineEngine(kernel, {"family": "npt", "tdp_mmu": 0, **config}, None, 6)


def plain(kernel: str, **config: Any) -> MachineEngine:
    return MachineEngine(kernel, {"family": "npt", **config}, None, 1)


def slot(one: MachineEngine, **more: Any) -> dict[str, Any]:
    op = {"op": "set_memslot", "id": 0, "gpa": 0, "size": 2 * MIB2, "hva": 0x2_0000_0000, "flags": 0}
    return one.apply({**op, **more})


def access(one: MachineEngine, gpa: int, kind: str = "w", vcpu: int = 0) -> dict[str, Any]:
    return one.apply({"op": "access", "gpa": gpa, "kind": kind, "vcpu": vcpu})


def names(line: dict[str, Any]) -> list[str]:
    return [event[0] for event in line["events"]]


@pytest.mark.parametrize(("kernel", "zapped"), [("v6.1", True), ("v6.12", True), ("v6.12.0", False)])
def test_a_stale_root_is_looked_for_after_reclaim(kernel: str, zapped: bool) -> None:
    one = plain(kernel)
    slot(one)
    access(one, 0)
    access(one, MIB2)
    # Only the newest table is left of the last generation, and no page is free: the root is obsolete.
    one.apply(
        {
            "op": "zap",
            "plan": "walk=tail,only=obsolete,stop=first_not_obsolete,bump_valid_gen=yes,skip=invalid",
        }
    )
    one.apply({"op": "enter"})
    access(one, 0)
    one.vm.zap("walk=head,only=mmio_cached,bump_valid_gen=yes")
    one.apply({"op": "set_max_raw", "n": 1})
    line = one.apply({"op": "fault", "gpa": MIB2, "err": 6})
    assert ("prepare_zap" in names(line)) is zapped


@pytest.mark.parametrize(("kernel", "ret"), [("v5.2", 1), ("v6.1", -28), ("v6.12", -28)])
def test_a_fault_without_a_page_ends_in_user_space(kernel: str, ret: int) -> None:
    one = plain(kernel)
    slot(one)
    access(one, 0)
    one.apply({"op": "set_max_raw", "n": 1})
    assert one.apply({"op": "fault", "gpa": MIB2, "err": 6})["ret"] == ret


@pytest.mark.parametrize(
    ("kernel", "outcome"), [("v5.2", "hit"), ("v6.12.0", "hit"), ("v6.1", "emulate"), ("v6.12", "emulate")]
)
def test_write_tracking_holds_in_both_address_spaces(kernel: str, outcome: str) -> None:
    one = plain(kernel)
    slot(one)
    slot(one, **{"as": 1})
    one.apply({"op": "track", "gfn": 1, "on": 1})
    one.apply({"op": "smm", "on": 1})
    access(one, 0x1000, "r")
    assert access(one, 0x1000)["out"]["outcome"] == outcome


@pytest.mark.parametrize("kernel", NEW)
def test_slot_ids_end_at_32766(kernel: str) -> None:
    one = engine(kernel)
    assert slot(one, id=32766)["ret"] == 0
    assert slot(one, id=32767, gpa=0x4000_0000)["ret"] == -22
    assert slot(plain("v5.2"), id=512)["ret"] == -22


@pytest.mark.parametrize(("kernel", "flushes"), [("v5.2", 0), ("v6.1", 1), ("v6.12", 1)])
def test_starting_the_log_always_flushes(kernel: str, flushes: int) -> None:
    one = plain(kernel)
    slot(one)
    assert slot(one, flags=1)["ctr"].get("flush", 0) == flushes


@pytest.mark.parametrize("kernel", NEW)
def test_large_leaves_collapse_too(kernel: str) -> None:
    one = engine(kernel)
    one.apply({"op": "host_huge", "hva": 0x4000_0000, "npages": 1 << 18, "kind": "thp"})
    size = 1 << 30
    slot(one, size=size, hva=0x4000_0000)
    assert access(one, 0)["out"]["outcome"] == "hit"
    one.apply({"op": "host_huge", "hva": 0x4000_0000, "npages": 1 << 18, "kind": "hugetlb1g"})
    slot(one, size=size, hva=0x4000_0000, flags=1)
    assert "pfn_dirty" in names(slot(one, size=size, hva=0x4000_0000, flags=0))


def test_v6_12_has_no_change_pte() -> None:
    op = {"op": "change_pte", "hva": 0x2_0000_0000, "pfn": 5, "write": 0}
    assert [engine(kernel).apply(op)["ret"] for kernel in NEW] == [0, -95]


@pytest.mark.parametrize(("kernel", "level"), [("v6.1", 1), ("v6.12", 2)])
def test_nx_huge_pages_keep_a_table(kernel: str, level: int) -> None:
    one = engine(kernel, nx_huge=1)
    slot(one)
    access(one, 0x1000)
    one.apply({"op": "host_huge", "hva": 0x2_0000_0000, "npages": 1024, "kind": "thp"})
    one.apply({"op": "unmap_hva", "start": 0x2_0000_0000, "end": 0x2_0020_0000})
    written = [event for event in access(one, 0x1000)["events"] if event[0] == "set_spte"]
    assert written[0][3] == level


@pytest.mark.parametrize("kernel", NEW)
def test_a_shrinker_in_a_break_frees_what_waits(kernel: str) -> None:
    one = engine(kernel)
    slot(one, size=24 * MIB2)
    for at in range(20):
        access(one, at * MIB2)
    one.apply({"op": "lock_break", "cond": 1, "do": [[{"op": "shrink", "n": 1}]]})
    line = one.apply({"op": "zap_all"})
    inside = names(line)[names(line).index("nested_begin") : names(line).index("nested_end")]
    assert inside == ["nested_begin", "flush"]


@pytest.mark.parametrize(("kernel", "breaks"), [("v6.1", 0), ("v6.12", 1)])
def test_an_unmap_flushes_before_it_drops_the_lock(kernel: str, breaks: int) -> None:
    one = engine(kernel)
    slot(one)
    for gfn in range(40):
        access(one, gfn << 12)
    one.apply({"op": "lock_break", "need": 30})
    line = one.apply({"op": "unmap_hva", "start": 0x2_0000_0000, "end": 0x2_0010_0000})
    found = names(line)
    assert found.count("lock_break") == breaks
    if breaks:
        assert found[found.index("lock_break") - 1] == "flush"


@pytest.mark.parametrize(("kernel", "flushes"), [("v5.2", 2), ("v6.1", 1), ("v6.12", 1)])
def test_a_range_over_two_slots_is_flushed_once(kernel: str, flushes: int) -> None:
    one = plain(kernel)
    slot(one)
    slot(one, id=1, gpa=2 * MIB2, hva=0x3_0000_0000)
    access(one, 0)
    access(one, 2 * MIB2)
    assert one.apply({"op": "zap_gfn_range", "start": 0, "end": 2048})["ctr"]["flush"] == flushes


@pytest.mark.parametrize(
    ("kernel", "ret", "tables"), [("v5.2", 0, True), ("v6.1", -22, False), ("v6.12", -22, False)]
)
def test_nothing_lies_above_the_hosts_width(kernel: str, ret: int, tables: bool) -> None:
    one = plain(kernel, phys_bits=40)
    slot(one)
    assert slot(one, id=1, gpa=2 << 40)["ret"] == ret
    access(one, 0)
    assert ("get_page" in names(access(one, 32 << 40, "r"))) is tables


@pytest.mark.parametrize("kernel", NEW)
def test_no_neighbour_is_mapped_while_memory_goes(kernel: str) -> None:
    one = engine(kernel)
    slot(one)
    inner = [[{"op": "access", "gpa": MIB2 + 0x1000, "kind": "r"}]]
    line = one.apply({"op": "unmap_hva", "start": 0x2_0000_0000, "end": 0x2_0000_1000, "during": inner})
    assert names(line).count("set_spte") == 1
