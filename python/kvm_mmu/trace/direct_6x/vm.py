"""One VM of a 6.x recording: vCPUs and their roots, memslot updates, write protection, host notifications.

Owns the verbs that are not the page fault. Everything it prints goes to `out` in the order of the kernel's
probes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvm_mmu.trace.direct_6x import spte
from kvm_mmu.trace.direct_6x.memslots import LOG_DIRTY, READONLY, Change, Memslots, Slot
from kvm_mmu.trace.direct_6x.residency import Residency
from kvm_mmu.trace.direct_6x.shadow_pages import Out, ShadowPage, ShadowPages

_MIN_MMU_PAGES, _PERMILLE = 64, 20
#: First gfns of the four roots of a guest without paging, when the host does not use two-dimensional paging.
_FOUR_ROOTS = (0, 0x40000, 0x80000, 0xC0000)


@dataclass(frozen=True)
class Facts:
    """What the host was like."""

    kernel: str
    root_level: int
    four_roots: bool
    mmio_caching: bool
    nx_huge_pages: bool


@dataclass
class Vcpu:
    """A vCPU's MMU: its roots and its one-entry MMIO cache."""

    id: int
    is_smm: bool = False
    roots: list[ShadowPage] = field(default_factory=list)
    mmio_gfn: int = 0
    mmio_gen: int = -1

    @property
    def as_id(self) -> int:
        """The address space it sees."""
        return int(self.is_smm)


class Vm:
    """A VM without guest page tables."""

    def __init__(self, facts: Facts, out: Out):
        self.facts = facts
        self.out = out
        self.pages = ShadowPages(out)
        self.memslots = Memslots()
        self.residency = Residency()
        self.vcpus: dict[int, Vcpu] = {}
        self._requested_pages = 0
        #: KVM_DIRTY_LOG_INITIALLY_SET
        self.initially_set = False

    def vcpu(self, number: int) -> Vcpu:
        """A vCPU by its number."""
        return self.vcpus.setdefault(number, Vcpu(number))

    # -- roots
    # ----------------------------------------------------------------------------------------------------

    def load_roots(self, vcpu: Vcpu) -> None:
        """The vCPU enters without a root."""
        if vcpu.roots:
            return
        self.pages.make_available()
        gfns = _FOUR_ROOTS if self.facts.four_roots else (0,)
        for gfn in gfns:
            page = self.pages.get_page(gfn, self.facts.root_level, vcpu.is_smm)
            page.root_count += 1
            vcpu.roots.append(page)

    def drop_roots(self, vcpu: Vcpu) -> None:
        """The vCPU gives up its roots."""
        roots, vcpu.roots = vcpu.roots, []
        self.pages.drop_roots(roots)

    def has_obsolete_root(self, vcpu: Vcpu) -> bool:
        """Whether the vCPU must reload before it enters."""
        return any(self.pages.is_obsolete(page) for page in vcpu.roots)

    def destroy(self) -> None:
        """The VM ends."""
        self.pages.zap_all()
        for vcpu in self.vcpus.values():
            self.drop_roots(vcpu)

    # -- memslots and limits
    # --------------------------------------------------------------------------------------

    def install(self, as_id: int) -> None:
        """A new slot array becomes visible: the next generation, and a zap when it wrapped."""
        self.memslots.generations[as_id] += 2
        gen = self.memslots.generations[as_id]
        self.out("memslots_updated", f"gen={gen:#x}")
        self.out("invalidate_mmio", f"gen={gen:#x}")
        if gen & spte.GEN_MASK & ~1 == 0:
            self.pages.zap_all_fast()

    def set_memslot(self, new: Slot) -> None:
        """A request to change a slot, with everything that follows from it."""
        change = self.memslots.classify(new)
        old = self.memslots.slots.get((new.as_id, new.id))
        if change is None:
            return
        if change in (Change.DELETE, Change.MOVE) and old is not None:
            self.begin_removal(old)
        if change is Change.DELETE and old is not None:
            self.memslots.remove(old)
        else:
            self.memslots.put(new)
        self.install(new.as_id)
        if change in (Change.CREATE, Change.DELETE):
            self._recompute_limit()
        if change is Change.FLAGS and old is not None:
            self._changed_flags(old, new)

    def begin_removal(self, slot: Slot) -> None:
        """First half of a deletion or move: the slot is published as invalid and flushed."""
        self.install(slot.as_id)
        self.out("flush_shadow_memslot", "")
        self.pages.zap_all_fast()

    def finish_removal(self, slot: Slot) -> None:
        """Second half of a deletion."""
        self.memslots.remove(slot)
        self.install(slot.as_id)
        self._recompute_limit()

    def create(self, slot: Slot) -> None:
        """A new slot."""
        self.memslots.put(slot)
        self.install(slot.as_id)
        self._recompute_limit()

    def set_nr_mmu_pages(self, wanted: int) -> None:
        """KVM_SET_NR_MMU_PAGES"""
        if wanted < _MIN_MMU_PAGES:
            return
        self.pages.change_limit(wanted)
        self._requested_pages = wanted

    def _recompute_limit(self) -> None:
        if not self._requested_pages:
            self.pages.change_limit(max(self.memslots.total_pages() * _PERMILLE // 1000, _MIN_MMU_PAGES))

    def _changed_flags(self, old: Slot, new: Slot) -> None:
        if new.flags & LOG_DIRTY and not old.flags & LOG_DIRTY and not new.flags & READONLY:
            if not self.initially_set:
                for page, index in list(self.leaves(new, new.base, new.base + new.npages)):
                    page.entries[index] &= ~spte.WRITABLE
        elif old.flags & LOG_DIRTY and not new.flags & LOG_DIRTY:
            self._zap_collapsible(new)

    def _zap_collapsible(self, slot: Slot) -> None:
        """4 KiB mappings that could be 2 MiB now are removed."""
        for page, index in list(self.leaves(slot, slot.base, slot.base + slot.npages)):
            host = slot.hva_of(page.gfn_of(index)) >> 12
            if page.level == 1 and slot.holds(page.gfn) and self.residency.is_mapped_2m(host):
                del page.entries[index]

    # -- leaves of a slot
    # -----------------------------------------------------------------------------------------

    def leaves(self, slot: Slot, start: int, end: int) -> Iterator[tuple[ShadowPage, int]]:
        """Leaves of all levels, of the slot's address space, that overlap gfns start to end (exclusive)."""
        for page in self.pages.active.values():
            if page.is_smm != bool(slot.as_id):
                continue
            for index, value in page.entries.items():
                if index in page.children or not spte.is_shadow_present(value):
                    continue
                first = page.gfn_of(index)
                if first < end and start < first + (1 << 9 * (page.level - 1)):
                    yield page, index

    def protect_dirty(self, slot: Slot, offset: int, mask: int) -> None:
        """The log was read or cleared for up to 64 pages: their 4 KiB leaves lose W."""
        base = slot.base + offset
        if self.initially_set and mask:
            first, last = base + (mask & -mask).bit_length() - 1, base + mask.bit_length() - 1
            for gfn in (first, last):
                for page, index in list(self.leaves(slot, gfn, gfn + 1)):
                    if page.level > 1:
                        page.entries[index] &= ~(spte.WRITABLE | spte.MMU_WRITABLE)
        for page, index in list(self.leaves(slot, base, base + 64)):
            if page.level == 1 and mask >> page.gfn_of(index) - base & 1:
                page.entries[index] &= ~spte.WRITABLE

    def unmap_hva_range(self, start: int, end: int) -> None:
        """Host memory goes away: leaves over it vanish; MMIO entries and tables stay."""
        for slot in self.memslots.slots.values():
            low, high = max(start, slot.hva), min(end, slot.hva + (slot.npages << 12))
            if low >= high:
                continue
            first = slot.base + (low - slot.hva >> 12)
            last = slot.base + (high - slot.hva + 0xFFF >> 12)
            for page, index in list(self.leaves(slot, first, last)):
                del page.entries[index]
