"""Dirty logging: walks over a slot's mappings, per-mask work, and the two ioctls.

Owns `KvmMemorySlot.dirty_bitmap` being taken and cleared. Models kvm_mmu_slot_remove_write_access,
kvm_mmu_slot_leaf_clear_dirty, kvm_mmu_slot_largepage_remove_write_access, kvm_mmu_slot_set_dirty,
kvm_mmu_zap_collapsible_sptes, kvm_arch_mmu_enable_log_dirty_pt_masked, the PML hooks, kvm_vm_ioctl_get_dirty_log and
kvm_vm_ioctl_clear_dirty_log of v5.0 to v6.12.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import EINVAL, ENOENT, PT_PAGE_TABLE_LEVEL, kvm_pages_per_hpage
from ..common.errors import ScenarioError
from ..common.flush import (
    kvm_arch_flush_remote_tlbs_memslot,
    kvm_available_flush_tlb_with_range,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_with_address,
)
from ..common.host_memory import is_compound_page, kvm_mmu_max_mapping_level
from ..common.page_table import kvm_mmu_page_get_gfn
from ..common.pte_list import PteList, pte_list_entries
from ..common.role import role_is_direct, role_level
from ..common.state import Kvm, KvmMemorySlot, ShadowPage
from ..shadow.rmap import drop_spte, rmap_clear_dirty, rmap_entries, rmap_set_dirty, rmap_write_protect
from ..shadow.slot_walk import (
    ALL_LEVELS,
    COLLAPSIBLE_LEVELS,
    LARGE_LEVELS,
    LEAF_LEVEL,
    Levels,
    RmapHandler,
    flush_walked,
    slot_handle_level_range,
    whole_slot,
)
from ..tdp.collapse import kvm_tdp_mmu_zap_collapsible_sptes
from ..tdp.dirty_log import (
    kvm_tdp_mmu_clear_dirty_pt_masked,
    kvm_tdp_mmu_clear_dirty_slot,
    kvm_tdp_mmu_wrprot_slot,
)
from ..tdp.split import kvm_tdp_mmu_try_split_huge_pages
from .track import kvm_mmu_slot_gfn_write_protect

LARGE_PAGES = kvm_pages_per_hpage(2)
BITS_PER_LONG = 64


def write_protect_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    return rmap_write_protect(kvm, head, pt_protect=False)


def clear_dirty_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    return rmap_clear_dirty(kvm, head)


def set_dirty_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    return rmap_set_dirty(kvm, head)


def walk_slot(kvm: Kvm, slot: KvmMemorySlot, handler: RmapHandler, levels: Levels) -> bool:
    """Run a handler on a whole slot; true when a flush is owed."""
    return slot_handle_level_range(kvm, whole_slot(slot, levels), handler, flush_on_yield=False)


def kvm_mmu_slot_try_split_huge_pages(kvm: Kvm, slot: KvmMemorySlot, target_level: int) -> None:
    """Split what is larger than a level, under the shared lock; the direct MMU of shadow pages splits nothing."""
    if kvm.config.tdp_mmu:
        end = slot.base_gfn + slot.npages
        kvm_tdp_mmu_try_split_huge_pages(kvm, slot, slot.base_gfn, end, target_level, shared=True)


def walk_then_flush_slot(kvm: Kvm, slot: KvmMemorySlot, handler: RmapHandler, levels: Levels) -> None:
    """v5: the flush comes once, after the lock is released. v6 leaves it to whom asked for the walk."""
    if walk_slot(kvm, slot, handler, levels) and kvm.rules.log_on_flush == "if_changed":
        kvm_arch_flush_remote_tlbs_memslot(kvm, slot)


def kvm_mmu_slot_remove_write_access(kvm: Kvm, slot: KvmMemorySlot) -> None:
    if kvm.config.tdp_mmu:
        kvm_tdp_mmu_wrprot_slot(kvm, slot, PT_PAGE_TABLE_LEVEL)
        return
    walk_then_flush_slot(kvm, slot, write_protect_head, ALL_LEVELS)


def kvm_mmu_slot_largepage_remove_write_access(kvm: Kvm, slot: KvmMemorySlot) -> None:
    if kvm.config.tdp_mmu:
        kvm_tdp_mmu_wrprot_slot(kvm, slot, LARGE_LEVELS.first)
        return
    walk_then_flush_slot(kvm, slot, write_protect_head, LARGE_LEVELS)


def kvm_mmu_slot_leaf_clear_dirty(kvm: Kvm, slot: KvmMemorySlot) -> None:
    if kvm.config.tdp_mmu:
        kvm_tdp_mmu_clear_dirty_slot(kvm, slot)
        return
    walk_then_flush_slot(kvm, slot, clear_dirty_head, LEAF_LEVEL)


def kvm_mmu_slot_set_dirty(kvm: Kvm, slot: KvmMemorySlot) -> None:
    walk_then_flush_slot(kvm, slot, set_dirty_head, ALL_LEVELS)


def is_collapsible(kvm: Kvm, slot: KvmMemorySlot, sp: ShadowPage, spte: int) -> bool:
    """Whether a mapping of a direct page could be larger: by its own page frame, or by the gfn of its table."""
    if not role_is_direct(sp.role):
        return False
    if kvm.rules.collapse == "by_leaf":
        return is_compound_page(kvm.host, word.spte_to_pfn(spte))
    is_in_slot = slot.base_gfn <= sp.gfn < slot.base_gfn + slot.npages
    return is_in_slot and role_level(sp.role) < kvm_mmu_max_mapping_level(kvm, slot, sp.gfn)


def zap_collapsible_head(kvm: Kvm, slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    """Drop small mappings of huge host pages so that the next fault maps them large."""
    need_flush = False
    rescan = True
    while rescan:
        rescan = False
        for sp, index, spte in rmap_entries(kvm, head):
            if not is_collapsible(kvm, slot, sp, spte):
                continue
            drop_spte(kvm, sp, index)
            if kvm_available_flush_tlb_with_range(kvm):
                gfn = kvm_mmu_page_get_gfn(sp, index) if kvm.rules.collapse_flush == "entry" else sp.gfn
                kvm_flush_remote_tlbs_with_address(kvm, gfn, kvm_pages_per_hpage(role_level(sp.role)))
            else:
                need_flush = True
            rescan = True
            break
    return need_flush


def check_tables_begin_in_slot(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Refuse what crashes a kernel that does not look whether a table begins in the slot."""
    if kvm.rules.collapse != "by_table":
        return
    for head in slot.rmap[2].values():
        for page_id, _ in pte_list_entries(head):
            gfn = kvm.pages[page_id].gfn
            if not role_is_direct(kvm.pages[page_id].role):
                continue  # the kernel looks no further
            if gfn // LARGE_PAGES < slot.base_gfn // LARGE_PAGES:
                raise ScenarioError(
                    f"kernel {kvm.rules.name}, memslot {slot.id}: turning the dirty log off reads outside the slot's"
                    f" counts, at gfn {gfn:#x}: this kernel crashes or does anything here"
                )


def kvm_mmu_zap_collapsible_sptes(kvm: Kvm, slot: KvmMemorySlot) -> None:
    if kvm.config.tdp_mmu:
        kvm_tdp_mmu_zap_collapsible_sptes(kvm, slot)
        return
    check_tables_begin_in_slot(kvm, slot)
    levels = LEAF_LEVEL if kvm.rules.collapse == "by_leaf" else COLLAPSIBLE_LEVELS
    walk = whole_slot(slot, levels)
    if slot_handle_level_range(kvm, walk, zap_collapsible_head, flush_on_yield=True):
        flush_walked(kvm, walk.first, walk.last)


def enable_pml_log(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Small pages are logged by their D bit, large ones must first be split by a write fault."""
    kvm_mmu_slot_leaf_clear_dirty(kvm, slot)
    kvm_mmu_slot_largepage_remove_write_access(kvm, slot)


def handle_masked_gfns(kvm: Kvm, slot: KvmMemorySlot, offset: int, mask: int, handler: RmapHandler) -> None:
    """Run a handler on the level-1 heads of up to 64 gfns; never flushes."""
    for bit in range(BITS_PER_LONG):
        head = slot.rmap[1].get(offset + bit) if mask >> bit & 1 else None
        if head is not None:
            handler(kvm, slot, head, 1, slot.base_gfn + offset + bit)


def kvm_arch_mmu_enable_log_dirty_pt_masked(kvm: Kvm, slot: KvmMemorySlot, offset: int, mask: int) -> None:
    """Note again who writes to up to 64 gfns. Where all began as dirty, no large leaf was split yet: write-protect
    those over the first and the last gfn, so that a write fault does it."""
    if kvm.dirty_log_initially_set and mask:
        first = slot.base_gfn + offset + (mask & -mask).bit_length() - 1
        last = slot.base_gfn + offset + mask.bit_length() - 1
        if kvm.config.tdp_mmu and kvm.eager_page_split and kvm.rules.has_eager_split:
            end = last + 1 if kvm.rules.tdp_split_whole_mask else last
            kvm_tdp_mmu_try_split_huge_pages(kvm, slot, first, end, PT_PAGE_TABLE_LEVEL, shared=False)
        kvm_mmu_slot_gfn_write_protect(kvm, slot, first, LARGE_LEVELS.first)
        # Rounded up, so two gfns of one large page can differ and two of different ones can be the same.
        if -first // LARGE_PAGES != -last // LARGE_PAGES:
            kvm_mmu_slot_gfn_write_protect(kvm, slot, last, LARGE_LEVELS.first)
    if kvm.config.pml:
        kvm_mmu_clear_dirty_pt_masked(kvm, slot, offset, mask)
    else:
        kvm_mmu_write_protect_pt_masked(kvm, slot, offset, mask)


def kvm_mmu_write_protect_pt_masked(kvm: Kvm, slot: KvmMemorySlot, offset: int, mask: int) -> None:
    if kvm.config.tdp_mmu:
        kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, slot.base_gfn + offset, mask, wrprot=True)
    else:
        handle_masked_gfns(kvm, slot, offset, mask, write_protect_head)


def kvm_mmu_clear_dirty_pt_masked(kvm: Kvm, slot: KvmMemorySlot, offset: int, mask: int) -> None:
    if kvm.config.tdp_mmu:
        kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, slot.base_gfn + offset, mask, wrprot=False)
    else:
        handle_masked_gfns(kvm, slot, offset, mask, clear_dirty_head)


def flush_dirty_log(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """The flush of KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG: everything, or the slot."""
    if kvm.rules.dirty_log_flush == "slot":
        kvm_arch_flush_remote_tlbs_memslot(kvm, slot)
    else:
        kvm_flush_remote_tlbs(kvm)


def bitmap_words(npages: int) -> int:
    return (npages + BITS_PER_LONG - 1) // BITS_PER_LONG


def dirty_word(bitmap: set[int], number: int) -> int:
    first = number * BITS_PER_LONG
    return sum(1 << bit for bit in range(BITS_PER_LONG) if first + bit in bitmap)


def clear_dirty_word(bitmap: set[int], number: int, cleared: int) -> None:
    first = number * BITS_PER_LONG
    bitmap.difference_update(first + bit for bit in range(BITS_PER_LONG) if cleared >> bit & 1)


def kvm_vm_ioctl_get_dirty_log(kvm: Kvm, slot: KvmMemorySlot | None) -> tuple[int, list[int]]:
    """The errno and the words of the bitmap; takes the bits unless protection is manual."""
    if slot is None or slot.dirty_bitmap is None:
        return -ENOENT, [0] * (bitmap_words(slot.npages) if slot is not None else 1)
    words = [0] * bitmap_words(slot.npages)
    for number in sorted({page // BITS_PER_LONG for page in slot.dirty_bitmap}):
        words[number] = dirty_word(slot.dirty_bitmap, number)
    if kvm.manual_dirty_log_protect:
        return 0, words
    for number, dirty in enumerate(words):
        if dirty:
            clear_dirty_word(slot.dirty_bitmap, number, dirty)
            kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, number * BITS_PER_LONG, dirty)
    if any(words):
        flush_dirty_log(kvm, slot)
    return 0, words


def kvm_vm_ioctl_clear_dirty_log(
    kvm: Kvm, slot: KvmMemorySlot | None, first: int, num: int, mask: list[int]
) -> int:
    """Clear the dirty bits that are set in the mask; mask words count from `first`'s own word."""
    if first % BITS_PER_LONG or (kvm.rules.clear_log_whole_words and num % BITS_PER_LONG):
        return -EINVAL
    if slot is None or slot.dirty_bitmap is None:
        return -ENOENT
    if first > slot.npages or num > slot.npages - first:
        return -EINVAL
    if num % BITS_PER_LONG and first + num != slot.npages:
        return -EINVAL
    flush = False
    for position in range(bitmap_words(num)):
        number = first // BITS_PER_LONG + position
        asked = mask[position] if position < len(mask) else 0
        cleared = asked & dirty_word(slot.dirty_bitmap, number)
        if cleared:
            flush = True
            clear_dirty_word(slot.dirty_bitmap, number, cleared)
            kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, number * BITS_PER_LONG, cleared)
    if flush:
        flush_dirty_log(kvm, slot)
    return 0
