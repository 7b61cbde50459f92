"""The events of one engine operation told as the lines v5.10 and later would have traced, kprobes included.

Owns: the wording of the recorder's kprobes. The model has no addresses: an entry is told at a stand-in address whose
low 12 bits are those of the real one.
"""

from __future__ import annotations

from kvm_mmu.trace.replay.narrator import Narrator, number_of, place_of
from kvm_mmu.trace.text.spte_words import SpteWords
from kvm_mmu.trace.text.wording import HIDDEN_POINTER, Wording

_FIXED, _SPURIOUS = 1, 2


class Narrator6x(Narrator):
    """Events of one VM to text, in order, as v5.10 and later say them; without the probes that have no value there."""

    def __init__(self, wording: Wording, words: SpteWords, root_level: int):
        super().__init__(wording, root_level)
        self._words = words

    def _told(self, event: object) -> tuple[str, str] | None:
        told = self._said(event)
        return None if told is None or told[0] in self._wording.unsaid else told

    def _said(self, event: object) -> tuple[str, str] | None:
        match event:
            case ["set_spte", page, index, gfn, spte, level]:
                value = number_of(spte)
                return (
                    "kvm_mmu_set_spte",
                    f"gfn {gfn:x} spte {value:x} ({self._words.access_text(value)}) level {level} "
                    f"at {place_of(page, index):x}",
                )
            case ["try_unsync", gfn, can_unsync, prefetch]:
                said = int(bool(can_unsync) != self._wording.try_unsync_inverted)
                return "try_unsync", f"gfn={gfn:#x} can_unsync={said} prefetch={prefetch}"
            case ["try_unsync_ret", ret]:
                return "try_unsync_ret", f"ret={ret}"
            case ["page_zap_pte", page, index, spte]:
                return "page_zap_pte", f"sptep={place_of(page, index):#x} spte={number_of(spte):#x}"
            case ["mark_mmio", page, index, gfn, access, gen]:
                place = place_of(page, index)
                return "mark_mmio_spte", f"sptep:{place:016x} gfn {gfn:x} access {access:x} gen {gen:x}"
            case ["fast_pf", cpu, addr, err, _, _, old, new, handled]:
                return "fast_page_fault", self._fast_page_fault(cpu, addr, err, old, new, handled)
            case ["make_mmio_spte", gfn, access]:
                return "make_mmio_spte", f"gfn={gfn:#x} access={access:#x}"
            case ["make_mmio_spte_ret", spte]:
                return "make_mmio_spte_ret", f"spte={number_of(spte):#x}"
            case ["memslots_updated" | "invalidate_mmio" as name, gen]:
                return str(name), f"gen={number_of(gen):#x}"
            case ["commit_zap" | "flush_shadow_memslot" | "zap_all_fast_enter" as name]:
                return str(name), ""
            case ["zap_oldest_ret", count]:
                return "zap_oldest_ret", f"ret={count}"
            case ["change_mmu_pages", goal]:
                return "change_mmu_pages", f"goal={goal}"
            case ["check_mmio" | "handle_mmio", *_]:
                return super()._told(event)
        return None

    def _fast_page_fault(
        self, vcpu: object, addr: object, err: object, old: object, new: object, handled: object
    ) -> str:
        """`handled` has a bit for fixed and one for spurious."""
        said = number_of(handled)
        return (
            f"vcpu {vcpu} gva {number_of(addr):x} error_code {self._wording.error_text(number_of(err))} "
            f"sptep {HIDDEN_POINTER} old {number_of(old):#x} new {number_of(new):x} "
            f"spurious {int(bool(said & _SPURIOUS))} fixed {int(bool(said & _FIXED))}"
        )
