"""Reverse maps: from a gfn of a slot back to the entries that map it, and the writing of mapping entries.

Owns every change to a reverse-map head and every store to a shadow-present leaf that has one. Models
gfn_to_rmap, rmap_add, rmap_remove, drop_spte, mmu_spte_update, mmu_spte_clear_track_bits and the rmap handlers
(spte_write_protect, spte_clear_dirty, spte_set_dirty, kvm_zap_rmapp) of v5.0 to v6.12.

Invariant: a shadow-present leaf is in exactly one head, that of the gfn it maps at its level, in the slot found in the
address space its page's role names.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..common import spte as word
from ..common.constants import (
    PT_WRITABLE_MASK,
    RMAP_RECYCLE_THRESHOLD,
    U64,
    kvm_pages_per_hpage,
)
from ..common.flush import kvm_flush_remote_tlbs_with_address
from ..common.page_table import (
    kvm_mmu_page_get_gfn,
    kvm_set_pfn_accessed,
    kvm_set_pfn_dirty,
    kvm_update_page_stats,
    write_spte,
)
from ..common.pte_list import (
    PteList,
    Sptep,
    pte_list_add,
    pte_list_entries,
    pte_list_first,
    pte_list_is_empty,
    pte_list_remove,
)
from ..common.role import role_address_space, role_level
from ..common.slots import gfn_to_index, gfn_to_memslot
from ..common.state import Kvm, KvmMemorySlot, ShadowPage


def mmu_spte_update(kvm: Kvm, sp: ShadowPage, index: int, new: int) -> bool:
    """Replace an entry; true when the change can only be relied on after a flush."""
    masks = kvm.masks
    old = sp.sptes.get(index, 0)
    write_spte(sp, index, new)
    if not word.is_shadow_present_pte(masks, old):
        return False
    if kvm.rules.spte_flush == "mmu_writable":
        return bool(old & masks.mmu_writeable) and not new & masks.mmu_writeable
    flush = word.spte_can_locklessly_be_made_writable(kvm.masks, old) and not word.is_writable_pte(new)
    if word.is_accessed_spte(masks, old) and not word.is_accessed_spte(masks, new):
        flush = True
        kvm_set_pfn_accessed(kvm, word.spte_to_pfn(old))
    if word.is_dirty_spte(masks, old) and not word.is_dirty_spte(masks, new):
        flush = True
        kvm_set_pfn_dirty(kvm, word.spte_to_pfn(old))
    return flush


def mmu_spte_clear_track_bits(kvm: Kvm, sp: ShadowPage, index: int) -> bool:
    """Clear an entry and tell the host what the guest did with the page; false if it mapped nothing."""
    old = sp.sptes.get(index, 0)
    write_spte(sp, index, 0)
    if not word.is_shadow_present_pte(kvm.masks, old):
        return False
    kvm_update_page_stats(kvm, role_level(sp.role), -1)
    if not kvm.rules.copies_ad_on_zap:
        return True
    if word.is_accessed_spte(kvm.masks, old):
        kvm_set_pfn_accessed(kvm, word.spte_to_pfn(old))
    if word.is_dirty_spte(kvm.masks, old):
        kvm_set_pfn_dirty(kvm, word.spte_to_pfn(old))
    return True


def gfn_to_rmap(slot: KvmMemorySlot, gfn: int, level: int) -> PteList | None:
    """The head of a gfn at a level, None while nothing was ever mapped there."""
    return slot.rmap[level].get(gfn_to_index(gfn, slot.base_gfn, level))


def rmap_add(kvm: Kvm, sp: ShadowPage, index: int, gfn: int) -> int:
    """Enter an entry into its head; returns the (under)count of those before it."""
    kvm_update_page_stats(kvm, role_level(sp.role), 1)
    if kvm_mmu_page_get_gfn(sp, index) != gfn:
        sp.aliased[index] = gfn
    slot = gfn_to_memslot(kvm, role_address_space(sp.role), gfn)
    if slot is None:
        return 0
    level = role_level(sp.role)
    heads = slot.rmap[level]
    head = heads.setdefault(gfn_to_index(gfn, slot.base_gfn, level), PteList())
    kvm.work["rmap_steps"] += 1
    return pte_list_add(kvm.rules, head, (sp.id, index))


def rmap_remove(kvm: Kvm, sp: ShadowPage, index: int) -> None:
    gfn = kvm_mmu_page_get_gfn(sp, index)
    sp.aliased.pop(index, None)
    slot = gfn_to_memslot(kvm, role_address_space(sp.role), gfn)
    if slot is None:
        return  # a plan left mappings of a slot that is gone; there is no head any more
    level = role_level(sp.role)
    number = gfn_to_index(gfn, slot.base_gfn, level)
    head = slot.rmap[level].get(number)
    if head is None:
        return
    if pte_list_remove(kvm.rules, head, (sp.id, index)):
        kvm.work["rmap_steps"] += 1
    if pte_list_is_empty(head):
        del slot.rmap[level][number]


def drop_spte(kvm: Kvm, sp: ShadowPage, index: int) -> None:
    if mmu_spte_clear_track_bits(kvm, sp, index):
        rmap_remove(kvm, sp, index)


def kvm_zap_rmapp(kvm: Kvm, slot: KvmMemorySlot, head: PteList) -> bool:
    """Remove the first entry until the head is empty, or all entries in their order, by the kernel."""
    if kvm.rules.zap_list_in_order:
        entries = pte_list_entries(head)
        head.direct, head.chain = None, []
        for page_id, index in entries:
            kvm.work["rmap_steps"] += 1
            kvm.pages[page_id].aliased.pop(index, None)
            mmu_spte_clear_track_bits(kvm, kvm.pages[page_id], index)
        return bool(entries)
    zapped = False
    while (first := pte_list_first(head)) is not None:
        kvm.work["rmap_steps"] += 1
        zapped = True
        pte_list_remove(kvm.rules, head, first)
        kvm.pages[first[0]].aliased.pop(first[1], None)
        mmu_spte_clear_track_bits(kvm, kvm.pages[first[0]], first[1])
    return zapped


def rmap_recycle(kvm: Kvm, sp: ShadowPage, gfn: int) -> None:
    """Give up a head that grew too long."""
    slot = gfn_to_memslot(kvm, role_address_space(sp.role), gfn)
    level = role_level(sp.role)
    head = gfn_to_rmap(slot, gfn, level) if slot is not None else None
    if slot is not None and head is not None:
        kvm_zap_rmapp(kvm, slot, head)
        del slot.rmap[level][gfn_to_index(gfn, slot.base_gfn, level)]
    first = gfn & -kvm_pages_per_hpage(level) if kvm.rules.collapse_flush == "entry" else sp.gfn
    kvm_flush_remote_tlbs_with_address(kvm, first, kvm_pages_per_hpage(level))


def is_rmap_too_long(rmap_count: int) -> bool:
    return rmap_count > RMAP_RECYCLE_THRESHOLD


def rmap_entries(kvm: Kvm, head: PteList) -> Iterator[tuple[ShadowPage, int, int]]:
    """Page, index and value of each entry of a head, in list order; an entry counts as work when it is come to."""
    entries: list[Sptep] = pte_list_entries(head)
    for page, index in entries:
        kvm.work["rmap_steps"] += 1
        if is_mapped(kvm, kvm.pages[page], index):
            yield kvm.pages[page], index, kvm.pages[page].sptes.get(index, 0)


def is_mapped(kvm: Kvm, sp: ShadowPage, index: int) -> bool:
    """Whether an entry that a list names holds a leaf; what an old kernel left in a list need not."""
    spte = sp.sptes.get(index, 0)
    is_leaf = word.is_shadow_present_pte(kvm.masks, spte) and word.is_last_spte(spte, role_level(sp.role))
    return is_leaf or not kvm.has_dangling


def spte_write_protect(kvm: Kvm, sp: ShadowPage, index: int, pt_protect: bool) -> bool:
    """`pt_protect` also takes away that the entry can be made writable without the lock."""
    spte = sp.sptes.get(index, 0)
    can_become_writable = pt_protect and word.spte_can_locklessly_be_made_writable(kvm.masks, spte)
    if not word.is_writable_pte(spte) and not can_become_writable:
        return False
    if pt_protect:
        spte &= ~kvm.masks.mmu_writeable & U64
    return mmu_spte_update(kvm, sp, index, spte & ~PT_WRITABLE_MASK & U64)


def rmap_write_protect(kvm: Kvm, head: PteList, pt_protect: bool) -> bool:
    """__rmap_write_protect over one head."""
    flush = False
    for sp, index, _ in rmap_entries(kvm, head):
        flush |= spte_write_protect(kvm, sp, index, pt_protect)
    return flush


def rmap_clear_dirty(kvm: Kvm, head: PteList) -> bool:
    """__rmap_clear_dirty: without a D bit the writable bit stands for it."""
    flush = False
    for sp, index, spte in rmap_entries(kvm, head):
        if word.spte_ad_enabled(kvm.masks, spte):
            flush |= mmu_spte_update(kvm, sp, index, spte & ~kvm.masks.dirty & U64)
        elif word.is_writable_pte(spte):
            write_spte(sp, index, spte & ~PT_WRITABLE_MASK & U64)
            kvm_set_pfn_dirty(kvm, word.spte_to_pfn(spte))
            flush = True
    return flush


def rmap_set_dirty(kvm: Kvm, head: PteList) -> bool:
    """__rmap_set_dirty: entries without a D bit are left alone."""
    flush = False
    for sp, index, spte in rmap_entries(kvm, head):
        if word.spte_ad_enabled(kvm.masks, spte):
            flush |= mmu_spte_update(kvm, sp, index, spte | kvm.masks.dirty)
    return flush
