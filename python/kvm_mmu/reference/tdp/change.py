"""The one writer of TDP entries: every store is reported, counted, and takes a table that it cuts off with it.

Owns the entries of linked tables and the page statistics. Models handle_changed_spte, handle_removed_pt,
tdp_mmu_set_spte, tdp_mmu_set_spte_atomic and tdp_mmu_zap_spte_atomic of v6.1 and v6.12, with one host CPU, so that no
compare-and-exchange is ever lost.

A table that is removed under the shared lock is frozen entry by entry, whatever is in it; under the exclusive lock
only present entries are. Frozen words are never stored: nobody looks at a table again once it is removed.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import PT64_ENT_PER_PAGE, kvm_pages_per_hpage
from ..common.events import note_prepare_zap, note_spte_changed
from ..common.flush import kvm_flush_remote_tlbs_with_address
from ..common.nx_huge_page import unaccount_nx_huge_page
from ..common.page_table import (
    child_of,
    kvm_set_pfn_accessed,
    kvm_set_pfn_dirty,
    kvm_update_page_stats,
    write_spte,
)
from ..common.role import role_is_ad_disabled, role_level
from ..common.state import Kvm, ShadowPage
from .iter import TdpIter, is_leaf, is_link
from .page import tdp_mmu_free_sp

EMPTY = 0  # what an empty entry is here, whatever the kernel stores for it


def tdp_mmu_set_spte(kvm: Kvm, it: TdpIter, new: int, shared: bool) -> None:
    """Store a new value where the walk is, with all that follows from it."""
    old, it.old_spte = it.old_spte, new
    write_spte(it.sp, it.index, new)
    handle_changed_spte(kvm, it.sp, it.gfn, old, new, shared)


def tdp_mmu_link_sp(kvm: Kvm, it: TdpIter, child: ShadowPage, shared: bool) -> None:
    """Put a table in place of an empty entry, an MMIO entry or a large leaf."""
    child.ptep = (it.sp.id, it.index)
    tdp_mmu_set_spte(
        kvm, it, word.make_link_spte(kvm.masks, child.id, role_is_ad_disabled(child.role)), shared
    )


def handle_changed_spte(
    kvm: Kvm, sp: ShadowPage, gfn: int, old: int, new: int, shared: bool, *, tells_accessed: bool = True
) -> None:
    """Report a change, count the mapping, tell the host how its page was used, and remove a table that was cut off."""
    if old == new:
        return
    level = role_level(sp.role)
    removed = child_of(kvm, old) if is_link(kvm, old, level) and not is_link(kvm, new, level) else None
    if removed is not None and kvm.rules.tdp_subtree_first:
        handle_removed_pt(kvm, removed, shared)
        removed = None
    note_spte_changed(kvm, sp, gfn, old, new)
    was_leaf, is_now_leaf = is_leaf(kvm, old, level), is_leaf(kvm, new, level)
    if was_leaf != is_now_leaf:
        kvm_update_page_stats(kvm, level, 1 if is_now_leaf else -1)
    tells_host = was_leaf and kvm.rules.copies_ad_on_zap
    is_kept = is_now_leaf and word.spte_to_pfn(old) == word.spte_to_pfn(new)
    stays_dirty = is_kept and word.is_dirty_spte(kvm.masks, new)
    if tells_host and word.is_dirty_spte(kvm.masks, old) and not stays_dirty:
        kvm_set_pfn_dirty(kvm, word.spte_to_pfn(old))
    if removed is not None:
        handle_removed_pt(kvm, removed, shared)
    stays_accessed = is_kept and word.is_accessed_spte(kvm.masks, new)
    if tells_host and tells_accessed and word.is_accessed_spte(kvm.masks, old) and not stays_accessed:
        kvm_set_pfn_accessed(kvm, word.spte_to_pfn(old))


def handle_removed_pt(kvm: Kvm, sp: ShadowPage, shared: bool) -> None:
    """Take a table apart that no entry points to any more, and what is below it."""
    note_prepare_zap(kvm, sp)
    kvm.ctr["zapped"] += 1
    kvm.work["pages_zapped"] += 1
    kvm.tdp_mmu_pages -= 1
    unaccount_nx_huge_page(kvm, sp)
    pages = kvm_pages_per_hpage(role_level(sp.role))
    frozen = kvm.masks.frozen
    done = 0
    for index, old in sorted(sp.sptes.items()):
        if shared and done < index:
            note_spte_changed(kvm, sp, sp.gfn + done * pages, EMPTY, frozen, index - done)
        if shared or word.is_shadow_present_pte(kvm.masks, old):
            kvm.work["sptes_cleared"] += 1
            handle_changed_spte(kvm, sp, sp.gfn + index * pages, old, frozen, shared)
        done = index + 1
    if shared and done < PT64_ENT_PER_PAGE:
        note_spte_changed(kvm, sp, sp.gfn + done * pages, EMPTY, frozen, PT64_ENT_PER_PAGE - done)
    sp.sptes.clear()
    tdp_mmu_free_sp(kvm, sp)


def tdp_mmu_zap_spte_atomic(kvm: Kvm, it: TdpIter) -> None:
    """Empty an entry that a walker must not fill before the flush: it is frozen meanwhile."""
    old, it.old_spte = it.old_spte, EMPTY
    write_spte(it.sp, it.index, EMPTY)
    pages = kvm_pages_per_hpage(it.level)
    if kvm.rules.tdp_atomic_zap == "flush_first":
        kvm_flush_remote_tlbs_with_address(kvm, it.gfn, pages)
        handle_changed_spte(kvm, it.sp, it.gfn, old, EMPTY, shared=True)
    else:
        handle_changed_spte(kvm, it.sp, it.gfn, old, kvm.masks.frozen, shared=True)
        kvm_flush_remote_tlbs_with_address(kvm, it.gfn, pages)
