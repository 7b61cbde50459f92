"""The events of one engine operation told as the lines that a VM with a TDP MMU would have traced.

Owns: the text of what only that MMU says, runs of equal changes among it, and that none of its tables has a root count
or a generation in the text. The rest is told as for shadow pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvm_mmu.trace.replay.narrator import number_of, place_of
from kvm_mmu.trace.replay.narrator_6x import Narrator6x
from kvm_mmu.trace.text.spte_words import SpteWords
from kvm_mmu.trace.text.wording import Wording

_FIXED, _SPURIOUS = 1, 2
_BITS_A_LEVEL = 9


class NarratorTdp(Narrator6x):
    """Events of one VM to text, in order. Tables are told as `root 0` and `gen 0`, whoever uses them."""

    def __init__(self, wording: Wording, words: SpteWords, root_level: int):
        super().__init__(wording, words, root_level)
        #: table -> its text
        self._tables: dict[int, str] = {}

    def tell(self, op: Mapping[str, object], result: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """The outputs among the events of one operation."""
        del op
        events = result.get("events")
        if not isinstance(events, list):
            return
        for event in events:
            match event:
                case ["spte", as_id, gfn, level, old, new, _, _]:
                    yield (
                        "kvm_tdp_mmu_spte_changed",
                        f"as id {as_id} gfn {gfn:x} level {level} " + _pair(old, new),
                    )
                case ["spte", as_id, gfn, level, old, new, _, _, count]:
                    text, step = f" level {level} " + _pair(old, new), 1 << _BITS_A_LEVEL * (level - 1)
                    for first in range(gfn, gfn + count * step, step):
                        yield "kvm_tdp_mmu_spte_changed", f"as id {as_id} gfn {first:x}{text}"
                case ["get_page", page, gfn, role, created, *_]:
                    text = self._page(number_of(gfn), number_of(role), 0, 0)
                    self._tables[number_of(page)] = text
                    yield "kvm_mmu_get_page", f"{text} {'new' if created else 'existing'}"
                case ["prepare_zap", page, *_]:
                    yield "kvm_mmu_prepare_zap_page", self._tables.pop(number_of(page))
                case ["split", gfn, spte, level, errno]:
                    yield (
                        "kvm_mmu_split_huge_page",
                        f"gfn {gfn:x} spte {number_of(spte):x} level {level} errno {errno}",
                    )
                case ["flush"]:
                    yield "flush_remote_tlbs", ""
                case ["flush_remote_tlbs_range", gfn, pages]:
                    yield "flush_remote_tlbs_range", f"gfn={gfn:#x} pages={pages}"
                case ["zap_all_fast", valid_gen, used]:
                    yield (
                        "kvm_mmu_zap_all_fast",
                        f"kvm-mmu-valid-gen {number_of(valid_gen)} used_pages {number_of(used):x}",
                    )
                case ["fast_pf", cpu, addr, err, page, index, old, new, handled]:
                    said = number_of(handled)
                    yield (
                        "fast_page_fault",
                        f"vcpu {cpu} gva {number_of(addr):x} error_code {self._wording.error_text(number_of(err))} "
                        f"sptep {place_of(page, index):x} old {number_of(old):#x} new {number_of(new):x} "
                        f"spurious {int(bool(said & _SPURIOUS))} fixed {int(bool(said & _FIXED))}",
                    )
                case _:
                    told = self._told(event)
                    if told is not None:
                        yield told


def _pair(old: str, new: str) -> str:
    return f"old_spte {number_of(old):x} new_spte {number_of(new):x}"
