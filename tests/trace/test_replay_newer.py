"""Recordings of v5.10, v6.18, v7.2 and v7.3 replay to their own outputs; what tells two patch levels apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.errors import ScenarioError
from kvm_mmu.trace.analysis.explain_host import host_explainer
from kvm_mmu.trace.replay.fidelity import kept
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.text import host
from kvm_mmu.trace.text.source import iter_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
KERNELS = {"5.10": "v5.10", "6.18": "v6.18", "7.2": "v7.2", "7.2.6": "v7.2.6", "7.3": "v7.3"}
RECORDINGS = sorted(
    f"{d.parent.name}/{d.name}"
    for kernel in KERNELS
    for d in TRACES.glob(f"{kernel}/*")
    if "1tdp0_" in d.name or d.name.endswith("_flat")
)
GIVEN = {"kernel": None, "family": None, "phys_bits": None, "l1tf_mask": None}


def core(kernel: str, config: Mapping[str, object]) -> Any:
    from kvm_mmu.scenario.machine_engine import MachineEngine

    return MachineEngine(kernel=kernel, config=dict(config))


def test_there_are_recordings():
    assert len(RECORDINGS) == 11


@pytest.mark.parametrize("name", RECORDINGS)
def test_equal(name: str):
    report = replay(TRACES / name / "trace.txt.xz", core)
    assert report.compared and report.is_equal, report.as_text()
    assert sum(report.equal.values()) == sum(report.recorded.values()) > 0
    assert dict(report.recorded) == kept(TRACES / name), "kvm-mmu trace fidelity tests/data/traces --keep"
    assert report.kernel == KERNELS[name.split("/")[0]] and report.inferred == {}


@pytest.mark.parametrize(("name", "other"), [("7.2.6/npt1tdp0_smm", "v7.2"), ("7.3/npt1tdp0_smm", "v7.2.6")])
def test_a_patch_level_shows(name: str, other: str):
    """The vCPU's MMIO cache went by space 0 up to 7.2.6, by its own space later: SMM tells."""
    report = replay(TRACES / name / "trace.txt.xz", core, kernel=other)
    assert not report.is_equal and report.divergence is not None
    assert "mmio" in str(report.divergence.recorded) + str(report.divergence.predicted)


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_word_is_explained(name: str):
    trace = TRACES / name / "trace.txt.xz"
    explain, lines, _ = host_explainer(iter_lines(trace), host.beside(trace) or {}, GIVEN, name)
    for _ in explain.lines(lines):
        pass
    assert explain.agreed and not explain.contradicted and not explain.unread, explain.first_contradiction


@pytest.mark.parametrize(
    ("release", "kernel", "name"),
    [
        ("6.1.0-56-amd64", "6.1", "v6.1"),
        ("6.1.0-56-amd64", "6.1.0", "v6.1"),
        ("7.2.6+deb13-amd64", "7.2", "v7.2.6"),
        ("7.2.12+deb13-amd64", "7.2", "v7.2"),
        ("6.12.117+deb12-amd64", "6.1", "v6.1"),
        ("5.0.1", "v5.0-seed", "v5.0-seed"),
        ("5.10.0-43-amd64", "", "v5.10"),
        ("", "4.19.1", "v4.19"),
        ("", "", ""),
    ],
)
def test_a_host_file_names_a_row(release: str, kernel: str, name: str):
    """The release where it is finer than the kernel and of its branch; what a user names stays."""
    assert host.kernel_of({"release": release, "kernel": kernel}) == name


def logged_and_collapsed(kernel: str) -> list[int]:
    """A slot at 16 MiB with a 2 MiB leaf, whose table begins at 0, before it; its log goes on and off."""
    vm = core(kernel, {"family": "npt", "phys_bits": 40})
    slot = {"op": "set_memslot", "as": 0, "id": 1, "gpa": 0x1000000, "size": 0x800000, "hva": 0x7F0001000000}
    ops = [
        {"op": "host_huge", "hva": 0x7F0001000000, "npages": 2048, "kind": "thp"},
        {**slot, "flags": 0},
        {"op": "enter", "vcpu": 0},
        {"op": "access", "vcpu": 0, "gpa": 0x1000000, "kind": "w"},
        {**slot, "flags": 1},
        {**slot, "flags": 0},
    ]
    return [vm.apply(op)["ret"] for op in ops]


def test_a_kernel_that_reads_outside_a_slot_says_so():
    """6.18.15 crashed there, in two of two boots; later kernels look where the table begins."""
    assert logged_and_collapsed("v7.3")[-1] == 0
    with pytest.raises(ScenarioError, match=r"v6\.18, memslot 1 .* outside the slot's counts, at gfn 0x0"):
        logged_and_collapsed("v6.18")
