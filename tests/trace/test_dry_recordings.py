"""Made-up recordings of v6.1 and v6.12, by a model written from the contract alone, replay on core and reference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kvm_mmu.testing.dry_recording import DryRecording
from kvm_mmu.trace.replay.engine import engine_factory
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.text.kinds import OUTPUTS

#: The later ones are the first that show certain rules on large leaves.
SEEDS = (*range(14), 15, 16, 19, 28, 32, 33, 39, 42)
#: Of guests with page tables, or not to be seen in direct pages.
NEVER_SAID = {
    "kvm_mmu_sync_page", "kvm_mmu_unsync_page", "kvm_mmu_set_accessed_bit", "kvm_mmu_set_dirty_bit",
    "kvm_mmu_walker_error", "kvm_mmu_invalidate_zap_all_pages", "kvm_mmu_split_huge_page", "unprotect_page_ret",
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_equal(seed: int, tmp_path: Path):
    recording = DryRecording(seed)
    trace = recording.write(tmp_path)
    # The reference takes ten times as long: each third recording, all of them in the soak.
    is_for_both = seed % 3 == 0 or bool(os.environ.get("KVM_MMU_SOAK"))
    for backend in ("core", "reference") if is_for_both else ("core",):
        report = replay(trace, engine_factory(backend))
        assert report.compared and report.is_equal, f"seed {seed}, {backend}: {report.as_text()}"
        assert report.host_answers == 0


def test_a_seed_makes_one_recording():
    assert DryRecording(3).lines == DryRecording(3).lines != DryRecording(4).lines


def test_the_seeds_show_every_kind_of_output_and_fact():
    recordings = [DryRecording(seed) for seed in SEEDS]
    assert set().union(*(r.said for r in recordings)) >= OUTPUTS - NEVER_SAID
    facts = {(r.facts.kernel, r.facts.npt) for r in recordings}
    assert facts == {("6.1", True), ("6.1", False), ("6.12", True), ("6.12", False)}
    assert {r.event_set for r in recordings} == {"full", "model", "core"}
    for fact in ("la57", "nx_huge_pages", "mmio_caching"):
        assert {getattr(r.facts, fact) for r in recordings} == {True, False}
    text = "\n".join(line for r in recordings for line in r.lines)
    for words in (
        " l5 ",
        "level 2 at",
        "spurious 0 fixed 1",
        "valid 0",
        "existing",
        "invalid nxe",
        "gen 1 gfn",
    ):
        assert words in text
