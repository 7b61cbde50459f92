"""A fault of the TDP MMU: the walk down to the level wanted, tables on the way, and the entry.

Owns nothing. Models kvm_tdp_mmu_map, tdp_mmu_map_handle_target_level and tdp_mmu_link_sp of v6.1 and v6.12.
"""

from __future__ import annotations

from ..common.constants import (
    ACC_ALL,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    kvm_pages_per_hpage,
)
from ..common.events import note_mark_mmio, note_set_spte, note_silent_call
from ..common.flush import kvm_flush_remote_tlbs_with_address
from ..common.make_spte import make_spte
from ..common.mmio import encode_mmio_spte, mmio_generation
from ..common.nx_huge_page import account_nx_huge_page, is_huge_page_disallowed
from ..common.page_fault import PageFault
from ..common.pin import PFN_NOSLOT, PinnedPfn
from ..common.role import shown_access
from ..common.slots import vcpu_address_space
from ..common.spte import is_access_allowed
from ..common.state import Kvm, ShadowPage, Vcpu
from .change import tdp_mmu_link_sp, tdp_mmu_set_spte, tdp_mmu_zap_spte_atomic
from .iter import TdpIter, for_each_tdp_pte, is_leaf, is_link
from .page import tdp_mmu_init_child_sp
from .split import tdp_mmu_split_huge_page


def kvm_tdp_mmu_map(kvm: Kvm, vcpu: Vcpu, root: ShadowPage, fault: PageFault, pinned: PinnedPfn) -> int:
    """Map the page at the fault's level, or below it where that is refused: a RET_PF value."""
    for it in for_each_tdp_pte(kvm, root, fault.gfn, fault.gfn + 1):
        if it.level == fault.goal_level and is_huge_page_disallowed(kvm, it.sp, fault.gpa):
            fault.goal_level -= 1
        if it.level == fault.goal_level:
            return tdp_mmu_map_handle_target_level(kvm, vcpu, it, fault, pinned)
        if not is_link(kvm, it.old_spte, it.level):
            make_table(kvm, it, fault)
    return RET_PF_RETRY


def make_table(kvm: Kvm, it: TdpIter, fault: PageFault) -> None:
    """Put a table where the walk stands; of a large leaf the rest is lost, or split into the table, by the kernel."""
    if is_leaf(kvm, it.old_spte, it.level) and kvm.rules.tdp_large_in_way == "zapped":
        tdp_mmu_zap_spte_atomic(kvm, it)
    child = tdp_mmu_init_child_sp(kvm, it.sp, it.gfn)
    if is_leaf(kvm, it.old_spte, it.level):
        tdp_mmu_split_huge_page(kvm, it, child, shared=True)
    else:
        tdp_mmu_link_sp(kvm, it, child, shared=True)
    if fault.is_huge_page_disallowed:
        is_possible = fault.requested_level >= it.level
        if is_possible or kvm.rules.nx_marks_all_levels:
            account_nx_huge_page(kvm, child, is_possible)


def tdp_mmu_map_handle_target_level(
    kvm: Kvm, vcpu: Vcpu, it: TdpIter, fault: PageFault, pinned: PinnedPfn
) -> int:
    """Write the entry, also over a table, unless it is there already."""
    if pinned.pfn == PFN_NOSLOT:
        return map_mmio(kvm, vcpu, it)
    old = it.old_spte
    needs_nothing = fault.is_prefetch or is_access_allowed(kvm.masks, fault.error_code, old)
    if kvm.rules.tdp_allowed_is_spurious and is_leaf(kvm, old, it.level) and needs_nothing:
        return RET_PF_SPURIOUS
    first = pinned.pfn & ~(kvm_pages_per_hpage(it.level) - 1)
    page = PinnedPfn(first, pinned.hva, pinned.is_host_writable)
    new, is_write_protected = make_spte(kvm, vcpu, it.sp, old, it.gfn, page, fault.is_prefetch)
    verdict = RET_PF_SPURIOUS
    if new != old:
        verdict = RET_PF_FIXED
        was_link = is_link(kvm, old, it.level)
        tdp_mmu_set_spte(kvm, it, new, shared=True)
        if was_link:
            flush_replaced_table(kvm, it)
    note_set_spte(kvm, it.sp, it.index, it.gfn, new)
    return RET_PF_WRITE_PROTECTED if is_write_protected and fault.is_write else verdict


def flush_replaced_table(kvm: Kvm, it: TdpIter) -> None:
    """The range of the leaf, or in older kernels that of the whole table that it stands in."""
    if kvm.rules.tdp_fault_flush == "leaf":
        kvm_flush_remote_tlbs_with_address(kvm, it.gfn, kvm_pages_per_hpage(it.level))
    else:
        kvm_flush_remote_tlbs_with_address(kvm, it.sp.gfn, kvm_pages_per_hpage(it.level + 1))


def map_mmio(kvm: Kvm, vcpu: Vcpu, it: TdpIter) -> int:
    """Remember that the gfn has no slot, in the current generation of the vCPU's own address space."""
    gen = mmio_generation(kvm.rules, kvm.memslots[vcpu_address_space(vcpu)].generation)
    access = shown_access(kvm.rules, ACC_ALL)
    new = encode_mmio_spte(kvm.rules, kvm.masks, it.gfn, access, gen)
    note_silent_call(kvm, "make_mmio_spte", it.gfn, access)
    note_silent_call(kvm, "make_mmio_spte_ret", hex(new))
    if new != it.old_spte:
        tdp_mmu_set_spte(kvm, it, new, shared=True)
    vcpu.stat["pf_mmio_spte_created"] += 1
    note_mark_mmio(kvm, it.sp, it.index, it.gfn, new, gen)
    return RET_PF_EMULATE
