"""The table of mutants is whole, and an ordinary build holds none of them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import _core
from kvm_mmu.machine.profiles import kernels

HERE = Path(__file__).resolve().parent


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"mutants_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = load("table")
IS_ORDINARY = not hasattr(_core, "MUTANTS")


def test_every_core_mutant_has_its_test(root: Path) -> None:
    text = (root / "src" / "mmu" / "words" / "mutants.rs").read_text(encoding="utf-8")
    assert re.findall(r'^    [A-Z]\w+ "([a-z-]+)",$', text, re.MULTILINE) == list(TABLE.CORE)


def test_every_core_mutant_is_asked_for_somewhere(root: Path) -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (root / "src" / "mmu").rglob("*.rs")}
    names = re.findall(
        r'^    ([A-Z]\w+) "', sources.pop(root / "src" / "mmu" / "words" / "mutants.rs"), re.MULTILINE
    )
    code = "\n".join(sources.values())
    assert [name for name in names if f"is_chosen(Mutant::{name})" not in code] == []


def test_every_policy_mutant_has_its_test() -> None:
    assert list(load("broken_policies").MUTANTS) == list(TABLE.POLICY)


def test_the_named_tests_exist(root: Path) -> None:
    for test in [*TABLE.CORE.values(), *TABLE.POLICY.values(), TABLE.REFERENCE]:
        file, _, rest = test.partition("::")
        text = (root / file).read_text(encoding="utf-8")
        function, _, parameter = rest.partition("[")
        assert not function or f"def {function}(" in text
        recorded = parameter.removesuffix("]").removeprefix("core-")
        data = root / "tests" / "data"
        if parameter and recorded not in kernels and not file.endswith("test_judged.py"):
            files = (data / "vectors" / recorded, data / "scenarios" / f"{recorded}.jsonl")
            assert any(file.exists() for file in files), parameter


@pytest.mark.skipif(not IS_ORDINARY, reason="this is the build that has them")
def test_an_ordinary_build_holds_none() -> None:
    """Neither the names nor the variable that chooses one are in the library."""
    library = Path(_core.__file__).read_bytes()
    assert b"KVM_MMU_MUTANT" not in library
    assert [name for name in TABLE.CORE if name.encode() in library] == []
