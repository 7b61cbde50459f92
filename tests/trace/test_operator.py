"""An operator's own trace: 6.1 with EPT and the TDP MMU on, no probes, real task names, trace-cmd's text.

Everything reads it; a replay says what it lacks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRACE = """\
     CPU 0/KVM-4321  [003] 91127.242464: kvm_mmu_get_page:      sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new
     CPU 0/KVM-4321  [003] 91127.242550: kvm_entry:             vcpu 0, rip 0x1000
     CPU 0/KVM-4321  [003] 91127.242766: kvm_exit:              vcpu 0 reason EPT_VIOLATION rip 0x1000 info1 0x0000000000000182 info2 0x0000000000100000 intr_info 0x00000000 error_code 0x00000000
     CPU 0/KVM-4321  [003] 91127.242800: kvm_page_fault:        vcpu 0 rip 0x1000 address 0x0000000000100000 error_code 0x182
            qemu-4300  [001] 91127.242850: kvm_mmu_zap_all_fast:  kvm-mmu-valid-gen 0 used_pages 1
            qemu-4300  [001] 91127.242860: kvm_tdp_mmu_spte_changed: as id 0 gfn 101 level 1 old_spte 600000163744b77 new_spte 5a0
            qemu-4300  [001] 91127.242900: kvm_mmu_prepare_zap_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 1 sync
     CPU 0/KVM-4321  [003] 91127.242910: kvm_mmu_spte_requested: gfn 101 pfn 163744 level 1
     CPU 0/KVM-4321  [003] 91127.242920: kvm_tdp_mmu_spte_changed: as id 0 gfn 101 level 1 old_spte 0 new_spte 600000163744b77
     CPU 0/KVM-4321  [003] 91127.242930: kvm_mmu_set_spte:      gfn 101 spte 600000163744b77 (rwx) level 1 at 1600a5808
     CPU 0/KVM-4321  [003] 91127.242950: kvm_entry:             vcpu 0, rip 0x1000
     CPU 0/KVM-4321  [003] 91127.243000: kvm_exit:              vcpu 0 reason HLT rip 0x1003 info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000
     CPU 0/KVM-4321  [003] 91127.250000: kvm_entry:             vcpu 0, rip 0x1004
"""  # noqa: E501


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.txt"
    path.write_text(TRACE)
    return path


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *words], input=stdin, capture_output=True, text=True, check=False
    )


def test_summary(trace: Path):
    found = run("trace", "summary", str(trace), "--strict").stdout
    assert (
        "vCPUs: 0" in found
        and "entries that the TDP MMU changed: 2" in found
        and "0 lines not understood" in found
    )


def test_stalls(trace: Path):
    found = json.loads(run("trace", "stalls", str(trace), "--json").stdout)
    assert found["waited_ns"] == 184_000 and found["halted_ns"] == 7_000_000
    assert found["causes"]["zap-all"]["total_ns"] == 50_000
    assert found["other_reasons"] == {"page_fault": 134_000}
    assert found["timeline"][0]["task"] == "qemu-4300" and found["timeline"][0]["pages_zapped"] == 1
    assert found["timeline"][0]["entries_changed"] == 1


def test_decode(trace: Path):
    done = run("trace", "decode", str(trace), "--kernel", "6.1.0-18-amd64")
    assert done.returncode == 0 and "inferred: family = ept_ad (shown by the trace)" in done.stderr
    assert (
        "new_spte 0x600000163744b77: pfn 163744, readable, writable, accessed, dirty, host-writable"
        in done.stdout
    )
    assert "new_spte 0x5a0: not present" in done.stdout
    assert (
        "change: 4 KiB unmapped: frozen until nobody can use it, or with its table; every root is invalidated"
        in done.stdout
    )
    assert "change: 4 KiB mapped; page fault" in done.stdout
    assert [line for line in done.stdout.splitlines() if "        | " not in line] == TRACE.splitlines()


def test_export(trace: Path, tmp_path: Path):
    out = tmp_path / "out.json"
    assert run("trace", "export", str(trace), "--chrome", str(out)).returncode == 0
    assert "halted" in {event["name"] for event in json.loads(out.read_text())["traceEvents"]}


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_replay_says_that_operations_are_missing(trace: Path, source: str):
    done = run("trace", "replay", "-" if source == "stdin" else str(trace), "--kernel", "v6.1", stdin=TRACE)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "no operation of the VM in it" in done.stderr and "stalls" in done.stderr


@pytest.mark.parametrize("command", ["summary", "stalls", "decode", "replay"])
def test_what_is_no_text_is_said(command: str, tmp_path: Path):
    (tmp_path / "trace.dat").write_bytes(b"\x17\x08\x44tracing6\0\0\x08\0")
    done = run("trace", command, str(tmp_path / "trace.dat"))
    assert done.returncode == 2 and "trace-cmd report -R -i" in done.stderr and done.stderr.count("\n") == 1
    (tmp_path / "notes.txt").write_text("dear diary\n")
    done = run("trace", command, str(tmp_path / "notes.txt"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
