"""Recordings of the TDP MMU replay to their own outputs; what stripping adds for it, and what is compared how."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.comparing_tdp import TdpComparison
from kvm_mmu.trace.replay.difference import diff
from kvm_mmu.trace.replay.fidelity import kept
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.narrator_tdp import NarratorTdp
from kvm_mmu.trace.replay.normalise_tdp import alike
from kvm_mmu.trace.replay.opened import open_recording
from kvm_mmu.trace.replay.replaying import Report, replay
from kvm_mmu.trace.replay.stripping import YIELD, Kept, Recorded, operations_beside
from kvm_mmu.trace.replay.stripping_tdp import strip_tdp_lines
from kvm_mmu.trace.replay.workload import read_recording
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.kinds import TDP_OUTPUTS
from kvm_mmu.trace.text.source import read_lines
from kvm_mmu.trace.text.spte_words import spte_words
from kvm_mmu.trace.text.wording import wording_of

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
RECORDINGS = sorted(f"{d.parent.name}/{d.name}" for d in TRACES.glob("*/*1tdp1_*"))
#: Scenarios whose folders are called otherwise than what the recorder says, so that the checker gives them answers.
_ANSWERED_BY_NAME = "noeager"
PREFIX = "             vmm-1199    [000] ...1.   115.872493: "
FACTS = {"kernel": "6.12", "release": "6.12.117", "mmu": "npt", "tdp_mmu": 1, "phys_bits": 40}
CHANGED = "kvm_tdp_mmu_spte_changed"
WORDS = spte_words("v6.12")


def core(kernel: str, config: Mapping[str, object]) -> Any:
    from kvm_mmu.scenario.machine_engine import MachineEngine

    return MachineEngine(kernel=kernel, config=dict(config))


def slow(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def is_whole(report: Report) -> bool:
    return (
        report.compared
        and report.is_equal
        and sum(report.equal.values()) == sum(report.recorded.values()) > 0
    )


def test_there_are_recordings():
    assert len(RECORDINGS) == 18


@pytest.mark.parametrize("make", [core, slow])
@pytest.mark.parametrize("name", RECORDINGS)
def test_equal(name: str, make: Any):
    report = replay(TRACES / name / "trace.txt.xz", make)
    assert is_whole(report), report.as_text()
    assert report.inferred == {} and report.recorded[CHANGED] and report.is_tdp
    assert dict(report.recorded) == kept(TRACES / name), "kvm-mmu trace fidelity tests/data/traces --keep"


@pytest.mark.soak
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18", "7.2", "7.2.6", "7.3"])
def test_every_shared_recording_is_equal(shared: Path, kernel: str):
    paths = sorted((shared / "traces" / kernel).glob("*1tdp1_*/trace.txt.xz"))
    assert paths
    for path in paths:
        report = replay(path, core)
        assert is_whole(report), report.as_text()


@pytest.fixture(scope="module")
def checker(shared: Path) -> Any:
    spec = importlib.util.spec_from_file_location(
        "check_replay_tdp", shared / "tools" / "check_replay_tdp.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", RECORDINGS)
def test_stripping_equals_the_checker(checker: Any, name: str):
    folder = TRACES / name
    facts = json.loads((folder / "host.json").read_text())
    kernel, _, scenario = name.partition("/")
    trace = folder / "trace.txt.xz"
    keep, want, _ = checker.strip(read_lines(trace), operations_beside(trace) or {}, kernel, scenario, facts)
    answers = None if _ANSWERED_BY_NAME not in name else True
    with open_recording(trace, None, answers=answers) as opened:
        mine = list(opened.items())
    assert [item.text for item in mine if isinstance(item, Kept)] == keep
    removed = [item for item in mine if isinstance(item, Recorded)]
    assert [("?", "") if item.event == YIELD else (item.event, item.body) for item in removed] == want


def stripped(*events: str, answers: bool = True, **facts: object) -> tuple[list[str], list[str]]:
    """What stays, without its prefix, and the outputs that go."""
    lines = [event if event.startswith(" ") else PREFIX + event for event in events]
    items = list(strip_tdp_lines(lines, {**FACTS, **facts}, None, answers=answers, outputs=TDP_OUTPUTS))
    kept = [item.text[len(PREFIX) :] for item in items[1:] if isinstance(item, Kept)]
    return kept, [item.event for item in items if isinstance(item, Recorded)]


def test_a_flush_that_a_yield_made_is_neither_kept_nor_wanted():
    flush = "flush_remote_tlbs: (kvm_flush_remote_tlbs+0x4/0x50 [kvm])"
    poll = "cond_resched_wr: (__cond_resched_rwlock_write+0x0/0x60)"
    assert stripped(flush, poll, flush) == ([poll], [YIELD, "flush_remote_tlbs"])


def test_the_leaves_that_an_aging_found_used_are_an_answer():
    age = "kvm_age_hva: mmu notifier age hva: 0x1000 -- 0x3000"
    change = f"{CHANGED}: as id 1 gfn 2b level 1 old_spte 1e67 new_spte 1e47"
    done = "page_fault_ret: (x+0x0/0x1 [kvm]) ret=1"
    kept, gone = stripped(age, change, done)
    assert kept == [age, "replay_host_answer: young 1:2b", done] and gone == [CHANGED]
    assert stripped(age, done)[0] == [age, "replay_host_answer: young -", done]
    assert stripped(age, change, done, answers=False)[0] == [age, done]


def test_the_leaves_that_pml_found_written_are_an_answer():
    masked = "dirty_masked: (x+0x0/0x1 [kvm]) gfn_offset=0x0 mask=0x1"
    change = f"{CHANGED}: as id 0 gfn 1000 level 1 old_spte 860000000001cb77 new_spte 860000000001c977"
    kept, _ = stripped(masked, change, answers=False, mmu="ept", pml=1)
    assert kept == [masked, "replay_host_answer: dirty 0:1000"]
    assert stripped(masked, change, answers=False, mmu="ept", pml=0)[0] == [masked]


def test_a_run_of_the_recovery_is_an_input():
    task = " kvm-nx-lpage-re-1977    [000] ...1.   115.872493: "
    cut = f"{task}{CHANGED}: as id 0 gfn 0 level 2 old_spte 12ddd5827 new_spte 8000000000000000"
    flush = f"{task}flush_remote_tlbs: (kvm_flush_remote_tlbs+0x4/0x50 [kvm])"
    kept, gone = stripped(cut, flush, cut)
    assert [text.split(": ")[-1] for text in kept] == ["nx_recovery"] * 2
    assert gone == [CHANGED, "flush_remote_tlbs", CHANGED]
    # Newer kernels yield there unseen: flushes are not compared, and only a pause ends a run.
    kept, gone = stripped(cut, flush, cut, cut.replace("115.8", "115.9"), kernel="6.18", release="6.18.15")
    assert len(kept) == 2 and gone == [CHANGED] * 3


def test_a_recovery_that_only_forgot_is_told_by_the_operation_that_ends_it():
    mark = 'tracing_mark_write: {"i":%d,"op":"host_kvm_param","name":"nx_huge_pages_recovery_%s","value":"%d","rc":0}'
    ratio, sleep = mark % (1, "ratio", 1), mark % (2, "period_ms", 100000)
    assert stripped(ratio, sleep)[0] == [ratio, "replay_host_answer: nx_recovery", sleep]
    assert stripped(mark % (1, "ratio", 2), sleep)[0][1:] == [sleep]


def compared(recorded: list[tuple[str, str]], predicted: list[tuple[str, str]]) -> TdpComparison:
    found = TdpComparison(WORDS, TDP_OUTPUTS)
    for event, body in recorded:
        found.add_recorded(Recorded(1, event, body))
    for event, body in predicted:
        found.add_predicted(Prediction(1, event, body))
    found.finish()
    return found


def test_a_yield_may_have_flushed_in_place_of_one_flush():
    flush, change = ("flush_remote_tlbs", ""), (CHANGED, "as id 0 gfn 1 level 1 old_spte 0 new_spte 0")
    for recorded, predicted, is_equal in (
        ([(YIELD, ""), change], [flush, change], True),
        ([(YIELD, ""), change], [flush, flush, change], False),
        ([(YIELD, ""), change, flush], [change, flush], True),
        ([change, (YIELD, "")], [change, flush], True),
        ([change, flush], [flush, change], False),
        ([change], [change, flush], False),
    ):
        assert (compared(recorded, predicted).divergence is None) == is_equal, (recorded, predicted)


@pytest.mark.parametrize(
    ("event", "theirs", "mine", "is_alike"),
    [
        # The address of a table is the kernel's own; the frame of a leaf is compared.
        (CHANGED, "gfn 0 level 2 old_spte 0 new_spte 12758c827", "gfn 0 level 2 old_spte 0 new_spte 827", True),
        (CHANGED, "gfn 0 level 2 old_spte 0 new_spte 129200ee7", "gfn 0 level 2 old_spte 0 new_spte ee7", False),
        # The processor sets A and D, it takes neither away.
        (CHANGED, "gfn 0 level 1 old_spte 1e67 new_spte 5a0", "gfn 0 level 1 old_spte 1e07 new_spte 5a0", True),
        (CHANGED, "gfn 0 level 1 old_spte 1e07 new_spte 5a0", "gfn 0 level 1 old_spte 1e67 new_spte 5a0", False),
        (CHANGED, "gfn 0 level 1 old_spte 1e67 new_spte 5a0", "gfn 0 level 1 old_spte 1e65 new_spte 5a0", False),
        ("kvm_mmu_split_huge_page", "gfn 0 spte ee7 level 2 errno 0", "gfn 0 spte e87 level 2 errno 0", True),
        ("kvm_mmu_split_huge_page", "gfn 0 spte ee7 level 2 errno 0", "gfn 0 spte ee7 level 3 errno 0", False),
        ("kvm_mmu_set_spte", "gfn 0 spte e67 (rwxu) level 1 at 127589008",
         "gfn 0 spte e67 (rwxu) level 1 at 4008", True),
        ("kvm_mmu_set_spte", "gfn 0 spte e67 (rwxu) level 1 at 127589008",
         "gfn 0 spte e67 (rwxu) level 1 at 4010", False),
        ("mark_mmio_spte", "sptep:0000000123456008 gfn d access 7 gen 8",
         "sptep:0000000000004008 gfn d access 7 gen 8", True),
        ("mark_mmio_spte", "sptep:0000000123456008 gfn d access 7 gen 8",
         "sptep:0000000000004008 gfn d access 7 gen 6", False),
        ("fast_page_fault", "vcpu 0 sptep 12758a008 old 0x1e65 new 1e67 spurious 0 fixed 1",
         "vcpu 0 sptep 4008 old 0x1e05 new 1e07 spurious 0 fixed 1", True),
        ("fast_page_fault", "vcpu 0 sptep 12758a008 old 0x1e65 new 1e67 spurious 0 fixed 1",
         "vcpu 0 sptep 4008 old 0x1e65 new 1e67 spurious 1 fixed 0", False),
        ("flush_remote_tlbs_range", "(x+0x0/0x1 [kvm]) gfn=0x200 pages=512", "gfn=0x200 pages=512", True),
    ],
)  # fmt: skip
def test_what_is_compared(event: str, theirs: str, mine: str, is_alike: bool):
    if event == CHANGED:
        theirs, mine = f"as id 0 {theirs}", f"as id 0 {mine}"
    assert alike(event, theirs, mine, WORDS) == is_alike


def test_a_run_of_changes_is_told_entry_by_entry():
    narrator = NarratorTdp(wording_of("v6.12"), WORDS, 4)
    event = ["spte", 0, 0x200, 2, "0x0", "0x5a0", None, None, 3]
    told = [body for _, body in narrator.tell({"op": "enter"}, {"events": [event]})]
    assert told == [f"as id 0 gfn {gfn:x} level 2 old_spte 0 new_spte 5a0" for gfn in (0x200, 0x400, 0x600)]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        # Each takes away one input that nothing else says.
        ("6.1/npt1tdp1_age", "replay_host_answer: young"),
        ("6.1/ept1tdp1_dirty_log", "replay_host_answer: dirty"),
        ("6.18/npt1tdp1_nxhuge_recovery", "replay_host_answer: nx_recovery"),
        ("7.2/npt1tdp1_notifier", "kvm_unmap_hva_range: "),
        ("6.12/npt1tdp1_hugelog_manual3", "dirty_masked: "),
    ],
)
def test_an_input_that_is_missing_shows(name: str, broken: str, tmp_path: Path):
    def told(lines: Iterator[str]) -> list[tuple[str, str]]:
        path = tmp_path / "stripped.txt"
        path.write_text("\n".join(lines) + "\n")
        return [(p.event, p.body) for p in replay(path, slow).predictions]

    with open_recording(TRACES / name / "trace.txt.xz", None) as opened:
        kept = [item.text for item in opened.items() if isinstance(item, Kept)]
    assert told(iter(kept)) != told(text for text in kept if broken not in text)


@pytest.mark.parametrize(
    ("pattern", "put", "message"),
    [
        (
            r"(kvm_mmu_spte_requested: gfn 100 pfn )\w+",
            r"\g<1>8000000000000000",
            "has a slot, 0x8000000000000000 is no",
        ),
        (
            r"(nx_huge_pages_recovery_ratio\",\"value\":)\"2\"",
            r'\g<1>"many"',
            "expected a number, got 'many'",
        ),
    ],
)
def test_what_cannot_be_is_said(pattern: str, put: str, message: str, tmp_path: Path):
    with open_recording(TRACES / "6.18/npt1tdp1_nxhuge_recovery" / "trace.txt.xz", None) as opened:
        text = "\n".join(item.text for item in opened.items() if isinstance(item, Kept))
    broken = tmp_path / "stripped.txt"
    changed, count = re.subn(pattern, put, text, count=1)
    broken.write_text(changed + "\n")
    assert count == 1
    with pytest.raises(TraceError, match=message):
        replay(broken, slow)


def test_line_numbers_never_go_back():
    report = replay(TRACES / "6.1/ept1tdp1_dirty_log" / "trace.txt.xz", slow)
    lines = [p.line for p in report.predictions]
    assert lines == sorted(lines)


def test_a_trace_shows_that_the_tdp_mmu_is_on(tmp_path: Path):
    """Without host facts, but for the kernel."""
    name = "6.12/npt1tdp1_quirk"
    trace = tmp_path / "trace.txt"
    trace.write_text("\n".join(read_lines(TRACES / name / "trace.txt.xz")) + "\n")
    report = replay(trace, slow, kernel="v6.12", host={"kernel": "6.12"})
    assert report.is_tdp and report.inferred["tdp_mmu"] == 1 and report.how_known("tdp_mmu") == "inferred"
    assert HostFacts({}, likely={"tdp_mmu": 1}).number("tdp_mmu") == 1


def test_two_kernels_say_the_same_where_they_do():
    """A recording beside itself under its own kernel, and under one without a TDP MMU."""

    def make(kernel: str, config: Mapping[str, object], plans: Mapping[str, str]) -> Any:
        return reference.Engine(kernel=kernel, config=dict(config), plans=plans or None)

    path = TRACES / "6.12/npt1tdp1_quirk" / "trace.txt.xz"
    assert diff(path, None, make).is_equal
    found = diff(path, None, make, kernels=(None, "v5.4"))
    assert any("tdp_mmu=1 is left out" in note for note in found.notes)


def test_a_recording_is_a_workload_for_a_kernel_without_prefaults():
    path = TRACES / "6.12/npt1tdp1_prefault" / "trace.txt.xz"
    recording = read_recording(path, make=lambda kernel, config, _plans: slow(kernel, config))
    assert recording.report.is_equal
    work = recording.workload("v6.1")
    assert "prefault" not in {op["op"] for op in work.ops}
    assert any(re.search(r"pages of KVM_PRE_FAULT_MEMORY as a guest's reads", text) for text in work.changes)
