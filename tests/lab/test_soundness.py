"""Soundness of a plan for an event, by what is left after a run. Each count is known beforehand."""

from __future__ import annotations

import kvm_mmu as km
import pytest
from kvm_mmu.lab import soundness
from kvm_mmu.scenario.workload import Workload, mmio_mix
from kvm_mmu.words.codec import Codec

KERNELS = ["v5.0", "v5.2", "v5.4", "v6.1", "v6.12"]
NOT_ENOUGH = {
    "wrap": {"v5.2-slot", "v6.12-slot"},
    "slot-removal": {"seed", "v3.10-mmio", "merged", "indexed"},
    "teardown": {"seed", "v3.10-mmio", "merged", "indexed", "v5.2-slot", "v6.12-slot"},
}


def mix(kernel: str, family: str = "npt") -> Workload:
    # 40 tables: 30 of one page of RAM each, 10 of one MMIO page each.
    return mmio_mix(40, 0.25, "even", kernel=kernel, family=family)


def left(found: km.lab.comparison.Comparison) -> dict[str, int | None]:  # type: ignore[name-defined]
    return {row["plan"]: row["left_over"] for row in found.rows}


@pytest.mark.parametrize("at", NOT_ENOUGH)
@pytest.mark.parametrize("kernel", KERNELS)
def test_named_plans(kernel: str, at: str) -> None:
    found = km.compare(mix(kernel), list(km.plans), at=at)
    assert {row["plan"] for row in found.rows if row["sound"] == "no"} == NOT_ENOUGH[at]
    assert {plan for _, plan in found.unsound} == NOT_ENOUGH[at]
    for row in found.rows:
        assert (row["left_over"] > 0) == (row["plan"] in NOT_ENOUGH[at]), row
        assert row["to_go"] >= row["left_over"] and row["to_go"] > 0
    counted = left(found)
    if at == "wrap":
        assert counted["v5.2-slot"] == counted["v6.12-slot"] == 10
    if at == "slot-removal":
        assert counted["merged"] == 30 if kernel.startswith("v5") else counted["merged"] >= 30


@pytest.mark.parametrize("family", ["ept_ad", "ept_noad"])
def test_ept(family: str) -> None:
    assert left(km.compare(mix("v5.2", family), ["merged", "v5.2-slot"], at="slot-removal")) == {
        "merged": 30,
        "v5.2-slot": 0,
    }
    assert left(km.compare(mix("v5.2", family), ["v5.2-slot"], at="wrap")) == {"v5.2-slot": 10}


def test_nothing_is_asked_at_the_end() -> None:
    found = km.compare(mix("v5.2"), list(km.plans))
    for name in ("sound", "to_go", "left_over"):
        assert set(found.column(name)) == {None}
    assert found.findings == []


def test_nothing_to_take_shows_nothing() -> None:
    found = km.compare(mmio_mix(5, 0.0, kernel="v5.2"), ["v5.2-slot", "merged", "zap-all"], at="wrap")
    assert (
        found.column("sound") == [None] * 3 and found.column("to_go") == found.column("left_over") == [0] * 3
    )
    assert found.column("outcome") == ["done", "not exercised", "done"]
    assert [note for note in found.notes if "no run of it shows that a plan is sound" in note] == found.notes[
        -1:
    ]


def test_a_plan_without_its_slot_did_nothing() -> None:
    vm = km.Vm(kernel="v5.2", family="npt", events="off")
    vm.core.set_max_raw(100)
    vm.vcpus[0].access(0x1000, "r")
    found = km.compare(Workload("no slot", vm, []), ["v5.2-slot", "merged"], at="wrap")
    assert found.column("outcome") == ["not exercised", "done"]
    assert found.column("sound") == ["no", "yes"] and found.column("left_over") == [1, 0]


@pytest.mark.parametrize("pages", [2_000, 30_000])
def test_the_run_is_judged_at_every_size(pages: int) -> None:
    """The plan's words promise everything, its stop rule leaves it all."""
    small = mmio_mix(pages, 0.01, kernel="v5.2")
    found = km.compare(small, ["walk=tail,only=all,stop=first_not_obsolete", "indexed"], at="wrap")
    count = small.population().mmio_pages
    assert found.column("sound") == ["no", "yes"] and found.column("outcome") == ["not exercised", "done"]
    assert found.column("to_go") == [count, count] and found.column("left_over") == [count, 0]
    assert found.findings == [(small.name, found.rows[0]["plan"], "not exercised")]


def test_the_core_counts_what_its_pages_hold() -> None:
    """Against the entries of every page, decoded outside the core: 2 MiB leaves, two spaces, MMIO, younger pages."""
    vm = km.Vm(kernel="v5.2", family="npt", events="off")
    for as_id in (0, 1):
        vm.memslots.create(slot=0, gpa=0, size=8 << 20, as_id=as_id)
    vm.core.set_host_huge(next(slot.hva for as_id, slot in vm.memslots if as_id == 0), 1024, "thp")
    for smm in (False, True):
        vm.vcpus[0].set_smm(smm)
        for gpa in (0x1000, 0x2000, 3 << 20, 5 << 20, 7 << 20, 64 << 20, 65 << 20):
            vm.vcpus[0].access(gpa, "w")
    codec = Codec(vm.profile, vm.family, int(vm.config["phys_bits"]))
    last = max(vm.core.active_page_ids())
    for newest in (0, 3, last // 2, last):
        mmio, mapped = 0, {0: 0, 1: 0}
        for page in (vm.core.page(i) for i in vm.core.active_page_ids() if i <= newest):
            assert page is not None
            for index, raw, child in page["sptes"]:
                gfn = page["gfn"] + (index << 9 * (page["level"] - 1))
                is_mmio = child is None and bool(codec.decode_mmio_sptes([raw]).is_mmio[0])
                mmio += is_mmio
                mapped[page["role"] >> 24] += child is None and not is_mmio and gfn < 2048
        assert vm.core.count_mmio_sptes(newest) == mmio
        assert {as_id: vm.core.count_mappings(as_id, 0, newest) for as_id in (0, 1)} == mapped
    assert mmio == 4 and mapped[0] >= 4 and mapped[1] >= 4
    assert vm.core.count_mappings(0, 9, last) == 0
    with pytest.raises(km.UsageError):
        vm.core.count_mappings(2, 0, last)


def test_a_plan_in_python_is_judged_by_its_run() -> None:
    def all_but_one(vm: km.Vm) -> None:
        with vm.zap_batch() as batch:
            for page in [page for page in vm.active_pages() if page.mmio_cached][1:]:
                batch.prepare(page)

    def every_one(vm: km.Vm) -> None:
        with vm.zap_batch() as batch:
            for page in [page for page in vm.active_pages() if page.mmio_cached]:
                batch.prepare(page)

    found = km.compare(mix("v5.2"), [all_but_one, every_one], at="wrap")
    assert found.column("sound") == ["no", "yes"] and found.column("left_over") == [1, 0]
    assert any("all_but_one left 1 stale MMIO SPTEs of" in note for note in found.notes)
    assert found.findings[0][1:] == ("all_but_one", "unsound") and len(found.findings) == 1


def test_pages_made_in_lock_breaks_are_not_left_over() -> None:
    small = mmio_mix(40, 0.5, "tail", kernel="v5.2")
    found = km.compare(small, ["merged"], at="wrap", contend=20, added=1)
    assert found.rows[0]["lock_breaks"] > 0 and found.rows[0]["outcome"] == "done"
    assert found.rows[0]["left_over"] == 0 and found.rows[0]["sound"] == "yes"


def test_pages_made_during_the_run_are_after_the_event() -> None:
    # A fast invalidate leaves them alone, as it must: they carry the new generation.
    small = mmio_mix(40, 0.5, "tail", kernel="v6.1")
    found = km.compare(small, ["v5.4-fast"], at="wrap", contend=1, added=3)
    assert found.rows[0]["lock_breaks"] > 0 and found.rows[0]["outcome"] == "done"
    assert found.rows[0]["left_over"] == 0 and found.rows[0]["sound"] == "yes"


def test_mappings_of_other_slots_and_other_address_spaces_stay() -> None:
    vm = km.Vm(kernel="v5.2", family="npt", events="off")
    for as_id in (0, 1):
        vm.memslots.create(slot=0, gpa=0, size=4 << 20, as_id=as_id)
    vm.memslots.create(slot=1, gpa=8 << 20, size=2 << 20)
    for smm in (False, True):
        vm.vcpus[0].set_smm(smm)
        vm.vcpus[0].access(0x1000, "w")
    vm.vcpus[0].set_smm(False)
    vm.vcpus[0].access(8 << 20, "w")
    found = km.compare(Workload("two slots", vm, []), ["v5.2-slot", "merged"], at="slot-removal")
    assert left(found) == {"v5.2-slot": 0, "merged": soundness.to_go(vm, "slot-removal", (0, 0), 1 << 30)}
    assert 0 < left(found)["merged"] <= 8
    assert soundness.to_go(vm, "slot-removal", (0, 9), 1 << 30) == 0


def test_a_run_that_does_not_end_is_not_judged() -> None:
    small = mmio_mix(40, 0.5, "tail", kernel="v5.2")
    row = km.compare(small, ["zap-all"], at="teardown", contend=2, added=2).rows[0]
    assert row["outcome"] == "livelock" and row["sound"] is None and row["left_over"] is None


def test_every_event_says_what_it_needs_gone() -> None:
    assert set(soundness.NEEDS) == set(NOT_ENOUGH)
