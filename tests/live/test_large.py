"""Large VMs, made by hand with the layout of a real kernel: what reading and auditing cost, and what they keep."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

pytest.importorskip("drgn", reason="drgn has no wheel for this platform: the extra `live` is not installed")
from made import Made

DATA = Path(__file__).resolve().parent.parent / "data" / "live"
#: Machines are slower than the one of the figures in docs/live.md, and busy.
SLACK = 4


@pytest.mark.parametrize("case", ["6.1.192/npt1tdp0", "6.12.117/npt1tdp0"])
def test_vm_of_16_gib_is_read_and_audited_at_once(case: str, tmp_path: Path):
    made = Made(DATA / case, 8192, 16)
    kernel = made.kernel(tmp_path)
    reading, auditing = [], []
    for _ in range(3):
        begun = time.process_time()
        vm = kernel.vms()[0]
        read = time.process_time()
        found = vm.audit()
        reading.append(read - begun)
        auditing.append(time.process_time() - read)
        assert (list(found), vm.faults) == ([], [])
        assert len(vm.state.entries) == 8192 * 16 + 8192 + 16 + 1
        assert found.facts > 400_000
    print(f"{case}: {made.nr_pages} tables read in {min(reading):.2f} s, audited in {min(auditing):.2f} s")
    assert min(reading) < 0.5 * SLACK
    assert min(auditing) < 1.0 * SLACK


def test_memory_grows_with_entries_that_are_not_empty(tmp_path: Path):
    kept = []
    for leaves in (1, 256):
        kernel = Made(DATA / "6.1.192/npt1tdp0", 2048, leaves).kernel(tmp_path)
        tracemalloc.start()
        vm = kernel.vms()[0]
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(vm.state.entries) >= 2048 * leaves
    # 2,048 tables of one leaf each keep far less than their 8 MiB; 255 more leaves in each cost some 30 bytes a leaf,
    # with the reverse map of each.
    assert kept[0] < 4 << 20
    assert kept[1] - kept[0] < 2048 * 255 * 48
