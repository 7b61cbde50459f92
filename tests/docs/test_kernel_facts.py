"""The facts of the kernels have names, and every name that the tree cites is there; no text elsewhere is cited."""

from __future__ import annotations

import re
from pathlib import Path

import kvm_mmu

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "kernel-facts.md"
NAMES = re.findall(r"^- `([a-z][\w.]*)` ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
ROOMS = sorted({name.partition(".")[0] for name in NAMES})
GROUPS = {name.rpartition(".")[0] for name in NAMES}
#: Texts that were written beside the project and are no part of it.
FOREIGN = re.compile(
    r"\b(?:KERNEL|DIRECT|REPLAY|SHADOW|TDP|NEWER|SOUND|LIVE|FACTS-6|VECTORS-6|REVIEW|HOUSE|ADDENDUM-SHADOW)\.md\b"
    r"|\b(?:KERNEL|DIRECT|REPLAY|SHADOW|TDP|NEWER|SOUND) [A-Z]?\.?\d+(?:\.\d+)*\b"
    r"|vectors(?: |/)README|\.\./shared/(?:spec|design)"
)
CITED = re.compile(rf"(?<![\w./]){'(?:' + '|'.join(ROOMS) + ')'}\.[a-z]\w*\.[1-9]\d*\b")


def texts() -> list[tuple[str, str]]:
    found = []
    for folder in ("src", "python", "docs", "tests", "benches", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".rs", ".py", ".pyi", ".md") and "_build" not in path.parts:
                found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
    return found + [(path.name, path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("*.md"))]


def test_names_are_used_once_and_numbered() -> None:
    assert len(NAMES) == len(set(NAMES)) > 150
    for group in GROUPS - {"history"}:
        numbers = [int(name.rpartition(".")[2]) for name in NAMES if name.rpartition(".")[0] == group]
        assert numbers == list(range(1, len(numbers) + 1)), group


def test_what_is_cited_is_there() -> None:
    here = Path(__file__).name
    missing = [
        f"{name}: {cited}"
        for name, text in texts()
        if not name.endswith(here)
        for cited in CITED.findall(text)
        if cited not in NAMES
    ]
    assert missing == []


def test_no_text_is_cited_that_is_not_here() -> None:
    here = Path(__file__).name
    cited = [
        f"{name}: {match[0]}"
        for name, text in texts()
        if not name.endswith(here)
        for match in FOREIGN.finditer(text)
    ]
    assert cited == []


def test_a_citation_is_seen() -> None:
    assert FOREIGN.search("as KERNEL.md 2.3 has it") and FOREIGN.search("(REPLAY B.25)")
    assert CITED.findall("[direct.fault.99] and `zap.slot.1`") == ["direct.fault.99", "zap.slot.1"]


def test_every_kernel_stands_in_fidelity() -> None:
    """What is modelled of it, and held against what."""
    page = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    table = page[page.index("| kernel | release |") : page.index("## How it is checked")]
    named = {
        name
        for row in re.findall(r"^\| (`v[^|]*) \|", table, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    }
    assert set(kvm_mmu.kernels) <= named
