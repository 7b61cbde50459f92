"""The memslots, the dirty log and the notifier of a dry recording: the middle part of its model of v6.1 and v6.12.

Owns: the slots, the generations, and what an update or the host does to leaves. Written from the contract of replay
alone. See `dry_mmu`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvm_mmu.testing.dry_host import PAGES_2M, DryHost
from kvm_mmu.testing.dry_pages import MIN_LIMIT, MMU_WRITABLE, DryFacts, DryPage, DryPages, W, is_mmio

LOG_DIRTY, READONLY = 1, 2
GEN_MASK = 0x7FFFF
_MANUAL_INITIALLY_SET = 2


@dataclass(eq=False)
class DrySlot:
    """A memslot in pages."""

    as_id: int
    id: int
    flags: int
    base: int
    npages: int
    hva: int
    dirty: set[int] | None = None
    dead: bool = False

    def has(self, gfn: int) -> bool:
        """Whether it covers the gfn."""
        return self.base <= gfn < self.base + self.npages

    def page(self, gfn: int) -> int:
        """Host page of a gfn."""
        return (self.hva >> 12) + gfn - self.base


class DrySlots(DryPages):
    """Pages and slots of one VM."""

    def __init__(self, facts: DryFacts, host: DryHost, say: Callable[[str, str], None]):
        super().__init__(facts, say)
        self.host = host
        self.slots: list[DrySlot] = []
        self.gen = [0, 1]
        self.manual = 0

    def find(self, as_id: int, gfn: int) -> DrySlot | None:
        """The slot at a gfn that is not on its way out."""
        return next((s for s in self.slots if s.as_id == as_id and s.has(gfn) and not s.dead), None)

    def set_memslot(self, slot_id: int, as_id: int, flags: int, gpa: int, size: int, hva: int) -> bool:
        """KVM_SET_USER_MEMORY_REGION; false when it is refused."""
        base, npages = gpa >> 12, size >> 12
        old = next((s for s in self.slots if (s.as_id, s.id) == (as_id, slot_id)), None)
        overlaps = any(
            s.as_id == as_id and s.id != slot_id and s.base < base + npages and base < s.base + s.npages
            for s in self.slots
        )
        new = DrySlot(as_id, slot_id, flags, base, npages, hva)
        if not npages:
            if old is None:
                return False
            self._retire(old)
            self._install(as_id)
            self._set_default_limit()
        elif old is None:
            if overlaps:
                return False
            self.say("set_memslot", "change=0")
            self._add_slot(new, None)
            self._install(as_id)
            self._set_default_limit()
        elif (old.hva, old.npages, old.flags & READONLY) != (hva, npages, flags & READONLY):
            return False
        elif old.base != base:
            if overlaps:
                return False
            self._retire(old, change=2)
            self._add_slot(new, old.dirty)
            self._install(as_id)
        elif old.flags != flags:
            self.say("set_memslot", "change=3")
            self._change_flags(old, flags)
        return True

    def _add_slot(self, slot: DrySlot, dirty: set[int] | None) -> None:
        slot.dirty = dirty
        self._log(slot)
        self.slots.append(slot)

    def _log(self, slot: DrySlot) -> None:
        if not slot.flags & LOG_DIRTY:
            slot.dirty = None
        elif slot.dirty is None:
            slot.dirty = set(range(slot.npages)) if self.manual & _MANUAL_INITIALLY_SET else set()

    def _retire(self, slot: DrySlot, change: int = 1) -> None:
        self.say("set_memslot", f"change={change}")
        slot.dead = True
        self._install(slot.as_id)
        self.say("flush_shadow_memslot", "")
        self.zap_all_fast()
        self.slots.remove(slot)

    def _install(self, as_id: int) -> None:
        gen = self.gen[as_id] + 2
        self.say("swap_memslots", f"as_id={as_id}")
        self.say("memslots_updated", f"gen={gen:#x}")
        self.say("invalidate_mmio", f"gen={gen:#x}")
        if gen & GEN_MASK & ~1 == 0:
            self.zap_all_fast()
        self.gen[as_id] = gen

    def _set_default_limit(self) -> None:
        if not self.requested:
            self.change_limit(max(MIN_LIMIT, sum(s.npages for s in self.slots) * 20 // 1000))

    def _change_flags(self, slot: DrySlot, flags: int) -> None:
        was, slot.flags = slot.flags, flags
        self._log(slot)
        self._install(slot.as_id)
        if flags & READONLY or not (was ^ flags) & LOG_DIRTY:
            return
        everything = (slot, slot.base, slot.base + slot.npages)
        if not flags & LOG_DIRTY:
            self.say("zap_collapsible", "")
            self._each_leaf(*everything, (1,), lambda p, _i, w: None if self._is_collapsible(slot, p) else w)
        elif not self.manual & _MANUAL_INITIALLY_SET:
            self.say("slot_wrprot", "start_level=1")
            self._each_leaf(*everything, (1, 2, 3), lambda _p, _i, word: word & ~W)

    def _is_collapsible(self, slot: DrySlot, page: DryPage) -> bool:
        """Whether 2 MiB may stand where this table does: in the slot, aligned as in the host, one host page."""
        return self.may_be_2m(slot, page.gfn) and self.host.is_2m(slot.page(page.gfn))

    def may_be_2m(self, slot: DrySlot, gfn: int) -> bool:
        """Whether the slot has all 2 MiB around a gfn, aligned as the host has them."""
        start = gfn & -PAGES_2M
        is_aligned = not (slot.base ^ (slot.hva >> 12)) & PAGES_2M - 1
        return is_aligned and slot.has(start) and slot.has(start + PAGES_2M - 1)

    def _each_leaf(
        self,
        slot: DrySlot,
        first: int,
        end: int,
        levels: tuple[int, ...],
        change: Callable[[DryPage, int, int], int | None],
    ) -> None:
        """Change the leaves of a slot that map one of the gfns first..end (end exclusive); None removes."""
        for page in [*self.active, *(p for v in self.vcpus for p in v.roots if p not in self.active)]:
            if page.smm != slot.as_id or page.level not in levels:
                continue
            for index, word in sorted(page.entries.items(), key=lambda entry: entry[0]):
                gfn = page.gfn_at(index)
                if isinstance(word, DryPage) or is_mmio(word) or not slot.has(gfn):
                    continue
                if gfn + (1 << 9 * (page.level - 1)) <= first or gfn >= end:
                    continue
                changed = change(page, index, word)
                if changed is None:
                    del page.entries[index]
                else:
                    page.entries[index] = changed

    def unmap(self, start: int, end: int) -> None:
        """The host takes a range of addresses away, in every slot."""
        self.say("kvm_unmap_hva_range", f"mmu notifier unmap range: {start:#016x} -- {end:#016x}")
        for slot in self.slots:
            low, high = max(start, slot.hva), min(end, slot.hva + (slot.npages << 12))
            if low < high:
                gfns = slot.base + (low - slot.hva >> 12), slot.base + (high - slot.hva + 4095 >> 12)
                self._each_leaf(slot, *gfns, (1, 2, 3), lambda _p, _i, _w: None)

    def _logged(self, slot_id: int) -> DrySlot | None:
        return next((s for s in self.slots if (s.as_id, s.id) == (0, slot_id) and s.dirty is not None), None)

    def get_dirty_log(self, slot_id: int) -> None:
        """KVM_GET_DIRTY_LOG; with manual protection it only reads."""
        slot = self._logged(slot_id)
        if slot is not None and slot.dirty is not None and not self.manual:
            dirty, slot.dirty = slot.dirty, set()
            self._protect(slot, dirty)

    def clear_dirty_log(self, slot_id: int, first: int, num: int, pattern: int) -> None:
        """KVM_CLEAR_DIRTY_LOG of whole words, with the same byte all over the bitmap."""
        slot = self._logged(slot_id)
        if slot is None or slot.dirty is None:
            return
        cleared = {p for p in slot.dirty if first <= p < first + num and pattern >> p % 8 & 1}
        slot.dirty -= cleared
        self._protect(slot, cleared)

    def _protect(self, slot: DrySlot, pages: set[int]) -> None:
        for number in sorted({page >> 6 for page in pages}):
            word = sum(1 << page % 64 for page in pages if page >> 6 == number)
            self.say("dirty_masked", f"gfn_offset={number * 64:#x} mask={word:#x}")
            base = slot.base + number * 64
            if self.manual & _MANUAL_INITIALLY_SET:
                for bit in ((word & -word).bit_length() - 1, word.bit_length() - 1):
                    self._each_leaf(
                        slot, base + bit, base + bit + 1, (2, 3), lambda _p, _i, w: w & ~(W | MMU_WRITABLE)
                    )
            for bit in range(64):
                if word >> bit & 1:
                    self._each_leaf(slot, base + bit, base + bit + 1, (1,), lambda _p, _i, w: w & ~W)
