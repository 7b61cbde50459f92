"""Stalls and timelines: known answers on a written trace, order and attribution on recordings."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.chrome import chrome_trace
from kvm_mmu.trace.export import export_csv, export_parquet
from kvm_mmu.trace.mmu_work import LONE_ZAP, activity, nanoseconds
from kvm_mmu.trace.source import read_lines
from kvm_mmu.trace.stalls import percentile, stalls

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
    assert (found.waits, found.waited_ns, found.unfinished) == (2, 140_000, 1)
    assert found.durations("zap-all") == [20_000]
    assert found.durations("memslot update") == [20_000, 40_000]
    assert found.durations("reclaim") == [10_000]
    assert found.other_ns == 50_000
    assert found.works == {"memslot update": 2, "zap-all": 1, "reclaim": 1, LONE_ZAP: 1}
    assert [(s.wait.vcpu, s.work.cause, s.work.pages_zapped) for s in found.stalls] == [
        (0, "memslot update", 0), (0, "zap-all", 1), (0, "memslot update", 0), (1, "reclaim", 1),
    ]  # fmt: skip
    text = found.as_text()
    assert "vCPU 0 (page_fault) waited 20.0 us for zap-all by qemu-9 (lines 6-7, 1 pages zapped)" in text
    assert "memslot update" in text and "other (not MMU work)" in text


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


@pytest.mark.parametrize(
    "name", ["6.1/npt1tdp0_multi_vcpu", "6.12/npt1tdp0_reclaim_flat", "5.0.1-npt/mmio_gen"]
)
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


@pytest.mark.parametrize("name", ["6.1/npt1tdp0_multi_vcpu", "5.2.1-npt/vcpus"])
def test_chrome_slices_of_a_lane_are_nested(name: str):
    lines = read_lines(TRACES / name / "trace.txt.xz")
    document = chrome_trace(lines)
    slices: dict[tuple[int, int], list[tuple[float, float, str]]] = {}
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            start = event["ts"]
            slices.setdefault((event["pid"], event["tid"]), []).append(
                (start, start + event["dur"], event["name"])
            )
    assert slices
    for lane in slices.values():
        outer = sorted((start, end) for start, end, name in lane if name != "zap batch")
        assert all(end <= start + 1e-6 for (_, end), (start, _) in pairwise(outer))
        for start, end, name in lane:
            assert name != "zap batch" or any(a - 1e-6 <= start and end <= b + 1e-6 for a, b in outer)
    zapped = sum(batch.pages for batch in activity(lines).batches)
    assert zapped == sum(": kvm_mmu_prepare_zap_page:" in text for text in lines)


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
        export_csv(source, tmp_path / "none")


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
