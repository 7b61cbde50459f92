"""The word of a leaf, where the level is requested first: v5.10 and later, for both kinds of page table.

Owns nothing. Models make_spte of v6.1 and v6.12.
"""

from __future__ import annotations

from . import spte as word
from .constants import EPERM, PAGE_SHIFT, PT_PAGE_SIZE_MASK, PT_PAGE_TABLE_LEVEL, PT_WRITABLE_MASK
from .events import note_silent_call
from .pin import PinnedPfn
from .role import role_is_ad_disabled, role_level
from .slots import kvm_page_track_is_active, kvm_vcpu_mark_page_dirty
from .state import Kvm, ShadowPage, Vcpu


def make_spte(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, old: int, gfn: int, pinned: PinnedPfn, is_prefetch: bool
) -> tuple[int, bool]:
    """The word of a leaf with every access right the host allows, and whether tracking took W from it."""
    masks = kvm.masks
    level = role_level(sp.role)
    has_ad_bits = not role_is_ad_disabled(sp.role)
    is_executable = level == PT_PAGE_TABLE_LEVEL or not kvm.nx_huge_pages
    spte = masks.mmu_present | masks.present | masks.user | masks.leaf_memory_type | masks.me
    spte |= masks.suppress_ve
    spte |= masks.x if is_executable else masks.nx
    spte |= 0 if has_ad_bits else masks.ad_disabled
    spte |= masks.accessed if has_ad_bits and not is_prefetch else 0
    spte |= PT_PAGE_SIZE_MASK if level > PT_PAGE_TABLE_LEVEL else 0
    spte |= pinned.pfn << PAGE_SHIFT
    is_write_protected = False
    if pinned.is_host_writable:
        spte |= masks.host_writeable
        # The word that was there, also that of an MMIO entry: what it allows to write needs no second look.
        was_writable = word.is_last_spte(old, level) and word.is_writable_pte(old)
        exempts = kvm.rules.old_entry_exempts
        if exempts == "none" or not was_writable:
            is_write_protected = kvm_page_track_is_active(kvm, vcpu, gfn)
            note_silent_call(kvm, "try_unsync", gfn, 1, int(is_prefetch))
            note_silent_call(kvm, "try_unsync_ret", -EPERM if is_write_protected else 0)
        if not is_write_protected:
            spte |= PT_WRITABLE_MASK | masks.mmu_writeable
            if has_ad_bits and not (exempts == "dirty_and_unsync" and was_writable):
                spte |= masks.dirty
    if is_prefetch:
        spte = word.mark_spte_for_access_track(masks, spte)
    if word.is_writable_pte(spte):
        kvm_vcpu_mark_page_dirty(kvm, vcpu, gfn)
    return spte, is_write_protected
