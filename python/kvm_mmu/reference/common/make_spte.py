"""The word of a leaf, where the level is requested first: v5.10 and later, for both kinds of page table.

Owns nothing. Models make_spte of v6.1 and v6.12.
"""

from __future__ import annotations

from collections.abc import Callable

from . import spte as word
from .constants import (
    ACC_ALL,
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    EPERM,
    PAGE_SHIFT,
    PT_PAGE_SIZE_MASK,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
)
from .events import note_silent_call
from .pin import PinnedPfn
from .role import role_is_ad_disabled, role_level
from .slots import kvm_page_track_is_active, kvm_vcpu_mark_page_dirty
from .state import Kvm, ShadowPage, Vcpu

#: (VM, vCPU, gfn, may pages become unsync for it, is it for a prefetch) -> 0, or the errno that refuses W.
TryUnsync = Callable[[Kvm, Vcpu, int, bool, bool], int]


def refuse_tracked(kvm: Kvm, vcpu: Vcpu, gfn: int, _can_unsync: bool, _is_prefetch: bool) -> int:
    """Where no guest table is shadowed only tracking refuses."""
    return -EPERM if kvm_page_track_is_active(kvm, vcpu, gfn) else 0


def make_spte(
    kvm: Kvm,
    vcpu: Vcpu,
    sp: ShadowPage,
    old: int,
    gfn: int,
    pinned: PinnedPfn,
    is_prefetch: bool,
    *,
    access: int = ACC_ALL,
    can_unsync: bool = True,
    is_sync: bool = False,
    try_unsync: TryUnsync = refuse_tracked,
) -> tuple[int, bool]:
    """The word of a leaf with the access that the host allows, and whether W was refused."""
    masks = kvm.masks
    level = role_level(sp.role)
    has_ad_bits = not role_is_ad_disabled(sp.role)
    is_executable = access & ACC_EXEC_MASK and (level == PT_PAGE_TABLE_LEVEL or not kvm.nx_huge_pages)
    spte = masks.mmu_present | masks.present | masks.leaf_memory_type | masks.me
    spte |= masks.user if access & ACC_USER_MASK else 0
    spte |= masks.suppress_ve
    spte |= masks.x if is_executable else masks.nx
    spte |= 0 if has_ad_bits else masks.ad_disabled
    is_used = not is_prefetch or (is_sync and kvm.rules.sync_keeps_ad)
    spte |= masks.accessed if has_ad_bits and is_used else 0
    spte |= PT_PAGE_SIZE_MASK if level > PT_PAGE_TABLE_LEVEL else 0
    spte |= pinned.pfn << PAGE_SHIFT
    is_write_protected = False
    if pinned.is_host_writable:
        spte |= masks.host_writeable
    if pinned.is_host_writable and access & ACC_WRITE_MASK:
        # The word that was there, also that of an MMIO entry: what it allows to write needs no second look.
        was_writable = word.is_last_spte(old, level) and word.is_writable_pte(old)
        exempts = kvm.rules.old_entry_exempts
        if exempts == "none" or not was_writable:
            note_silent_call(kvm, "try_unsync", gfn, int(can_unsync), int(is_prefetch))
            error = try_unsync(kvm, vcpu, gfn, can_unsync, is_prefetch)
            is_write_protected = error != 0
            note_silent_call(kvm, "try_unsync_ret", error)
        if not is_write_protected:
            spte |= PT_WRITABLE_MASK | masks.mmu_writeable
            if has_ad_bits and not (exempts == "dirty_and_unsync" and was_writable):
                spte |= masks.dirty
    if not is_used:
        spte = word.mark_spte_for_access_track(masks, spte)
    if word.is_writable_pte(spte):
        kvm_vcpu_mark_page_dirty(kvm, vcpu, gfn)
    return spte, is_write_protected
