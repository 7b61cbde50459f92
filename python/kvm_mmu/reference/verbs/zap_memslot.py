"""Taking one slot out of the MMU without touching the rest, and the recovery of NX huge pages.

Owns nothing. Models kvm_mmu_zap_memslot of v6.12, which runs where the quirk of zapping everything is off, and
kvm_recover_nx_huge_pages of v6.1 and v6.12, for direct pages.
"""

from __future__ import annotations

from ..common.lock import cond_resched_lock, count_polls, may_break, need_resched
from ..common.nx_huge_page import unaccount_nx_huge_page
from ..common.slots import gfn_to_memslot, memslot_is_logged, nr_memslots_dirty_logging
from ..common.state import Kvm, KvmMemorySlot
from ..shadow.zap import kvm_mmu_prepare_zap_page, kvm_mmu_remote_flush_or_zap
from ..tdp.nx_recovery import kvm_recover_tdp_mmu_nx_huge_pages
from .notifier import kvm_unmap_gfn_range


def kvm_mmu_zap_memslot(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Unmap the slot's gfns; tables, MMIO entries and roots stay. Only tables that shadow the guest's own would go."""
    flush = kvm_unmap_gfn_range(kvm, slot, slot.base_gfn, slot.base_gfn + slot.npages, may_block=True)
    if kvm.active.next[0] and not may_break(kvm):
        count_polls(kvm, slot.npages)
    elif kvm.active.next[0]:
        for _ in range(slot.npages):
            if need_resched(kvm):
                kvm_mmu_remote_flush_or_zap(kvm, [], flush)
                flush = False
                cond_resched_lock(kvm)
    kvm_mmu_remote_flush_or_zap(kvm, [], flush)


def kvm_recover_nx_huge_pages(kvm: Kvm, ratio: int) -> None:
    """Zap the oldest tables that a fetch from a huge page made, a part of all that there are."""
    if kvm.config.tdp_mmu:
        kvm_recover_tdp_mmu_nx_huge_pages(kvm, ratio)
        return
    to_zap = -(-kvm.stat["nx_lpage_splits"] // ratio) if ratio else 0
    invalid_list: list[int] = []
    while to_zap and kvm.possible_nx_huge_pages:
        to_zap -= 1
        sp = kvm.pages[kvm.possible_nx_huge_pages[0]]
        # Always looked up in address space 0; without a slot that logs it is not looked up at all.
        slot = gfn_to_memslot(kvm, 0, sp.gfn) if nr_memslots_dirty_logging(kvm) else None
        if kvm.rules.nx_recovery_spares_logged and slot is not None and memslot_is_logged(slot):
            unaccount_nx_huge_page(kvm, sp)
        else:
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
        if need_resched(kvm):
            kvm_mmu_remote_flush_or_zap(kvm, invalid_list, remote_flush=False)
            cond_resched_lock(kvm)
    kvm_mmu_remote_flush_or_zap(kvm, invalid_list, remote_flush=False)
