"""No version test stands outside the rows: what a kernel does is asked as a fact."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: A name of a version flag, or a test of a release's beginning.
VERSION_TEST = re.compile(r"\b(is_v[567]|has_probes|is_[567]x)\b|starts_?with\(\s*[bf]?[\"']v?[567]")


def sources() -> list[Path]:
    rust = [path for path in (ROOT / "src").rglob("*.rs") if "kernels" not in path.parts]
    return sorted(rust + list((ROOT / "python").rglob("*.py")))


def test_no_version_is_tested_outside_the_rows() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if VERSION_TEST.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line", ['if kernel.startswith("v6"):', "if rules.is_v6:", "profile.has_probes", 'name.starts_with("6.")']
)
def test_the_pattern_sees_a_version_test(line: str) -> None:
    assert VERSION_TEST.search(line)
