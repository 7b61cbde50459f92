"""Facts of the direct MMU that the texts state and no recorded vector decides, with the answer worked out by hand from
the text, for core and reference. The names in brackets are rules of docs/kernel-facts.md."""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.reference import Engine
from kvm_mmu.scenario.machine_engine import MachineEngine

HVA = 0x4000000000
M2, G1 = 1 << 21, 1 << 30


@pytest.fixture(params=["core", "reference"])
def new_vm(request: pytest.FixtureRequest) -> Any:
    """Kernel and configuration -> `apply(**op)` on a VM with one slot of 1 GiB at gpa 0."""

    def make(kernel: str = "v5.2", size: int = G1, **config: Any) -> Any:
        values = {"family": "npt", "phys_bits": 46, **config}
        maker = MachineEngine if request.param == "core" else Engine
        engine = maker(kernel, values)

        def apply(op: str, **fields: Any) -> dict[str, Any]:
            return engine.apply({"op": op, **fields})

        apply.engine = engine  # type: ignore[attr-defined]
        apply("set_memslot", id=0, gpa=0, size=size, hva=HVA)
        return apply

    return make


def names(line: dict[str, Any]) -> list[str]:
    return [event[0] for event in line["events"]]


def events(line: dict[str, Any], *wanted: str) -> list[list[Any]]:
    return [event for event in line["events"] if event[0] in wanted]


def leaves(vm: Any, level: int = 1) -> dict[int, int]:
    """gfn -> word of the leaves of a level, MMIO entries included."""
    found = {}
    for page in vm.engine.state()["active"]:
        if page["level"] == level:
            for entry in page["sptes"]:
                if len(entry) == 2:
                    found[page["gfn"] + (entry[0] << 9 * (level - 1))] = int(entry[1], 16)
    return found


def test_a_hugetlb_mapping_asks_for_its_first_small_page(new_vm: Any) -> None:
    """[direct.host.2] State, poison address and the writable bit are those of the first 4 KiB."""
    vm = new_vm()
    vm("host_huge", hva=HVA, npages=1024, kind="hugetlb2m")
    vm("host_state", hva=HVA, npages=1, state="cow")
    vm("access", gpa=0x5000, kind="r")
    assert leaves(vm, 2)[0] & 0xFFF == 0xA5  # the fifth page alone would be writable
    vm("host_state", hva=HVA + M2, npages=1, state="hwpoison")
    line = vm("access", gpa=M2 + 0x5000, kind="w")
    assert events(line, "hwpoison_signal") == [["hwpoison_signal", HVA + M2]] * 8


def test_logging_forces_small_pages_and_the_faulting_page_counts(new_vm: Any) -> None:
    """[direct.host.2, direct.level.1] Forced to level 1, the frame is not rounded."""
    vm = new_vm()
    vm("host_huge", hva=HVA, npages=1024, kind="hugetlb2m")
    vm("set_memslot", id=0, gpa=0, size=G1, hva=HVA, flags=1)
    vm("host_state", hva=HVA, npages=1, state="cow")
    vm("access", gpa=0x5000, kind="r")
    assert leaves(vm)[5] & 0xFFF == 0xC67 and not leaves(vm, 2)


@pytest.mark.parametrize(("normal", "level"), [("none", 1), ("read-only", 1), ("small", 1), ("huge", 2)])
def test_the_host_page_size_is_that_of_the_normal_address_space(new_vm: Any, normal: str, level: int) -> None:
    """[direct.level.1]
    Also for a vCPU in SMM, with write intent; the slot's own vetoes are of its own address space."""
    vm = new_vm(size=M2)
    there, smm = HVA + (1 << 34), HVA + (1 << 35)
    if normal != "none":
        vm("set_memslot", id=1, gpa=G1, size=M2, hva=there, flags=2 if normal == "read-only" else 0)
    if normal in ("read-only", "huge"):
        vm("host_huge", hva=there, npages=512, kind="hugetlb2m")
    vm("set_memslot", **{"as": 1, "id": 1, "gpa": G1, "size": M2, "hva": smm})
    vm("smm", vcpu=0, on=1)
    vm("access", gpa=G1 + 0x5000, kind="w")
    assert bool(leaves(vm, 2)) == (level == 2)
    assert (leaves(vm, level)[G1 >> 12 if level == 2 else (G1 >> 12) + 5] >> 12 & (1 << 40) - 1) == (
        smm >> 12 if level == 2 else (smm >> 12) + 5
    )


def test_a_level_above_the_first_veto_is_not_looked_at(new_vm: Any) -> None:
    """[direct.level.1] The result is the last level that passed, level 1 by a veto is not forced."""
    vm = new_vm(size=G1)
    vm("set_memslot", id=1, gpa=2 * G1, size=G1 + M2, hva=HVA + 2 * G1)
    vm("host_huge", hva=HVA + 2 * G1, npages=(G1 + M2) >> 12, kind="hugetlb1g")
    vm("access", gpa=2 * G1, kind="w")
    vm("access", gpa=3 * G1, kind="w")
    assert list(leaves(vm, 3)) == [2 * G1 >> 12] and list(leaves(vm, 2)) == [3 * G1 >> 12]
    vm("track", gfn=(3 * G1 >> 12) + 7, on=1)
    vm("unmap_hva", start=HVA, end=HVA + 4 * G1)
    vm("access", gpa=3 * G1, kind="w")
    assert list(leaves(vm)) == [3 * G1 >> 12] and not leaves(vm, 2)


def test_a_fast_walk_ends_below_the_level_to_map_at(new_vm: Any) -> None:
    """[direct.fast.2]
    The event then names an entry that leads to a table, without its address, and nothing is mended."""
    vm = new_vm(family="ept_ad")
    vm("access", gpa=0x5000, kind="r")
    vm("host_huge", hva=HVA, npages=1 << 18, kind="hugetlb1g")
    line = vm("fault", gpa=0x6000, err=4)
    (event,) = events(line, "fast_pf")
    level_2 = next(page["id"] for page in vm.engine.state()["active"] if page["level"] == 2)
    assert event[4:] == [level_2, 0, "0x107", "0x107", 0]


def test_prefetch_follows_the_marking_of_an_mmio_entry(new_vm: Any) -> None:
    """[direct.prefetch.1] The run before the marked entry ends at it and is mapped."""
    vm = new_vm(size=M2 + 0x3000)
    line = vm("access", gpa=M2 + 0x3000, kind="r")
    assert line["out"]["outcome"] == "emulate"
    assert sorted(leaves(vm)) == [512, 513, 514, 515]
    assert [leaves(vm)[gfn] & 0xFFF for gfn in (512, 513, 514)] == [0xC47] * 3


def test_a_run_that_would_leave_its_slot_ends_the_prefetch(new_vm: Any) -> None:
    """[direct.prefetch.1] Nothing of it is mapped, and later runs are not tried."""
    vm = new_vm(size=M2 + 0x2000)
    vm("set_memslot", id=1, gpa=M2 + 0x4000, size=0x4000, hva=HVA + G1)
    vm("access", gpa=M2 + 0x4000, kind="r")  # the run 0..3 has only two pages of the slot
    assert sorted(leaves(vm)) == [516]
    vm("access", gpa=M2 + 0x6000, kind="r")  # again it comes first, so that 5 is not tried
    assert sorted(leaves(vm)) == [516, 518]


@pytest.mark.parametrize("kernel", ["v5.0", "v5.2"])
def test_the_limit_is_set_before_the_flags_are_looked_at(new_vm: Any, kernel: str) -> None:
    """[slots.commit.1, slots.commit.2]
    Pages over the limit are zapped first, then the walk of the log flag removes write access."""
    vm = new_vm(kernel, size=0x8000)
    vm("set_max_raw", n=1000)
    vm("access", gpa=0, kind="w")
    for table in range(1, 80):
        vm("access", gpa=table * M2, kind="r")
    line = vm("set_memslot", id=0, gpa=0, size=0x8000, hva=HVA, flags=1)
    # The oldest page is the root in use: it is emptied, which ends the resize above its goal.
    assert names(line) == ["srcu_sync", "prepare_zap", "reload_mmus", "flush"]
    state = vm.engine.state()
    assert state["max"] == state["used"] > 64 and state["requested"] == 0
    assert leaves(vm)[0] & 0xFFF == 0xC65


def test_turning_a_log_on_with_pml_clears_dirty_bits_before_it_protects_large_leaves(new_vm: Any) -> None:
    """[dirty.on.1, flush.range.1]
    Two walks, each with its flush over the slot; turning it off sets the bits again."""
    vm = new_vm(family="ept_ad", pml=1, flush_range=1, size=2 * M2)
    vm("host_huge", hva=HVA + M2, npages=512, kind="thp")
    vm("access", gpa=0x1000, kind="w")
    vm("access", gpa=M2, kind="w")
    small, large = leaves(vm)[1], leaves(vm, 2)[512]
    line = vm("set_memslot", id=0, gpa=0, size=2 * M2, hva=HVA, flags=1)
    told = events(line, "pfn_dirty", "flush", "flush_range")
    assert told[:3] == [
        ["pfn_dirty", HVA >> 12],  # prefetched and dirty as well
        ["pfn_dirty", (HVA >> 12) + 1],
        ["flush_range", 0, 1024],
    ]
    assert told[3:] == [["flush_range", 0, 1024]]
    assert leaves(vm)[1] == small & ~(1 << 9) and leaves(vm, 2)[512] == large & ~2
    vm("set_memslot", id=0, gpa=0, size=2 * M2, hva=HVA)
    assert leaves(vm)[1] == small


@pytest.mark.parametrize("flush_range", [0, 1])
def test_a_large_leaf_in_the_way_is_flushed_by_its_table(new_vm: Any, flush_range: int) -> None:
    """[direct.map.1, direct.lpages.1, flush.range.1]
    The flush names the table's gfn and what one of its entries covers; --lpages."""
    vm = new_vm(flush_range=flush_range)
    vm("host_huge", hva=HVA + 4 * M2, npages=512, kind="thp")
    assert vm("access", gpa=4 * M2, kind="w")["ctr"]["lpages"] == 1
    vm("set_memslot", id=0, gpa=0, size=G1, hva=HVA, flags=1)
    line = vm("access", gpa=4 * M2, kind="w")
    wanted = ["flush_range", 0, 512] if flush_range else ["flush"]
    assert events(line, "flush", "flush_range") == [wanted] and line["ctr"]["lpages"] == -1


def test_what_leaves_through_the_reverse_map_stays_in_the_large_page_count(new_vm: Any) -> None:
    """[direct.lpages.1]"""
    vm = new_vm()
    vm("host_huge", hva=HVA, npages=2048, kind="thp")
    assert vm("access", gpa=0, kind="w")["ctr"]["lpages"] == 1
    assert "lpages" not in vm("unmap_hva", start=HVA, end=HVA + 0x1000)["ctr"]
    assert vm("access", gpa=0, kind="w")["ctr"]["lpages"] == 1
    assert "lpages" not in vm("zap_gfn_range", start=0, end=1)["ctr"]


@pytest.mark.parametrize("flush_range", [0, 1])
@pytest.mark.parametrize("kernel", ["v5.0", "v5.2"])
def test_a_collapsed_leaf_is_flushed_alone_where_ranges_can_be(
    new_vm: Any, kernel: str, flush_range: int
) -> None:
    """[dirty.off.1, flush.range.1]
    With the hook one ranged flush an entry, by the table's gfn, and the walk has nothing to report."""
    vm = new_vm(kernel, size=2 * M2, flush_range=flush_range)
    vm("set_memslot", id=0, gpa=0, size=2 * M2, hva=HVA, flags=1)
    vm("access", gpa=M2 + 0x1000, kind="w")
    vm("access", gpa=M2, kind="w")
    vm("host_huge", hva=HVA, npages=1024, kind="thp")
    line = vm("set_memslot", id=0, gpa=0, size=2 * M2, hva=HVA)
    # Without the hook v5.0 flushes all, and v5.2 by a range that falls back to all.
    wanted = [["flush_range", 512, 1]] * 2 if flush_range else [["flush"]]
    assert events(line, "flush", "flush_range") == wanted and not leaves(vm)


@pytest.mark.parametrize("flush_range", [0, 1])
def test_a_changed_page_flushes_each_head_alone_where_ranges_can_be(new_vm: Any, flush_range: int) -> None:
    """[notifier.change.1, flush.range.1] Both address spaces have the page; without the hook one flush at the end."""
    vm = new_vm(flush_range=flush_range, size=M2, vcpus=2)
    vm("set_memslot", **{"as": 1, "id": 1, "gpa": G1, "size": M2, "hva": HVA})
    vm("smm", vcpu=1, on=1)
    vm("access", gpa=0x3000, kind="w")
    vm("access", vcpu=1, gpa=G1 + 0x3000, kind="w")
    line = vm("change_pte", hva=HVA + 0x3000, pfn=0x77, write=0)
    wanted = [["flush_range", 3, 1], ["flush_range", (G1 >> 12) + 3, 1]] if flush_range else [["flush"]]
    assert events(line, "flush", "flush_range") == wanted
    assert {word & 0xFFF for gfn, word in leaves(vm).items() if gfn & 0xFF == 3} == {0x845}


def test_the_shrinker_frees_what_a_dropped_lock_left_waiting(new_vm: Any) -> None:
    """[reclaim.shrink.1] v5.0: it commits the list of obsolete pages, counts nothing, and zaps nothing."""
    vm = new_vm("v5.0", size=32 * M2)
    for table in range(20):
        vm("access", gpa=table * M2, kind="w")
    vm("lock_break", cond=1, need=0, do=[[{"op": "shrink", "n": 5}, {"op": "shrink", "n": 5}]])
    line = vm("zap_all")
    # The root, in use, does not count towards the batch of ten.
    begin, end = names(line).index("nested_begin"), names(line).index("nested_end")
    assert names(line)[:begin].count("prepare_zap") == 11
    assert [done["ret"] for done in line["nested"]] == [0, 1]
    told = [name for name in names(line)[begin + 1 : end] if not name.startswith("pfn_")]
    assert told == ["flush", "prepare_zap", "flush"]


def test_what_the_slot_flush_took_away_is_flushed_at_a_poll(new_vm: Any) -> None:
    """[zap.slot.1]
    No page lies in the slot, only leaves: at the first poll that is true a full flush, none at the end."""
    vm = new_vm("v5.2")
    vm("set_memslot", id=1, gpa=G1 + 0x1000, size=0x8000, hva=HVA + G1)
    vm("access", gpa=G1 + 0x2000, kind="w")
    # Ten heads on three levels, then one poll a gfn: the twelfth is that of the second gfn.
    vm("lock_break", cond=0, need=12, do=[])
    line = vm("set_memslot", id=1, gpa=G1 + 0x1000, size=0, hva=0)
    told = [name for name in names(line) if not name.startswith("pfn_")]
    assert told == ["srcu_sync", "flush", "lock_break", "srcu_sync"]
    assert line["ctr"]["need_resched"] == 18 and line["ctr"]["cond_resched"] == 1


def test_a_leaf_of_another_frame_goes_before_the_new_one_comes(new_vm: Any) -> None:
    """[spte.make.5, flush.range.1] What the guest did with the old page is told, and the flush names the gfn."""
    vm = new_vm(flush_range=1)
    vm("access", gpa=0x3000, kind="w")
    vm("change_pte", hva=HVA + 0x3000, pfn=0x77, write=0)
    line = vm("fault", gpa=0x3000, err=6)
    wanted = [["pfn_dirty", 0x77], ["flush_range", 3, 1]]  # a changed page begins as not accessed
    assert events(line, "pfn_accessed", "pfn_dirty", "flush_range") == wanted
    assert leaves(vm)[3] == (HVA + 0x3000) | 0xC67


def test_a_page_that_became_read_only_behind_the_mmu_is_flushed(new_vm: Any) -> None:
    """[spte.update.1]
    A fault that takes away W from an entry that could get it back without the lock asks for a flush."""
    vm = new_vm(flush_range=1)
    vm("access", gpa=0x3000, kind="w")
    vm("host_state", hva=HVA + 0x3000, npages=1, state="cow")
    line = vm("fault", gpa=0x3000, err=4)
    assert events(line, "pfn_dirty", "flush_range") == [
        ["pfn_dirty", (HVA >> 12) + 3],
        ["flush_range", 3, 1],
    ]
    assert leaves(vm)[3] & 0xFFF == 0x25


def test_operations_on_slots_that_are_not_there(new_vm: Any) -> None:
    """[track.gfn.1]"""
    vm = new_vm()
    assert vm("slot", id=7, what="remove_write_access")["ret"] == -2
    assert vm("pt_masked", id=7, offset=0, mask=1, what="write_protect")["ret"] == -2


def test_a_root_for_nobody_maps_nothing(new_vm: Any) -> None:
    """[mmio.fault.2, direct.map.1]
    A fault without a root: the MMIO check asks to retry, the handler makes room and maps nothing."""
    vm = new_vm()
    assert vm("fault", gpa=0x3000, err=0xC)["ret"] == 1
    line = vm("fault", gpa=0x3000, err=6)
    assert line["ret"] == 1 and line["events"] == []
    line = vm("fault", gpa=2 * G1, err=4)
    assert line["ret"] == 1 and line["events"] == []
    # Without a mapping nothing is emulated, although the vCPU's cache now knows the gfn.
    assert vm.engine.state()["vcpus"][0]["mmio"][1] == 2 * G1 >> 12


def test_fields_that_may_be_left_out_mean_the_same_to_both(new_vm: Any) -> None:
    """A slot without hva lies at 0, one page of a range, no bit of a mask, a notifier's page read-only."""
    vm = new_vm()
    vm("host_state", hva=HVA + 0x1000, state="cow")
    vm("access", gpa=0x1000, kind="r")
    vm("access", gpa=0x2000, kind="r")
    assert [leaves(vm)[gfn] >> 1 & 1 for gfn in (1, 2)] == [0, 1]
    vm("change_pte", hva=HVA + 0x2000, pfn=0x77)
    assert leaves(vm)[2] >> 12 & 0xFFF == 0x77
    assert not leaves(vm)[2] & 2
    assert vm("set_memslot", id=1, gpa=2 * G1, size=0x1000, flags=1)["ret"] == 0
    vm("access", gpa=2 * G1, kind="w")
    assert vm("clear_dirty_log", id=1, first=0, num=1)["ret"] == 0
    assert leaves(vm)[2 * G1 >> 12] & 2
