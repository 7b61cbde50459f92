"""What the built extension module is: this version, the public feature set, no planted faults."""

from __future__ import annotations

import tomllib
from pathlib import Path

import kvm_mmu
from kvm_mmu import _core


def test_one_version(root: Path) -> None:
    """Cargo.toml is the only place that a version is written; the package and the citation agree."""
    version = tomllib.loads((root / "Cargo.toml").read_text(encoding="utf-8"))["package"]["version"]
    assert kvm_mmu.__version__ == version
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")


def test_the_wheel_has_no_mutants(root: Path) -> None:
    """The feature exists, is off by default, and is not among those that the wheel is built with."""
    cargo = tomllib.loads((root / "Cargo.toml").read_text(encoding="utf-8"))["features"]
    built_with = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["maturin"][
        "features"
    ]
    assert "mutants" in cargo
    assert "mutants" not in cargo["default"] + built_with
    assert [name for name in dir(_core) if "mutant" in name.lower()] == []
