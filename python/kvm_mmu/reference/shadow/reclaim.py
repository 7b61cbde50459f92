"""Keeping the number of shadow pages under the limit: reclaim in faults, resizing, the shrinker.

Owns `n_max_mmu_pages` and `n_requested_mmu_pages`. Models make_mmu_pages_available,
kvm_mmu_change_mmu_pages, kvm_mmu_calculate_mmu_pages and mmu_shrink_scan of v5.0 to v6.12, and
kvm_mmu_zap_oldest_mmu_pages of v6. The page to go is always the oldest; in v5, if that is a root in use it is only
emptied and the loop ends, in v6 roots in use are passed over.
"""

from __future__ import annotations

from ..common.constants import (
    EINVAL,
    ENOSPC,
    KVM_MIN_ALLOC_MMU_PAGES,
    KVM_MIN_FREE_MMU_PAGES,
    KVM_PERMILLE_MMU_PAGES,
    KVM_REFILL_PAGES,
)
from ..common.events import note_silent_call
from ..common.state import Kvm
from .active_list import list_is_empty, list_tail
from .zap import kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page


def kvm_mmu_available_pages(kvm: Kvm) -> int:
    return max(0, kvm.n_max_mmu_pages - kvm.n_used_mmu_pages)


def prepare_zap_oldest_mmu_page(kvm: Kvm, invalid_list: list[int]) -> bool:
    """Zap the tail of the active list; false when nothing was freed."""
    if list_is_empty(kvm.active):
        return False
    oldest = kvm.pages[list_tail(kvm.active)]
    return kvm_mmu_prepare_zap_page(kvm, oldest, invalid_list).nr_zapped != 0


def kvm_mmu_zap_oldest_mmu_pages(kvm: Kvm, nr_to_zap: int) -> int:
    """Zap at least so many pages from the oldest on, where there are so many; how many it were."""
    invalid_list: list[int] = []
    zapped = 0
    if kvm.rules.reclaim_skips_roots:
        page_id = list_tail(kvm.active)
        while page_id and zapped < nr_to_zap:
            sp, page_id = kvm.pages[page_id], kvm.active.prev[page_id]
            if sp.root_count == 0:
                zapped += kvm_mmu_prepare_zap_page(kvm, sp, invalid_list).nr_zapped
    else:
        while zapped < nr_to_zap and prepare_zap_oldest_mmu_page(kvm, invalid_list):
            zapped += 1
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    kvm.stat["mmu_recycled"] += zapped
    note_silent_call(kvm, "zap_oldest_ret", zapped)
    return zapped


def make_mmu_pages_available(kvm: Kvm) -> int:
    """0, or -ENOSPC when not one page could be made available."""
    available = kvm_mmu_available_pages(kvm)
    if available >= KVM_MIN_FREE_MMU_PAGES:
        return 0
    if kvm.rules.reclaim_skips_roots:
        kvm.ctr["recycled"] += kvm_mmu_zap_oldest_mmu_pages(kvm, KVM_REFILL_PAGES - available)
        return 0 if kvm_mmu_available_pages(kvm) else -ENOSPC
    invalid_list: list[int] = []
    while kvm_mmu_available_pages(kvm) < KVM_REFILL_PAGES:
        if not prepare_zap_oldest_mmu_page(kvm, invalid_list):
            break
        kvm.ctr["recycled"] += 1
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    return 0 if kvm_mmu_available_pages(kvm) else -ENOSPC


def kvm_mmu_change_mmu_pages(kvm: Kvm, goal: int) -> None:
    """Set the limit, zapping down to it; the limit ends above the goal when a root in use is in the way."""
    note_silent_call(kvm, "change_mmu_pages", goal)
    if kvm.rules.reclaim_skips_roots:
        if kvm.n_used_mmu_pages > goal:
            kvm_mmu_zap_oldest_mmu_pages(kvm, kvm.n_used_mmu_pages - goal)
            goal = kvm.n_used_mmu_pages
    elif kvm.n_used_mmu_pages > goal:
        invalid_list: list[int] = []
        while kvm.n_used_mmu_pages > goal:
            if not prepare_zap_oldest_mmu_page(kvm, invalid_list):
                break
        kvm_mmu_commit_zap_page(kvm, invalid_list)
        goal = kvm.n_used_mmu_pages
    kvm.n_max_mmu_pages = goal


def kvm_vm_ioctl_set_nr_mmu_pages(kvm: Kvm, npages: int) -> int:
    if npages < KVM_MIN_ALLOC_MMU_PAGES:
        return -EINVAL
    kvm_mmu_change_mmu_pages(kvm, npages)
    kvm.n_requested_mmu_pages = npages
    return 0


def kvm_mmu_calculate_default_mmu_pages(kvm: Kvm) -> int:
    npages = sum(slot.npages for memslots in kvm.memslots for slot in memslots.memslots)
    return max(KVM_MIN_ALLOC_MMU_PAGES, npages * KVM_PERMILLE_MMU_PAGES // 1000)


def mmu_shrink_scan(kvm: Kvm, nr_to_scan: int) -> int:
    """How many pages were freed: in v5 at most one, none while zapped obsolete pages still wait for their commit."""
    if not kvm.rules.has_shrinker or nr_to_scan == 0:
        return 0
    if kvm.n_used_mmu_pages == 0 and not kvm.zapped_obsolete_pages:
        return 0
    if kvm.zapped_obsolete_pages:
        kvm_mmu_commit_zap_page(kvm, kvm.zapped_obsolete_pages)
        return 0
    if kvm.rules.reclaim_skips_roots:
        return kvm_mmu_zap_oldest_mmu_pages(kvm, nr_to_scan)
    invalid_list: list[int] = []
    freed = prepare_zap_oldest_mmu_page(kvm, invalid_list)
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    return int(freed)
