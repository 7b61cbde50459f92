"""What the host's MMU notifiers and other users of ranges do to the mappings.

Owns `Kvm.invalidation`. Models kvm_unmap_hva_range, kvm_age_hva, kvm_test_age_hva, kvm_set_spte_hva and
kvm_zap_gfn_range of v5.0 to v6.12.

An invalidation is open from before the mappings go until after; a fault that looked up its page meanwhile must come
again. Up to v6.1 its range is of host addresses and what only zaps gfns counts as everything; later it is of gfns.
"""

from __future__ import annotations

from collections.abc import Callable

from ..common import spte as word
from ..common.constants import KVM_ADDRESS_SPACE_NUM, PAGE_SHIFT, PT64_BASE_ADDR_MASK, PT_WRITABLE_MASK, U64
from ..common.events import note_age, note_notifier
from ..common.flush import (
    kvm_available_flush_tlb_with_range,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_with_address,
)
from ..common.invalidation import (
    has_gfn_range,
    kvm_mmu_invalidate_begin,
    kvm_mmu_invalidate_end,
    kvm_mmu_invalidate_range_add,
)
from ..common.lock import NESTED_IN_INVALIDATION, run_nested_ops
from ..common.page_table import kvm_set_pfn_dirty, write_spte
from ..common.pte_list import PteList, pte_list_entries, pte_list_first
from ..common.state import Kvm, KvmMemorySlot, Op, ShadowPage
from ..shadow.rmap import drop_spte, is_mapped, kvm_zap_rmapp, mmu_spte_clear_track_bits, rmap_entries
from ..shadow.slot_walk import (
    WalkRange,
    flush_walked,
    handle_heads_without_polls,
    kvm_handle_hva_range,
    slot_handle_level_range,
    slots_in_hva_range,
)
from ..tdp.age import kvm_tdp_mmu_age_gfn_range, kvm_tdp_mmu_set_spte_gfn, kvm_tdp_mmu_test_age_gfn
from ..tdp.zap import kvm_tdp_mmu_unmap_gfn_range, kvm_tdp_mmu_zap_leafs


def unmap_head(kvm: Kvm, slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    return kvm_zap_rmapp(kvm, slot, head)


def kvm_unmap_gfn_range(kvm: Kvm, slot: KvmMemorySlot, first: int, end: int, may_block: bool) -> bool:
    """Remove the mappings of gfns first..end (end exclusive); true when a flush is owed."""
    if kvm.config.tdp_mmu:
        return kvm_tdp_mmu_unmap_gfn_range(kvm, slot.as_id, first, end, may_block)
    walk = WalkRange(slot, first, end - 1)
    if kvm.rules.unmap_offers_lock and may_block:
        return slot_handle_level_range(kvm, walk, unmap_head, flush_on_yield=True)
    return handle_heads_without_polls(kvm, walk, unmap_head)


def kvm_unmap_hva_range(
    kvm: Kvm, start: int, end: int, may_block: bool = True, during: list[list[Op]] | None = None
) -> None:
    """A range that the host takes away; the first list of `during` runs while the invalidation is open."""
    is_begun = kvm_mmu_notifier_invalidate_range_start(kvm, start, end, may_block)
    for ops in (during or [])[:1]:
        run_nested_ops(kvm, NESTED_IN_INVALIDATION, ops)
    if is_begun:
        kvm_mmu_invalidate_end(kvm)


def kvm_mmu_notifier_invalidate_range_start(kvm: Kvm, start: int, end: int, may_block: bool = True) -> bool:
    """Open an invalidation where the range has a slot, and unmap it; true when it is open."""
    note_notifier(kvm, "unmap_hva", start, end)
    flush = False
    is_begun = False
    for memslots in kvm.memslots:
        for slot, first_gfn, end_gfn in slots_in_hva_range(kvm, memslots, start, end):
            if not is_begun:
                is_begun = True
                kvm_mmu_invalidate_begin(kvm)
                if not has_gfn_range(kvm):
                    kvm_mmu_invalidate_range_add(kvm, start, end)
            if has_gfn_range(kvm):
                kvm_mmu_invalidate_range_add(kvm, first_gfn, end_gfn)
            flush |= kvm_unmap_gfn_range(kvm, slot, first_gfn, end_gfn, may_block)
    if flush or kvm.tlbs_dirty:
        kvm_flush_remote_tlbs(kvm)
    return is_begun


def kvm_tdp_mmu_handle_hva_range(
    kvm: Kvm, start: int, end: int, handler: Callable[[Kvm, int, int, int], bool]
) -> bool:
    """Run a handler of the TDP MMU on the gfns that a range of host addresses reaches, slot by slot."""
    changed = False
    for memslots in kvm.memslots:
        for slot, first_gfn, end_gfn in slots_in_hva_range(kvm, memslots, start, end):
            changed |= handler(kvm, slot.as_id, first_gfn, end_gfn)
    return changed


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
        note_age(kvm, gfn, level)
    return young


def kvm_age_hva(kvm: Kvm, start: int, end: int, flush_when_young: int) -> int:
    note_notifier(kvm, "age_hva", start, end)
    if kvm.config.tdp_mmu:
        young = kvm_tdp_mmu_handle_hva_range(kvm, start, end, kvm_tdp_mmu_age_gfn_range)
    else:
        young = kvm_handle_hva_range(kvm, start, end, age_head)
    if young and flush_when_young and not kvm.rules.aging_is_lockless:
        kvm_flush_remote_tlbs(kvm)
    return int(young)


def test_age_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    for page_id, index in pte_list_entries(head):  # only looks, so it is no reverse-map work
        sp = kvm.pages[page_id]
        if is_mapped(kvm, sp, index) and word.is_accessed_spte(kvm.masks, sp.sptes.get(index, 0)):
            return True
    return False


def kvm_test_age_hva(kvm: Kvm, hva: int) -> int:
    note_notifier(kvm, "test_age_hva", hva)
    if kvm.config.tdp_mmu:
        return int(kvm_tdp_mmu_handle_hva_range(kvm, hva, hva + 1, kvm_tdp_mmu_test_age_gfn))
    return int(kvm_handle_hva_range(kvm, hva, hva + 1, test_age_head))


def kvm_set_spte_hva(kvm: Kvm, hva: int, pfn: int, is_writable: int) -> None:
    """The host gave the address another page: map that read-only, or nothing if it is writable."""
    note_notifier(kvm, "set_spte_hva", hva)
    if kvm.config.tdp_mmu:
        set_tdp_spte_hva(kvm, hva, pfn, is_writable)
        return

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


def set_tdp_spte_hva(kvm: Kvm, hva: int, pfn: int, is_writable: int) -> None:
    """The TDP MMU listens only while an invalidation is open."""
    if not kvm.invalidation.in_progress:
        return

    def set_gfn(kvm: Kvm, as_id: int, first: int, end: int) -> bool:
        return kvm_tdp_mmu_set_spte_gfn(kvm, as_id, first, end, pfn, bool(is_writable))

    if kvm_tdp_mmu_handle_hva_range(kvm, hva, hva + 1, set_gfn):
        kvm_flush_remote_tlbs(kvm)


def kvm_zap_gfn_range(kvm: Kvm, start: int, end: int) -> None:
    """Remove every mapping of gfns start..end (end exclusive) in both address spaces.

    Meanwhile faults of these gfns, or of all, come again in v6.
    """
    blocks = kvm.rules.zap_range_blocks
    if blocks != "nothing" and start < end:
        kvm_mmu_invalidate_begin(kvm)
        kvm_mmu_invalidate_range_add(kvm, *((start, end) if blocks == "range" else (0, U64)))
    if kvm.rules.zap_range_flush == "once":
        zap_gfn_range_with_one_flush(kvm, start, end)
    else:
        zap_gfn_range_by_slot(kvm, start, end)
    if blocks != "nothing" and start < end:
        kvm_mmu_invalidate_end(kvm)


def zap_gfn_range_by_slot(kvm: Kvm, start: int, end: int) -> None:
    """v5: slots descending, a flush after each, but for v5.0 where the vendor can flush a range: one at the end."""
    flush_inside = not kvm.rules.zap_range_defers or not kvm_available_flush_tlb_with_range(kvm)
    pending = False
    for as_id in range(KVM_ADDRESS_SPACE_NUM):
        for slot in list(kvm.memslots[as_id].memslots):
            first = max(start, slot.base_gfn)
            last = min(end, slot.base_gfn + slot.npages) - 1
            if first > last:
                continue
            changed = slot_handle_level_range(
                kvm, WalkRange(slot, first, last), unmap_head, flush_on_yield=flush_inside
            )
            if changed and flush_inside:
                flush_walked(kvm, first, last)
            else:
                pending |= changed
    if pending:
        kvm_flush_remote_tlbs_with_address(kvm, start, end - start + 1)


def zap_gfn_range_with_one_flush(kvm: Kvm, start: int, end: int) -> None:
    """v6: slots ascending, one flush for all at the end."""
    if end <= start:
        return
    pending = kvm_tdp_mmu_zap_leafs(kvm, start, end, False) if kvm.config.tdp_mmu else False
    for as_id in range(0 if kvm.config.tdp_mmu else KVM_ADDRESS_SPACE_NUM):
        for slot in reversed(kvm.memslots[as_id].memslots):
            first = max(start, slot.base_gfn)
            last = min(end, slot.base_gfn + slot.npages) - 1
            if first <= last:
                walk = WalkRange(slot, first, last)
                pending = slot_handle_level_range(kvm, walk, unmap_head, flush_on_yield=True, pending=pending)
    if pending:
        kvm_flush_remote_tlbs_with_address(kvm, start, end - start)
