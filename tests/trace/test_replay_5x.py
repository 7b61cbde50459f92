"""Every NPT recording of 5.0.1 and 5.2.1 replays to its own outputs, and damage to the model is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.fidelity import kept
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.replay.stripping import strip
from kvm_mmu.trace.text import host, recordings
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
RECORDINGS = [
    f"{kernel}/{d.name}" for kernel in ("5.0.1-npt", "5.2.1-npt") for d in sorted((TRACES / kernel).iterdir())
]


def reference_engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def core_engine(kernel: str, config: Mapping[str, object]) -> Any:
    machine_engine = pytest.importorskip("kvm_mmu.scenario.machine_engine")
    return machine_engine.MachineEngine(kernel=kernel, config=dict(config))


ENGINES = {"core": core_engine, "reference": reference_engine}


def test_there_are_recordings():
    assert len(RECORDINGS) == 22


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("name", RECORDINGS)
def test_equal(name: str, backend: str):
    report = replay(TRACES / name / "trace.txt.xz", ENGINES[backend])
    assert report.compared and report.is_equal, report.as_text()
    assert sum(report.equal.values()) == sum(report.recorded.values()) > 0
    assert dict(report.recorded) == kept(TRACES / name), "kvm-mmu trace fidelity tests/data/traces --keep"
    assert report.inferred == {} and report.host_answers == 0 and report.ignored_operations == {}


def test_the_stripped_text_replays_to_the_same(tmp_path: Path):
    source = TRACES / "5.0.1-npt" / "mix001"
    facts = json.loads((source / "host.json").read_text())
    stripped = strip(read_lines(source / "trace.txt.xz"), facts, answers=False)
    (tmp_path / "stripped.txt").write_text(stripped.text())
    whole = replay(source / "trace.txt.xz", reference_engine)
    alone = replay(tmp_path / "stripped.txt", reference_engine)
    assert alone.predictions == whole.predictions
    assert not alone.compared
    numbers = [p.line for p in alone.predictions]
    assert numbers == sorted(numbers) and numbers[0] >= 1 and numbers[-1] <= len(stripped.lines)


def test_a_model_of_another_kernel_diverges_and_the_report_shows_where():
    report = replay(TRACES / "5.0.1-npt" / "basic" / "trace.txt.xz", reference_engine, kernel="v5.2")
    assert not report.is_equal and report.divergence is not None
    text = report.as_text()
    assert "first divergence after 0 equal outputs" in text
    assert "recorded:  line" in text and "predicted: kvm_mmu_get_page: sp gfn 0 l4 8-byte" in text
    found = json.loads(json.dumps(report.as_json()))
    assert found["schema"] == "kvm-mmu/trace-replay/1" and found["equal"] is False
    assert found["divergence"]["surroundings"]


@pytest.mark.parametrize(
    ("plans", "kernel"),
    [({"slot_removal": "zap-all"}, "5.2.1-npt/slots"), ({"wrap": "seed"}, "5.0.1-npt/mmio_gen")],
)
def test_another_zap_plan_is_noticed(plans: dict[str, str], kernel: str):
    def engine(name: str, config: Mapping[str, object]) -> Any:
        return reference.Engine(kernel=name, config=dict(config), plans=plans)

    assert not replay(TRACES / kernel / "trace.txt.xz", engine).is_equal


def test_facts_of_the_user_win_and_assumed_ones_are_reported(tmp_path: Path):
    source = TRACES / "5.0.1-npt" / "nopaging"
    lines = read_lines(source / "trace.txt.xz")
    (tmp_path / "trace.txt").write_text("\n".join(lines))
    assumed = replay(tmp_path / "trace.txt", reference_engine, kernel="v5.0")
    assert assumed.inferred == {"mmu": "npt", "phys_bits": 40, "initial_efer_nx": 1}
    assert not assumed.is_equal  # this guest starts without EFER.NX
    told = replay(tmp_path / "trace.txt", reference_engine, kernel="v5.0", host={"initial_efer_nx": 0})
    assert told.is_equal and "initial_efer_nx" not in told.inferred
    with pytest.raises(TraceError, match="give --kernel"):
        replay(tmp_path / "trace.txt", reference_engine)


def test_shadow_paging_without_the_guests_tables_is_refused(tmp_path: Path):
    (tmp_path / "t.txt").write_text(
        '# replay-host: {"kernel": "5.0.1", "mmu": "shadow"}\n'
        '            init-1     [000] ....     1.0: tracing_mark_write: OP 0 "op":"create_vm","huge":0\n'
        '            init-1     [000] ....     1.1: tracing_mark_write: OP 1 "op":"read8","a":"0x1000","b":"0x0"\n'
    )
    with pytest.raises(
        TraceError, match="registers and page tables are in no event of a recording of shadow"
    ):
        replay(tmp_path / "t.txt", reference_engine)


def test_quiet_updates_are_made():
    marks = [
        '"op":"create_vm","ram":"0x1000000","huge":0',
        '"op":"memslot","slot":0,"as":0,"gpa":"0x0","size":"0x1000000","flags":0',
        '"op":"memslot","slot":1,"as":1,"gpa":"0x10000000","size":"0x1000","flags":0',
    ]
    prefix = "            init-1     [000] ....     1.0: tracing_mark_write: "
    lines = [f"{prefix}OP {i} {text}" for i, text in enumerate(marks)]
    lines += [f"{prefix}QUIET 36 as 1", f'{prefix}OP 4 "op":"destroy_vm"']
    facts = {"kernel": "5.0.1", "mmu": "npt", "phys_bits": 40, "initial_efer_nx": 1}
    text = "\n".join([host.PREFIX + json.dumps(facts), *lines])
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "trace", "replay", "-", "--backend", "reference", "--emit"],
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # The 37th update of address space 1 wraps (the first one created the slot); then the VM ends.
    assert done.stdout.splitlines() == [
        "5 kvm_mmu_invalidate_zap_all_pages: kvm-mmu-valid-gen 0 used_pages 0",
        "6 kvm_mmu_invalidate_zap_all_pages: kvm-mmu-valid-gen 1 used_pages 0",
    ]


def test_the_package_carries_a_recording():
    assert recordings.names() == [recordings.DEMO, recordings.SAMPLE]
    report = replay(recordings.trace_path(), reference_engine)
    assert report.is_equal and sum(report.recorded.values()) == 1490
    with pytest.raises(TraceError, match="the package has"):
        recordings.trace_path("none")


def test_numbers_left_out_are_flag_updates(tmp_path: Path):
    prefix = "            init-1     [000] ....     1.0: tracing_mark_write: "
    slot = '"op":"memslot","slot":1,"as":1,"gpa":"0x10000000","size":"0x1000","flags":'
    facts = {"kernel": "5.0.1", "mmu": "npt", "phys_bits": 40, "initial_efer_nx": 1}
    lines = [
        host.PREFIX + json.dumps(facts),
        f'{prefix}OP 0 "op":"create_vm","ram":"0x1000000","huge":0',
        f'{prefix}OP 1 "op":"memslot","slot":0,"as":0,"gpa":"0x0","size":"0x1000000","flags":0',
        f"{prefix}OP 2 {slot}0",
        f"{prefix}OP 38 {slot}0",
        f"{prefix}OP 39 {slot}1",
    ]
    (tmp_path / "gap.txt").write_text("\n".join(lines))
    report = replay(tmp_path / "gap.txt", reference_engine)
    # Updates 2 to 36 have no marker; OP 38 turns the flag off again and is the 37th: the wrap.
    assert [(p.line, p.event) for p in report.predictions] == [(5, "kvm_mmu_invalidate_zap_all_pages")]
    assert report.inferred == {"memslot flag updates without a marker": 35}
