"""Decoding a trace, the recording kit, comparing two replays, a 6.x recording as a workload."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.difference import difference
from kvm_mmu.trace.explain import INDENT, explain_6x, explained
from kvm_mmu.trace.kit import EVENTS, PROBES, script
from kvm_mmu.trace.replaying import replay
from kvm_mmu.trace.workload import workloads

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
PREFIX = "             vmm-851   [000] .....  5012.1: "


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def words(body: str, kernel: str) -> list[str]:
    lines = list(explained([PREFIX + body], kernel))
    assert lines[0] == PREFIX + body
    return [line.removeprefix(INDENT) for line in lines[1:]]


def test_pages_in_words():
    assert words(
        "kvm_mmu_get_page: sp gen 1f gfn 10a l1 pae q3 -u- invalid !nxe !ad root 2 unsync new", "v5.0"
    ) == [
        "page: level 1 (4 KiB leaves); from gfn 10a; shadows a guest table; PAE guest; quarter 3 of a 32-bit guest "
        "table; allows user; NX not in use; accessed/dirty bits not in use; invalid: waits for its last user; root "
        "of 2 vCPUs; out of sync with the guest table; valid generation 1f; made"
    ]
    assert words("kvm_mmu_sync_page: something else", "v5.0") == []


def test_sptes_in_words():
    body = "check_mmio_spte: spte 7ff800f8e0000dbf kvm_gen fff6e spte-gen fff6e valid 1"
    assert words(body, "v5.0") == [
        "spte 0x7ff800f8e0000dbf: MMIO, gfn e0000, access write+user, generation 0xfff6e read back"
    ]
    body = (
        "fast_page_fault: vcpu 0 gva 1 error_code P|W sptep ffff8881600f7000 old 0x161b86e65 new 161b86e67 "
    )
    assert words(body, "v6.1") == [
        "old 0x161b86e65: pfn 161b86, write-protected, user, accessed, dirty, host-writable, can be made writable "
        "without the lock, executable",
        "new 0x161b86e67: pfn 161b86, writable, user, accessed, dirty, host-writable, can be made writable without "
        "the lock, executable",
    ]
    assert explain_6x(0x80000D0000045, "v6.12") == "MMIO, gfn d0000, access user, generation 0x8"
    assert explain_6x(1 << 63, "v6.12") == explain_6x(0, "v6.1") == "empty"
    assert explain_6x(1 << 63, "v6.1") == "not present"
    assert "no execute" in explain_6x(0x8000000161C00EE7, "v6.12") and "large" in explain_6x(
        0x161C00EE7, "v6.1"
    )


def test_an_unknown_layout_is_refused():
    with pytest.raises(TraceError, match=r"v5\.4"):
        list(explained([], "v5.4"))


def test_every_line_stays_as_it_is():
    from kvm_mmu.trace.source import read_lines

    lines = read_lines(TRACES / "5.2.1-npt" / "slots" / "trace.txt.xz")
    assert [text for text in explained(lines, "v5.2") if not text.startswith(INDENT)] == lines


@pytest.mark.parametrize("variant", ["tracefs", "trace-cmd"])
def test_the_kit_is_a_shell_script_with_every_event_and_probe(variant: str):
    text = script(variant)
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    for name, definition, why in PROBES:
        assert definition in text and why in text and name in definition
    for event, why in EVENTS:
        assert (event in text or event.replace("/", ":") in text) and why in text


def test_the_kit_records_what_a_replay_reads():
    from kvm_mmu.trace.recorder_6x import _PATTERNS

    recorded = {name for name, _, _ in PROBES} | {event.split("/")[-1] for event, _ in EVENTS}
    assert {name for name in _PATTERNS if not name.startswith(("kvm_mmu_", "replay_"))} <= recorded


def test_two_replays_of_one_recording():
    path = TRACES / "5.0.1-npt" / "basic" / "trace.txt.xz"
    one, again = replay(path, engine), replay(path, engine)
    same = difference(one, again)
    assert same.is_equal and same.agreed == 82 and "equal: 82 outputs" in same.as_text()
    other = replay(path, engine, kernel="v5.2")
    found = difference(one, other)
    # Until the first MMIO SPTE, whose generation another kernel starts elsewhere.
    assert not found.is_equal and found.agreed == 7
    text = found.as_text()
    assert "mark_mmio_spte: sptep:(____ptrval____) gfn e0000 access 6 gen fff6e" in text
    assert "kvm_mmu_invalidate_zap_all_pages: a 2, b 0" in text
    assert found.as_json()["schema"] == "kvm-mmu/trace-diff/1"


def test_a_recording_of_6x_is_a_workload_for_other_kernels():
    found = workloads(TRACES / "6.12" / "npt1tdp0_zap_batch" / "trace.txt.xz")
    assert len(found) == 1
    vm = engine("v5.2", found[0].config)
    results = [vm.apply(op) for op in found[0].ops]
    outcomes = [
        r["out"]["outcome"] for op, r in zip(found[0].ops, results, strict=True) if op["op"] == "access"
    ]
    assert len(outcomes) == 21 and set(outcomes) <= {"hit", "emulate"}
    assert [r["ret"] for op, r in zip(found[0].ops, results, strict=True) if op["op"] == "set_memslot"] == [
        0
    ] * 8


def test_commands(tmp_path: Path):
    path = str(TRACES / "5.0.1-npt" / "basic" / "trace.txt.xz")
    run = [sys.executable, "-m", "kvm_mmu", "trace"]
    done = subprocess.run([*run, "decode", path], capture_output=True, text=True, check=True)
    assert "page: level 4" in done.stdout and "MMIO, gfn e0000" in done.stdout
    done = subprocess.run([*run, "kit"], capture_output=True, text=True, check=True)
    assert done.stdout == script()
    (tmp_path / "t.txt").write_text("x")
    done = subprocess.run(
        [*run, "decode", str(tmp_path / "t.txt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "give --kernel" in done.stderr
