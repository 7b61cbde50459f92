"""Decoded words against what the lines print, over recordings: counted, and not one that differs."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from kvm_mmu.trace.analysis.explain import Explainer, Words
from kvm_mmu.trace.analysis.explain_host import host_explainer
from kvm_mmu.trace.text.source import iter_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
_MARK = re.compile(r"mark_mmio_spte: sptep:\S+ gfn (\w+) access (\w+) gen (\w+)")
_HIT = re.compile(r"handle_mmio_page_fault: addr:\w+ gfn (\w+) access (\w+)")
_REQUEST = re.compile(r"kvm_mmu_spte_requested: gfn (\w+) pfn (\w+) level \d")
_SET = re.compile(r"kvm_mmu_set_spte: gfn (\w+) spte (\w+) ")
#: Lines that show an MMIO SPTE before its mark, or without one (the TDP MMU); what they say is checked by themselves.
_BEFORE_THE_MARK = ("make_mmio_spte_ret", "kvm_mmu_set_spte", "kvm_tdp_mmu_spte_changed")


class AcrossLines:
    """What one line says and another one's word holds: marks and the MMIO SPTEs found later, requests and leaves."""

    def __init__(self, explain: Explainer) -> None:
        self.codec = explain.codec
        self.marked: set[tuple[int, int, int]] = set()
        self.requested: dict[str, int] = {}
        self.checked: dict[str, object] = {}
        self.agreed: Counter[str] = Counter()

    def line(self, text: str, words: list[Words]) -> None:
        """Compare a line's words with the lines before it."""
        if found := _MARK.search(text):
            made = self.codec.decode_mmio(words[0].value or 0)
            gfn, access, gen = (int(value, 16) for value in found.groups())
            stored = access & 6 & ~self.codec.masks["mmio_mask"]  # an MMIO entry of EPT has no access
            assert (made["gfn"], made["access"]) == (gfn, stored), text
            self.marked.add((gfn, stored, made["mmio_gen"]))
            assert made["mmio_gen"] in (gen, gen & 0x3FF), text
        elif found := _HIT.search(text):
            if self.checked:
                said = (int(found[1], 16), int(found[2], 16))
                assert (self.checked["gfn"], self.checked["access"]) == said, text
                self.agreed["handle_mmio_page_fault"] += 1
        elif found := _REQUEST.search(text):
            self.requested = {found[1]: int(found[2], 16)}
        elif (found := _SET.search(text)) and found[1] in self.requested:
            value, pfn = int(found[2], 16), self.requested.pop(found[1])
            if not self.codec.decode_mmio(value)["is_mmio"]:
                assert value >> 12 & (1 << 40) - 1 == pfn, text
                self.agreed["kvm_mmu_spte_requested"] += 1
        self.checked = {}
        for word in words:
            mmio = self.codec.decode_mmio(word.value) if word.value is not None else {"is_mmio": 0}
            if mmio["is_mmio"] and not _MARK.search(text):
                where = (mmio["gfn"], mmio["access"], mmio["mmio_gen"])
                if any(first in text for first in _BEFORE_THE_MARK):
                    self.marked.add(where)
                assert where in self.marked, (text, where)
                self.agreed["mark_mmio_spte"] += 1
                if "check_mmio_spte" in text:
                    self.checked = mmio


def compare(path: Path) -> tuple[Counter[str], Counter[str]]:
    facts = json.loads((path.parent / "host.json").read_text())
    explain, lines, notes = host_explainer(iter_lines(path), facts, {}, str(path))
    assert notes == []
    across = AcrossLines(explain)
    for text, words in explain.lines(lines):
        across.line(text, words)
    assert explain.contradicted == {}, (path, explain.first_contradiction)
    return explain.agreed, across.agreed


#: recordings -> words that their own lines confirm, and words that other lines confirm
COUNTS = {
    "5.0.1/*": ({"check_mmio_spte": 1395}, {"mark_mmio_spte": 1395, "handle_mmio_page_fault": 649}),
    "5.0.1-npt/*": ({"check_mmio_spte": 808}, {"mark_mmio_spte": 808, "handle_mmio_page_fault": 370}),
    "5.2.1/*": ({"check_mmio_spte": 2677}, {"mark_mmio_spte": 2677, "handle_mmio_page_fault": 697}),
    "5.2.1-npt/*": ({"check_mmio_spte": 987}, {"mark_mmio_spte": 987, "handle_mmio_page_fault": 375}),
    "5.3.1/*": (
        {"kvm_mmu_set_spte": 11120, "check_mmio_spte": 1055},
        {"kvm_mmu_spte_requested": 792, "mark_mmio_spte": 2642, "handle_mmio_page_fault": 401},
    ),
    "6.1/npt1*": (
        {
            "kvm_mmu_set_spte": 2109,
            "make_mmio_spte_ret": 64,
            "check_mmio_spte": 403,
            "kvm_tdp_mmu_spte_changed": 50,
            "kvm_mmu_split_huge_page": 6,
        },
        {"kvm_mmu_spte_requested": 791, "mark_mmio_spte": 554, "handle_mmio_page_fault": 96},
    ),
    "6.12/npt1*[!g]": (
        {
            "kvm_mmu_set_spte": 7341,
            "make_mmio_spte_ret": 33,
            "check_mmio_spte": 265,
            "kvm_mmu_split_huge_page": 4,
            "kvm_tdp_mmu_spte_changed": 50,
        },
        {"kvm_mmu_spte_requested": 1476, "mark_mmio_spte": 361, "handle_mmio_page_fault": 78},
    ),
}


#: What the short run leaves to the long one.
LONG = ("5.0.1/*", "5.2.1/*", "6.1/npt1*")


@pytest.mark.parametrize(
    "pattern", [pytest.param(p, marks=pytest.mark.soak) if p in LONG else p for p in COUNTS]
)
def test_words_say_what_the_lines_say(shared: Path, pattern: str):
    """Access, level, gfn and generation of every word that some line prints, too."""
    own, across = Counter[str](), Counter[str]()
    for path in sorted((shared / "traces").glob(f"{pattern}/trace.txt.xz")):
        one, other = compare(path)
        own += one
        across += other
    # The shared recordings grow: at least what there was, word by word.
    assert all(own[name] >= count for name, count in COUNTS[pattern][0].items()), own
    assert all(across[name] >= count for name, count in COUNTS[pattern][1].items()), across


@pytest.mark.soak
def test_the_largest_recordings_agree(shared: Path):
    paths = sorted((shared / "traces").glob("6*/npt0_*/trace.txt.xz"))
    assert sum(sum(compare(path)[0].values()) for path in paths) == 281_296


def test_the_recordings_of_a_clone_agree():
    paths = sorted(
        p
        for name in ("basic*", "*mmio_gen*", "*smm", "npt1tdp0_multi*", "pthuge")
        for p in TRACES.glob(f"*/{name}/trace.txt.xz")
    )
    found = [compare(path) for path in paths]
    assert sum(sum(own.values()) for own, _ in found) == 5116
    assert sum(sum(across.values()) for _, across in found) == 4069
