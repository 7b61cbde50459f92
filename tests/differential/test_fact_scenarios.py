"""Each fact of the kernels is shown by a scenario: the run changes where nothing but the fact is changed.

Every file of `data/scenarios/facts` is run on core and reference, under each kernel that its header names and under the
same kernel with the other value of the fact; and under the rows that have these values. Facts without a file are listed
here by reason.
"""

from __future__ import annotations

import re
from itertools import pairwise, zip_longest
from typing import Any

import pytest
from kvm_mmu import kernels
from kvm_mmu.cli import main
from kvm_mmu.errors import KvmMmuError
from kvm_mmu.machine.profiles import facts, kernel_profile
from kvm_mmu.scenario.fact_scenarios import FOLDER, FactScenario, fact_scenario, reason, value_text
from kvm_mmu.scenario.language import Scenario, make_engine, read_scenario
from kvm_mmu.scenario.verify import first_difference, plain

FOUND: dict[str, FactScenario] = {
    fact: scenario for fact in facts if (scenario := fact_scenario(fact)) is not None
}
PAIRS = [(fact, kernel, other) for fact, one in FOUND.items() for kernel, other in one.pairs]
#: Those of rows as they are, and of these, one that another fact of the other row hides: v6.1 keeps any table.
ROW_PAIRS = [
    (fact, kernel, other)
    for fact, kernel, other in PAIRS
    if ":" not in kernel
    and (fact, kernel, other) != ("nx_marks_all_levels", "v6.12", "no")
    and any(value_text(row.facts[fact]) == other for row in kernels.values())
]
#: Values that no row has: nobody's, or of kernels that no row is of.
OF_NO_ROW = {
    ("child_reuse", "gfn"),
    ("init_resets", "yes"),
    ("max_parents", "2"),
    ("has_unsync", "no"),
    ("write_flood_limit", "0"),
}
BACKENDS = ("core", "reference")
Lines = list[dict[str, Any]]


def lines_of(scenario: Scenario, kernel: str, backend: str) -> Lines:
    """What each operation gives, with the state; an error ends the run and is its last line."""
    lines: Lines = []
    try:
        engine = make_engine(scenario, kernel, backend)
        for op in scenario.ops:
            lines.append(plain({**engine.apply(op), "state": engine.state()}))
    except (KvmMmuError, ValueError) as err:
        bug = re.search(r"mmu\.c:\d+", str(err))
        lines.append({"error": bug[0] if bug else True})
    return lines


def parts(a: Lines, b: Lines) -> int | None:
    """The first operation whose line differs; None where the runs are equal."""
    differs = (i for i, (x, y) in enumerate(zip_longest(a, b)) if first_difference(x, y) is not None)
    return next(differs, None)


@pytest.mark.parametrize(("fact", "kernel", "other"), PAIRS)
def test_a_run_changes_with_the_fact_alone(fact: str, kernel: str, other: str) -> None:
    scenario = read_scenario(FOUND[fact].path)
    changed = f"{kernel}:{fact}={other}"
    before, after = kernel_profile(kernel), kernel_profile(changed)
    assert {name for name in facts if before.facts[name] != after.facts[name]} == {fact}
    core, reference = ([lines_of(scenario, name, one) for name in (kernel, changed)] for one in BACKENDS)
    assert parts(*core) is not None, f"{fact}: the core runs alike with {kernel} and {changed}"
    assert parts(*reference) is not None, f"{fact}: the reference runs alike with {kernel} and {changed}"
    for name, ours, theirs in zip((kernel, changed), core, reference, strict=True):
        assert parts(ours, theirs) is None, f"{fact}: core and reference part with {name}"


@pytest.mark.parametrize(("fact", "kernel", "other"), ROW_PAIRS)
def test_a_run_changes_between_the_rows(fact: str, kernel: str, other: str) -> None:
    """The row that has the other value and is the nearest one gives another result too."""
    rows = list(kernels)
    have = [row for row in rows if value_text(kernels[row].facts[fact]) == other]
    assert have, f"{fact}: no row has {other}"
    nearest = min(have, key=lambda row: abs(rows.index(row) - rows.index(kernel)))
    scenario = read_scenario(FOUND[fact].path)
    for backend in BACKENDS:
        assert parts(lines_of(scenario, kernel, backend), lines_of(scenario, nearest, backend)) is not None


def test_values_of_no_row_are_known() -> None:
    values = {(fact, other) for fact, _, other in PAIRS}
    had = {(fact, value_text(row.facts[fact])) for row in kernels.values() for fact in facts}
    assert values - had == OF_NO_ROW


def test_a_file_says_whose_it_is() -> None:
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(FOUND)
    for fact, one in FOUND.items():
        scenario = read_scenario(one.path)
        assert (scenario.name, scenario.kernel) == (fact, one.pairs[0][0])
        assert one.shows.strip() and not one.shows.endswith(".")


def test_a_fact_without_a_file_has_a_reason() -> None:
    """A fact that is new needs a file, or its name under `NOT_SHOWN` and here."""
    by_reason: dict[str, list[str]] = {}
    for fact in facts:
        if fact not in FOUND:
            by_reason.setdefault(reason(fact).partition(":")[0], []).append(fact)
    assert {why: sorted(names) for why, names in by_reason.items()} == {
        "recordings only": ["has_requested_event"],
        "nested guests": ["zap_spares_rooted_child"],
        "the TDP MMU": ["has_tdp_mmu"],
    }
    assert not any(reason(fact) for fact in FOUND)


def test_a_change_between_neighbours_has_a_pair_of_its_values() -> None:
    """`kernels diff` of two rows after each other names two kernels with just these values, or it is listed here."""
    rows = list(kernels)
    lacking = set()
    for a, b in pairwise(rows):
        for fact, one in FOUND.items():
            was, now = (value_text(kernels[row].facts[fact]) for row in (a, b))
            if was != now and not any(
                {was, now} == {other, value_text(kernel_profile(kernel).facts[fact])}
                for kernel, other in one.pairs
            ):
                lacking.add((fact, was, now))
    assert lacking == LACKING


#: Two values that a direct MMU does not tell apart, and why.
LACKING: set[tuple[str, str, str]] = {
    # How far the generation may reach, which no generation of these kernels exceeds.
    ("spte_layout", "v5.4", "v5.10"),
    # The same bits of the generation, in another order of the check only.
    ("generation_layout", "v5.10", "v6.1"),
    # Names of bits that direct pages do not set.
    ("role_layout", "v5.0", "v5.1"),
    ("role_layout", "v5.1", "v6.1"),
}


def test_the_command_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "sample", "--fact", "stale_test"]) == 0
    assert capsys.readouterr().out == (FOLDER / "stale_test.jsonl").read_text(encoding="utf-8")
    assert main(["scenario", "sample", "--fact", "has_tdp_mmu"]) == 2
    assert "the TDP MMU" in capsys.readouterr().err
    assert main(["scenario", "sample", "--fact", "nothing"]) == 2
    assert "kvm-mmu kernels show" in capsys.readouterr().err
    assert main(["scenario", "sample", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= len(facts)


def test_the_difference_of_two_kernels_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "diff", "6.12.94", "6.12.117"]) == 0
    out = capsys.readouterr().out
    assert "kvm-mmu run stale_test.jsonl --kernel v6.12:stale_test=before_reclaim" in out
    assert "CVE-2026-64561" in out and "no scenario shows it: nested guests" in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("    "))
