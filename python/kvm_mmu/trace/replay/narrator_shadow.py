"""The events of shadow paging told as lines: pages with their root counts and marks, walks of guest tables.

Owns: the wording of what only guests with page tables of their own cause. The engine's events must say all that
tracepoints say (`traced` in its configuration).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvm_mmu.trace.replay.narrator import Narrator, number_of
from kvm_mmu.trace.replay.narrator_6x import Narrator6x
from kvm_mmu.trace.text.spte_words import SpteWords
from kvm_mmu.trace.text.wording import Wording

_PAGE_EVENTS = {
    "prepare_zap": "kvm_mmu_prepare_zap_page",
    "sync": "kvm_mmu_sync_page",
    "unsync": "kvm_mmu_unsync_page",
}


class _Pages:
    """Pages and walks as every kernel says them; `used` and `valid_gen` are counted where an event does not say."""

    def __init__(self, wording: Wording):
        self._wording = wording
        self.used = self.valid_gen = 0

    def told(self, event: object) -> tuple[str, str] | None:
        """The line of a page's event or of a step of a walk."""
        match event:
            case ["get_page", _, gfn, role, created, gen, roots, unsync]:
                self.used += int(bool(created))
                body = self._body(gfn, role, gen, roots, unsync)
                return "kvm_mmu_get_page", f"{body} {'new' if created else 'existing'}"
            case ["prepare_zap" | "sync" | "unsync" as name, _, gfn, role, gen, roots, unsync]:
                self.used -= int(name == "prepare_zap" and not roots)
                return _PAGE_EVENTS[str(name)], self._body(gfn, role, gen, roots, unsync)
            case ["zap_all_fast", gen, used]:
                body = f"kvm-mmu-valid-gen {number_of(gen)} used_pages {number_of(used):x}"
                return "kvm_mmu_zap_all_fast", body
            case ["invalidate_zap_all"]:
                body = self._wording.invalidate_zap_all(self.valid_gen, self.used)
                self.valid_gen += 1
                return "kvm_mmu_invalidate_zap_all_pages", body
            case ["set_accessed", gpa]:
                return "kvm_mmu_set_accessed_bit", f"gpa {number_of(gpa):x}"
            case ["set_dirty", gpa]:
                return "kvm_mmu_set_dirty_bit", f"gpa {number_of(gpa):x}"
            case ["walk_error", code]:
                value = number_of(code)
                return "kvm_mmu_walker_error", f"pferr {value:x} {self._wording.error_text(value)}"
        return None

    def _body(self, gfn: object, role: object, gen: object, roots: object, unsync: object) -> str:
        return self._wording.page(
            number_of(gfn), number_of(role), number_of(roots), bool(unsync), number_of(gen)
        )


class NarratorShadow(Narrator6x):
    """v5.10 and later."""

    def __init__(self, wording: Wording, words: SpteWords, root_level: int):
        super().__init__(wording, words, root_level)
        self._pages = _Pages(wording)

    def tell(self, op: Mapping[str, object], result: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """The outputs among the events of one operation."""
        events = result.get("events")
        for event in events if isinstance(events, list) else ():
            told = self._pages.told(event) or self._told(event)
            if told is not None:
                yield told
        if op["op"] == "unprotect":
            yield "unprotect_page_ret", f"ret={result.get('ret')}"


class NarratorShadow5x(Narrator):
    """Up to v5.4."""

    def __init__(self, wording: Wording, root_level: int):
        super().__init__(wording, root_level)
        self._pages = _Pages(wording)

    def tell(self, op: Mapping[str, object], result: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """The outputs among the events of one operation."""
        events = result.get("events")
        for event in events if isinstance(events, list) else ():
            told = self._pages.told(event) or self._told(event)
            if told is not None:
                yield told
