"""The page on the Python interface: every parameter and every result of what it names is said, one entry a line.

Two looks at the same thing: the docstrings themselves, in the one style of the house, and the page as Sphinx
renders it, where a parameter that shares its line with another has no entry of its own.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kvm_mmu
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "reference" / "python.md"
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: ([\w.]+)\n((?:   :.*\n)*)", re.MULTILINE)


def found_at(path: str) -> Any:
    """The object of a dotted path: the longest module of it, then attributes."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"nothing at {path}")


def named() -> Iterator[tuple[str, Any]]:
    """Path and object of everything that the page renders."""
    for kind, path, options in DIRECTIVE.findall(PAGE.read_text(encoding="utf-8")):
        chosen = re.search(r":members:(.*)", options)
        names = chosen[1].replace(",", " ").split() if chosen else []
        thing = found_at(path)
        if kind == "module":
            members = names or [
                name
                for name, value in vars(thing).items()
                if inspect.isclass(value) and value.__module__ == thing.__name__ and not name.startswith("_")
            ]
            for name in members:
                yield f"{path}.{name}", getattr(thing, name)
                if inspect.isclass(getattr(thing, name)):
                    yield from members_of(f"{path}.{name}", getattr(thing, name), [])
            continue
        yield path, thing
        if chosen and kind == "class":
            yield from members_of(path, thing, names)


def members_of(path: str, cls: type, names: list[str]) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items():
        if name.startswith("_") or (names and name not in names):
            continue
        if inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod)):
            yield f"{path}.{name}", value


OBJECTS = dict(named())


def parameters(thing: Any) -> list[str]:
    """The parameters that a caller gives."""
    if isinstance(thing, property):
        return []
    if inspect.isclass(thing):
        # An exception, a tuple of fields and a protocol are made by the package, not by the reader.
        if issubclass(thing, tuple):
            return list(getattr(thing, "_fields", ()))
        if issubclass(thing, Exception) or "__init__" not in vars(thing):
            return []
        names = list(inspect.signature(thing.__init__).parameters)[1:]
        return [] if {"vm", "core"} & set(names) else names
    bound = isinstance(thing, classmethod) or (inspect.isfunction(thing) and "." in thing.__qualname__)
    plain = thing.__func__ if isinstance(thing, (classmethod, staticmethod)) else thing
    names = list(inspect.signature(plain).parameters)
    return names[1:] if bound and not isinstance(thing, staticmethod) else names


def returns(thing: Any) -> bool:
    """Whether a call gives something back."""
    plain = thing.__func__ if isinstance(thing, (classmethod, staticmethod)) else thing
    if not inspect.isfunction(plain):
        return False
    return str(plain.__annotations__.get("return", "None")) != "None"


def sections(text: str) -> dict[str, list[str]]:
    """Section name to its lines without their common indent; the text before the first one is under ''."""
    found: dict[str, list[str]] = {"": []}
    at = ""
    for line in inspect.cleandoc(text).splitlines():
        head = re.fullmatch(rf"({'|'.join(SECTIONS)}):", line)
        if head:
            at = head[1]
            found[at] = []
        elif at and line and not line.startswith(" "):
            at = ""
            found[at].append(line)
        else:
            found[at].append(line[4:] if at else line)
    return found


def faults(path: str, thing: Any) -> list[str]:
    """What is not in the style of the house."""
    text = thing.fget.__doc__ if isinstance(thing, property) else thing.__doc__
    if not text:
        return [f"{path}: no docstring"]
    parts = sections(text)
    first = " ".join(parts[""]).strip()
    said = []
    if not re.match(r"[A-Z`\"(0-9]", first):
        said.append(f"{path}: the first sentence begins {first[:30]!r}")
    if "." not in first:
        said.append(f"{path}: the first sentence has no end")
    if isinstance(thing, property) and re.match(r"[^.`]*?[^.`:]: ", parts[""][0]):
        said.append(f"{path}: the first line of a property reads as a type: {parts[''][0]!r}")
    if re.search(r"\bSee `?Vm", first):
        said.append(f"{path}: says only where else to look")
    listed = parts.get("Args", []) + (parts.get("Attributes", []) if inspect.isclass(thing) else [])
    entries = [line for line in listed if line and not line.startswith(" ")]
    names = [match[1] for line in entries if (match := re.match(r"\*{0,2}(\w+): \S", line))]
    said += [
        f"{path}: an entry of Args or Attributes without a name: {line!r}"
        for line in entries
        if not re.match(r"\*{0,2}\w+: \S", line)
    ]
    wanted = parameters(thing)
    if names != wanted and not (inspect.isclass(thing) and not wanted):
        said.append(f"{path}: Args or Attributes has {names}, the signature {wanted}")
    for line in listed:
        merged = re.search(r"[.;,] (\w+): ", line)
        if merged and merged[1] in wanted:
            said.append(f"{path}: {merged[1]} shares a line of Args: {line!r}")
    first_of_returns = (parts.get("Returns") or parts.get("Yields") or [""])[0]
    if re.match(r"[^ ]*(?: [^ ]+)?: ", first_of_returns):
        said.append(f"{path}: the first words of Returns read as a type: {first_of_returns!r}")
    if (
        returns(thing)
        and not {"Returns", "Yields"} & set(parts)
        and not first.startswith(("Returns ", "Yields "))
    ):
        said.append(f"{path}: what it returns is not said")
    said += [
        f"{path}: an entry of Raises that is no exception: {line!r}"
        for line in parts.get("Raises", [])
        if line and not line.startswith(" ") and not re.match(r"\w+: \S", line)
    ]
    said += [
        f"{path}: two exceptions share a line: {line!r}"
        for line in parts.get("Raises", [])
        if re.search(r"[.;] [A-Z]\w+(?:Error|Interrupt): ", line)
    ]
    return said


@pytest.mark.parametrize("path", sorted(OBJECTS))
def test_docstrings_are_of_one_style(path: str) -> None:
    assert faults(path, OBJECTS[path]) == []


def test_the_style_is_checked() -> None:
    """Each of these has one fault, the last has none."""

    def merged(one: int, two: int) -> None:
        """Do it.

        Args:
            one: the first. two: the second.
        """

    def silent(one: int) -> int:
        """Do it.

        Args:
            one: the first.
        """

    def typed() -> int:
        """Do it.

        Returns:
            `first`: the first one.
        """

    def bare(one: int) -> None:
        """Do it."""

    def good(one: int, *, two: int = 0) -> int:
        """Do it.

        Args:
            one: the first, of which
                two: there may be more to say.
            two: the second.

        Returns:
            What came of it: a number.

        Raises:
            UsageError: never.
        """

    def plain(function: Any) -> Any:
        function.__qualname__ = function.__name__
        return function

    wrong = [faults("it", plain(function)) for function in (merged, silent, typed, bare)]
    assert all(wrong), wrong
    assert faults("it", plain(good)) == []
    assert faults("it", property(lambda self: 1, doc="Paging family: npt or ept."))


def rendered(tmp_path: Path) -> str:
    """The page as Sphinx makes it, as text; a warning is an error."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "text",
        "-d",
        tmp_path / "trees",
    ]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path / "text"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return (tmp_path / "text" / "reference" / "python.txt").read_text(encoding="utf-8")


def test_the_page_renders_every_parameter(tmp_path: Path) -> None:
    """An entry of its own for each, as often as the docstrings have it; no prose where a type belongs."""
    text = rendered(tmp_path)
    wanted = Counter(name for thing in OBJECTS.values() for name in parameters(thing))
    has = Counter(re.findall(r"^ +(?:\* )?\*\*(\w+)\*\*(?: \(| --|$)", text, re.MULTILINE))
    assert wanted - has == Counter()
    assert not re.search(r"^ +Type:$", text, re.MULTILINE), "a property's first line became its type"
    types = {kind.replace("*", "") for kind in re.findall(r"Return type:\n +(.*)", text)}
    odd = [kind for kind in types if re.fullmatch(r"[a-z_]+", kind) and not hasattr(builtins, kind)]
    assert odd == [], "the first words of Returns became a type"


def test_the_names_of_the_package_are_listed_and_rendered() -> None:
    """The table at the top against `kvm_mmu.__all__`; each class and function of it has an entry below."""
    rows = re.findall(r"^\| [\w ]+ \| (`.*`) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(kvm_mmu.__all__) - {"__version__"}
    below = {path.rpartition(".")[2] for path in OBJECTS}
    bare = [
        name
        for name in listed
        if inspect.isclass(getattr(kvm_mmu, name)) or inspect.isfunction(getattr(kvm_mmu, name))
    ]
    assert [name for name in bare if name not in below] == []
