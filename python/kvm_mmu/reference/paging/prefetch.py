"""Filling entries of a shadow page before anybody asked for them.

Owns nothing. Models pte_prefetch_gpte, prefetch_invalid_gpte and pte_prefetch of v5.0 to v6.12 for pages that shadow
a guest table; direct pages are prefetched as everywhere.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import ACC_WRITE_MASK, PT_PAGE_TABLE_LEVEL, PTE_PREFETCH_NUM
from ..common.host_memory import HostAnswer
from ..common.page_table import kvm_set_pfn_accessed
from ..common.role import role_is_direct, role_level
from ..common.state import Kvm, ShadowPage, Vcpu
from ..v5 import map as v5
from ..v6 import map as v6
from .gpte import gpte_gfn_and_access, prefetch_invalid_gpte, pte_prefetch_gfn_to_pfn


def prefetch_gpte(
    kvm: Kvm,
    vcpu: Vcpu,
    sp: ShadowPage,
    index: int,
    entry: int,
    no_dirty_log: bool,
    answer: HostAnswer | None = None,
) -> bool:
    """Map what a guest entry says; false when it says nothing that can be mapped now."""
    if prefetch_invalid_gpte(kvm, vcpu, sp, index, entry):
        return False
    gfn, access = gpte_gfn_and_access(vcpu, sp, entry)
    pinned = pte_prefetch_gfn_to_pfn(kvm, vcpu, gfn, no_dirty_log and access & ACC_WRITE_MASK != 0, answer)
    if pinned is None:
        return False
    if kvm.rules.is_level_requested:
        v6.mmu_set_spte(kvm, vcpu, sp, index, gfn, pinned, None, access)
        if kvm.format == 6:
            kvm_set_pfn_accessed(kvm, pinned.pfn)
    else:
        v5.mmu_set_spte(
            kvm, vcpu, sp, index, gfn, pinned, access=access, is_write_fault=False, is_speculative=True
        )
    return True


def pte_prefetch(
    kvm: Kvm,
    vcpu: Vcpu,
    sp: ShadowPage,
    faulting: int,
    entries: list[int],
    answer: HostAnswer | None = None,
) -> None:
    """Fill the aligned group of eight around a fault, until an entry cannot be mapped."""
    if role_level(sp.role) > PT_PAGE_TABLE_LEVEL or kvm.invalidation.in_progress:
        return
    if role_is_direct(sp.role):
        if kvm.rules.is_level_requested:
            v6.direct_pte_prefetch(kvm, vcpu, sp, faulting, answer)
        else:
            v5.direct_pte_prefetch(kvm, vcpu, sp, faulting)
        return
    group = faulting & ~(PTE_PREFETCH_NUM - 1)
    for index in range(group, group + PTE_PREFETCH_NUM):
        if index == faulting or word.is_shadow_present_pte(kvm.masks, sp.sptes.get(index, 0)):
            continue
        if not prefetch_gpte(kvm, vcpu, sp, index, entries[index - group], no_dirty_log=True, answer=answer):
            return
