"""Unsync pages: tables that the guest may write while their shadow goes stale, and the paths that lead to them.

Owns `ShadowPage.unsync` and `ShadowPage.unsync_child_bitmap`. Models kvm_unsync_page, mark_unsync, mmu_unsync_walk,
mmu_pages_add, mmu_pages_next, mmu_pages_clear_parents and kvm_unlink_unsync_page of v5.0 to v6.12.

Invariant: every entry on a path to an unsync page is in its table's bitmap. The opposite does not hold: a bit stays
when the child is unlinked, zapped or synced elsewhere; only the walk and `mmu_pages_clear_parents` clear bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..common import spte as word
from ..common.constants import KVM_PAGE_ARRAY_NR, PT_PAGE_TABLE_LEVEL
from ..common.events import note_page
from ..common.pte_list import pte_list_entries
from ..common.role import role_level
from ..common.state import Kvm, ShadowPage

PageVector = list[tuple[ShadowPage, int]]
#: What a walk gives that ended because its vector was full; any non-zero number makes callers come again.
VECTOR_IS_FULL = -28


@dataclass(slots=True)
class MmuPagePath:
    """The entries that led to a page of a vector: by level, the table above and the index in it."""

    parent: dict[int, ShadowPage] = field(default_factory=dict)
    index: dict[int, int] = field(default_factory=dict)


def kvm_unsync_page(kvm: Kvm, sp: ShadowPage) -> None:
    """Let the guest write the table: its shadow may differ from now on."""
    note_page(kvm, "unsync", sp)
    kvm.stat["mmu_unsync"] += 1
    sp.unsync = True
    kvm_mmu_mark_parents_unsync(kvm, sp)


def kvm_unlink_unsync_page(kvm: Kvm, sp: ShadowPage) -> None:
    note_page(kvm, "sync", sp)
    sp.unsync = False
    kvm.stat["mmu_unsync"] -= 1


def kvm_mmu_mark_parents_unsync(kvm: Kvm, sp: ShadowPage) -> None:
    for page_id, index in pte_list_entries(sp.parent_ptes):
        mark_unsync(kvm, kvm.pages[page_id], index)


def mark_unsync(kvm: Kvm, parent: ShadowPage, index: int) -> None:
    """Set the bit of an entry, and those above it where the table had none before."""
    if index in parent.unsync_child_bitmap:
        return
    had_any = bool(parent.unsync_child_bitmap)
    parent.unsync_child_bitmap.add(index)
    if not had_any:
        kvm_mmu_mark_parents_unsync(kvm, parent)


def mmu_pages_add(pvec: PageVector, sp: ShadowPage, index: int) -> bool:
    """Put a page into the vector, an unsync one only once; true when the vector is full then."""
    if sp.unsync and any(other is sp for other, _ in pvec):
        return False
    pvec.append((sp, index))
    return len(pvec) == KVM_PAGE_ARRAY_NR


def mmu_unsync_walk(kvm: Kvm, sp: ShadowPage) -> tuple[int, PageVector]:
    """Find unsync pages below a page: a number, not 0 where there are any, and the pages with the tables between.

    A vector holds 16 pages; then the walk stops at once. Bits that lead nowhere are cleared.
    """
    if not sp.unsync_child_bitmap:
        return 0, []
    pvec: PageVector = []
    mmu_pages_add(pvec, sp, -1)
    return walk_unsync_children(kvm, sp, pvec), pvec


def walk_unsync_children(kvm: Kvm, sp: ShadowPage, pvec: PageVector) -> int:
    found = 0
    for index in sorted(sp.unsync_child_bitmap):
        spte = sp.sptes.get(index, 0)
        if not word.is_shadow_present_pte(kvm.masks, spte) or word.is_large_pte(spte):
            sp.unsync_child_bitmap.discard(index)
            continue
        child = kvm.pages[word.spte_to_pfn(spte)]
        if child.unsync_child_bitmap:
            if mmu_pages_add(pvec, child, index):
                return VECTOR_IS_FULL
            below = walk_unsync_children(kvm, child, pvec)
            if below < 0:
                return below
            if below == 0:
                sp.unsync_child_bitmap.discard(index)
            found += below
        elif child.unsync:
            found += 1
            if mmu_pages_add(pvec, child, index):
                return VECTOR_IS_FULL
        else:
            sp.unsync_child_bitmap.discard(index)
    return found


def for_each_unsync_sp(pvec: PageVector) -> Iterator[tuple[ShadowPage, MmuPagePath]]:
    """The level-1 pages of a vector in its order, each with the path that the vector's tables give it."""
    path = MmuPagePath()
    for sp, index in pvec:
        level = role_level(sp.role)
        if index >= 0:
            path.index[level] = index
        if level == PT_PAGE_TABLE_LEVEL:
            yield sp, path
        else:
            path.parent[level - 1] = sp


def mmu_pages_clear_parents(path: MmuPagePath) -> None:
    """Clear the bits that led to the page, upwards as long as a table has none left."""
    level = PT_PAGE_TABLE_LEVEL
    while level in path.parent:
        sp = path.parent[level]
        sp.unsync_child_bitmap.discard(path.index[level])
        if sp.unsync_child_bitmap:
            return
        level += 1
