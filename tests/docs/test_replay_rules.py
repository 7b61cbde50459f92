"""docs/replay-rules.md names what shows each rule of a replay: every rule has something, all named is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "replay-rules.md"
FACTS = ROOT / "docs" / "kernel-facts.md"
#: Every rule of a replay that the page of facts names.
RULES = re.findall(
    r"^- `((?:v6\.(?:root|page|slot|fault|probe)|v5\.npt|replay\.(?:contract|resident|ept|tdp|shadow))\.\d+)`",
    FACTS.read_text(),
    re.M,
)
FILES = (
    "test_replay_6x",
    "test_replay_5x_rules",
    "test_faults_of_5x",
    "test_replay_ept",
    "test_replay_tdp",
    "test_replay_shadow",
)
TESTS = {
    name
    for file in FILES
    for name in re.findall(r"^def (test_\w+)", (ROOT / f"tests/trace/{file}.py").read_text(), re.M)
}
VECTORS = {path.name.partition(".")[0] for path in (ROOT / "tests/data/vectors/v5.0").iterdir()}


def rows() -> dict[str, tuple[list[str], list[str]]]:
    """Rule -> recordings, and scenarios and tests."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and re.fullmatch(r"`(?:v5|v6|replay)\.\w+\.\d+`", cells[0]):
            recordings, others = (
                [] if cell == "-" else [name.strip() for name in cell.split(",")] for cell in cells[2:]
            )
            found[cells[0].strip("`")] = (recordings, others)
    return found


def test_every_rule_has_a_row_and_something_that_shows_it():
    assert sorted(rows()) == sorted(RULES)
    for rule, (recordings, others) in rows().items():
        assert recordings or others, rule
        # What no recording shows has a scenario or a made-up recording.
        assert recordings or any(name.startswith("v6_") or name in VECTORS for name in others), rule


def test_what_is_named_is_there():
    for rule, (recordings, others) in rows().items():
        for name in recordings:
            assert (ROOT / "tests/data/traces" / name / "trace.txt.xz").is_file(), (rule, name)
        for name in others:
            if name == "made up":
                continue
            is_there = name in TESTS | VECTORS or (ROOT / f"tests/data/scenarios/{name}.jsonl").is_file()
            assert is_there, (rule, name)


def test_every_scenario_of_v6_is_named():
    named = {name for _, others in rows().values() for name in others}
    files = {path.stem for path in (ROOT / "tests/data/scenarios").glob("v6_*.jsonl")}
    assert files <= named, sorted(files - named)
