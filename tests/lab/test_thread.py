"""The seed thread: known counts of its witnesses, its page written again, and digests that notice a plan turned off."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.machine import zap_plan
from kvm_mmu.scenario.language import read_scenario, run_scenario
from kvm_mmu.studies import thread, thread_generation, thread_restart, thread_stale, thread_teardown

BACKENDS = ("core", "reference")


@pytest.fixture(scope="module")
def witness(data: Path) -> Path:
    return data / "scenarios" / "restart_witness.jsonl"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kernel", "starts", "visited", "zapped"),
    [("v5.0-seed", 6, 44, 5), ("v5.2", 1, 24, 5), ("v5.0", 24, 25, 24)],
)
def test_the_small_witness(
    witness: Path, backend: str, kernel: str, starts: int, visited: int, zapped: int
) -> None:
    *_, last = run_scenario(read_scenario(witness), kernel, backend)
    ctr = last["ctr"]
    assert (ctr["walk_starts"], ctr["walk_visited"], ctr["zapped"]) == (starts, visited, zapped)


def test_the_witness_file_is_the_one_of_the_gallery(witness: Path) -> None:
    scenario = read_scenario(witness)
    assert scenario.ops == thread_restart.witness_ops()
    engine_vm = thread_restart.witness("v5.0-seed")
    assert len(engine_vm.core.active_page_ids()) == 24
    assert len(thread_restart.flagged_pages(engine_vm)) == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_smallest_stale_next(data: Path, backend: str) -> None:
    scenario = read_scenario(data / "scenarios" / "stale_next_smallest.jsonl")
    assert scenario.ops == thread_stale.smallest_ops()
    *_, last = run_scenario(scenario, backend=backend)
    assert last["out"]["outcome"] == "stale_next" and last["out"]["page"] == 1
    assert last["ctr"]["walk_visited"] == 1


def test_none_is_smaller() -> None:
    tried, found = thread_stale.search()
    assert tried == 5 * (1 + 4 + 16 + 64)
    assert found[0].pages == 2 and found[0].ops == thread_stale.smallest_ops()
    # An operation less of the smallest, whichever, and it ends well.
    for left_out in range(1, 4):
        ops = [op for i, op in enumerate(thread_stale.smallest_ops()) if i != left_out]
        assert thread_stale.run_ops(ops)[1]["out"]["outcome"] == "done"


def test_wraps_of_live_vms() -> None:
    assert thread_generation.live_wraps("i*2-150", 1, 40)[0] == [37]
    assert thread_generation.live_wraps("i*2-150", 0, 80)[0] == []


@pytest.mark.parametrize(
    ("policy", "start", "as_id", "first"),
    [
        ("v5.0", "i*2-150", 0, None),
        ("v5.0", "i*2-150", 1, 37),
        ("v5.0", "i*2", 0, 1 << 18),
        ("v5.2", "i", 0, 1 << 18),
        ("v5.2", "i", 1, 1 << 18),
    ],
)
def test_first_wraps(policy: str, start: str, as_id: int, first: int | None) -> None:
    found = thread_generation.counted(km.kernels[policy].generation, start, as_id)
    assert found.first == first and found.lap == 1 << 18


def test_the_livelock_and_its_end() -> None:
    stuck, _ = thread_teardown.interleave(km.plans["zap-all"], tables=16)
    assert not stuck.ended and stuck.live_after >= stuck.live_before and stuck.verdict.startswith("livelock")
    ends, _ = thread_teardown.interleave(km.plans["v5.3-fast"], tables=16)
    assert ends.ended and ends.old_left == 0 and ends.rounds < 3 * ends.live_before
    alone, _ = thread_teardown.interleave(km.plans["zap-all"], tables=16, added=0)
    assert alone.ended


def test_a_plan_turned_off_changes_the_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    def digests() -> set[str]:
        answer = thread_restart.s4(sizes=(50, 100))
        return {line.digest for line in answer.lines} | {str(d) for d in answer.tables[0].columns["digest"]}

    before = digests()
    assert digests() == before
    off = replace(km.plans["seed"], restart=frozenset(), name="seed")
    monkeypatch.setitem(zap_plan.plans, "seed", off)
    assert digests() != before


def test_unknown_claims_are_refused() -> None:
    with pytest.raises(UsageError, match="S1, S2"):
        list(thread.answers(["S10"]))


def test_the_page_is_what_the_model_says(root: Path) -> None:
    kept = (root / "docs" / "the-thread.md").read_text(encoding="utf-8")
    written = thread.page(thread.answers())
    assert written == kept, (
        "docs/the-thread.md is old: kvm-mmu gallery thread --markdown > docs/the-thread.md"
    )
    for claim in thread.CLAIMS:
        assert f"## {claim}: " in kept
    assert "Not what was expected" not in kept and "Wrong" not in kept and "Not exactly" not in kept
    assert len(re.findall(r"\b[0-9a-f]{16}\b", kept)) > 80


def test_answers_as_plain_data() -> None:
    for answer in thread.answers(["S3", "S6", "S7", "S8"]):
        read = json.loads(json.dumps(answer.to_dict()))
        assert read["answer"] and (read["lines"] or read["tables"])
        assert answer.claim in answer.to_text()
