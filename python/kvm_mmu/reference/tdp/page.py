"""A table of the TDP MMU: its begin and its end.

Owns the tables in `Kvm.pages` and `Kvm.tdp_mmu_pages`, the number of those that are no roots. Models
tdp_mmu_alloc_sp, tdp_mmu_init_sp, tdp_mmu_link_sp's accounting and tdp_mmu_free_sp of v6.1 and v6.12.

Invariant: a table that is no root is linked by exactly one entry, which it knows.
"""

from __future__ import annotations

from ..common.events import note_get_page
from ..common.role import child_role
from ..common.state import Kvm, ShadowPage


def tdp_mmu_init_sp(kvm: Kvm, gfn: int, role: int) -> ShadowPage:
    """A new, empty table, not linked yet."""
    kvm.pages_created += 1
    sp = ShadowPage(id=kvm.pages_created, gfn=gfn, role=role, mmu_valid_gen=0)
    kvm.pages[sp.id] = sp
    kvm.ctr["created"] += 1
    kvm.work["get_page_created"] += 1
    note_get_page(kvm, sp, role, 1)
    return sp


def tdp_mmu_init_child_sp(kvm: Kvm, parent: ShadowPage, gfn: int) -> ShadowPage:
    """A new table for an entry of another one; it has its parent's mode, so also its address space."""
    kvm.tdp_mmu_pages += 1
    return tdp_mmu_init_sp(kvm, gfn, child_role(kvm.rules, parent.role))


def tdp_mmu_free_sp(kvm: Kvm, sp: ShadowPage) -> None:
    """Forget a table that nothing points to; its memory waits until no walker can hold it any more."""
    del kvm.pages[sp.id]
    kvm.work["pages_freed"] += 1
    kvm.rcu_frees += 1


def run_rcu_callbacks(kvm: Kvm) -> None:
    """No walker is left: what was forgotten is freed."""
    kvm.ctr["freed"] += kvm.rcu_frees
    kvm.rcu_frees = 0
