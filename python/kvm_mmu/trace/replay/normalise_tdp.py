"""When a predicted output of the TDP MMU equals a recorded one.

Owns: what is masked (addresses of tables and of entries; frames of leaves are compared) and the tolerance for bits that
the CPU sets in leaves. Values are compared as numbers.
"""

from __future__ import annotations

import re

from kvm_mmu.trace.text.line import clean_body
from kvm_mmu.trace.text.spte_words import SpteWords

_CHANGED = re.compile(r"as id (\d+) gfn (\w+) level (\d+) old_spte (\w+) new_spte (\w+)$")
_SPLIT = re.compile(r"gfn (\w+) spte (\w+) level (\d+) errno (-?\d+)$")
_FAST = re.compile(r"(.*) sptep (\w+) old (?:0x)?(\w+) new (\w+) (.*)$")
_SET_SPTE = re.compile(r"(.*) at (\w+)$")
_MARK = re.compile(r"sptep:([0-9a-f]+) (.*)$")
_SPACES = re.compile(r"\s+")
_INDEX = 0xFFF


def alike(event: str, recorded: str, predicted: str, words: SpteWords) -> bool:
    """Whether two texts of one event say the same."""
    theirs, mine = clean_body(recorded), clean_body(predicted)
    if theirs == mine:
        return True
    match event:
        case "kvm_tdp_mmu_spte_changed":
            return _alike_changes(theirs, mine, words)
        case "kvm_mmu_split_huge_page":
            one, two = _SPLIT.match(theirs), _SPLIT.match(mine)
            if one is None or two is None or one.group(1, 3, 4) != two.group(1, 3, 4):
                return False
            return words.is_same_leaf(int(one[2], 16), int(two[2], 16), int(one[3]))
        case "fast_page_fault":
            return _alike_fast(theirs, mine, words)
        case "kvm_mmu_set_spte":
            return _alike_at(_SET_SPTE.match(theirs), _SET_SPTE.match(mine), said=1, at=2)
        case "mark_mmio_spte":
            return _alike_at(_MARK.match(theirs), _MARK.match(mine), said=2, at=1)
    return _SPACES.sub(" ", theirs) == _SPACES.sub(" ", mine)


def _alike_changes(theirs: str, mine: str, words: SpteWords) -> bool:
    one, two = _CHANGED.match(theirs), _CHANGED.match(mine)
    if one is None or two is None or one.group(1, 2, 3) != two.group(1, 2, 3):
        return False
    level = int(one[3])
    return all(
        words.is_same_leaf(
            words.without_table(int(one[at], 16), level), words.without_table(int(two[at], 16), level), level
        )
        for at in (4, 5)
    )


def _alike_fast(theirs: str, mine: str, words: SpteWords) -> bool:
    one, two = _FAST.match(theirs), _FAST.match(mine)
    if one is None or two is None or one.group(1, 5) != two.group(1, 5):
        return False
    if int(one[2], 16) & _INDEX != int(two[2], 16) & _INDEX:
        return False
    return all(words.is_same_leaf(int(one[at], 16), int(two[at], 16), 1) for at in (3, 4))


def _alike_at(one: re.Match[str] | None, two: re.Match[str] | None, *, said: int, at: int) -> bool:
    """The same words about the same index of a table; the kernel's address of the table means nothing."""
    if one is None or two is None or one[said] != two[said]:
        return False
    return int(one[at], 16) & _INDEX == int(two[at], 16) & _INDEX
