"""`kvm-mmu check`: it finds what is known to be broken, no longer than by hand, and nothing where that was repaired."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kvm_mmu import UsageError
from kvm_mmu.check import WORLDS, check, read_world
from kvm_mmu.check.engine import Subject, load_policy
from kvm_mmu.check.story import tell
from kvm_mmu.cli import main
from kvm_mmu.machine.generation import GenerationV61
from kvm_mmu.machine.profiles import as_plan


class NeverWraps(GenerationV61):
    """A policy that never finds its wrap."""

    def is_wrap(self, generation: int) -> bool:
        return False


@pytest.mark.parametrize("kernel", ["v5.2", "v5.4", "v6.1", "v6.12", "v7.3"])
@pytest.mark.parametrize("world", ["W1", "W2"])
def test_small_worlds_close_and_are_sound(kernel: str, world: str) -> None:
    result = check(Subject(kernel), WORLDS[world])
    assert (result.verdict, result.closed, result.missed) == ("sound", True, ())
    assert result.states > 50 and result.transitions > result.states


def test_the_result_is_the_same_on_two_threads() -> None:
    one, two = (check(Subject("v6.12"), WORLDS["W3"], depth=5, jobs=jobs) for jobs in (1, 2))
    assert (one.states, one.transitions, one.goals) == (two.states, two.transitions, two.goals)
    found = [check(Subject("v5.2"), WORLDS["W4"], jobs=jobs).found for jobs in (1, 2)]
    assert found[0] == found[1]


def test_a_random_search_depends_on_its_seed_alone() -> None:
    first, second, other = (
        check(Subject("v6.12"), WORLDS["W4"], steps=3000, seed=seed, jobs=jobs)
        for seed, jobs in ((3, 1), (3, 2), (4, 1))
    )
    assert (first.transitions, first.states, first.goals) == (second.transitions, second.states, second.goals)
    assert first.transitions != other.transitions


def test_a_random_search_finds_and_shrinks() -> None:
    result = check(Subject("v5.2"), WORLDS["W4"], steps=100_000, seed=1)
    assert result.found and result.found[0].operations <= 6


def test_a_policy_that_never_wraps_is_found_out() -> None:
    result = check(Subject("v6.12", policy=NeverWraps), WORLDS["W2"], depth=8)
    assert result.found[0].name in ("mmio_place", "stale_mmio")


def test_a_plan_that_leaves_the_slot_is_found_out() -> None:
    result = check(Subject("v6.12", as_plan("merged"), "slot_removal"), WORLDS["W1"])
    assert result.found[0].operations == 3
    assert check(Subject("v6.12", as_plan("zap-all"), "slot_removal"), WORLDS["W1"]).verdict == "sound"


def test_a_plan_that_cannot_serve_an_event_is_no_verdict() -> None:
    with pytest.raises(UsageError, match="is for a slot"):
        check(Subject("v6.12", as_plan("v6.12-slot"), "wrap"), WORLDS["W1"])


def test_the_story_names_the_repair_and_is_a_scenario(tmp_path: Path) -> None:
    result = check(Subject("v6.18"), WORLDS["W6"])
    story = tell(result.prepared, result.found[0])
    assert result.found[0].name == "slot_bounds" and result.found[0].operations <= 5
    assert "collapse=by_table_in_slot" in story.repairs
    result = check(Subject("v5.2"), WORLDS["W4"])
    story = tell(result.prepared, result.found[0])
    assert story.repairs == ("mmio_cache_space=own",)
    file = tmp_path / "found.jsonl"
    file.write_text("\n".join(story.scenario) + "\n", encoding="utf-8")
    assert main(["run", str(file)]) == 0


def test_a_search_goes_on_where_it_was_left(tmp_path: Path) -> None:
    whole = check(Subject("v6.12"), WORLDS["W2"])
    check(Subject("v6.12"), WORLDS["W2"], depth=5, folder=tmp_path)
    resumed = check(Subject("v6.12"), WORLDS["W2"], folder=tmp_path)
    assert (resumed.states, resumed.depth, resumed.closed) == (whole.states, whole.depth, True)
    with pytest.raises(UsageError, match="another search"):
        check(Subject("v6.1"), WORLDS["W2"], folder=tmp_path)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--kernel", "v6.12", "--world", "W1"]) == 0
    assert main(["check", "--kernel", "v5.2", "--world", "W4"]) == 1
    assert main(["check", "--kernel", "v6.12", "--world", "W4", "--depth", "2"]) == 3
    assert "not reached" in capsys.readouterr().out
    assert main(["check", "--kernel", "v6.12", "--world", "nowhere"]) == 2
    capsys.readouterr()
    assert main(["check", "--kernel", "v5.2", "--world", "W4", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["results"][0]["story"]["repairs"] == ["mmio_cache_space=own"]


def test_a_world_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "world.json"
    actions = [WORLDS["W1"].actions[0], WORLDS["W1"].actions[2]]
    file.write_text(json.dumps({"actions": actions, "bits": 2}), encoding="utf-8")
    assert check(Subject("v6.12"), read_world(file)).closed
    for text, said in (
        ("[]", "actions"),
        ('{"actions": [], "colour": 1}', "colour"),
        ('{"actions": [1]}', "operation"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=said):
            read_world(file)


def test_what_is_no_policy_is_refused() -> None:
    for name in ("nowhere:Policy", "json:loads", "kvm_mmu"):
        with pytest.raises(UsageError, match="policy"):
            load_policy(name)
