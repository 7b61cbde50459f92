"""The recovery of NX huge pages: tables of the TDP MMU that a fetch from a huge page made, oldest first.

Owns nothing; the list is kept where tables are made and removed. Models kvm_recover_nx_huge_pages of v6.1, v6.12 and
v6.18 as far as it is about the TDP MMU.

Newer kernels take the shared lock and lower the wrong count: that of shadow pages. So what a run takes does not become
less by what the runs before it took, only by tables that go otherwise.
"""

from __future__ import annotations

from ..common.flush import kvm_flush_remote_tlbs
from ..common.lock import READ_LOCK, WRITE_LOCK, cond_resched_lock, need_resched
from ..common.nx_huge_page import unaccount_nx_huge_page
from ..common.slots import gfn_to_memslot, memslot_is_logged, nr_memslots_dirty_logging
from ..common.state import Kvm, ShadowPage
from .zap import kvm_tdp_mmu_zap_sp


def kvm_recover_tdp_mmu_nx_huge_pages(kvm: Kvm, ratio: int) -> None:
    """Zap a part of the listed tables; one flush at the end and before each yield, if a table went."""
    to_zap = -(-kvm.possible_nx_count // ratio) if ratio else 0
    is_shared = kvm.rules.tdp_nx_recovery_shared
    flush = False
    while to_zap and kvm.possible_nx_huge_pages:
        to_zap -= 1
        sp = kvm.pages[kvm.possible_nx_huge_pages[0]]
        is_spared = kvm.rules.nx_recovery_spares_logged and is_logged(kvm, sp)
        leave_list(kvm, sp)
        if not is_spared:
            flush |= kvm_tdp_mmu_zap_sp(kvm, sp, is_shared)
        if need_resched(kvm):
            if flush:
                kvm_flush_remote_tlbs(kvm)
            flush = False
            cond_resched_lock(kvm, READ_LOCK if is_shared else WRITE_LOCK)
    if flush:
        kvm_flush_remote_tlbs(kvm)


def is_logged(kvm: Kvm, sp: ShadowPage) -> bool:
    """Always looked up in address space 0; where no slot logs it is not looked up at all."""
    slot = gfn_to_memslot(kvm, 0, sp.gfn) if nr_memslots_dirty_logging(kvm) else None
    return slot is not None and memslot_is_logged(slot)


def leave_list(kvm: Kvm, sp: ShadowPage) -> None:
    count = kvm.possible_nx_count
    unaccount_nx_huge_page(kvm, sp)
    if kvm.rules.tdp_nx_count_kept:
        kvm.possible_nx_count = count
