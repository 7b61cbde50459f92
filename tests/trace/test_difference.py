"""`trace diff`: pairs whose difference is known, and what of it is only another kernel's wording."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.cli import main
from kvm_mmu.errors import TraceError, UsageError
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.trace.replay.difference import ReplayDifference, diff

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"


def path_of(name: str) -> str:
    return str(TRACES / name / "trace.txt.xz")


def core(kernel: str, config: Mapping[str, object], plans: Mapping[str, str]) -> Any:
    return MachineEngine(kernel, config, plans)


def pure(kernel: str, config: Mapping[str, object], plans: Mapping[str, str]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config), plans=dict(plans) or None)


def of(a: str, b: str | None = None, **more: Any) -> ReplayDifference:
    return diff(path_of(a), None if b is None else path_of(b), core, **more)


@pytest.mark.parametrize(
    ("scenario", "outputs"),
    [
        ("npt1tdp0_dirty_log", 377),
        ("npt1tdp0_shrink", 1064),
        ("npt1tdp0_mmio_generation_100", 7054),
        ("npt0_dirty_log_flat", 296),
        ("npt0_multi_vcpu_flat", 344),
    ],
)
def test_6_1_and_6_12_do_the_same(scenario: str, outputs: int) -> None:
    found = of(f"6.1/{scenario}", f"6.12/{scenario}")
    assert found.is_equal and found.agreed == outputs, found.as_text()


def test_5_0_and_5_2_part_at_the_slot_removal() -> None:
    found = of("5.0.1-npt/basic", "5.2.1-npt/basic")
    assert found.agreed == 47 and not found.is_equal
    assert found.after[0][0].startswith("line 258: kvm_mmu_invalidate_zap_all_pages")
    assert "mark_mmio_spte" in found.after[1][1]
    assert "zap all: a 2, b 0" in found.as_text()


@pytest.mark.parametrize("make", [core, pure], ids=["core", "reference"])
def test_one_recording_under_two_kernels(make: Any) -> None:
    found = diff(path_of("5.0.1-npt/basic"), None, make, kernels=(None, "v5.2"))
    assert found.agreed == 47
    assert found.after[0][0].startswith("operation 157, set_memslot id 1 gpa 0x10000000 size 0x0")
    # Deleting a slot on v5.2 says nothing here: no table of it lives. The next thing said is a stale MMIO SPTE.
    assert "valid 0" in found.after[1][0]
    assert any("59 faults as guest accesses" in note for note in found.notes)
    assert of("5.0.1-npt/basic").is_equal and of("5.0.1-npt/basic").agreed == 82


def test_one_recording_under_two_plans() -> None:
    found = of("5.0.1-npt/basic", plans=({}, {"slot_removal": "v5.2-slot"}))
    assert found.agreed == 47 and "set_memslot id 1" in found.after[0][0]
    assert "slot_removal=v5.2-slot" in found.names[1]
    # A plan that does the same as the kernel's own, and one that only walks the other way round.
    assert of("5.0.1-npt/vcpus", plans=({}, {"slot_removal": "v5.0-fast"})).is_equal
    assert not of("5.0.1-npt/vcpus", plans=({}, {"slot_removal": "zap-all"})).is_equal
    assert of("5.0.1-npt/mmio_gen", plans=({}, {"slot_removal": "v5.2-slot"}), vm=2).notes[0] == "VM 2 of 2"


def test_the_mmio_cache_of_a_vcpu_in_smm() -> None:
    """v6.1 asks its own address space's generation, v5.2 that of address space 0 (mmio.cache.2)."""
    found = of("6.1/npt1tdp0_smm", kernels=(None, "v5.2"))
    assert found.agreed == 20 and "check_mmio_spte" in found.after[0][0]
    assert found.left_out["kvm_mmu_set_spte"] == 70 and "memslots_updated" in found.left_out
    assert "left out, one kernel has no such lines: change_mmu_pages 10" in found.as_text()
    assert of("6.1/npt1tdp0_smm", kernels=(None, "v6.12")).is_equal


def test_other_roots_differ_from_the_beginning() -> None:
    found = of("6.1/npt0_basic_flat", "6.1/npt1tdp0_basic_long")
    assert found.agreed == 12 and " l2 " in found.after[0][0] and " l4 " in found.after[1][0]


def test_a_difference_near_the_end_is_found(tmp_path: Path) -> None:
    lines = lzma.decompress(Path(path_of("5.0.1-npt/nopaging")).read_bytes()).decode().splitlines()
    host = json.loads((TRACES / "5.0.1-npt" / "nopaging" / "host.json").read_text())
    faults = [i for i, line in enumerate(lines) if "kvm_page_fault" in line]
    shorter = tmp_path / "trace.txt"
    shorter.write_text("\n".join(line for i, line in enumerate(lines) if i not in faults[-6:]))
    found = diff(path_of("5.0.1-npt/nopaging"), shorter, core, hosts=(None, host))
    assert not found.is_equal and 0 < found.agreed < of("5.0.1-npt/nopaging").agreed
    # What one side says and the other does not is a difference, also at the very end.
    cut = tmp_path / "cut.txt"
    cut.write_text("\n".join(line for line in lines if "destroy_vm" not in line))
    found = diff(path_of("5.0.1-npt/nopaging"), cut, core, hosts=(None, host))
    assert found.after[1] == [] and found.after[0] and not found.is_equal
    assert "  b (nothing more)" in found.as_text()


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    pair = [path_of("6.1/npt1tdp0_shrink"), path_of("6.12/npt1tdp0_shrink")]
    assert main(["trace", "diff", *pair]) == 0
    assert capsys.readouterr().out.endswith("equal: 1064 outputs\n")
    one = path_of("5.0.1-npt/basic")
    assert main(["trace", "diff", one, "--plan-b", "slot-removal=v5.2-slot", "--json"]) == 1
    read = json.loads(capsys.readouterr().out)
    assert read["schema"] == "kvm-mmu/trace-diff/1" and read["agreed"] == 47 and read["equal"] is False
    # What v5.0 and v6.1 can both say of this guest is the same.
    assert main(["trace", "diff", one, "--kernel-b", "v6.1", "--backend", "reference"]) == 0
    out = capsys.readouterr().out
    assert (
        "recorded on v5.0 (v6.1)" in out and "page_zap_pte 64" in out and out.endswith("equal: 72 outputs\n")
    )
    for options, words in (
        (["--plan-b", "wedding=seed"], "expected EVENT=PLAN with one of wrap, slot_removal"),
        (["--plan-b", "wrap"], "expected EVENT=PLAN"),
        (["--plan-b", "wrap=seed", "--plan-b", "wrap=merged"], "wrap is given twice"),
        (["--plan-b", "wrap=nobody"], "'nobody'"),
        (["--kernel-b", "v9"], "'v9'"),
        (["--vm", "7"], "VM 7: expected 1 to 1"),
        (["--host-a", "{"], "--host"),
    ):
        assert main(["trace", "diff", one, *options]) == 2
        out, err = capsys.readouterr()
        assert words in err and out == ""
    with pytest.raises(TraceError, match="nothing"):
        of("nothing")
    with pytest.raises(UsageError):
        of("5.0.1-npt/basic", plans=({"wrap": "nobody"}, {}))
