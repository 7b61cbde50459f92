"""The fixtures for test suites of users: the lines of the how-to run as they stand there, and print what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def suite(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test suite of a user's: the lines of docs/howto.md, and a plan that is not enough."""
    page = (root / "docs" / "howto.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```text\n(import kvm_mmu as km\nimport pytest.*?)```", page, re.DOTALL)
    where = tmp_path_factory.mktemp("suite")
    (line,) = re.findall(r"`(pytest_plugins = .*?)`", page)
    (where / "conftest.py").write_text(line + "\n")
    (where / "test_mine.py").write_text(lines)
    (where / "test_others.py").write_text(
        "def test_nothing(plan_benchmark):\n"
        "    row = plan_benchmark('walk=head,only=obsolete', pages=64, kernel='v5.4')\n"
        "    assert row['outcome'] == 'done', row['outcome']\n"
        "def test_slot(plan_benchmark):\n"
        "    row = plan_benchmark('v6.12-slot', at='slot-removal', pages=64, kernel='v6.12')\n"
        "    assert row['sound'] == 'yes'\n"
    )
    return where


def run(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    # pytest-benchmark measures nothing in a worker of pytest-xdist, which it knows by these.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=where, env=own, capture_output=True, text=True, check=False)


def test_the_lines_of_the_how_to_print_what_it_shows(suite: Path, root: Path) -> None:
    done = run(suite, "test_mine.py", "--benchmark-disable")
    assert done.returncode == 0, done.stdout[-2000:]
    page = (root / "docs" / "howto.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(=+ zap plans.*?)```", page, re.DOTALL)
    found = re.search(r"=+ zap plans.*?\nv5\.0  [^\n]*,144 [^\n]*\n", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    assert found[0] == shown, "write it again: the tables that this run prints, into docs/howto.md"


def test_counts_are_saved_beside_the_times_and_failures_are_told(suite: Path) -> None:
    done = run(suite, "test_others.py", "--benchmark-json=saved.json")
    assert done.returncode == 1 and "not exercised" in done.stdout and "1 failed, 1 passed" in done.stdout
    saved = json.loads((suite / "saved.json").read_text())["benchmarks"]
    (row,) = (one["extra_info"] for one in saved if one["name"] == "test_slot")
    assert row["plan"] == "v6.12-slot" and row["pages_zapped"] == 0 and row["work_units"] > 0
