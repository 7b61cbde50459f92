"""Guests with page tables of their own: what is broken is found in S1 and S2, and sound rows are sound there."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvm_mmu import UsageError
from kvm_mmu.check import WORLDS, check
from kvm_mmu.check.engine import Subject, fits
from kvm_mmu.check.story import tell
from kvm_mmu.cli import main


@pytest.mark.parametrize(
    ("fact", "names", "most"),
    [
        ("mmio_over_leaf=overwrite", {"present_dropped_first", "debt_overdue"}, 6),
        ("child_reuse=any", {"child_expected"}, 8),
    ],
)
def test_a_row_before_its_fix(fact: str, names: set[str], most: int) -> None:
    """`most`: operations of the shortest way by hand, from an empty VM."""
    world = WORLDS["S1"]
    result = check(Subject(f"v6.12:{fact}"), world, depth=most - len(world.start), keep=True)
    found = {finding.name: finding.operations + len(world.start) for finding in result.found}
    assert names <= set(found) and min(found.values()) <= most


def test_the_story_of_a_guests_tables_is_a_scenario(tmp_path: Path) -> None:
    result = check(Subject("v6.12:mmio_over_leaf=overwrite"), WORLDS["S1"])
    story = tell(result.prepared, result.found[0])
    assert "mmio_over_leaf=drop_first" in story.repairs
    file = tmp_path / "found.jsonl"
    file.write_text("\n".join(story.scenario) + "\n", encoding="utf-8")
    assert main(["run", str(file)]) == 0


@pytest.mark.parametrize("kernel", ["v5.2", "v6.1", "v6.12"])
@pytest.mark.parametrize(("world", "depth"), [("S1", 5), ("S2", 3)])
def test_a_row_after_its_fixes(kernel: str, world: str, depth: int) -> None:
    result = check(Subject(kernel), WORLDS[world], depth=depth)
    assert (result.found, result.depth) == ((), depth)


def test_a_row_whose_shadow_paging_is_not_modelled_has_no_such_world() -> None:
    assert not fits(WORLDS["S1"], "v5.10") and fits(WORLDS["S1"], "v6.18")
    with pytest.raises(UsageError, match="guest tables"):
        check(Subject("v5.10"), WORLDS["S1"])
