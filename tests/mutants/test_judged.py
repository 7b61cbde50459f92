"""The judge is silent where no fault is planted, and names each planted fault: what `make mutants` runs.

Without a mutant every test here passes. Under a mutant of `KILLS` its test must fail, by the property that is named;
under one of `SOUND` the small worlds must stay sound, for the fault breaks nothing that is unsound.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.check import WORLDS, check
from kvm_mmu.check.engine import Subject


def _judged() -> Any:
    spec = importlib.util.spec_from_file_location("mutants_judged", Path(__file__).parent / "judged.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


JUDGED = _judged()
#: Faults that the judge names.
KILLED = 54


@pytest.mark.parametrize("name", sorted(JUDGED.KILLS))
def test_the_judge_is_silent(name: str) -> None:
    kill = JUDGED.KILLS[name]
    result = check(Subject(kill.kernel), kill.world, depth=kill.depth, keep=True)
    assert [finding.name for finding in result.found if finding.name == kill.name] == []


@pytest.mark.parametrize("name", sorted(JUDGED.PLANTED))
def test_what_needs_no_build_is_named_or_passes(name: str) -> None:
    planted = JUDGED.PLANTED[name]
    found = dict(JUDGED.found_in(planted.subject, planted.world, planted.depth))
    assert planted.name in found if planted.name else not found


@pytest.mark.parametrize("world", ["W1", "W2"])
def test_small_worlds_are_sound(world: str) -> None:
    assert check(Subject("v6.12"), WORLDS[world]).verdict == "sound"


def test_each_fault_is_killed_or_sound() -> None:
    assert set(JUDGED.KILLS).isdisjoint(JUDGED.SOUND)
    assert len(JUDGED.SOUND) >= 10
    killed = [*JUDGED.KILLS, *(name for name, planted in JUDGED.PLANTED.items() if planted.name)]
    assert len(killed) == len(set(killed)) >= KILLED
