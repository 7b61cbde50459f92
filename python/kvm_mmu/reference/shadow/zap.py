"""Zapping shadow pages: prepare takes a page apart, commit flushes and frees.

Owns the two-phase end of a page. Models kvm_mmu_prepare_zap_page, kvm_mmu_page_unlink_children,
kvm_mmu_commit_zap_page and kvm_mmu_remote_flush_or_zap of v5.0 to v6.12. Zapping does not recurse into ordinary
children: they stay on the active list with one parent fewer. A root in use goes to the head of the active list in v5,
in v6 it leaves the list for good; either way it is counted as used until its last user gives it up.

Invariant: a page is freed only by a commit, and a commit flushes before it frees.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common import spte as word
from ..common.constants import KVM_REQ_MMU_RELOAD
from ..common.events import note_prepare_zap, note_silent_call, shown_spte
from ..common.flush import kvm_flush_remote_tlbs, kvm_reload_remote_mmus
from ..common.nx_huge_page import unaccount_nx_huge_page
from ..common.page_table import child_of, is_obsolete_sp, write_spte
from ..common.role import ROLE_INVALID, role_is_direct, role_is_invalid, role_level
from ..common.state import Kvm, ShadowPage, Vcpu
from .account import unaccount_shadowed
from .active_list import list_contains, list_del, list_move_head
from .page import drop_parent_pte, kvm_mmu_free_page, kvm_mmu_unlink_parents
from .rmap import drop_spte
from .unsync import (
    for_each_unsync_sp,
    kvm_unlink_unsync_page,
    mmu_pages_clear_parents,
    mmu_unsync_walk,
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What one prepare did; `nr_zapped` counts the unsync pages below, and the page itself where it was freed."""

    nr_children: int
    nr_zapped: int
    is_list_unstable: bool


def mmu_page_zap_pte(kvm: Kvm, sp: ShadowPage, index: int) -> None:
    spte = sp.sptes[index]
    kvm.work["sptes_cleared"] += 1
    note_silent_call(kvm, "page_zap_pte", sp.id, index, shown_spte(kvm, sp, spte))
    if not word.is_shadow_present_pte(kvm.masks, spte):
        write_spte(sp, index, 0)
    elif word.is_last_spte(spte, role_level(sp.role)):
        drop_spte(kvm, sp, index)
        if word.is_large_pte(spte):
            kvm.ctr["lpages"] -= 1
    else:
        drop_parent_pte(kvm, child_of(kvm, spte), sp, index)


def leaves_reload_to_generation(kvm: Kvm, root: ShadowPage) -> bool:
    """v5.0 has already asked for the reload when it made a root obsolete, unless the plan did so without asking."""
    if not kvm.rules.reload_skips_obsolete or not is_obsolete_sp(kvm, root):
        return False
    return all(vcpu.requests & KVM_REQ_MMU_RELOAD for vcpu in kvm.vcpus if is_root_of(vcpu, root.id))


def is_root_of(vcpu: Vcpu, page_id: int) -> bool:
    """Whether a vCPU holds the page as a root, its present one or a previous one."""
    return page_id in vcpu.roots or any(p is not None and p[1] == page_id for p in vcpu.prev_roots)


def kvm_mmu_prepare_zap_page(kvm: Kvm, sp: ShadowPage, invalid_list: list[int]) -> Prepared:
    """Take a page apart; it goes to the front of the invalid list unless a vCPU holds it as its root."""
    note_prepare_zap(kvm, sp)
    kvm.stat["mmu_shadow_zapped"] += 1
    kvm.ctr["zapped"] += 1
    kvm.work["pages_zapped"] += 1
    kvm.mmio_pages.pop(sp.id, None)
    nr_children = mmu_zap_unsync_children(kvm, sp, invalid_list)
    for index in sorted(sp.sptes):
        mmu_page_zap_pte(kvm, sp, index)
    kvm_mmu_unlink_parents(kvm, sp)
    if not role_is_direct(sp.role) and not role_is_invalid(sp.role):
        unaccount_shadowed(kvm, sp)
    if sp.unsync:
        kvm_unlink_unsync_page(kvm, sp)
    nr_zapped = nr_children
    if sp.root_count == 0:
        nr_zapped += 1
        if list_contains(kvm.active, sp.id):
            list_del(kvm.active, sp.id)
        invalid_list.insert(0, sp.id)
        kvm.n_used_mmu_pages -= 1
    else:
        if not kvm.rules.zapped_root_leaves:
            list_move_head(kvm.active, sp.id)
        elif list_contains(kvm.active, sp.id):
            list_del(kvm.active, sp.id)
        if not role_is_invalid(sp.role) and not leaves_reload_to_generation(kvm, sp):
            kvm_reload_remote_mmus(kvm)
    unaccount_nx_huge_page(kvm, sp)
    sp.role |= ROLE_INVALID
    return Prepared(nr_children=nr_children, nr_zapped=nr_zapped, is_list_unstable=nr_children != 0)


def mmu_zap_unsync_children(kvm: Kvm, parent: ShadowPage, invalid_list: list[int]) -> int:
    """Zap every unsync page below a page; how many there were."""
    zapped = 0
    while True:
        found, pvec = mmu_unsync_walk(kvm, parent)
        if not found:
            return zapped
        for sp, path in for_each_unsync_sp(pvec):
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
            mmu_pages_clear_parents(path)
            zapped += 1


def kvm_mmu_commit_zap_page(kvm: Kvm, invalid_list: list[int]) -> None:
    """Flush every TLB, then free; an empty list is nothing to do and no flush."""
    if not invalid_list:
        return
    note_silent_call(kvm, "commit_zap")
    kvm_flush_remote_tlbs(kvm)
    for page_id in invalid_list:
        kvm_mmu_free_page(kvm, kvm.pages[page_id])
    invalid_list.clear()


def kvm_mmu_remote_flush_or_zap(kvm: Kvm, invalid_list: list[int], remote_flush: bool) -> None:
    """A commit flushes anyway; without one flush only where something asked for it."""
    if invalid_list:
        kvm_mmu_commit_zap_page(kvm, invalid_list)
    elif remote_flush:
        kvm_flush_remote_tlbs(kvm)
