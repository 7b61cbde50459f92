"""What may stand in the tree: lengths, no unsafe, no host or path of one machine, a head on every file.

Looked at are the files that git tracks or would track. The forbidden words are put together from pieces, so
that this file does not hold them. As in `test_python_rooms.py`, every rule is also tried on a tree that
breaks it.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

LONG = 600
# Text whose words are not ours to choose, or data.
NOT_OURS = ("Cargo.lock", "LICENSE-", "tests/data/", "python/kvm_mmu/data/")
SOURCES = (
    ".rs",
    ".py",
    ".pyi",
    ".sh",
    ".toml",
    ".md",
    ".yml",
    ".yaml",
    ".cff",
    ".txt",
    ".json",
    ".jsonl",
    ".ipynb",
    "",
)

# In pieces: explicit sums, since a formatter would join adjacent strings.
INDEX = "py" + "pi.org"
HOSTS = re.compile(
    "|".join(
        map(re.escape, (INDEX, "python" + "hosted.org", "crates" + ".io", "npm" + "js.", "deb." + "debian"))
    )
)
WORK, TEMP = "/wo" + "rk", "/tm" + "p"
PATHS = re.compile(rf"(?<![\w.}}/])({WORK}|{TEMP}|/ro{'ot'}|/ho{'me'})/")


def files(root: Path) -> list[Path]:
    """Tracked and trackable files; everything, where there is no git."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = sorted({name for name in listed.stdout.decode().split("\0") if name})
    else:
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    chosen = [root / name for name in names if not name.startswith(NOT_OURS) and Path(name).suffix in SOURCES]
    return [path for path in chosen if path.is_file()]


def matches(root: Path, pattern: re.Pattern[str]) -> list[str]:
    """file:line of every line that has the pattern."""
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()[:80]}"
        for path in files(root)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def registry_hosts(root: Path) -> list[str]:
    return matches(root, HOSTS)


def machine_paths(root: Path) -> list[str]:
    return matches(root, PATHS)


def head(path: Path) -> str:
    """The comment or docstring that a source file begins with."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".rs":
        lines = []
        for line in text.splitlines():
            if not line.startswith("//!"):
                break
            lines.append(line)
        return "\n".join(lines)
    found = re.match(r'\s*(?:#.*\n)*\s*"""(.*?)"""', text, re.DOTALL)
    return found.group(1) if found else ""


def too_long(root: Path) -> list[str]:
    """Above 600 lines a file says in its head why it is one, in a line that begins `Long:`."""
    found = []
    for path in files(root):
        if path.suffix not in (".rs", ".py"):
            continue
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > LONG and not re.search(r"^\W*Long:", head(path), re.MULTILINE):
            found.append(f"{path.relative_to(root)}: {length} lines and no `Long:` in its head")
    return found


def headless(root: Path) -> list[str]:
    """Rust files under src/ that do not begin with `//!`."""
    return [
        str(path.relative_to(root))
        for path in files(root)
        if path.suffix == ".rs" and "src" in path.parts and not head(path)
    ]


def unsafe_code(root: Path) -> list[str]:
    """No such block anywhere, and the lint that forbids it is on for every crate of ours."""
    found = []
    for path in files(root):
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(root))
        if path.suffix == ".rs":
            for number, line in enumerate(text.splitlines(), 1):
                code = re.sub(r'"(?:\\.|[^"\\])*"', '""', line).split("//")[0]
                if re.search(r"\bunsafe\b", code.replace("unsafe_code", "")):
                    found.append(f"{name}:{number}")
                if "allow(unsafe_code" in line:
                    found.append(f"{name}:{number} switches the lint off")
        elif path.name == "Cargo.toml" and not re.search(r"un" r'safe_code\s*=\s*"forbid"', text):
            found.append(f"{name} does not forbid it")
    return found


RULES = [registry_hosts, machine_paths, too_long, headless, unsafe_code]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps(rule, root: Path) -> None:  # type: ignore[no-untyped-def]
    assert rule(root) == []


BROKEN = [
    (registry_hosts, "docs/a.md", f"get it from https://{INDEX}/simple\n"),
    (registry_hosts, "a.toml", f'index = "https://static.crates{".io"}"\n'),
    (machine_paths, "a.py", f'"""Head."""\nPATH = "{WORK}/shared/vectors"\n'),
    (machine_paths, "b.md", f"see {TEMP}/out\n"),
    (too_long, "src/a.rs", "//! A head.\n" + "// x\n" * LONG),
    (too_long, "a.py", '"""A head."""\n' + "x = 1\n" * LONG),
    (headless, "src/a.rs", "fn f() {}\n"),
    (unsafe_code, "src/a.rs", "//! Head.\nfn f() { unsafe { g() } }\n"),
    (unsafe_code, "src/a.rs", "//! Head.\n#![allow(unsafe_code)]\n"),
    (unsafe_code, "Cargo.toml", "[package]\n"),
]


@pytest.mark.parametrize(("rule", "file", "text"), BROKEN)
def test_a_break_is_found(rule, file: str, text: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert rule(tmp_path) != []


def test_a_long_file_may_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""A head.\n\nLong: a table.\n"""\n' + "x = 1\n" * LONG, encoding="utf-8")
    assert too_long(tmp_path) == []
