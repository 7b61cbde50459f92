"""What the host's MMU notifiers and other users of ranges do to the mappings.

Owns no state. Models kvm_unmap_hva_range, kvm_age_hva, kvm_test_age_hva, kvm_set_spte_hva and
kvm_zap_gfn_range of v5.0 and v5.2.
"""

from __future__ import annotations

from . import spte as word
from .constants import (
    KVM_ADDRESS_SPACE_NUM,
    PAGE_SHIFT,
    PT64_BASE_ADDR_MASK,
    PT_WRITABLE_MASK,
    U64,
)
from .flush import (
    kvm_available_flush_tlb_with_range,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_with_address,
)
from .pte_list import PteList, pte_list_entries, pte_list_first
from .rmap import (
    drop_spte,
    kvm_set_pfn_dirty,
    kvm_zap_rmapp,
    mmu_spte_clear_track_bits,
    rmap_entries,
    write_spte,
)
from .slot_walk import ALL_LEVELS, kvm_handle_hva_range, slot_handle_level_range
from .state import Kvm, KvmMemorySlot, ShadowPage


def unmap_head(kvm: Kvm, slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    return kvm_zap_rmapp(kvm, slot, head)


def kvm_unmap_hva_range(kvm: Kvm, start: int, end: int) -> None:
    if kvm_handle_hva_range(kvm, start, end, unmap_head):
        kvm_flush_remote_tlbs(kvm)


def mmu_spte_age(kvm: Kvm, sp: ShadowPage, index: int, spte: int) -> bool:
    """Make the next use of an entry visible; true when it had been used."""
    if not word.is_accessed_spte(kvm.masks, spte):
        return False
    if not word.spte_ad_enabled(kvm.masks, spte) and word.is_writable_pte(spte):
        # Access tracking takes W away, and W is what stands for dirty here.
        kvm_set_pfn_dirty(kvm, word.spte_to_pfn(spte))
    write_spte(sp, index, word.mark_spte_for_access_track(kvm.masks, spte))
    return True


def age_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, level: int, gfn: int) -> bool:
    young = False
    for sp, index, spte in rmap_entries(kvm, head):
        young |= mmu_spte_age(kvm, sp, index, spte)
    if young:
        kvm.events.append(["age", gfn, level])
    return young


def kvm_age_hva(kvm: Kvm, start: int, end: int, flush_when_young: int) -> int:
    young = kvm_handle_hva_range(kvm, start, end, age_head)
    if young and flush_when_young:
        kvm_flush_remote_tlbs(kvm)
    return int(young)


def test_age_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    for page_id, index in pte_list_entries(head):  # only looks, so it is no reverse-map work
        if word.is_accessed_spte(kvm.masks, kvm.pages[page_id].sptes.get(index, 0)):
            return True
    return False


def kvm_test_age_hva(kvm: Kvm, hva: int) -> int:
    return int(kvm_handle_hva_range(kvm, hva, hva + 1, test_age_head))


def kvm_set_spte_hva(kvm: Kvm, hva: int, pfn: int, is_writable: int) -> None:
    """The host gave the address another page: map that read-only, or nothing if it is writable."""

    def set_pte_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, gfn: int) -> bool:
        need_flush = False
        if is_writable:
            while (first := pte_list_first(head)) is not None:
                need_flush = True
                drop_spte(kvm, kvm.pages[first[0]], first[1])
        else:
            for sp, index, spte in rmap_entries(kvm, head):
                need_flush = True
                new = spte & ~(PT64_BASE_ADDR_MASK | PT_WRITABLE_MASK | kvm.masks.host_writeable) & U64
                new = word.mark_spte_for_access_track(kvm.masks, new | pfn << PAGE_SHIFT)
                mmu_spte_clear_track_bits(kvm, sp, index)
                write_spte(sp, index, new)
        if need_flush and kvm_available_flush_tlb_with_range(kvm):
            kvm_flush_remote_tlbs_with_address(kvm, gfn, 1)
            return False
        return need_flush

    if kvm_handle_hva_range(kvm, hva, hva + 1, set_pte_head):
        kvm_flush_remote_tlbs(kvm)


def kvm_zap_gfn_range(kvm: Kvm, start: int, end: int) -> None:
    """Remove every mapping of gfns start..end (end exclusive) in both address spaces."""
    # v5.0 leaves the flush to the end where the vendor can flush a range.
    flush_inside = kvm.rules.slot_walk_flushes_ranges or not kvm_available_flush_tlb_with_range(kvm)
    pending = False
    for as_id in range(KVM_ADDRESS_SPACE_NUM):
        for slot in list(kvm.memslots[as_id].memslots):
            first = max(start, slot.base_gfn)
            last = min(end, slot.base_gfn + slot.npages) - 1
            if first <= last:
                pending |= slot_handle_level_range(
                    kvm, slot, unmap_head, ALL_LEVELS, first, last, flush_inside=flush_inside
                )
    if pending:
        kvm_flush_remote_tlbs_with_address(kvm, start, end - start + 1)
