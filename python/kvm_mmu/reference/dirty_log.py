"""Dirty logging: walks over a slot's mappings, per-mask work, and the two ioctls.

Owns `KvmMemorySlot.dirty_bitmap` being taken and cleared. Models kvm_mmu_slot_remove_write_access,
kvm_mmu_slot_leaf_clear_dirty, kvm_mmu_slot_largepage_remove_write_access, kvm_mmu_slot_set_dirty,
kvm_mmu_zap_collapsible_sptes, kvm_arch_mmu_enable_log_dirty_pt_masked, the PML hooks, kvm_vm_ioctl_get_dirty_log and
kvm_vm_ioctl_clear_dirty_log of v5.0 to v6.12.
"""

from __future__ import annotations

from . import spte as word
from .constants import EINVAL, ENOENT, kvm_pages_per_hpage
from .flush import (
    kvm_available_flush_tlb_with_range,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_with_address,
)
from .host_memory import is_compound_page
from .pte_list import PteList
from .rmap import drop_spte, gfn_to_rmap, rmap_clear_dirty, rmap_entries, rmap_set_dirty, rmap_write_protect
from .role import role_is_direct, role_level
from .slot_walk import (
    ALL_LEVELS,
    LARGE_LEVELS,
    LEAF_LEVEL,
    Levels,
    RmapHandler,
    slot_handle_levels,
)
from .state import Kvm, KvmMemorySlot, ShadowPage

BITS_PER_LONG = 64


def write_protect_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    return rmap_write_protect(kvm, head, pt_protect=False)


def clear_dirty_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    return rmap_clear_dirty(kvm, head)


def set_dirty_head(kvm: Kvm, _slot: KvmMemorySlot, head: PteList, _level: int, _gfn: int) -> bool:
    return rmap_set_dirty(kvm, head)


def walk_then_flush_slot(kvm: Kvm, slot: KvmMemorySlot, handler: RmapHandler, levels: Levels) -> None:
    """The flush comes once, after the lock is released."""
    if slot_handle_levels(kvm, slot, handler, levels, flush_inside=False):
        kvm_flush_remote_tlbs_with_address(kvm, slot.base_gfn, slot.npages)


def kvm_mmu_slot_remove_write_access(kvm: Kvm, slot: KvmMemorySlot) -> None:
    walk_then_flush_slot(kvm, slot, write_protect_head, ALL_LEVELS)


def kvm_mmu_slot_largepage_remove_write_access(kvm: Kvm, slot: KvmMemorySlot) -> None:
    walk_then_flush_slot(kvm, slot, write_protect_head, LARGE_LEVELS)


def kvm_mmu_slot_leaf_clear_dirty(kvm: Kvm, slot: KvmMemorySlot) -> None:
    walk_then_flush_slot(kvm, slot, clear_dirty_head, LEAF_LEVEL)


def kvm_mmu_slot_set_dirty(kvm: Kvm, slot: KvmMemorySlot) -> None:
    walk_then_flush_slot(kvm, slot, set_dirty_head, ALL_LEVELS)


def is_collapsible(kvm: Kvm, slot: KvmMemorySlot, sp: ShadowPage, spte: int) -> bool:
    """Whether a small mapping of a direct page could be large; v6 looks the page's base up in the slot, too."""
    if not role_is_direct(sp.role) or not is_compound_page(kvm.host, word.spte_to_pfn(spte)):
        return False
    return not kvm.rules.is_v6 or slot.base_gfn <= sp.gfn < slot.base_gfn + slot.npages


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
                pages = kvm_pages_per_hpage(role_level(sp.role))
                kvm_flush_remote_tlbs_with_address(kvm, sp.gfn, pages)
            else:
                need_flush = True
            rescan = True
            break
    return need_flush


def kvm_mmu_zap_collapsible_sptes(kvm: Kvm, slot: KvmMemorySlot) -> None:
    slot_handle_levels(kvm, slot, zap_collapsible_head, LEAF_LEVEL, flush_inside=True)


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
        first = slot.base_gfn + offset
        for gfn in (first + (mask & -mask).bit_length() - 1, first + mask.bit_length() - 1):
            for level in range(LARGE_LEVELS.first, LARGE_LEVELS.last + 1):
                head = gfn_to_rmap(slot, gfn, level)
                if head is not None:
                    rmap_write_protect(kvm, head, pt_protect=True)
    handler = clear_dirty_head if kvm.config.pml else write_protect_head
    handle_masked_gfns(kvm, slot, offset, mask, handler)


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
        kvm_flush_remote_tlbs(kvm)
    return 0, words


def kvm_vm_ioctl_clear_dirty_log(
    kvm: Kvm, slot: KvmMemorySlot | None, first: int, num: int, mask: list[int]
) -> int:
    """Clear the dirty bits that are set in the mask; mask words count from `first`'s own word."""
    if first % BITS_PER_LONG or (kvm.rules.clear_log_needs_whole_words and num % BITS_PER_LONG):
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
        kvm_flush_remote_tlbs(kvm)
    return 0
