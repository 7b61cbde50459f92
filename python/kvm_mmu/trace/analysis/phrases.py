"""SPTEs in words, many of them: what two entries that differ in their frames only have in common is put together once.

Owns: which part of a word is the frame, and that the words for it stand in one place of the phrase; where they do not
(an MMIO entry, an empty one) the phrase is made for the word itself. What a bit means is the codec's.
"""

from __future__ import annotations

from functools import lru_cache

from kvm_mmu.trace.text.spte_words import FRAME
from kvm_mmu.words.codec import Codec

_SHIFT = 12
#: Phrases that are kept at most.
_KEPT = 1 << 16


class Phrases:
    """The phrases of one codec.

    Args:
        codec: Whose words they are.
    """

    def __init__(self, codec: Codec):
        self._whole = lru_cache(maxsize=_KEPT)(codec.phrase)
        self._kind = ~FRAME | codec.masks["mmio_mask"]
        self._parts: dict[tuple[int, int | None], tuple[str, str] | None] = {}

    def of(self, spte: int, level: int | None = None) -> str:
        """Returns the entry in one line of words.

        Args:
            spte: The word.
            level: Where the entry stands, if that is known.
        """
        parts = self.parts(spte, level)
        return (
            self._whole(spte, level) if parts is None else f"{parts[0]}{(spte & FRAME) >> _SHIFT:x}{parts[1]}"
        )

    def parts(self, spte: int, level: int | None = None) -> tuple[str, str] | None:
        """Returns what stands before and behind the number of the frame, None where the phrase is not made so.

        Args:
            spte: The word.
            level: Where the entry stands, if that is known.
        """
        if not spte & FRAME:
            return None
        key = (spte & self._kind, level)
        if key not in self._parts:
            if len(self._parts) >= _KEPT:
                self._parts.clear()
            self._parts[key] = self._split(spte, level)
        return self._parts[key]

    def _split(self, spte: int, level: int | None) -> tuple[str, str] | None:
        """What stands before and behind the frame; None where the phrase has none."""
        said = f"{(spte & FRAME) >> _SHIFT:x}"
        phrase = self._whole(spte, level)
        before, found, behind = phrase.partition(f" {said}, ")
        is_frame = found and before.endswith(("pfn", "in frame")) and not phrase.startswith("MMIO")
        return (f"{before} ", f", {behind}") if is_frame else None


def with_one_frame(spte: int) -> int:
    """Returns the word with the same frame as every other word that has one."""
    return spte & ~FRAME | (1 << _SHIFT if spte & FRAME else 0)
