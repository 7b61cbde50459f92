"""No version test stands outside the rows: what a kernel does is asked as a fact."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: A name of a version flag, or a test of a release's beginning.
#: Where a kernel of its own may be named: the rows of core and reference, and which kernels a wording is of.
ROWS = ("src/kernels/", "src/mmu/tests/", "python/kvm_mmu/reference/common/kernels.py")
WORDING = "python/kvm_mmu/trace/text/recognise.py"
#: The rows that published studies go through: a choice, so that a new row changes no page.
STUDIED = "python/kvm_mmu/studies/study.py"
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


def named(text: str, kernel: str) -> bool:
    """Whether a text names a row as a value: `"v7.3"` or `V7_3`, not in a sentence."""
    constant = kernel.upper().replace(".", "_")
    return re.search(rf"[\"']{re.escape(kernel)}[\"']|\b{constant}\b", text) is not None


@pytest.mark.parametrize("kernel", ["v7.1.3", "v7.3"])
def test_a_kernel_is_its_row_and_its_wording(kernel: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("src", "python")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".rs", ".py") and named(path.read_text(encoding="utf-8"), kernel)
    }
    assert {"src/kernels/rows.rs", "python/kvm_mmu/reference/common/kernels.py"} <= found
    assert {path for path in found if not path.startswith(ROWS)} <= {WORDING, STUDIED}


def test_a_name_is_seen() -> None:
    assert named('if kernel == "v7.3":', "v7.3") and named("Kernel::V7_3", "v7.3")
    assert not named("v6.1 to v7.3", "v7.3") and not named('"v7.3.4"', "v7.3")


@pytest.mark.parametrize(
    "line", ['if kernel.startswith("v6"):', "if rules.is_v6:", "profile.has_probes", 'name.starts_with("6.")']
)
def test_the_pattern_sees_a_version_test(line: str) -> None:
    assert VERSION_TEST.search(line)
