"""v5.3, v5.4, v6.1 and v6.12: the rules of a replay (v6 of docs/kernel-facts.md), those that no shared recording
shows included.

The files tests/data/scenarios/v5_3_*, v5_4_* and v6_* hold operations with the results they gave when they were
checked against the texts, line by line; here each is run again, and what makes its rule is looked at by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.reference import Engine, ScenarioError

SCENARIOS = Path(__file__).resolve().parent.parent / "data" / "scenarios"
FILES = sorted(path.stem for path in SCENARIOS.glob("v[56]_*.jsonl"))
HVA = 0x200000000
SLOT = {"op": "set_memslot", "id": 0, "gpa": 0, "size": 0x400000, "hva": HVA}
W = 0x100000006
WRITE_PRESENT = 0x100000007


def read(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *lines = map(json.loads, (SCENARIOS / f"{name}.jsonl").read_text().splitlines())
    return header, lines


def events(name: str, step: int) -> list[list[Any]]:
    found: list[list[Any]] = read(name)[1][step]["events"]
    return found


def kinds(name: str, step: int) -> list[str]:
    return [event[0] for event in events(name, step)]


def names(line: dict[str, Any], *leave_out: str) -> list[str]:
    return [event[0] for event in line["events"] if event[0] not in leave_out]


def vm(kernel: str = "v6.1", **config: Any) -> Engine:
    engine = Engine(kernel, {"family": "npt", "phys_bits": 40, **config})
    engine.apply(SLOT)
    return engine


def sptes(line: dict[str, Any]) -> list[tuple[int, int]]:
    """(gfn, low 12 bits) of the leaves a line wrote."""
    return [(event[3], int(event[4], 16) & 0xFFF) for event in line["events"] if event[0] == "set_spte"]


def test_there_are_files() -> None:
    assert len(FILES) >= 20


@pytest.mark.parametrize("name", FILES)
def test_a_file_runs_as_it_says(name: str) -> None:
    header, lines = read(name)
    engine = Engine(header["variant"], header["config"])
    assert engine.masks() == header["masks"]
    for line in lines:
        got = {**engine.apply(line["op"]), "digest": engine.digest()}
        for key in ("ret", "out", "events", "ctr", "digest"):
            assert got.get(key) == line.get(key), (line["i"], key)


@pytest.mark.parametrize("name", FILES)
def test_the_core_says_the_same(name: str) -> None:
    from kvm_mmu.scenario.verify import verify_file

    verdict = verify_file(str(SCENARIOS / f"{name}.jsonl"), None, "core")
    assert verdict.equal, str(verdict)


def test_b1_b2_roots_and_roles() -> None:
    # Nothing but SMM follows the guest under two-dimensional paging, and nothing at all below it.
    roles = []
    for regs in ({}, {"cr0": 0x80000001, "efer": 0x500}, {"smm": 1}):
        engine = vm()
        engine.apply({"op": "set_regs", **regs})
        roles.append(engine.apply({"op": "enter"})["events"][0][3])
    assert roles == ["0x3784", "0x3784", "0x1003784"]
    got = [event for event in events("v6_four_roots", 1) if event[0] == "get_page"]
    assert [(event[2], event[3]) for event in got[:4]] == [
        (gfn, "0x1782") for gfn in (0, 0x40000, 0x80000, 0xC0000)
    ]
    assert vm("v6.12", tdp_level=5).apply({"op": "enter"})["events"][0][3] == "0x3785"


def test_b4_b6_a_dead_root_goes_with_its_last_user() -> None:
    engine = vm(vcpus=2)
    for vcpu in (0, 1):
        engine.apply({"op": "access", "vcpu": vcpu, "gpa": 0, "kind": "w"})
    engine.apply({"op": "zap", "plan": "v5.4-fast"})
    assert [page["id"] for page in engine.state()["active"]] == []
    assert engine.state()["used"] == 1
    first = engine.apply({"op": "enter", "vcpu": 1})
    assert names(first) == ["get_page"]  # the other vCPU still holds the dead one
    assert names(engine.apply({"op": "enter", "vcpu": 0})) == [
        "prepare_zap",
        "commit_zap",
        "flush",
        "get_page",
    ]
    # A root that is whole stays for who comes next.
    engine.apply({"op": "unload", "vcpu": 0})
    engine.apply({"op": "unload", "vcpu": 1})
    assert engine.apply({"op": "enter", "vcpu": 0})["events"][0][4] == 0


def test_b6_a_reload_request_that_came_too_late_drops_nothing() -> None:
    engine = vm()
    engine.apply({"op": "access", "gpa": 0, "kind": "w"})
    engine.apply({"op": "zap", "plan": "v5.4-fast"})
    engine.apply({"op": "unload"})
    engine.apply({"op": "load"})
    assert engine.state()["vcpus"][0]["requests"] != "0x0"
    assert names(engine.apply({"op": "enter"})) == []
    old = vm("v5.4")
    for op in ({"op": "load"}, {"op": "zap", "plan": "v5.4-fast"}, {"op": "unload"}, {"op": "load"}):
        old.apply(op)
    assert names(old.apply({"op": "enter"})) == ["get_page"]


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_b10_to_b13_b50_the_order_of_a_deletion(kernel: str) -> None:
    engine = vm(kernel)
    engine.apply({"op": "access", "gpa": 0x3000, "kind": "w"})
    engine.apply({"op": "access", "gpa": 0xD0000000, "kind": "w"})
    line = engine.apply({**SLOT, "size": 0})
    told = names(line, "srcu_sync", "pfn_accessed", "pfn_dirty", "flush", "reload_mmus")
    assert told[:5] == [
        "memslots_updated",
        "invalidate_mmio",
        "flush_shadow_memslot",
        "zap_all_fast_enter",
        "zap_all_fast",
    ]
    assert told[-4:] == ["commit_zap", "memslots_updated", "invalidate_mmio", "change_mmu_pages"]
    zapped = [event[1] for event in line["events"] if event[0] == "prepare_zap"]
    assert zapped == [1, 2, 3, 4, 5, 6]  # oldest first, the root in use among them
    last = [event for event in line["events"] if event[0] == "page_zap_pte" and event[1] == 6]
    assert last == [["page_zap_pte", 6, 0, "0x80000d0000017"]]  # an MMIO entry is not empty


def test_b12_the_lock_is_offered_after_ten_pages() -> None:
    engine = vm("v6.12")
    for gpa in range(0, 0x400000, 0x200000):
        engine.apply({"op": "access", "gpa": gpa, "kind": "w"})
    for number in range(1, 20):
        engine.apply({**SLOT, "id": number, "gpa": number << 30, "hva": HVA + (number << 30)})
        engine.apply({"op": "access", "gpa": number << 30, "kind": "w"})
    used = engine.state()["used"]
    engine.apply({"op": "lock_break", "cond": 1})
    told = names(engine.apply({"op": "zap", "plan": "v5.4-fast"}))
    breaks = [at for at, name in enumerate(told) if name == "lock_break"]
    zapped = [told[:at].count("prepare_zap") for at in breaks]
    assert zapped == list(range(11, used, 10))  # the root in use counts for nothing


def test_b14_to_b17_limits() -> None:
    name = "v6_reclaim_and_limits"
    assert [event[1] for event in events(name, 10) if event[0] == "prepare_zap"] == [2, 3, 4]  # 1 is in use
    assert kinds(name, 13) == ["zap_oldest_ret"] and events(name, 13)[0][1] == 0
    assert events(name, 11)[0] == ["change_mmu_pages", 2]
    assert "change_mmu_pages" in kinds(name, 14)  # CREATE
    assert "change_mmu_pages" not in kinds(name, 15)  # MOVE
    assert "change_mmu_pages" not in kinds(name, 16)  # FLAGS
    assert "change_mmu_pages" in kinds(name, 17)  # DELETE
    assert "change_mmu_pages" not in kinds(name, 19)  # the user said how many


def test_b16_a_fault_reclaims_25_less_what_is_there() -> None:
    engine = vm()
    for gpa in range(0, 0x400000, 0x200000):
        engine.apply({"op": "access", "gpa": gpa, "kind": "w"})
    engine.apply({"op": "set_max_raw", "n": 9})  # 5 used: 4 to be had
    line = engine.apply({"op": "access", "gpa": 0xD0000000, "kind": "r"})
    assert ["zap_oldest_ret", 4] in line["events"]  # all but the root
    assert line["ctr"]["recycled"] == 4
    assert names(line).index("zap_oldest_ret") < names(line).index("get_page")


def test_b18_the_end_goes_from_the_newest_to_the_oldest() -> None:
    engine = vm(vcpus=2)
    for vcpu in (0, 1):
        engine.apply({"op": "access", "vcpu": vcpu, "gpa": 0, "kind": "w"})
    line = engine.apply({"op": "teardown"})
    assert [event[1] for event in line["events"] if event[0] == "prepare_zap"] == [4, 3, 2, 1, 1]
    assert engine.state()["used"] == 0


def test_b19_b20_generations_and_the_wrap_within_a_deletion() -> None:
    engine = vm()
    moved = engine.apply({**SLOT, "gpa": 0x400000})
    assert [event[1] for event in moved["events"] if event[0] == "memslots_updated"] == ["0x4", "0x6"]
    name = "v6_wrap_within_delete"
    begins = [event[1:] for event in events(name, 4) if event[0] == "zap_all_fast"]
    assert begins == [[0, 4], [1, 1]]
    # The valid generation came round: only the mark makes the root obsolete.
    assert kinds(name, 6)[:2] == ["prepare_zap", "commit_zap"]


def test_b21_b22_b26_dirty_logging_of_large_leaves() -> None:
    name = "v6_large_leaf_with_dirty_log"
    assert [event[-1] for event in events(name, 4) if event[0] == "fast_pf"] == [1]  # fixed without the log
    assert [event[-1] for event in events(name, 6) if event[0] == "fast_pf"] == [0]
    name = "v6_initially_set_large_leaves"
    assert "flush" not in kinds(name, 5)
    assert read(name)[1][6]["out"] == {"outcome": "hit", "faults": 0}
    both = [events(name, step)[at] for step, at in ((8, 0), (10, 1))]
    assert [event[6][-3:] for event in both] == ["ae5", "ae5"]  # neither W nor bit 10
    bitmap = read(name)[1][11]["out"]["bitmap"]
    assert set(bitmap) == {hex((1 << 64) - 1)}


def test_b21_read_only_slots_have_nothing_to_protect() -> None:
    engine = vm()
    engine.apply({**SLOT, "id": 1, "gpa": 0x800000, "hva": 0x300000000, "flags": 2})
    engine.apply({"op": "access", "gpa": 0x800000, "kind": "r"})
    told = names(engine.apply({**SLOT, "id": 1, "gpa": 0x800000, "hva": 0x300000000, "flags": 3}))
    assert told == ["srcu_sync", "memslots_updated", "invalidate_mmio"]


def test_b21_only_pages_whose_base_lies_in_the_slot_are_made_large_again() -> None:
    engine = Engine("v6.1", {"family": "npt", "phys_bits": 40})
    engine.apply({"op": "host_huge", "hva": HVA, "npages": 1024, "kind": "thp"})
    slot = {**SLOT, "gpa": 0x100000, "size": 0x300000, "hva": HVA + 0x100000}
    engine.apply({**slot, "flags": 1})
    engine.apply({"op": "access", "gpa": 0x100000, "kind": "w"})  # its table begins at gfn 0, outside
    engine.apply({"op": "access", "gpa": 0x2FF000, "kind": "w"})  # its table begins at gfn 0x200, inside
    line = engine.apply(slot)
    dirty = [event[1] for event in line["events"] if event[0] == "pfn_dirty"]
    assert dirty == [(HVA >> 12) + 0x2FF]


def test_b21_a_table_that_reaches_over_the_slot_s_end_stays_small() -> None:
    engine = Engine("v6.1", {"family": "npt", "phys_bits": 40})
    engine.apply({"op": "host_huge", "hva": HVA, "npages": 1024, "kind": "thp"})
    slot = {**SLOT, "gpa": 0, "size": 0x300000, "hva": HVA}
    engine.apply({**slot, "flags": 1})
    engine.apply({"op": "access", "gpa": 0x2FF000, "kind": "w"})
    assert all(event[0] != "pfn_dirty" for event in engine.apply(slot)["events"])


def test_a_kernel_that_reads_outside_a_slot_says_so() -> None:
    for kernel, is_refused in (("v6.18", True), ("v7.3", False)):
        engine = Engine(kernel, {"family": "npt", "phys_bits": 40})
        slot = {**SLOT, "gpa": 0x1000000, "size": 0x800000, "hva": HVA}
        engine.apply({"op": "host_huge", "hva": HVA, "npages": 2048, "kind": "thp"})
        engine.apply(slot)
        engine.apply({"op": "access", "gpa": 0x1000000, "kind": "w"})
        engine.apply({**slot, "flags": 1})
        if is_refused:
            with pytest.raises(ScenarioError, match="outside the slot's counts, at gfn 0x0"):
                engine.apply(slot)
        else:
            assert engine.apply(slot)["ret"] == 0


def test_b23_refusals_change_nothing() -> None:
    engine = vm()
    before = engine.digest()
    for op, ret in (
        ({**SLOT, "id": 1}, -17),
        ({**SLOT, "size": 0x200000}, -22),
        ({**SLOT, "flags": 2}, -22),
        (SLOT, 0),
        ({**SLOT, "id": 7, "size": 0}, -22),
    ):
        line = engine.apply(op)
        assert (line["ret"], line["events"]) == (ret, [])
    assert engine.digest() == before


def test_b24_notifiers_leave_tables_and_mmio_entries() -> None:
    engine = vm()
    engine.apply({"op": "access", "gpa": 0x1000, "kind": "w"})
    engine.apply({"op": "access", "gpa": 0x400000, "kind": "r"})
    used = engine.state()["used"]
    line = engine.apply({"op": "unmap_hva", "start": HVA - 0x1000, "end": HVA + 0x400000})
    assert "page_zap_pte" not in names(line)
    assert engine.state()["used"] == used
    left = [spte for page in engine.state()["active"] if page["level"] == 1 for spte in page["sptes"]]
    assert [int(word, 16) >> 51 & 1 for _, word in left] == [1]


def test_b25_order_and_ends_of_a_fault() -> None:
    assert kinds("v6_lookup_retried", 2) == []
    assert kinds("v6_mmio_caching_off", 1) == ["get_page", "fault", "emulate", "ret"]
    engine = vm()
    engine.apply({**SLOT, "id": 1, "gpa": 0x800000, "size": 0x1000, "hva": 0x300000000, "flags": 2})
    line = engine.apply({"op": "access", "gpa": 0x800000, "kind": "w"})
    assert line["out"]["outcome"] == "emulate"
    assert engine.state()["used"] == 1


@pytest.mark.parametrize(
    ("kernel", "code", "empty"), [("v6.1", 7, "0x0"), ("v6.12", WRITE_PRESENT, "0x8" + "0" * 15)]
)
def test_b26_the_lock_free_path_is_always_told(kernel: str, code: int, empty: str) -> None:
    engine = vm(kernel)
    engine.apply({"op": "load"})
    told = engine.apply({"op": "fault", "gpa": 0, "err": WRITE_PRESENT, "host": None})["events"]
    assert told == [["fast_pf", 0, 0, code, 1, 0, empty, empty, 0]]
    engine.apply({"op": "fault", "gpa": 0, "err": W})
    assert engine.apply({"op": "fault", "gpa": 0, "err": WRITE_PRESENT})["events"][0][-1] == 2
    engine.apply({"op": "pt_masked", "id": 0, "offset": 0, "mask": 1, "what": "write_protect"})
    fixed = engine.apply({"op": "fault", "gpa": 0, "err": WRITE_PRESENT})["events"]
    assert len(fixed) == 1 and fixed[0][6:] == ["0x200000e65", "0x200000e67", 1]
    assert "fast_pf" not in names(engine.apply({"op": "fault", "gpa": 0, "err": 0x100000015}))  # no write


def test_b27_what_stands_in_the_way() -> None:
    told = kinds("v6_large_leaf_in_the_way", 5)
    assert told.index("get_page") < told.index("page_zap_pte") < told.index("set_spte")
    told = kinds("v6_table_in_the_way", 5)
    assert "page_zap_pte" not in told and "set_spte" in told
    header, lines = read("v6_table_in_the_way")
    engine = Engine(header["variant"], header["config"])
    for line in lines:
        engine.apply(line["op"])
    assert [page["parents"] for page in engine.state()["active"] if page["level"] == 1] == [[]]


def test_b28_nx_huge_pages() -> None:
    name = "v6_nx_huge_pages"
    leaf = events(name, 2)[-2]
    assert leaf[0] == "set_spte" and int(leaf[4], 16) >> 63 == 1 and leaf[5] == 2
    assert all(event[5] == 1 for event in events(name, 3) if event[0] == "set_spte")
    assert [event[5] for event in events(name, 5) if event[0] == "set_spte"] == [1]  # asked for 2, got 1


def test_b29_b31_b35_b37_leaves() -> None:
    engine = vm()
    engine.apply({"op": "load"})
    host = {"level": 1, "writable": 1, "found": [0x10, 0x11]}
    line = engine.apply({"op": "fault", "gpa": 0x12000, "err": W, "host": host})
    assert sptes(line) == [(0x12, 0xE67), (0x10, 0xE47), (0x11, 0xE47)]
    assert [event[1:] for event in line["events"] if event[0] == "try_unsync"] == [
        [0x12, 1, 0],
        [0x10, 1, 1],
        [0x11, 1, 1],
    ]
    read_only = {"level": 1, "writable": 0, "found": []}
    line = engine.apply({"op": "fault", "gpa": 0x13000, "err": 0x100000004, "host": read_only})
    assert sptes(line) == [(0x13, 0x825)] and "try_unsync" not in names(line)
    again = engine.apply(
        {"op": "fault", "gpa": 0x13000, "err": 0x100000004, "host": {**read_only, "found": [0x14]}}
    )
    assert again["events"] == []  # the entry is that already: nothing is written, nothing prefetched
    rewritten = engine.apply({"op": "fault", "gpa": 0x10000, "err": W, "host": host})
    assert sptes(rewritten) == [(0x10, 0xE27)]  # W was there: no D, no look at other pages
    assert "try_unsync" not in names(rewritten)


def test_b30_b32_b34_mmio_entries() -> None:
    name = "v6_mmio_gfn0_and_stale"
    assert kinds(name, 1)[-5:] == ["make_mmio_spte", "make_mmio_spte_ret", "mark_mmio", "emulate", "ret"]
    assert kinds(name, 2)[1:3] == ["check_mmio", "handle_mmio"]  # gfn 0 is not cached
    assert kinds(name, 5)[1:3] == ["check_mmio", "make_mmio_spte"]
    ram = {event[3]: int(event[4], 16) & 0xFFF for event in events(name, 7) if event[0] == "set_spte"}
    assert ram == {1: 0xE27, 0: 0xE07} and "try_unsync" not in kinds(name, 7)
    engine = vm()
    engine.apply({"op": "set_generation", "as": 0, "gen": 0x7FFFC})
    line = engine.apply({"op": "access", "gpa": 0xD0000000, "kind": "w"})
    assert ["make_mmio_spte_ret", "0x7ff80000d00007e7"] in line["events"]
    # A reserved-bit fault on what is no MMIO entry goes back to the guest.
    engine.apply({"op": "access", "gpa": 0x1000, "kind": "w"})
    line = engine.apply({"op": "fault", "gpa": 0x1000, "err": 0x10000000C})
    assert (line["ret"], line["events"]) == (1, [])


def test_b33_the_mmio_cache_in_smm() -> None:
    name = "v6_smm_mmio_cache"
    assert kinds(name, 5) == ["fault", "emulate", "ret"]  # an update of address space 0 does not matter
    assert "check_mmio" in kinds(name, 7)
    old = vm("v5.4")
    for op in (
        {**SLOT, "as": 1},
        {"op": "smm", "on": 1},
        {"op": "access", "gpa": 0xD0000000, "kind": "r"},
        {**SLOT, "id": 2, "gpa": 0x40000000, "size": 0x1000, "as": 1},
    ):
        old.apply(op)
    assert "check_mmio" not in names(old.apply({"op": "access", "gpa": 0xD0000000, "kind": "r"}))


def test_b8_five_levels() -> None:
    name = "v6_five_levels"
    got = [event[2:4] for event in events(name, 2) if event[0] == "get_page"]
    top, table = 0x4000000000, 0x4000000200
    assert got == [[0, "0x3785"], [top, "0x3784"], [top, "0x3783"], [top, "0x3782"], [table, "0x3781"]]
    # Relinked under new tables, the leaf that is writable already is written again without D.
    assert sptes(read(name)[1][6]) == [(0x4000000203, 0xE27)]


def test_b18_the_end_of_a_vm() -> None:
    name = "v6_end_of_a_vm"
    assert [event[1] for event in events(name, 5) if event[0] == "prepare_zap"] == [5, 4, 3, 2, 1]
    assert kinds(name, 6) == [] and [event[1] for event in events(name, 7) if event[0] == "prepare_zap"] == [
        1
    ]
    assert [event[1] for event in events(name, 8) if event[0] == "prepare_zap"] == [5]


def test_b23_refused_slots() -> None:
    lines = read("v6_refused_slots")[1]
    refused = [line for line in lines if line["ret"] < 0]
    assert [line["ret"] for line in refused] == [-17, -22, -22, -22, -17, -22]
    assert all(line["events"] == [] for line in refused)
    assert (lines[10]["ret"], lines[10]["events"]) == (0, [])  # the same again


def test_b24_unmap_across_slots() -> None:
    name = "v6_unmap_across_slots"
    # The neighbour in the slot, the large leaves of both address spaces, a small leaf of another slot.
    assert [sptes(read(name)[1][step]) for step in (14, 15, 21)] == [
        [(0x40001, 0xE67)],
        [(0, 0xEE7)],
        [(0, 0xEE7)],
    ]
    assert kinds(name, 16) == kinds(name, 18) == []
    assert kinds(name, 17) == ["fault", "emulate", "ret"]  # the MMIO entry stayed
    assert kinds(name, 19) == []


def test_b36_prefetch() -> None:
    name = "v6_prefetch_edges"
    first = [event[3] for event in events(name, 3) if event[0] == "set_spte"]
    assert first == [2, 0, 1]  # 3 is not at hand, so the run after 2 fails and ends it
    second = [event[3] for event in events(name, 4) if event[0] == "set_spte"]
    assert second == [9, 8]  # the run 10 to 15 reaches over the slot's end
    open_run = vm().apply({"op": "access", "gpa": 0x8000, "kind": "w"})
    assert [gfn for gfn, _ in sptes(open_run)] == list(range(8, 16))
    partly = vm()
    partly.apply({"op": "load"})
    host = {"level": 1, "writable": 1, "found": [0x20, 0x23, 0x24]}
    line = partly.apply({"op": "fault", "gpa": 0x22000, "err": W, "host": host})
    assert [gfn for gfn, _ in sptes(line)] == [0x22, 0x20, 0x23, 0x24]


def test_v5_3_and_v5_4() -> None:
    name = "v5_3_fast_and_set_spte"
    assert kinds(name, 2)[-4:-2] == ["mark_mmio", "set_spte"]
    assert [event[1] for event in events(name, 4) if event[0] == "prepare_zap"] == [6]  # the MMIO page only
    assert kinds(name, 5).index("reload_mmus") > kinds(name, 5).index("prepare_zap")
    name = "v5_4_fast_everywhere"
    assert [event[1:] for event in events(name, 11) if event[0] == "zap_all_fast"] == [[0, 6], [1, 1]]
    assert next(e for e in events(name, 10) if e[0] == "check_mmio")[2:] == [524286, 1022]


def test_v6_12_slot_removal_of_only_the_slot() -> None:
    engine = Engine("v6.12", {"family": "npt", "phys_bits": 40}, {"slot_removal": "v6.12-slot"})
    engine.apply(SLOT)
    engine.apply({"op": "access", "gpa": 0x1000, "kind": "w"})
    used = engine.state()["used"]
    line = engine.apply({**SLOT, "size": 0})
    assert "prepare_zap" not in names(line) and "flush" in names(line)
    assert engine.state()["used"] == used


def test_what_a_kernel_does_not_have_is_refused() -> None:
    for kernel, config in (
        ("v5.10", {"family": "shadow"}),
        ("v5.2", {"family": "shadow", "guest_paging": 0}),
        ("v5.4", {"nx_huge_pages": 1}),
        ("v5.4", {"mmio_caching": 0}),
    ):
        with pytest.raises(ScenarioError):
            Engine(kernel, config)
    engine = vm()
    for host in ({"level": 4}, {"page": 1}, 7, {"found": "all"}):
        with pytest.raises(ScenarioError):
            engine.apply({"op": "fault", "gpa": 0, "err": W, "host": host})
