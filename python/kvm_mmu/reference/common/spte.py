"""Normal SPTEs: predicates and pure construction over words.

Knows no structure: every function takes the masks and a word. Models the is_*_spte family,
mark_spte_for_access_track, restore_acc_track_spte and the word part of link_shadow_page (v5.0 to v6.12, which
agree once the masks say where a bit is).
"""

from __future__ import annotations

from .constants import (
    PAGE_SHIFT,
    PFERR_FETCH,
    PFERR_WRITE,
    PT64_BASE_ADDR_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
    SHADOW_ACC_TRACK_SAVED_BITS_MASK,
    U64,
)
from .masks import Masks
from .mmio import is_mmio_spte


def is_shadow_present_pte(masks: Masks, spte: int) -> bool:
    """Neither empty nor MMIO; an access-tracked entry with R, W and X clear counts as present."""
    if masks.mmu_present:
        return spte & masks.mmu_present != 0
    return spte != 0 and not is_mmio_spte(masks, spte)


def is_large_pte(spte: int) -> bool:
    return spte & PT_PAGE_SIZE_MASK != 0


def is_last_spte(spte: int, level: int) -> bool:
    return level == PT_PAGE_TABLE_LEVEL or is_large_pte(spte)


def is_writable_pte(spte: int) -> bool:
    return spte & PT_WRITABLE_MASK != 0


def spte_to_pfn(spte: int) -> int:
    return (spte & PT64_BASE_ADDR_MASK) >> PAGE_SHIFT


def spte_ad_enabled(masks: Masks, spte: int) -> bool:
    return spte & masks.spte_kinds != masks.ad_disabled or is_mmio_spte(masks, spte)


def is_access_track_spte(masks: Masks, spte: int) -> bool:
    return not spte_ad_enabled(masks, spte) and spte & masks.acc_track == 0


def is_executable_pte(masks: Masks, spte: int) -> bool:
    return spte & (masks.x | masks.nx) == masks.x


def is_accessed_spte(masks: Masks, spte: int) -> bool:
    if spte_ad_enabled(masks, spte) and masks.accessed:
        return spte & masks.accessed != 0
    return not is_access_track_spte(masks, spte)


def is_dirty_spte(masks: Masks, spte: int) -> bool:
    if spte_ad_enabled(masks, spte) and masks.dirty:
        return spte & masks.dirty != 0
    return is_writable_pte(spte)


def spte_can_locklessly_be_made_writable(masks: Masks, spte: int) -> bool:
    both = masks.host_writeable | masks.mmu_writeable
    return spte & both == both


def is_access_allowed(masks: Masks, error_code: int, spte: int) -> bool:
    """Whether the raw word lets the faulting access through."""
    if error_code & PFERR_FETCH:
        return is_executable_pte(masks, spte)
    if error_code & PFERR_WRITE:
        return is_writable_pte(spte)
    return spte & 1 != 0


def mark_spte_for_access_track(masks: Masks, spte: int) -> int:
    """The word whose next use will be noticed: A cleared, or R, W, X cleared with R and X saved."""
    if spte_ad_enabled(masks, spte):
        return spte & ~masks.accessed & U64
    if is_access_track_spte(masks, spte):
        return spte
    saved = (spte & SHADOW_ACC_TRACK_SAVED_BITS_MASK) << masks.saved_bits_shift
    return (spte | saved) & ~masks.acc_track & U64


def restore_acc_track_spte(masks: Masks, spte: int) -> int:
    """Undo access tracking; W was not saved and stays clear."""
    saved = (spte >> masks.saved_bits_shift) & SHADOW_ACC_TRACK_SAVED_BITS_MASK
    spte &= ~masks.acc_track & U64
    spte &= ~(SHADOW_ACC_TRACK_SAVED_BITS_MASK << masks.saved_bits_shift) & U64
    return spte | saved


def make_link_spte(masks: Masks, child_pfn: int, child_ad_disabled: bool) -> int:
    """The entry that points to a shadow page."""
    spte = child_pfn << PAGE_SHIFT | masks.present | PT_WRITABLE_MASK | masks.user | masks.x | masks.me
    spte |= masks.mmu_present | masks.suppress_ve
    return spte | (masks.ad_disabled if child_ad_disabled else masks.accessed)
