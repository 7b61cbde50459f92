"""Which room of the Python package may know which (docs/architecture.md): contracts of pyproject.toml, and three rules.

The contracts are import-linter's. A rule of our own is a function from a package directory to a list of findings. Each
is tried twice: on the package, where nothing may be found, and on a small package that breaks it, where something must
be. So a rule that stopped looking is noticed.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "kvm_mmu"

# Big and optional: an import of the package must not pull them in, nor fail without them.
NEVER_AT_THE_TOP = {
    "polars",
    "pandas",
    "pyarrow",
    "matplotlib",
    "tqdm",
    "drgn",
    "duckdb",
    "dask",
    "hypothesis",
}

# A module that is about one of them; nothing imports it but who asks for it by name.
ABOUT_ONE = {"kvm_mmu/testing/vm_machine.py": "hypothesis"}


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, with where it stands and whether it runs when the file is imported."""

    file: str
    room: str
    line: int
    target: str
    at_top: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def imports(package: Path) -> Iterator[Import]:
    """Every import statement of every module under `package`."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        module = (PACKAGE, *parts[:-1]) if parts[-1] == "__init__" else (PACKAGE, *parts)
        around = module if parts[-1] == "__init__" else module[:-1]
        room = parts[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))

        def walk(
            node: ast.AST, at_top: bool, for_types: bool, *, around: tuple[str, ...], name: str, room: str
        ) -> Iterator[Import]:
            for child in ast.iter_child_nodes(node):
                top = at_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                types = for_types or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
                targets: list[str] = []
                if isinstance(child, ast.Import):
                    targets = [alias.name for alias in child.names]
                elif isinstance(child, ast.ImportFrom):
                    base = around[: len(around) - child.level + 1] if child.level else ()
                    whole = ".".join((*base, *((child.module or "").split(".") if child.module else ())))
                    # `from kvm_mmu import machine` names the room in the list of names.
                    targets = [f"{whole}.{a.name}" for a in child.names] if whole == PACKAGE else [whole]
                for target in targets:
                    yield Import(name, room, child.lineno, target, top, types)
                yield from walk(child, top, types, around=around, name=name, room=room)

        name = str(path.relative_to(package.parent))
        yield from walk(tree, True, False, around=around, name=name, room=room)


def room_of(target: str) -> str | None:
    """The room that an absolute module name of this package stands in."""
    head, _, rest = target.partition(".")
    if head != PACKAGE:
        return None
    return rest.split(".")[0] if rest else "__init__"


def contracts_say(folder: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the package in a folder, under the contracts of the project."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", str(root / "pyproject.toml")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_are_kept(root: Path) -> None:
    said = contracts_say(root / "python", root)
    assert said.returncode == 0, said.stdout[-3000:]


STRANGERS = [
    ("machine/vm.py", "from kvm_mmu.lab import run\n"),
    ("machine/vm.py", "from ..reference import engine\n"),
    ("machine/vm.py", "def later():\n    import kvm_mmu.cli.demo\n"),
    ("view/table.py", "from kvm_mmu import machine\n"),
    ("lab/run.py", "from kvm_mmu.cli import demo\n"),
    ("trace/replay/run.py", "from kvm_mmu.recorders import demo\n"),
    ("trace/text/run.py", "from kvm_mmu.trace import replay\n"),
    ("live/run.py", "from kvm_mmu.trace import text\n"),
    ("reference/shadow/zap.py", "from kvm_mmu.words import bits\n"),
    ("reference/tdp/zap.py", "from ..shadow import zap\n"),
    ("reference/common/lock.py", "def f():\n    from kvm_mmu.reference.tdp import iter\n"),
    ("reference/v6/map.py", "from ..verbs import roots\n"),
]


@pytest.mark.parametrize(("file", "text"), STRANGERS)
def test_a_stranger_is_found(file: str, text: str, tmp_path: Path, root: Path) -> None:
    rooms = (
        "cli studies check lab recorders testing trace/analysis trace/replay scenario trace/text live words"
        " machine view"
    )
    chapters = [
        f"reference/{chapter}" for chapter in ("common", "shadow", "tdp", "v5", "v6", "paging", "verbs")
    ]
    for room in ["", "trace", "reference", *chapters, *rooms.split()]:
        (tmp_path / PACKAGE / room).mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / room / "__init__.py").touch()
    for name in (
        "errors",
        "terminal",
        "types",
        "lab/run",
        "cli/demo",
        "recorders/demo",
        "reference/dump",
        "reference/engine",
        "reference/operations",
        "reference/scenario",
        "reference/shadow/zap",
        "reference/tdp/iter",
        "reference/verbs/roots",
        "words/bits",
    ):
        (tmp_path / PACKAGE / f"{name}.py").touch()
    assert contracts_say(tmp_path, root).returncode == 0
    (tmp_path / PACKAGE / file).write_text(text, encoding="utf-8")
    said = contracts_say(tmp_path, root)
    assert said.returncode == 1
    assert "BROKEN" in said.stdout


def heavy_at_the_top(package: Path) -> list[str]:
    """Optional packages imported when the module is imported."""
    return [
        str(one)
        for one in imports(package)
        if one.at_top
        and not one.for_types
        and (name := one.target.split(".")[0]) in NEVER_AT_THE_TOP
        and ABOUT_ONE.get(one.file) != name
    ]


def reference_is_alone(package: Path) -> list[str]:
    """The reference imports the standard library and itself, anywhere in its text."""
    return [
        str(one)
        for one in imports(package)
        if one.room == "reference"
        and room_of(one.target) != "reference"
        and one.target.split(".")[0] not in sys.stdlib_module_names
    ]


def undocumented(package: Path) -> list[str]:
    """Modules without a docstring at their head."""
    return [
        str(path.relative_to(package.parent))
        for path in sorted(package.rglob("*.py"))
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]


RULES = [heavy_at_the_top, reference_is_alone, undocumented]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule, root: Path) -> None:  # type: ignore[no-untyped-def]
    assert rule(root / "python" / PACKAGE) == []


BROKEN = {
    heavy_at_the_top: [
        ("lab/run.py", '"""Head."""\nimport polars as pl\n'),
        (
            "view/plot.py",
            '"""Head."""\ntry:\n    from matplotlib import pyplot\nexcept ImportError:\n    pass\n',
        ),
        ("lab/run.py", '"""Head."""\nclass Table:\n    import pandas\n'),
    ],
    reference_is_alone: [
        ("reference/common/spte.py", '"""Head."""\nimport numpy\n'),
        ("reference/common/spte.py", '"""Head."""\nfrom kvm_mmu.types import KVM_ADDRESS_SPACE_NUM\n'),
        ("reference/common/spte.py", '"""Head."""\ndef f():\n    from ... import _core\n'),
    ],
    undocumented: [("machine/vm.py", "import os\n")],
}


@pytest.mark.parametrize(
    ("rule", "file", "text"), [(rule, file, text) for rule, cases in BROKEN.items() for file, text in cases]
)
def test_a_break_is_found(rule, file: str, text: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert rule(tmp_path / PACKAGE) != []


ALLOWED = [
    ("machine/vm.py", '"""Head."""\nfrom kvm_mmu import _core\nfrom kvm_mmu.errors import UsageError\n'),
    ("lab/run.py", '"""Head."""\ndef to_polars():\n    import polars\n    return polars\n'),
    (
        "lab/run.py",
        '"""Head."""\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import polars\n',
    ),
    (
        "reference/shadow/zap.py",
        '"""Head."""\nimport errno\nfrom .page import Page\nfrom kvm_mmu.reference import spte\n',
    ),
]


@pytest.mark.parametrize(("file", "text"), ALLOWED)
def test_what_is_allowed_is_not_found(file: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert [finding for rule in RULES for finding in rule(tmp_path / PACKAGE)] == []
