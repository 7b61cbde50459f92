"""The studies: each page is what its command writes, and what it says of numbers follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kvm_mmu.cli import main
from kvm_mmu.studies import parents, quirk
from kvm_mmu.studies.study import studies


@pytest.mark.parametrize("name", studies())
def test_the_page_is_what_the_command_writes(root: Path, name: str) -> None:
    study = studies()[name]
    again = f"write it again: kvm-mmu study {name} --markdown > docs/studies/{name}.md"
    page = (root / "docs" / "studies" / f"{name}.md").read_text(encoding="utf-8")
    assert page == study.page(study.answers()), again


def test_every_study_has_a_page_and_no_other_is_there(root: Path) -> None:
    assert {path.stem for path in (root / "docs" / "studies").iterdir()} == set(studies())


def test_they_are_listed_and_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in studies())
    assert main(["study", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["studies"]] == list(studies())
    for words in (["study", "nothing"], ["study", "tdp", "T9"], ["study", "tdp", "T1", "--markdown"]):
        assert main(words) == 2
    assert "expected one of T1, T2, T3, T4" in capsys.readouterr().err


def test_a_section_alone_is_that_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "quirk", "Q1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "kvm-mmu/study/1" and told["study"] == "quirk"
    assert told["answers"] == [quirk.q1().to_dict()]


def test_a_search_looks_at_what_stands_before() -> None:
    """By hand for sixteen parents: at the end of its list each newest one is the last; at the front it is near."""
    assert parents.searches(parents.guest("v5.2", 16, "ascending")) == list(range(16, 1, -1))
    # v6.12: descriptors of fourteen, the newest in front, two places of it used.
    assert parents.searches(parents.guest("v6.12", 16, "ascending"))[:3] == [2, 1, 14]
