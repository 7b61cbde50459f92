"""A recording as a workload: its counts are its own, and another kernel makes of it what a real one made."""

from __future__ import annotations

import json
import lzma
import os
import re
from pathlib import Path
from typing import Any

import kvm_mmu as km
import pytest
from kvm_mmu.errors import TraceError, UsageError
from kvm_mmu.lab.inputs import recorded_scenario
from kvm_mmu.scenario.workload import Workload, run_scenario_workload
from kvm_mmu.testing.dry_recording import DryRecording
from kvm_mmu.trace.replay import translation
from kvm_mmu.trace.replay.host_ranges import HostRanges
from kvm_mmu.trace.replay.workload import Recording, read_recording

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
#: Recordings of half a million and of a hundred thousand lines: `make soak` has time for them.
LARGE = {"6.1/npt1tdp0_wrap_flags", "6.12/npt1tdp0_memslot_churn_big"}
ALL = [f"{d.parent.name}/{d.name}" for kernel in sorted(TRACES.iterdir()) for d in sorted(kernel.iterdir())]
SOAK = os.environ.get("KVM_MMU_SOAK", "") not in ("", "0")
#: Guests whose own page tables are shadowed: replayed, and no workloads.
SHADOWED = re.compile(r"[67].*/[en]pt0_(?!.*(flat|real)$)|5\.[02]\.1/")
DIRECT = [name for name in ALL if (SOAK or name not in LARGE) and not SHADOWED.match(name)]


def path_of(name: str) -> Path:
    return TRACES / name / "trace.txt.xz"


def recorded_counts(path: Path, *, is_5x: bool) -> list[tuple[int, int, int]]:
    """Of each VM: pages made, pages zapped before its end, and at its end, as a plain count of the lines gives."""
    end = '"op":"destroy_vm"' if is_5x else '"op":"end"'
    vms: list[list[int]] = []
    is_over = False
    packed = path.suffix == ".xz"
    with lzma.open(path, "rt", errors="replace") if packed else path.open(errors="replace") as lines:
        for line in lines:
            if '"op":"create_vm"' in line:
                vms.append([0, 0, 0])
                is_over = False
            is_over = is_over or end in line
            if vms and "kvm_mmu_get_page:" in line:
                vms[-1][0] += line.rstrip().endswith("new")
            if vms and "kvm_mmu_prepare_zap_page:" in line:
                vms[-1][2 if is_over else 1] += 1
    return [(made, zapped, at_end) for made, zapped, at_end in vms]


def counts(workload: Workload) -> tuple[int, int]:
    return workload.made, workload.zapped


def leaves(workload: Workload) -> set[tuple[int, int, int, bool]]:
    """Every entry that maps something: where it stands, and whether it may be written (6.x: without a write fault)."""
    found = set()
    for page_id in workload.vm.core.active_page_ids():
        page = workload.vm.core.page(page_id)
        assert page is not None
        for index, raw, child in page["sptes"]:
            if child is None:
                found.add((page["gfn"], page["level"], index, bool(raw & 2)))
    return found


def run(recording: Recording, kernel: str | None = None, **more: Any) -> Workload:
    return run_scenario_workload(recorded_scenario(recording, kernel), moment="end", **more)


@pytest.mark.parametrize("name", DIRECT)
def test_the_counts_are_the_recordings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = read_recording(path_of(name))
    wanted = recorded_counts(path_of(name), is_5x=name.startswith(("5.0", "5.2")))
    assert len(wanted) == len(recording.vms)
    for number, (made, zapped, at_end) in enumerate(wanted, 1):
        workload = run_scenario_workload(recorded_scenario(recording, vm=number), moment="end")
        assert counts(workload) == (made, zapped)
        assert workload.vm.audit() == []
        # The event of the recording itself: its own kernel's teardown.
        workload.vm.destroy()
        assert workload.zapped - zapped == at_end
    # The same guest without what its kernel decided: the accesses behind its faults make the same pages.
    before = run(recording)
    monkeypatch.setattr(translation, "_Same", translation._Other)
    accesses = run(recording)
    assert counts(accesses) == counts(before) and accesses.population() == before.population()
    assert leaves(accesses) == leaves(before)


#: Scenarios that two kernels were recorded with. Made on the kernel that zaps more, since a recording holds only the
#: accesses that faulted: the other kernel's own recording must give the same counts.
PAIRS = [
    *(
        ("5.0.1-npt/" + name, "5.2.1-npt/" + name)
        for name in ("basic", "dirty", "legacy32", "nopaging", "pthuge")
    ),
    *(("5.0.1-npt/" + name, "5.2.1-npt/" + name) for name in ("mmio_gen", "vcpus")),
    ("6.1/npt1tdp0_dirty_log", "6.12/npt1tdp0_dirty_log"),
    ("6.1/npt1tdp0_shrink", "6.12/npt1tdp0_shrink"),
    ("6.12/npt1tdp0_mmio_generation_100", "6.1/npt1tdp0_mmio_generation_100"),
    ("6.12/npt0_dirty_log_flat", "6.1/npt0_dirty_log_flat"),
    ("6.1/npt0_multi_vcpu_flat", "6.12/npt0_multi_vcpu_flat"),
]


@pytest.mark.parametrize(("made_on", "other"), PAIRS)
def test_another_kernel_makes_of_it_what_the_real_one_made(made_on: str, other: str) -> None:
    there = read_recording(path_of(other))
    workload = run(read_recording(path_of(made_on)), there.kernel)
    made, zapped, _ = recorded_counts(path_of(other), is_5x=other.startswith(("5.0", "5.2")))[
        there.busiest() - 1
    ]
    assert counts(workload) == (made, zapped)
    assert workload.population() == run(there).population()


@pytest.mark.parametrize(
    "name", ["5.0.1-npt/mix001", "5.2.1-npt/vcpus", "6.1/npt1tdp0_smm", "6.12/npt0_dirty_log_flat"]
)
def test_every_kernel_and_every_plan(name: str) -> None:
    recording = read_recording(path_of(name))
    for at in ("wrap", "slot-removal", "teardown"):
        found = km.compare(recording, list(km.plans), at=at, kernel=list(km.kernels))
        of_roots = [name for name, plan in km.plans.items() if plan.is_of_roots]
        newer = [name for name, profile in km.kernels.items() if profile.facts["has_tdp_mmu"]]
        newer = [] if recording.vms[0].config["family"] == "shadow" else newer
        assert len(found) == (len(km.plans) - len(of_roots)) * len(km.kernels) + len(of_roots) * len(newer)
        assert {row["mmu"] for row in found.rows if row["plan"] in of_roots} == ({"tdp"} if newer else set())
        assert set(found.column("outcome")) <= {"done", "not exercised"}
        assert {row["outcome"] for row in found.rows if row["plan"] == "zap-all"} == {"done"}
        assert found.rows == km.compare(recording, list(km.plans), at=at, kernel=list(km.kernels)).rows
        assert not [note for note in found.notes if "do not get through" in note or "otherwise than" in note]


def test_what_was_changed_is_said() -> None:
    manual = km.compare(
        path_of("6.12/npt1tdp0_dirty_log_manual3"), ["merged"], at="wrap", kernel=["v6.12", "v5.0", "v5.2"]
    )
    said = [note for note in manual.notes if "recorded on" in note]
    assert len(said) == 1 and "run as v5.0, v5.2: " in said[0]
    for words in (
        "faults as guest accesses",
        "66 steps of the dirty log as write protection",
        "1 manual protect without a log that is set from the start",
        "what took no fault on v6.12 is not in it",
    ):
        assert words in said[0]
    huge = km.compare(path_of("6.12/npt1tdp0_nxhuge_huge_thp"), ["merged"], kernel="v5.2").notes
    assert any(
        "nx_huge_pages=1 is left out" in note and "3 ranges of host memory in pages of 2 MiB" in note
        for note in huge
    )
    flat = km.compare(path_of("6.1/npt0_basic_flat"), ["zap-all"], kernel="v5.2").notes
    assert any("run under two-dimensional paging (npt)" in note for note in flat)
    assert km.compare(path_of("6.1/npt0_basic_flat"), ["zap-all"]).notes == []
    answers = km.compare(path_of("6.1/npt1tdp0_notifier"), ["zap-all"]).notes
    assert answers == ["npt1tdp0_notifier: 95 answers of host memory are the recording's"]


def test_which_vm_and_when() -> None:
    path = path_of("5.0.1-npt/mmio_gen")
    found = km.compare(path, ["merged"], at="wrap")
    marks = "v5.0 keeps no mmio_cached marks on its shadow pages: merged goes by marks that the model adds"
    assert sorted(found.notes) == ["mmio_gen: VM 1 of 2, the one with the most operations", marks]
    second = km.compare(path, ["merged"], at="wrap", vm=2)
    assert sorted(second.notes) == ["mmio_gen: VM 2 of 2", marks] and second.workloads != found.workloads
    with pytest.raises(UsageError, match="VM 3: expected 1 to 2"):
        km.compare(path, ["merged"], vm=3)
    # Everything is zapped before this VM ends: the moment with the most pages is taken, and said.
    smm = path_of("6.1/npt1tdp0_smm")
    peak = km.compare(smm, ["merged"], at="wrap")
    assert any("no shadow page lives at its end: taken after operation" in note for note in peak.notes)
    assert peak.rows[0]["outcome"] == "done"
    end = km.compare(smm, ["merged"], at="wrap", moment="end")
    assert sorted(end.notes) == [
        "npt1tdp0_smm had no stale MMIO SPTEs: no run of it shows that a plan is sound",
        marks.replace("v5.0", "v6.1"),
    ]
    assert end.rows[0]["sound"] is None and end.rows[0]["outcome"] == "not exercised"
    with pytest.raises(UsageError, match="moment 'noon'"):
        km.compare(smm, ["merged"], moment="noon")
    with pytest.raises(UsageError, match="not with scale"):
        km.compare(smm, ["merged"], moment="end", scale=[100])


def test_a_recording_scales() -> None:
    found = km.compare(path_of("6.1/npt1tdp0_basic_long"), ["merged", "seed"], at="wrap", scale=[300, 900])
    assert [row["pages"] >= 300 for row in found.rows] == [True] * 4
    assert {fit["plan"] for fit in found.fits} == {"merged", "seed"}


def test_repeated_accesses_find_the_host_as_it_was() -> None:
    """Host addresses above the physical width would make every access stick in reserved bits."""
    found = km.compare(path_of("6.12/npt1tdp0_dirty_log"), ["zap-all"], at="wrap").rows[0]
    assert found["tables_rebuilt"] == 7 and 0 < found["faults_again"] < 60


def test_updates_without_a_marker_change_flags() -> None:
    slot = {"op": "set_memslot", "as": 0, "id": 3, "gpa": 0, "size": 1 << 20, "hva": 1 << 40, "flags": 0}
    update = [{"op": "set_generation", "as": 0, "gen": 2}, {"op": "invalidate_mmio", "as": 0}]
    made = translation.translate(
        {"phys_bits": 40}, [*update, slot, *update, *update], [0] * 7, "v6.1", "v5.2"
    )
    assert [op["flags"] for op in made.ops] == [0, 1, 0]
    assert "2 memslot updates without a marker, as changes of the flags" in made.changes[0]
    assert "1 memslot update without a slot left out" in made.changes[0]
    same = translation.translate({"phys_bits": 40}, [slot, *update], [0] * 3, "v6.1", "v6.12")
    assert [op["op"] for op in same.ops] == ["set_memslot", "set_generation", "invalidate_mmio"]


def test_host_windows_keep_order_and_neighbours() -> None:
    gib = 1 << 30
    ranges = HostRanges([(0x7F12 * gib, gib + 1), (0x5000 * gib + 4096, 4096)])
    assert [ranges.move(a) for a in (0x5000 * gib + 4096, 0x7F12 * gib + 5, 0x7F13 * gib)] == [
        gib + 4096,
        2 * gib + 5,
        3 * gib,
    ]
    # A range over what lies between ends where the next window begins; one behind all is behind all.
    assert ranges.move(0x6000 * gib + 7) == 2 * gib and ranges.move(0x7FFF * gib) == 4 * gib
    assert ranges.phys_bits == 32
    assert len(HostRanges([(0, 1 << 63)])._windows) < 5000


def test_an_unknown_kernel_is_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_bytes(lzma.decompress(path_of("6.1/npt0_basic_real").read_bytes()))
    with pytest.raises(TraceError, match=r"trace\.txt: which kernel made this recording is not known"):
        km.compare(path, ["zap-all"], kernel="v5.2")
    host = json.loads((TRACES / "6.1" / "npt0_basic_real" / "host.json").read_text())
    assert km.compare(path, ["zap-all"], kernel="v5.2", host=host).rows[0]["kernel"] == "v5.2"
    with pytest.raises(TraceError, match=r"trace\.txt: recorded on kernel 'v4.9'"):
        km.compare(path, ["zap-all"], host={"kernel": "4.9"})


def test_ways_out_of_a_comparison_on_a_recording(tmp_path: Path) -> None:
    found = km.compare(path_of("6.1/npt1tdp0_smm"), ["merged", "zap-all"], at="wrap", kernel=["v6.1", "v5.2"])
    html = found._repr_html_()
    assert "<p>note: npt1tdp0_smm: recorded on v6.1, run as v5.2: 34 faults as guest accesses" in html
    svg = found.to_svg("pages_zapped")
    assert "merged, v5.2" in svg and "merged, v6.1" in svg
    names = {path.name: path.read_text() for path in found.write(tmp_path)}
    assert json.loads(names["compare.json"])["workloads"][1]["kernel"] == "v5.2"
    assert names["compare.csv"].count("\n") == 5
    polars = pytest.importorskip("polars")
    frame = found.to_polars()
    assert frame.height == 4 and frame["sound"].to_list() == ["yes"] * 4
    assert polars.DataFrame(km.compare(path_of("6.1/npt1tdp0_smm"), ["merged"])).height == 1
    pytest.importorskip("matplotlib")
    labels = [text.get_text() for text in found.plot(of="pages_zapped").get_yticklabels()]
    assert labels == ["merged, v6.1", "zap-all, v6.1", "merged, v5.2", "zap-all, v5.2"]


def test_other_plans_all_along() -> None:
    recording = read_recording(path_of("5.0.1-npt/vcpus"))
    own = run_scenario_workload(recorded_scenario(recording, as_accesses=True), moment="end")
    plans = {"slot_removal": "v5.2-slot"}
    other = run_scenario_workload(recorded_scenario(recording, as_accesses=True, plans=plans), moment="end")
    assert counts(own) == (31, 27) and counts(other) == (10, 3)
    assert other.vm.profile.plans["slot_removal"].name == "v5.2-slot"


@pytest.mark.parametrize("seed", range(100, 160 if SOAK else 104))
def test_recordings_that_nobody_made(seed: int, tmp_path: Path) -> None:
    """By a third model: several VMs and vCPUs, SMM, five levels, large leaves, notifiers, the shrinker."""
    path = DryRecording(seed).write(tmp_path)
    recording = read_recording(path)
    for number, (made, zapped, _) in enumerate(recorded_counts(path, is_5x=False), 1):
        own = run_scenario_workload(recorded_scenario(recording, vm=number), moment="end")
        accesses = recorded_scenario(recording, vm=number, as_accesses=True)
        assert counts(own) == counts(run_scenario_workload(accesses, moment="end")) == (made, zapped)
    for kernel in ("v5.0", "v5.4"):
        found = km.compare(recording, ["merged", "v5.4-fast"], at="wrap", kernel=kernel)
        assert {row["sound"] for row in found.rows} == {"yes"}


@pytest.mark.skipif(not SOAK, reason="half a million operations under each of four kernels")
def test_a_recorded_wrap_under_other_kernels() -> None:
    recording = read_recording(path_of("6.1/npt1tdp0_wrap_flags"))
    found = {kernel: counts(run(recording, kernel)) for kernel in ("v6.1", "v6.12", "v5.2", "v5.0-seed")}
    assert found == {"v6.1": (14, 8), "v6.12": (14, 8), "v5.2": (8, 1), "v5.0-seed": (7, 0)}


def translated(ops: list[dict[str, Any]], recorded: str, target: str) -> list[tuple[str, Any]]:
    """What becomes of operations after a slot of 1 MiB at 0, in short."""
    slot = {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 1 << 20, "hva": 1 << 30, "flags": 0}
    made = translation.translate({"phys_bits": 40}, [slot, *ops], [0] * (1 + len(ops)), recorded, target)
    return [(op["op"], op.get("state", op.get("kind", op.get("n")))) for op in made.ops[1:]]


def test_a_write_to_the_zero_page_finds_the_page_as_it_leaves_it() -> None:
    fault = {"op": "fault", "vcpu": 0, "gpa": 0x1000, "err": 7}
    state = {"op": "host_state", "hva": (1 << 30) + 4096, "npages": 1}
    poisoned, writable, zero = ({**state, "state": name} for name in ("hwpoison", "rw", "cow"))
    gone = {"op": "unmap_hva", "start": (1 << 30) + 4096, "end": (1 << 30) + 8192}
    broke = translated([poisoned, fault, gone, writable, fault], "v5.0", "v5.2")
    assert broke == [("unmap_hva", None), ("host_state", "rw"), ("access", "w"), ("access", "w")]
    # Answered before its page was looked up: it stays what it was.
    assert translated([poisoned, fault, zero], "v5.0", "v5.2") == [("host_state", "cow"), ("access", "w")]
    assert translated([poisoned, fault, zero], "v5.0", "v5.0")[0] == ("host_state", "hwpoison")


def test_a_fault_without_a_mapping_keeps_its_place() -> None:
    first = {"op": "fault", "vcpu": 0, "gpa": 0x1000, "err": 4, "host": None}
    scan = {"op": "zap_oldest", "n": 128}
    assert translated([first, scan], "v6.1", "v6.12") == [("access", "r"), ("zap_oldest", 128)]
    assert translated([first, scan], "v6.1", "v5.4") == [("access", "r"), ("shrink", 128)]
    second = {**first, "host": {"level": 1, "writable": 1, "found": list(range(8))}}
    assert translated([first, second, scan], "v6.1", "v6.12") == [("access", "r"), ("zap_oldest", 128)]


def test_host_memory_is_stated_for_whoever_asks_later() -> None:
    first = {"op": "fault", "vcpu": 0, "gpa": 0x1000, "err": 4, "host": None}
    zero = {**first, "host": {"level": 1, "writable": 0, "found": []}}
    same = translated([first, zero], "v6.1", "v6.1")
    assert same == [("fault", None), *[("host_state", "cow")] * 8, ("fault", None)]
    there = {**first, "host": {"level": 1, "writable": 1, "found": [0, 2]}}
    stated = translated([first, zero, first, there], "v6.1", "v6.1")[len(same) :]
    assert stated == [("fault", None), *[("host_state", "rw")] * 3, ("fault", None)]


def test_a_guest_whose_tables_are_shadowed_is_no_workload() -> None:
    for name in ("5.0.1/legacy32", "6.1/npt0_pt_writes_long"):
        with pytest.raises(UsageError, match="such a recording is replayed, but is no workload"):
            km.compare(path_of(name), ["merged"], at="wrap")
