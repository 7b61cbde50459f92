"""Reading traces into counts and columns: nothing is left over, and the numbers are those of a plain count."""

from __future__ import annotations

import json
import lzma
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from kvm_mmu.errors import TraceError, UsageError
from kvm_mmu.trace.analysis.summary import summarize
from kvm_mmu.trace.text.reader import OPAQUE_KIND, Trace
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
ALL = sorted(path.parent for path in TRACES.glob("*/*/trace.txt.xz"))
PREFIX = "             vmm-851   [001] .....  5012.123456: "
MIXED = "\n".join(
    [
        "# tracer: nop",
        "",
        f"{PREFIX}kvm_page_fault: vcpu 3 rip 0x1000 address 0x0000000000001000 error_code 0x10",
        f"{PREFIX}kvm_userspace_exit: reason KVM_EXIT_IO (2)",
        f"{PREFIX}kvm_userspace_exit: reason restart (-4)",
        f"{PREFIX}sched_switch: prev_comm=a <b> ==> next_comm=c",
        "CPU:1 [LOST 42 EVENTS]",
        f"{PREFIX}kvm_mmu_get_page: cut",
        "what is this",
        f"{PREFIX}check_mmio_spte: spte 80000d0000045 kvm_gen a spte-gen 8 valid 0",
        "",
    ]
)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    (tmp_path / "mixed.txt").write_text(MIXED)
    return tmp_path / "mixed.txt"


@pytest.mark.parametrize("folder", ALL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recording_reads_without_a_rest(folder: Path):
    path = folder / "trace.txt.xz"
    counts = Trace(path).counts()
    plain = Counter(
        found[1]
        for text in read_lines(path)
        if (found := re.match(r"\s*\S+\s+\[\d+\] \S+\s+[\d.]+: (\w+):", text))
    )
    assert counts["events"] == dict(plain) or counts["events"] == {k: v for k, v in plain.items() if v}
    assert (counts["not_understood"], counts["overlong"], counts["opaque"], counts["lost_notes"]) == (
        0,
        0,
        {},
        0,
    )
    kernel = json.loads((folder / "host.json").read_text())["kernel"]
    eras = {"5.0.1": "v5.0", "5.2.1": "v5.1-v5.2", "6.18": "v6.18-v7.1", "7.3": "v7.2"}
    era = eras.get(kernel, f"v{kernel}")
    assert era in counts["kernels"] and len(counts["kernels"]) <= 3


def test_there_are_recordings():
    assert len(ALL) == 94


def test_counts_of_a_mixed_trace(mixed: Path):
    counts = Trace(mixed).counts()
    assert counts["lines"] == 10
    assert counts["events"] == {"kvm_page_fault": 1, "kvm_userspace_exit": 2, "check_mmio_spte": 1}
    assert counts["opaque"] == {"sched_switch": 1}
    assert (counts["notes"], counts["blank"], counts["lost_notes"], counts["lost"]) == (1, 1, 1, 42)
    assert [line for line, _ in counts["examples"]] == [8, 9] and counts["not_understood"] == 2
    assert counts["kernels"] == ["v6.1", "v6.12", "v6.18-v7.1", "v7.2"]


def test_columns(mixed: Path):
    found = Trace(mixed).read_all()
    exits = found["kvm_userspace_exit"]
    assert list(exits) == ["line", "time_ns", "cpu", "task", "reason", "number"] and len(exits) == 2
    assert exits["reason"].tolist() == ["KVM_EXIT_IO", "restart"] and exits["number"].tolist() == [2, -4]
    assert exits["time_ns"].tolist() == [5012123456000] * 2 and exits["line"].tolist() == [4, 5]
    names = found.timeline.names("kind")
    kinds = [names[code] if code != OPAQUE_KIND else "opaque" for code in found.timeline["kind"].tolist()]
    assert kinds == [
        "kvm_page_fault",
        "kvm_userspace_exit",
        "kvm_userspace_exit",
        "opaque",
        "check_mmio_spte",
    ]
    assert found.timeline.names("task") == ["vmm-851"]
    assert "2 rows" in repr(exits) and "kvm_userspace_exit" in exits._repr_html_()
    with pytest.raises(UsageError, match="no column 'x'"):
        exits["x"]


def test_batches_hold_what_the_whole_holds():
    trace = Trace(TRACES / "6.12" / "npt1tdp0_reclaim_flat" / "trace.txt.xz")
    whole = trace.read_all()
    batches = list(trace.batches(size=1 << 17))
    assert len(batches) > 10 and max(len(batch) for batch in batches) < 4000
    assert sum(len(batch) for batch in batches) == len(whole) == 24629
    for event in whole:
        parts = [batch[event]["line"] for batch in batches if event in batch]
        assert np.array_equal(np.concatenate(parts), whole[event]["line"])


def test_other_libraries(mixed: Path):
    pa = pytest.importorskip("pyarrow")
    found = Trace(mixed).read_all()
    table = found["kvm_userspace_exit"].to_arrow()
    assert table.column("reason").to_pylist() == ["KVM_EXIT_IO", "restart"]
    assert table.schema.field("number").type == pa.int64()
    timeline = found.timeline.to_arrow()
    assert timeline.column("kind").to_pylist()[2:4] == ["kvm_userspace_exit", "(other)"]
    assert pa.table(found.timeline).num_rows == 5  # through the Arrow stream
    pl = pytest.importorskip("polars")
    assert pl.DataFrame(found["kvm_page_fault"].to_polars())["vcpu"].to_list() == [3]
    pytest.importorskip("pandas")
    assert found.timeline.to_pandas()["task"].astype(str).tolist() == ["vmm-851"] * 5


def test_summary_of_a_recording():
    found = summarize(TRACES / "5.0.1-npt" / "mmio_gen" / "trace.txt.xz", strict=True)
    assert found.kernels == ["v5.0"] and found.vcpus == set()
    assert (found.pages_created, found.pages_found, found.pages_zapped) == (21, 0, 24)
    assert (found.mmio_marks, found.mmio_hits, found.zap_alls) == (406, 318, 3)
    assert found.mmio_stale_checks == 718 - 318
    assert (
        "shadow pages: 21 created" in found.as_text()
        and found.as_json()["schema"] == "kvm-mmu/trace-summary/1"
    )


def test_strict_names_the_line(mixed: Path, tmp_path: Path):
    text = summarize(mixed).as_text()
    assert "2 lines not understood" in text and "line 8: " in text and "vCPUs: 3" in text
    assert "events were lost at 1 place (42" in text and "sched_switch (other event" in text
    with pytest.raises(TraceError, match=r"mixed\.txt:8: not understood"):
        summarize(mixed, strict=True)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(TraceError, match="empty"):
        summarize(tmp_path / "empty.txt")


def test_the_command(mixed: Path, tmp_path: Path):
    run = [sys.executable, "-m", "kvm_mmu", "trace", "summary"]
    done = subprocess.run([*run, "-", "--json"], input=MIXED, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["events"]["kvm_page_fault"] == 1
    done = subprocess.run([*run, str(mixed), "--strict"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "mixed.txt:8" in done.stderr
    cut = tmp_path / "cut.xz"
    cut.write_bytes(lzma.compress(MIXED.encode())[:-20])
    done = subprocess.run([*run, str(cut)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "after line" in done.stderr and "Traceback" not in done.stderr


def test_memory_does_not_grow_with_the_trace(tmp_path: Path):
    import tracemalloc

    (tmp_path / "long.txt").write_bytes((MIXED.encode() + b"x" * 5000 + b"\n") * 3000)
    tracemalloc.start()
    rows = sum(len(batch) for batch in Trace(tmp_path / "long.txt").batches(size=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 5 * 3000 and peak < 8 << 20


def test_cpus_may_be_interleaved(tmp_path: Path):
    lines = [
        f"            vmm-{i % 3}     [{i % 3:03d}] ..... {5 - i * 0.1:.6f}: kvm_entry: vcpu {i}, rip 0x1"
        for i in range(6)
    ]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    found = Trace(tmp_path / "t.txt").read_all()
    assert found["kvm_entry"]["vcpu"].tolist() == list(range(6))
    assert found.timeline["cpu"].tolist() == [0, 1, 2, 0, 1, 2] and len(found.timeline.names("task")) == 3
