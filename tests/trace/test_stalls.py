"""Stalls and timelines: known answers on a written trace, order and attribution on recordings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.analysis.activity import activity
from kvm_mmu.trace.analysis.export import export_csv, export_parquet
from kvm_mmu.trace.analysis.mmu_work import FAULT_ZAP, LONE_ZAP, ROOT_FREED
from kvm_mmu.trace.analysis.operation_table import percentile
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.text.line import nanoseconds
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"


def at(time: str, task: str, text: str) -> str:
    return f"{task:>22} [000] ..... {time}: {text}"


ZAP = "kvm_mmu_prepare_zap_page: sp gen 0 gfn 1 l1 8-byte q0 direct wux nxe ad root 0 sync"
#: vCPU 0 waits 100 us, 60 of them for a memslot update that another thread makes and 20 for the zap inside it;
#: vCPU 1 waits 30 us for nothing that the trace shows, and 10 us for reclaim in its own fault.
STORY = [
    at("1.000000", "CPU 0/KVM-10", "kvm_entry: vcpu 0, rip 0x1000"),
    at("1.000000", "CPU 1/KVM-11", "kvm_entry: vcpu 1, rip 0x1000"),
    at("1.000010", "qemu-9", "set_memslot: (kvm_set_memslot+0x0/0x640 [kvm]) change=1"),
    at("1.000030", "CPU 0/KVM-10", "kvm_exit: vcpu 0 reason npf rip 0x1000"),
    at("1.000030", "CPU 0/KVM-10", "kvm_page_fault: vcpu 0 rip 0x1000 address 0x0000000000001000 error_code 0x4"),
    at("1.000050", "qemu-9", "zap_all_fast_enter: (kvm_mmu_zap_all_fast+0x0/0x1e0 [kvm])"),
    at("1.000060", "qemu-9", "kvm_mmu_prepare_zap_page: sp gen 0 gfn 0 l1 8-byte q0 direct wux nxe ad root 0 sync"),
    at("1.000070", "qemu-9", "memslots_updated: (kvm_arch_memslots_updated+0x0/0xb0 [kvm]) gen=0x2"),
    at("1.000110", "qemu-9", "change_mmu_pages: (kvm_mmu_change_mmu_pages+0x0/0x50 [kvm]) goal=64"),
    at("1.000120", "qemu-9", "sched_switch: prev_comm=qemu ==> next_comm=idle"),
    at("1.000130", "CPU 0/KVM-10", "kvm_entry: vcpu 0, rip 0x1000"),
    at("1.000200", "CPU 1/KVM-11", "kvm_exit: vcpu 1 reason npf rip 0x1000"),
    at("1.000215", "CPU 1/KVM-11", "zap_oldest: (kvm_mmu_zap_oldest_mmu_pages+0x0/0x100 [kvm]) nr=21"),
    at("1.000220", "CPU 1/KVM-11", ZAP),
    at("1.000225", "CPU 1/KVM-11", "zap_oldest_ret: (x+0x1/0x2 [kvm] <- kvm_mmu_zap_oldest_mmu_pages) ret=1"),
    at("1.000240", "CPU 1/KVM-11", "kvm_entry: vcpu 1, rip 0x1000"),
    at("1.000250", "CPU 1/KVM-11", "kvm_exit: vcpu 1 reason hlt rip 0x1000"),
    at("1.000900", "qemu-9", "kvm_mmu_prepare_zap_page: sp gen 0 gfn 2 l1 8-byte q0 direct wux nxe ad root 0 sync"),
]  # fmt: skip


def test_known_answers():
    found = stalls(STORY, "story")
    assert (found.waits, found.waited_ns, found.unfinished) == (2, 140_000, 0)
    assert found.durations("zap-all") == [20_000]
    assert (
        found.durations("memslot update") == found.durations("memslot update", "delete") == [20_000, 40_000]
    )
    assert found.durations("reclaim") == [10_000]
    assert found.other_ns == 50_000 and found.other_reasons == {"npf": 30_000, "page_fault": 20_000}
    works = {cause: count for cause, count in found.works.items() if count}
    assert works == {"memslot update": 1, "zap-all": 1, "reclaim": 1, LONE_ZAP: 1}
    assert [(s.wait.vcpu, s.work.cause, s.work.pages_zapped) for s in found.stalls] == [
        (0, "memslot update", 0), (0, "zap-all", 1), (0, "memslot update", 0), (1, "reclaim", 1),
    ]  # fmt: skip
    # The update's first 20 us and nothing of the zap went by without a waiting vCPU.
    assert found.idle_ns == {"memslot update": 20_000, "zap-all": 0, "reclaim": 0, LONE_ZAP: 0}
    text = " ".join(found.as_text().split())
    zap_all = "for zap-all of memslot delete by qemu-9 (lines 6-7, 1 page zapped)"
    assert f"vCPU 0 (page_fault) waited 20.0 us {zap_all}" in text
    assert "for memslot update (delete) by qemu-9" in text and "(nothing in the trace explains it)" in text


def test_percentiles_are_values_of_the_list():
    assert [percentile(list(range(1, 101)), p) for p in (50, 99, 100)] == [50, 99, 100]
    assert (percentile([7], 50), percentile([7], 99), percentile([], 50)) == (7, 7, 0)
    assert percentile([1, 2, 3], 50) == 2


def test_times_in_nanoseconds():
    assert [nanoseconds(t) for t in ("1.000001", "12345.123456789", "0.1")] == [
        1_000_001_000,
        12345123456789,
        10**8,
    ]


def reconcile(path: Path) -> None:
    """Every operation and page of the text is in one work, every nanosecond of waiting under one cause."""
    lines, name = read_lines(path), path.parent.name
    found, works = stalls(lines, name), activity(lines).works
    events = Counter(text[:400].split(": ", 2)[1] for text in lines if text.count(": ", 0, 400) > 1)
    zap_alls = events["kvm_mmu_zap_all_fast"] + events["kvm_mmu_invalidate_zap_all_pages"]
    assert found.works["zap-all"] == zap_alls, name
    for probe, cause in (("set_memslot", "memslot update"), ("zap_oldest", "reclaim")):
        assert not events[probe] or found.works[cause] == events[probe], (name, cause)
    assert all(w.start_ns <= w.end_ns and w.first_line <= w.last_line for w in works), name
    assert sum(w.pages_zapped for w in works) == events["kvm_mmu_prepare_zap_page"], name
    assert found.other_ns == sum(found.other_reasons.values()), name
    assert found.waited_ns == found.other_ns + sum(stall.duration_ns for stall in found.stalls), name


@pytest.mark.parametrize("family", ["5.0.1-npt", "5.2.1-npt", "6.1", "6.12"])
def test_recordings_reconcile(family: str):
    paths = sorted((TRACES / family).glob("*/trace.txt.xz"))
    assert paths
    for path in paths:
        if not path.parent.name.endswith(("_big", "reclaim_flat", "generation_100", "wrap_flags", "shrink")):
            reconcile(path)


@pytest.mark.soak
def test_all_shared_recordings_reconcile(shared: Path):
    for path in sorted((shared / "traces").glob("*/*/trace.txt.xz")):
        reconcile(path)


@pytest.mark.parametrize("name", ["6.1/npt1tdp0_multi_vcpu", "6.12/npt1tdp0_zap_batch", "5.0.1-npt/mmio_gen"])
def test_totals_reconcile(name: str):
    lines = read_lines(TRACES / name / "trace.txt.xz")
    found = stalls(lines, name)
    assert found.waited_ns == found.other_ns + sum(stall.duration_ns for stall in found.stalls)
    zapped = sum(": kvm_mmu_prepare_zap_page:" in text for text in lines)
    assert sum(work.pages_zapped for work in activity(lines).works) == zapped
    as_json = json.loads(json.dumps(found.as_json()))
    total = sum(cause["total_ns"] for cause in as_json["causes"].values())
    assert total + as_json["other_ns"] == as_json["waited_ns"]


def test_attribution_on_a_recording():
    found = stalls(read_lines(TRACES / "6.12" / "npt1tdp0_reclaim_flat" / "trace.txt.xz"), "x")
    reclaim = [stall for stall in found.stalls if stall.work.cause == "reclaim"]
    assert [stall.work.pages_zapped for stall in reclaim] == [21, 21]
    assert {stall.wait.reason for stall in reclaim} == {"page_fault"}


def test_a_batch_ends_with_its_flush():
    flush = "commit_zap: (kvm_mmu_commit_zap_page.part.0+0x0/0x100 [kvm])"
    lines = [
        at("1.000000", "qemu-9", "zap_all_fast_enter: (kvm_mmu_zap_all_fast+0x0/0x1e0 [kvm])"),
        *(at(f"1.00001{i}", "qemu-9", ZAP) for i in range(3)),
        at("1.000020", "qemu-9", flush),
        at("1.000030", "qemu-9", ZAP),
        at("1.000031", "qemu-9", flush),
        at("1.000040", "qemu-9", "sched_switch: x"),
    ]
    found = activity(lines)
    assert [(b.start_ns % 1_000_000, b.end_ns % 1_000_000, b.pages) for b in found.batches] == [
        (10_000, 20_000, 3),
        (30_000, 31_000, 1),
    ]
    assert [(work.cause, work.pages_zapped) for work in found.works] == [("zap-all", 4)]


def test_files(tmp_path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    source = TRACES / "6.1" / "npt1tdp0_multi_vcpu" / "trace.txt.xz"
    written = export_parquet(source, tmp_path / "pq")
    assert tmp_path / "pq" / "kvm_mmu_get_page.parquet" in written
    assert pq.read_table(tmp_path / "pq" / "kvm_mmu_get_page.parquet").num_rows == 30
    export_csv(source, tmp_path / "csv")
    assert len((tmp_path / "csv" / "kvm_mmu_get_page.csv").read_text().splitlines()) == 31
    assert not list(tmp_path.glob("*/.*"))


def test_files_by_polars_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    source = TRACES / "6.1" / "npt1tdp0_multi_vcpu" / "trace.txt.xz"
    export_parquet(source, tmp_path / "arrow")
    for name in ("pyarrow", "pyarrow.csv", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    written = export_parquet(source, tmp_path / "polars")
    for path in written:
        frames = [pl.read_parquet(tmp_path / library / path.name) for library in ("arrow", "polars")]
        strings = [frame.select(pl.all().cast(pl.String)) for frame in frames]
        assert strings[0].equals(strings[1]), path.name
    assert len(export_csv(source, tmp_path / "csv")) == len(written)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(TraceError, match="pyarrow or polars"):
        export_parquet(source, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_commands(tmp_path: Path):
    run = [sys.executable, "-m", "kvm_mmu", "trace"]
    source = str(TRACES / "6.1" / "npt1tdp0_multi_vcpu" / "trace.txt.xz")
    done = subprocess.run(
        [*run, "stalls", "-", "--json"], input="\n".join(STORY), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["causes"]["zap-all"]["max_ns"] == 20_000
    out = tmp_path / "c.json"
    done = subprocess.run(
        [*run, "export", source, "--chrome", str(out)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(out) and json.loads(out.read_text())["traceEvents"]


PROBE = "(x+0x0/0x1 [kvm])"


def us(when: float, task: str, text: str) -> str:
    """A line at that many microseconds."""
    return at(f"{1 + when / 1e6:.9f}", task, text)


def test_two_causes_at_once_count_once():
    """By hand: A works 0-100 (zap-all), B works 60-160 (reclaim); vCPU 0 waits 20-120, vCPU 1 waits 90-200. A keeps
    60-100, so vCPU 0 has 80 of A and 20 of B; vCPU 1 has 10 of A and 60 of B, and 40 of nothing."""
    lines = [
        us(0, "a-1", f"zap_all_fast_enter: {PROBE}"),
        us(20, "v0-3", "kvm_exit: vcpu 0 reason npf rip 0x1"),
        us(60, "b-2", f"zap_oldest: {PROBE} nr=128"),
        us(90, "v1-4", "kvm_exit: vcpu 1 reason npf rip 0x1"),
        us(100, "a-1", f"zap_all_fast_ret: {PROBE}"),
        us(120, "v0-3", "kvm_entry: vcpu 0, rip 0x1"),
        us(160, "b-2", f"zap_oldest_ret: {PROBE} ret=0"),
        us(200, "v1-4", "kvm_entry: vcpu 1, rip 0x1"),
    ]
    found = stalls(lines, "x")
    assert (found.durations("zap-all"), found.durations("reclaim")) == ([10_000, 80_000], [20_000, 60_000])
    assert (found.waited_ns, found.other_ns) == (210_000, 40_000)
    # Somebody waited 20-100 of A's time and all of what is left to B.
    assert (found.idle_ns["zap-all"], found.idle_ns["reclaim"]) == (20_000, 0)


def test_idle_time_is_what_no_vcpu_waited_through():
    lines = [
        us(0, "a-1", f"zap_all_fast_enter: {PROBE}"),
        *(us(t, "v0-3", f"kvm_{e}: vcpu 0 reason npf") for t, e in ((0, "exit"), (30, "entry"))),
        *(us(t, "v1-4", f"kvm_{e}: vcpu 1 reason npf") for t, e in ((50, "exit"), (90, "entry"))),
        us(100, "a-1", f"zap_all_fast_ret: {PROBE}"),
    ]
    assert stalls(lines, "x").idle_ns == {"zap-all": 30_000}


def test_percentiles_of_a_hundred_stalls():
    lines = []
    for i in range(100):
        start = i * 1_000_000
        lines += [
            us(start, "v0-3", "kvm_exit: vcpu 0 reason npf"),
            us(start, "a-1", f"zap_oldest: {PROBE} nr=1"),
            us(start + i + 1, "a-1", f"zap_oldest_ret: {PROBE} ret=1"),
            us(start + 500, "v0-3", "kvm_entry: vcpu 0"),
        ]
    numbers = stalls(lines, "x").as_json()["causes"]["reclaim"]
    assert (numbers["stalls"], numbers["total_ns"]) == (100, 5050_000)
    assert (numbers["p50_ns"], numbers["p99_ns"], numbers["max_ns"]) == (50_000, 99_000, 100_000)


def test_a_thread_that_only_updates_slots_is_not_always_at_it():
    lines = []
    for second in range(3):
        start = second * 1_000_000
        lines += [
            us(start, "qemu-9", f"set_memslot: {PROBE} change=0"),
            us(start + 5, "qemu-9", f"swap_memslots: {PROBE} as_id=0"),
            us(start + 250_000, "qemu-9", f"memslots_updated: {PROBE} gen=0x2"),
        ]
    works = activity(lines).works
    assert [(w.what, w.end_ns - w.start_ns) for w in works] == [("create", 250_000_000)] * 3
    no_set_memslot = [text for text in lines if " set_memslot:" not in text]
    assert [w.end_ns - w.start_ns for w in activity(no_set_memslot).works] == [249_995_000] * 3
    only_updated = [text for text in lines if " memslots_updated:" in text]
    assert [w.end_ns - w.start_ns for w in activity(only_updated).works] == [0] * 3


def test_a_probe_on_the_return_says_when():
    lines = [
        us(0, "qemu-9", f"set_memslot: {PROBE} change=1"),
        us(10, "qemu-9", f"zap_all_fast_enter: {PROBE}"),
        us(11, "qemu-9", "kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages 3"),
        us(12, "qemu-9", ZAP),
        us(40, "qemu-9", f"zap_all_fast_ret: {PROBE}"),
        us(900_000, "qemu-9", f"set_memslot_ret: {PROBE}"),
        us(900_050, "qemu-9", ZAP),
    ]
    works = activity(lines).works
    assert [(w.cause, (w.end_ns - w.start_ns) // 1000, w.pages_zapped) for w in works] == [
        ("memslot update", 10, 0), ("zap-all", 30, 1), ("memslot update", 899_960, 0), (LONE_ZAP, 0, 1),
    ]  # fmt: skip
    assert len({w.operation for w in works}) == 3


def test_plain_tracepoints_say_less_and_admit_it():
    root = "kvm_mmu_prepare_zap_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux invalid nxe ad root 0 sync"
    lines = [
        us(0, "qemu-9", "kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages 2"),
        us(5, "qemu-9", ZAP),
        us(9, "v0-3", "kvm_exit: vcpu 0 reason npf"),
        us(10, "v0-3", "kvm_page_fault: vcpu 0 rip 0x1 address 0x0000000000001000 error_code 0x4"),
        us(15, "v0-3", ZAP),
        us(20, "v0-3", ZAP),
        us(25, "v0-3", "kvm_mmu_get_page: sp gen 0 gfn 0 l1 8-byte q0 direct wux nxe ad root 0 sync new"),
        us(30, "v0-3", "kvm_entry: vcpu 0"),
        us(40, "v0-3", "kvm_exit: vcpu 0 reason vmmcall"),
        us(45, "v0-3", root),
        us(50, "v0-3", "kvm_entry: vcpu 0"),
        us(2_000_000, "qemu-9", ZAP),
    ]
    found = stalls(lines, "x")
    assert {c: n for c, n in found.works.items() if n} == {
        "zap-all": 1,
        FAULT_ZAP: 1,
        ROOT_FREED: 1,
        LONE_ZAP: 1,
    }
    assert found.durations(FAULT_ZAP) == [5_000] and found.waited_ns == 31_000
    assert {s.wait.reason for s in found.stalls} == {"page_fault"}


def test_lost_events_cut_what_they_hide():
    lines = [
        us(0, "v0-3", "kvm_exit: vcpu 0 reason npf"),
        us(1, "a-1", f"set_memslot: {PROBE} change=0"),
        "CPU:0 [LOST 42 EVENTS]",
        us(9_000, "a-1", f"memslots_updated: {PROBE} gen=0x2"),
        us(9_001, "v0-3", "kvm_entry: vcpu 0"),
    ]
    found = stalls(lines, "x")
    assert (found.waits, found.waited_ns) == (0, 0)
    assert found.notes == [
        "1 wait, run or halt was cut by lost events or disorder: not counted",
        "the trace has no return of 2 memslot operations: counted to the last event",
    ]
    assert [w.end_ns - w.start_ns for w in activity(lines).works] == [0, 0]


def test_without_entries_the_tasks_next_event_ends_a_wait():
    lines = [
        us(0, "v0-3", "kvm_page_fault: address 1000 error_code 4"),
        us(5, "v0-3", f"zap_oldest: {PROBE} nr=1"),
        us(9, "v0-3", f"zap_oldest_ret: {PROBE} ret=1"),
        us(20, "v0-3", "kvm_mmu_get_page: sp gen 0 gfn 0 l1 8-byte q0 direct wux nxe ad root 0 sync new"),
        us(30, "v0-3", "kvm_mmio: mmio read len 4 gpa 0xd0000000 val 0x0"),
        us(50, "v0-3", "kvm_page_fault: address 1000 error_code 4"),
    ]
    found = stalls(lines, "x")
    assert (found.waited_ns, found.durations("reclaim"), found.unfinished) == (30_000, [4_000], 1)
    assert found.stalls[0].wait.vcpu is None and "vCPU ? (page_fault)" in found.as_text()
    assert any("no kvm_entry in the trace" in note for note in found.notes)


def test_an_exit_of_5x_belongs_to_the_vcpu_its_task_entered():
    lines = [
        us(0, "v0-3", "kvm_entry: vcpu 0"),
        us(0, "v1-4", "kvm_entry: vcpu 1"),
        us(10, "v1-4", "kvm_exit: reason npf rip 0x1 info 1 2"),
        us(15, "v0-3", "kvm_exit: reason hlt rip 0x1 info 1 2"),
        us(30, "v1-4", "kvm_entry: vcpu 1"),
        us(90, "v0-3", "kvm_entry: vcpu 0"),
    ]
    found = activity(lines)
    assert [(w.vcpu, w.end_ns - w.start_ns, w.reason) for w in found.waits] == [(1, 20_000, "npf")]
    assert [(h.vcpu, h.end_ns - h.start_ns) for h in found.halts] == [(0, 75_000)]
    assert stalls(lines, "x").halted_ns == 75_000


def test_vms_are_told_apart_by_their_processes():
    def lines(processes: bool) -> list[str]:
        first, other = (" (     10)", " (     20)") if processes else ("", "")
        return [
            us(0, f"CPU 0/KVM-11{first}", "kvm_exit: vcpu 0 reason npf"),
            us(0, f"CPU 0/KVM-21{other}", "kvm_exit: vcpu 0 reason npf"),
            us(10, f"qemu-10{first}", f"zap_all_fast_enter: {PROBE}"),
            us(30, f"qemu-10{first}", f"zap_all_fast_ret: {PROBE}"),
            us(40, f"CPU 0/KVM-11{first}", "kvm_entry: vcpu 0"),
            us(40, f"CPU 0/KVM-21{other}", "kvm_entry: vcpu 0"),
        ]

    mixed, apart = stalls(lines(False), "x"), stalls(lines(True), "x")
    assert mixed.durations("zap-all") == [20_000, 20_000] and "more than one VM" in mixed.notes[0]
    assert apart.durations("zap-all") == [20_000] and apart.notes == []
    assert apart.stalls[0].wait.task.startswith("CPU 0/KVM-11") and apart.other_ns == 60_000


def test_a_scanning_kernel_thread_is_not_one_long_work():
    scan = "kvm_age_hva: mmu notifier age hva: 0x1 -- 0x2"
    lines = [us(i * 1000, "ksmd-50", scan) for i in range(100)]
    found = activity(lines)
    assert len(found.works) == 100 and all(w.start_ns == w.end_ns for w in found.works)


def test_reading_a_log_is_one_work_a_read():
    burst = [0, 2, 4, 500_000, 500_003]
    lines = [us(t, "qemu-9", f"dirty_masked: {PROBE} gfn_offset=0x0 mask=0x1") for t in burst]
    assert [(w.what, w.end_ns - w.start_ns) for w in activity(lines).works] == [
        ("log read", 4_000),
        ("log read", 3_000),
    ]


def test_nothing_to_say_is_said():
    assert stalls(["# nothing"], "x").notes == [
        "neither faults nor MMU work in the trace: record with `kvm-mmu trace kit`"
    ]
