"""What no shared recording of 5.x under NPT shows: short operations with the outputs the rules ask for, for core and
reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.text import host


def reference_engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def core_engine(kernel: str, config: Mapping[str, object]) -> Any:
    machine_engine = pytest.importorskip("kvm_mmu.scenario.machine_engine")
    return machine_engine.MachineEngine(kernel=kernel, config=dict(config))


@pytest.fixture(params=["core", "reference"])
def engine(request: pytest.FixtureRequest) -> Any:
    return {"core": core_engine, "reference": reference_engine}[request.param]


def create_vm(huge: int = 0) -> str:
    return f'"op":"create_vm","ram":"0x1000000","huge":{huge}'


def slot(slot_id: int, gpa: int, size: int, flags: int = 0, as_id: int = 0) -> str:
    place = f'"gpa":"{gpa:#x}","size":"{size:#x}"'
    return f'"op":"memslot","slot":{slot_id},"as":{as_id},{place},"flags":{flags}'


RAM = slot(0, 0, 0x1000000)


def outputs(
    path: Path, engine: Any, kernel: str, *inputs: str | tuple[int, int], efer_nx: int = 1
) -> list[str]:
    """The predictions for a recording of these operations and faults (gpa, error code)."""
    facts = {"kernel": kernel, "mmu": "npt", "phys_bits": 40, "initial_efer_nx": efer_nx}
    lines = [host.PREFIX + json.dumps(facts)]
    number = 0
    for given in inputs:
        if isinstance(given, tuple):
            text = f"kvm_page_fault: address {given[0]:x} error_code {given[1]:x}"
        elif given.startswith('"op"'):
            text, number = f"tracing_mark_write: OP {number} {given}", number + 1
        else:
            text = f"tracing_mark_write: {given}"
        lines.append(f"            init-1     [000] ....     1.0: {text}")
    (path / "trace.txt").write_text("\n".join(lines) + "\n")
    report = replay(path / "trace.txt", engine)
    assert report.inferred == {} and report.ignored_operations == {}
    return [f"{p.event.removeprefix('kvm_mmu_')} {p.body}" for p in report.predictions]


def leaves(told: list[str]) -> list[str]:
    """gfn, flags below the frame, level and index of the entries that were set."""
    found = [line.split() for line in told if line.startswith("set_spte ")]
    return [f"{w[2]} {int(w[4], 16) & 0xFFF:x} l{w[7]} {(int(w[9], 16) & 0xFFF) >> 3}" for w in found]


READ, WRITE, FETCH = 4, 6, 0x14


def test_v5_3_tells_every_leaf(tmp_path: Path, engine: Any):
    told = outputs(tmp_path, engine, "5.3.1", create_vm(), RAM, (0x403000, READ), (0x401000, FETCH))
    pages = " 8-byte q0 direct wux nxe ad root 0 sync new"
    assert [line for line in told if "set_spte" not in line] == [
        *(
            f"get_page sp gfn {gfn} l{level}{pages}"
            for gfn, level in (("0", 4), ("0", 3), ("0", 2), ("400", 1))
        )
    ]
    assert all(line.split()[5] == "(rwxu)" for line in told if line.startswith("set_spte"))
    # The run before the faulting entry is prefetched, the one after it stays open and is dropped.
    assert leaves(told) == ["403 c67 l1 3", "400 c47 l1 0", "401 c47 l1 1", "402 c47 l1 2", "401 c67 l1 1"]


def test_v5_3_tells_an_mmio_entry_as_a_leaf_too(tmp_path: Path, engine: Any):
    told = outputs(tmp_path, engine, "5.3.1", create_vm(), RAM, (0xE0000000, READ))
    assert told[-2:] == [
        "mark_mmio_spte sptep:(____ptrval____) gfn e0000 access 6 gen 2",
        f"set_spte gfn e0000 spte 402800f8e0000017 (rwxu) level 1 at {told[-1].split()[-1]}",
    ]


def test_v5_4_tells_the_fast_zap_with_its_one_bit_generation(tmp_path: Path, engine: Any):
    small = slot(1, 0x10000000, 0x1000)
    gone = slot(1, 0x10000000, 0)
    read = '"op":"read8","a":"0x0","b":"0x0"'
    told = outputs(tmp_path, engine, "5.4.18", create_vm(), RAM, read, small, gone, read, small, gone)
    page = "gfn 0 l4 8-byte q0 direct wux"
    assert told == [
        f"get_page sp gen 0 {page} nxe ad root 0 sync new",
        "zap_all_fast kvm-mmu-valid-gen 0 used_pages 1",
        f"prepare_zap_page sp gen 0 {page} nxe ad root 1 sync",
        f"prepare_zap_page sp gen 0 {page} invalid nxe ad root 0 sync",
        f"get_page sp gen 1 {page} nxe ad root 0 sync new",
        "zap_all_fast kvm-mmu-valid-gen 1 used_pages 1",
        f"prepare_zap_page sp gen 1 {page} nxe ad root 1 sync",
    ]


def test_leaves_of_huge_memory_vanish_when_logging_ends(tmp_path: Path, engine: Any):
    """The recorder backs its small slot 2 at this place by huge pages, slot 1 by small ones."""
    for slot_id, base, after in ((2, 0x21000000, [0, 1, 2]), (1, 0x20000000, [])):
        made, logged, plain = (slot(slot_id, base, 0x8000, flags) for flags in (0, 1, 0))
        fault = (base + 0x3000, READ)
        told = leaves(outputs(tmp_path, engine, "5.3.1", create_vm(), RAM, made, fault, logged, plain, fault))
        first = base >> 12
        assert told[:5] == [
            f"{first + 3:x} c67 l1 3",
            *(f"{first + n:x} c47 l1 {n}" for n in (0, 1, 2)),
            f"{first + 3:x} c67 l1 3",
        ]
        assert told[5:] == [f"{first + n:x} c47 l1 {n}" for n in after]


def test_huge_memory_that_was_split_stays_split_when_its_slot_comes_again(tmp_path: Path, engine: Any):
    drop = '"op":"host_dontneed","gpa":"0x400000","len":"0x1000"'
    fault = (0x405000, READ)
    inputs = (create_vm(1), RAM, fault, drop, slot(0, 0, 0), RAM, fault, (0x605000, READ))
    told = leaves(outputs(tmp_path, engine, "5.3.1", *inputs))
    assert told[0] == "400 ce7 l2 2"
    # The run of pages 0 to 4 begins with the absent one: nothing of it is found.
    assert told[1:] == ["405 c67 l1 5", "600 ce7 l2 3"]


@pytest.mark.parametrize("read_only", [0, 1])
def test_a_changed_protection_splits_a_huge_page(tmp_path: Path, engine: Any, read_only: int):
    protect = f'"op":"host_mprotect","gpa":"0x401000","ro":{read_only}'
    inputs = (create_vm(1), RAM, (0x400000, READ), protect, (0x402000, READ), (0x401000, READ))
    told = outputs(tmp_path, engine, "5.3.1", *inputs)
    assert leaves(told)[:2] == ["400 ce7 l2 2", "402 c67 l1 2"]
    page = "gfn 400 l1 8-byte q0 direct wux nxe ad root 0 sync new"
    assert [line for line in told if " l1 " in line] == [f"get_page sp {page}"]
    found = ["400 c47 l1 0"] if read_only else ["400 c47 l1 0", "401 c47 l1 1"]
    assert leaves(told)[2:] == [*found, "401 25 l1 1" if read_only else "401 c67 l1 1"]


def test_a_range_given_back_costs_no_memory_page_by_page(tmp_path: Path, engine: Any):
    """A line that gives 256 GiB back once filled a table of its pages; larger slots are refused."""
    large = slot(1, 0x100000000, 1 << 38)
    drop = f'"op":"host_dontneed","gpa":"0x100000000","len":"{1 << 38:#x}"'
    fault = (0x100003000, WRITE)
    told = outputs(tmp_path, engine, "5.3.1", create_vm(), RAM, large, drop, fault, (0x100004000, READ))
    assert leaves(told) == ["100003 c67 l1 3", "100004 25 l1 4"]
    with pytest.raises(TraceError, match="larger than any recording has"):
        outputs(tmp_path, engine, "5.3.1", create_vm(), RAM, slot(1, 0x100000000, 1 << 39))


def test_the_dirty_log_names_the_address_space_above_the_slot(tmp_path: Path, engine: Any):
    logged, write = slot(1, 0x20000000, 0x1000, flags=1), (0x20000000, WRITE)
    again = (0x20000000, WRITE | 1)
    for number, fixed in ((1, 1), (1 << 16 | 1, 0), (2 << 16 | 1, 0), (510, 0)):
        log = f'"op":"get_dirty_log","slot":{number}'
        told = outputs(tmp_path, engine, "5.0.1", create_vm(), RAM, logged, write, log, again)
        # Its leaf lost W, or the write finds it as it was left.
        assert told[-1].split(" old ")[1].split()[0].endswith("c65" if fixed else "c67")


def test_updates_without_a_marker_make_no_slot_again(tmp_path: Path, engine: Any):
    """The slot last touched is gone: what the marker means cannot be known, a gap in the numbers means nothing."""
    gone = (create_vm(), RAM, slot(1, 0x20000000, 0x1000), slot(1, 0x20000000, 0))
    with pytest.raises(TraceError, match="QUIET without a slot"):
        outputs(tmp_path, engine, "5.0.1", *gone, "QUIET 3 as 0")
    fault = (0x20000000, READ)
    told = outputs(tmp_path, engine, "5.0.1", *gone, 'OP 40 "op":"get_nr_mmu_pages"', fault)
    assert told[-1].startswith("mark_mmio_spte")


def test_what_no_model_can_be_made_for_is_said(tmp_path: Path, engine: Any):
    with pytest.raises(TraceError, match=r"kernel 'v5\.1'.*: replay knows v5\.0, "):
        outputs(tmp_path, engine, "5.1.15", create_vm(), RAM)
    lines = (tmp_path / "trace.txt").read_text().replace("5.1.15", "5.2.1").replace("40", "60")
    (tmp_path / "trace.txt").write_text(lines)
    with pytest.raises(TraceError, match=r"trace\.txt:2: no VM can be made of the host's facts: .*60"):
        replay(tmp_path / "trace.txt", engine)
