"""Zapping roots, leaves and tables of the TDP MMU.

Owns nothing. Models tdp_mmu_zap_root, kvm_tdp_mmu_zap_all, kvm_tdp_mmu_zap_invalidated_roots, tdp_mmu_zap_leafs,
kvm_tdp_mmu_zap_leafs, kvm_tdp_mmu_unmap_gfn_range and kvm_tdp_mmu_zap_sp of v6.1 and v6.12.

A root is zapped in passes, each with a level: the kernel drops the lock between entries of that level only, so the
passes say how long it can be held.
"""

from __future__ import annotations

from ..common.role import role_is_invalid, role_level
from ..common.slots import kvm_mmu_max_gfn
from ..common.state import Kvm, ShadowPage
from .change import EMPTY, handle_changed_spte, tdp_mmu_set_spte
from .iter import for_each_tdp_pte, for_each_tdp_pte_min_level, is_leaf, tdp_mmu_iter_cond_resched
from .roots import for_each_tdp_mmu_root_yield_safe, kvm_tdp_mmu_put_root

# By the fact `tdp_root_zap`, the levels of the passes before that over the root's own table.
ZAP_PASSES = {"large": (3,), "each_level": (1, 2, 3)}


def tdp_mmu_max_gfn_exclusive(kvm: Kvm) -> int:
    return kvm_mmu_max_gfn(kvm) + 1


def tdp_mmu_zap_root(kvm: Kvm, root: ShadowPage, shared: bool, can_yield: bool = True) -> None:
    """Empty a root; it stays, and so does what is not present in its own table. No flush."""
    for zap_level in (*ZAP_PASSES[kvm.rules.tdp_root_zap], role_level(root.role)):
        tdp_mmu_zap_root_at_level(kvm, root, zap_level, shared, can_yield)


def tdp_mmu_zap_root_at_level(
    kvm: Kvm, root: ShadowPage, zap_level: int, shared: bool, can_yield: bool = True
) -> None:
    """One pass: what is present at a level goes, leaves and tables with all below; above it there is only the way."""
    end = tdp_mmu_max_gfn_exclusive(kvm)
    empty = "polled" if can_yield else "ignored"
    for it in for_each_tdp_pte_min_level(kvm, root, zap_level, 0, end, empty):
        if can_yield and tdp_mmu_iter_cond_resched(kvm, it, False, shared):
            continue
        if it.old_spte & kvm.masks.mmu_present and it.level <= zap_level:
            kvm.work["sptes_cleared"] += 1
            tdp_mmu_set_spte(kvm, it, EMPTY, shared)


def kvm_tdp_mmu_zap_all(kvm: Kvm, can_yield: bool = True) -> None:
    """The end of the VM's mappings: every root, also invalid ones, under the exclusive lock."""
    for root in for_each_tdp_mmu_root_yield_safe(kvm):
        tdp_mmu_zap_root(kvm, root, False, can_yield)


def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm, shared: bool = True, can_yield: bool = True) -> None:
    """Back half of the fast zap, under the shared lock: what is marked is zapped, and the MMU lets go of it."""
    for root in for_each_tdp_mmu_root_yield_safe(kvm):
        if not root.tdp_mmu_scheduled_root_to_zap:
            continue
        root.tdp_mmu_scheduled_root_to_zap = False
        tdp_mmu_zap_root(kvm, root, shared, can_yield)
        kvm_tdp_mmu_put_root(kvm, root)


def tdp_mmu_zap_leafs(
    kvm: Kvm,
    root: ShadowPage,
    start: int,
    end: int,
    can_yield: bool,
    flush: bool,
    flushes_on_yield: bool = True,
) -> bool:
    """Empty the leaves over gfns start..end (end exclusive), tables stay; true when a flush is owed."""
    end = min(end, tdp_mmu_max_gfn_exclusive(kvm))
    empty = "polled" if can_yield else "ignored"
    for it in for_each_tdp_pte(kvm, root, start, end, empty):
        if can_yield and tdp_mmu_iter_cond_resched(kvm, it, flush and flushes_on_yield, shared=False):
            flush = flush and not flushes_on_yield
            continue
        if not is_leaf(kvm, it.old_spte, it.level):
            continue
        tdp_mmu_set_spte(kvm, it, EMPTY, shared=False)
        # Nobody may use what an invalid root still maps.
        if kvm.rules.tdp_walks_invalid_roots or not role_is_invalid(root.role):
            flush = True
    return flush


def kvm_tdp_mmu_zap_leafs(kvm: Kvm, start: int, end: int, flush: bool) -> bool:
    """A range of gfns in both address spaces; the walk may yield."""
    for root in for_each_tdp_mmu_root_yield_safe(kvm, only_valid=not kvm.rules.tdp_walks_invalid_roots):
        flush = tdp_mmu_zap_leafs(kvm, root, start, end, True, flush)
    return flush


def kvm_tdp_mmu_unmap_gfn_range(
    kvm: Kvm,
    as_id: int,
    first: int,
    end: int,
    may_block: bool,
    flush: bool = False,
    flushes_on_yield: bool = True,
) -> bool:
    """gfns first..end (end exclusive) of a slot in the roots of its address space, invalid ones too."""
    for root in for_each_tdp_mmu_root_yield_safe(kvm, as_id):
        flush = tdp_mmu_zap_leafs(kvm, root, first, end, may_block, flush, flushes_on_yield)
    return flush


def kvm_tdp_mmu_zap_sp(kvm: Kvm, sp: ShadowPage, shared: bool = False) -> bool:
    """Cut one table off, with all below it."""
    if sp.ptep is None:
        return False
    parent, index = kvm.pages[sp.ptep[0]], sp.ptep[1]
    old = parent.sptes.pop(index)
    handle_changed_spte(kvm, parent, sp.gfn, old, EMPTY, shared)
    return True
