"""Building the path to a direct mapping and storing it, with the prefetch of its neighbours.

Owns the writing of new leaves up to v5.4; where the level is requested first it is in `map_v6`. Models __direct_map,
mmu_set_spte, set_spte, mark_mmio_spte, mmu_need_write_protect and direct_pte_prefetch of v5.0 to v5.4.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import (
    ACC_ALL,
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    KVM_REQ_TLB_FLUSH,
    PAGE_SHIFT,
    PT64_BASE_ADDR_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    SET_SPTE_NEED_REMOTE_TLB_FLUSH,
    SET_SPTE_WRITE_PROTECTED_PT,
    U64,
    kvm_pages_per_hpage,
    spte_index,
)
from ..common.events import note_set_spte
from ..common.flush import kvm_flush_remote_tlbs_with_address
from ..common.host_memory import HostAnswer
from ..common.mmio import encode_mmio_spte, is_mmio_spte, mmio_generation
from ..common.page_table import child_of, kvm_mmu_page_get_gfn, vcpu_root, write_spte
from ..common.pin import PFN_NOSLOT, PinnedPfn
from ..common.role import role_access, role_is_ad_disabled, role_level
from ..common.slots import (
    kvm_page_track_is_active,
    kvm_vcpu_gfn_to_memslot,
    kvm_vcpu_mark_page_dirty,
    mmu_gfn_lpage_is_disallowed,
    vcpu_address_space,
)
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.page import (
    drop_parent_pte,
    for_each_gfn_indirect_valid_sp,
    kvm_mmu_get_page,
    link_shadow_page,
    note_mmio_cached,
    role_below,
)
from ..shadow.prefetch import empty_runs, pin_run
from ..shadow.rmap import drop_spte, is_rmap_too_long, mmu_spte_update, rmap_add, rmap_recycle
from ..shadow.unsync import kvm_unsync_page


def direct_map(
    kvm: Kvm,
    vcpu: Vcpu,
    gpa: int,
    is_write: bool,
    level: int,
    gfn: int,
    pinned: PinnedPfn,
    answer: HostAnswer | None = None,
) -> int:
    """Walk down from the root, building tables, and map the page at the level; no root means retry."""
    root = vcpu_root(vcpu, gpa)
    if root is None:
        return RET_PF_RETRY
    sp = kvm.pages[root]
    while role_level(sp.role) > level:
        sp = table_below(kvm, vcpu, sp, gpa)
    index = spte_index(gpa, level)
    verdict = mmu_set_spte(kvm, vcpu, sp, index, gfn, pinned, is_write_fault=is_write, is_speculative=False)
    direct_pte_prefetch(kvm, vcpu, sp, index, answer)
    return verdict


def table_below(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, gpa: int) -> ShadowPage:
    """The table under the entry for the address, found or made; a large leaf in the way is dropped."""
    level = role_level(sp.role)
    index = spte_index(gpa, level)
    spte = sp.sptes.get(index, 0)
    if word.is_shadow_present_pte(kvm.masks, spte) and word.is_large_pte(spte):
        drop_spte(kvm, sp, index)
        kvm.ctr["lpages"] -= 1
        kvm_flush_remote_tlbs_with_address(kvm, sp.gfn, kvm_pages_per_hpage(level))
        spte = 0
    if word.is_shadow_present_pte(kvm.masks, spte):
        return child_of(kvm, spte)
    covered = (kvm_pages_per_hpage(level) << PAGE_SHIFT) - 1
    child_gfn = (gpa & PT64_BASE_ADDR_MASK & ~covered) >> PAGE_SHIFT
    child = kvm_mmu_get_page(kvm, child_gfn, role_below(kvm, vcpu, sp))
    link_shadow_page(kvm, sp, index, child)
    return child


def mmu_set_spte(
    kvm: Kvm,
    vcpu: Vcpu,
    sp: ShadowPage,
    index: int,
    gfn: int,
    pinned: PinnedPfn,
    *,
    access: int = ACC_ALL,
    is_write_fault: bool,
    is_speculative: bool,
) -> int:
    """Put a leaf into place, whatever was there; RET_PF_EMULATE for MMIO and for writes to tracked gfns."""
    level = role_level(sp.role)
    old = sp.sptes.get(index, 0)
    flush = False
    was_rmapped = False
    if word.is_shadow_present_pte(kvm.masks, old):
        if level > PT_PAGE_TABLE_LEVEL and not word.is_large_pte(old):
            drop_parent_pte(kvm, child_of(kvm, old), sp, index)
            flush = True
        elif pinned.pfn != word.spte_to_pfn(old):
            drop_spte(kvm, sp, index)
            flush = True
        else:
            was_rmapped = True
    verdict = RET_PF_RETRY
    result = set_spte(kvm, vcpu, sp, index, gfn, pinned, access=access, is_speculative=is_speculative)
    if result & SET_SPTE_WRITE_PROTECTED_PT:
        if is_write_fault:
            verdict = RET_PF_EMULATE
        vcpu.requests |= KVM_REQ_TLB_FLUSH
    if result & SET_SPTE_NEED_REMOTE_TLB_FLUSH or flush:
        kvm_flush_remote_tlbs_with_address(kvm, gfn, kvm_pages_per_hpage(level))
    stored = sp.sptes.get(index, 0)
    if is_mmio_spte(kvm.masks, stored):
        verdict = RET_PF_EMULATE
    if kvm.rules.has_set_spte_event:
        note_set_spte(kvm, sp, index, gfn, stored)
    if not was_rmapped and word.is_large_pte(stored):
        kvm.ctr["lpages"] += 1  # counts MMIO entries too, where a generation bit looks like a large page
    if not was_rmapped and word.is_shadow_present_pte(kvm.masks, stored):
        rmap_count = rmap_add(kvm, sp, index, gfn)
        if is_rmap_too_long(rmap_count):
            rmap_recycle(kvm, sp, gfn)
    return verdict


def set_spte(
    kvm: Kvm,
    vcpu: Vcpu,
    sp: ShadowPage,
    index: int,
    gfn: int,
    pinned: PinnedPfn,
    *,
    access: int = ACC_ALL,
    is_speculative: bool,
    can_unsync: bool = True,
) -> int:
    """Make and store the word of a leaf with an access; two-dimensional paging gives every right."""
    if pinned.pfn == PFN_NOSLOT:
        mark_mmio_spte(kvm, vcpu, sp, index, gfn, access)
        return 0
    masks = kvm.masks
    level = role_level(sp.role)
    ad_disabled = role_is_ad_disabled(sp.role)
    spte = masks.present | masks.leaf_memory_type | masks.me
    spte |= masks.x if access & ACC_EXEC_MASK else masks.nx
    spte |= masks.user if access & ACC_USER_MASK else 0
    spte |= masks.ad_disabled if ad_disabled else 0
    spte |= masks.accessed if not ad_disabled and not is_speculative else 0
    spte |= PT_PAGE_SIZE_MASK if level > PT_PAGE_TABLE_LEVEL else 0
    spte |= pinned.pfn << PAGE_SHIFT
    result = 0
    if pinned.is_host_writable:
        spte |= masks.host_writeable
    if pinned.is_host_writable and access & ACC_WRITE_MASK:
        slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
        if level > PT_PAGE_TABLE_LEVEL and mmu_gfn_lpage_is_disallowed(slot, gfn, level):
            return 0  # a veto arrived since the level was chosen: map nothing, the guest comes again
        if not can_unsync and word.is_writable_pte(sp.sptes.get(index, 0)):
            spte |= PT_WRITABLE_MASK | masks.mmu_writeable  # no second look, and no dirty bit
        elif mmu_need_write_protect(kvm, vcpu, gfn, can_unsync):
            result |= SET_SPTE_WRITE_PROTECTED_PT
        else:
            spte |= PT_WRITABLE_MASK | masks.mmu_writeable
            kvm_vcpu_mark_page_dirty(kvm, vcpu, gfn)
            spte |= 0 if ad_disabled else masks.dirty
    if is_speculative:
        spte = word.mark_spte_for_access_track(masks, spte)
    if mmu_spte_update(kvm, sp, index, spte & U64):
        result |= SET_SPTE_NEED_REMOTE_TLB_FLUSH
    return result


def mmu_need_write_protect(kvm: Kvm, vcpu: Vcpu, gfn: int, can_unsync: bool) -> bool:
    """Whether a gfn must not be writable; the shadows of a table that may be written become unsync instead."""
    if kvm_page_track_is_active(kvm, vcpu, gfn):
        return True
    for sp in for_each_gfn_indirect_valid_sp(kvm, gfn):
        if not can_unsync or not kvm.rules.has_unsync:
            return True
        if not sp.unsync:
            kvm_unsync_page(kvm, sp)
    return False


def mark_mmio_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, gfn: int, access: int = ACC_ALL) -> None:
    """Store an MMIO entry of the current generation of the vCPU's own address space."""
    access &= ACC_WRITE_MASK | ACC_USER_MASK
    gen = mmio_generation(kvm.rules, kvm.memslots[vcpu_address_space(vcpu)].generation)
    note_mmio_cached(kvm, sp)
    kvm.events.append(["mark_mmio", sp.id, index, gfn, access, gen])
    write_spte(sp, index, encode_mmio_spte(kvm.rules, kvm.masks, gfn, access, gen))


def direct_pte_prefetch(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, faulting: int, answer: HostAnswer | None = None
) -> None:
    """Map the runs of empty entries before present ones in the aligned group of eight.

    Only backwards: a run that reaches the end of the group is left alone. Aging would be blind to what is
    prefetched without an accessed bit, so such tables have no prefetch.
    """
    if role_is_ad_disabled(sp.role) or role_level(sp.role) > PT_PAGE_TABLE_LEVEL:
        return
    for start, end, is_open in empty_runs(kvm, sp, faulting):
        if is_open or not direct_pte_prefetch_many(kvm, vcpu, sp, start, end, answer):
            return


def direct_pte_prefetch_many(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, start: int, end: int, answer: HostAnswer | None
) -> bool:
    """Map entries start..end (end exclusive) as far as their pages can be pinned at once."""
    gfn = kvm_mmu_page_get_gfn(sp, start)
    run = pin_run(kvm, vcpu, sp, start, end, answer)
    for position, pinned in enumerate(run):
        mmu_set_spte(
            kvm,
            vcpu,
            sp,
            start + position,
            gfn + position,
            pinned,
            access=role_access(sp.role),
            is_write_fault=False,
            is_speculative=True,
        )
    return bool(run)
