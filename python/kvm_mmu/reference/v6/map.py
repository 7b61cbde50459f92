"""Building the path to a direct mapping and storing it, where the level is requested first: v5.10 and later.

Owns the writing of new leaves there. Models direct_map, disallowed_hugepage_adjust, mmu_set_spte, make_spte,
make_mmio_spte, mark_mmio_spte and direct_pte_prefetch of v6.1 and v6.12 for direct pages.

What differs from v5: the large leaf in the way of a table goes only after the table was got; a leaf that is there
already is not written again and ends the fault without prefetch; the dirty bit comes only with a W that the old word
did not have, and an old MMIO word has it; a run of empty entries at the end of the prefetch group is mapped too; an
MMIO entry is stored before all of that, without prefetch.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import (
    ACC_ALL,
    PAGE_SHIFT,
    PT64_BASE_ADDR_MASK,
    PT_PAGE_TABLE_LEVEL,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    kvm_pages_per_hpage,
    spte_index,
)
from ..common.events import note_mark_mmio, note_set_spte, note_silent_call, shown_spte
from ..common.flush import kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_with_address
from ..common.host_memory import HostAnswer
from ..common.make_spte import make_spte
from ..common.mmio import encode_mmio_spte, mmio_generation
from ..common.nx_huge_page import account_nx_huge_page, is_huge_page_disallowed
from ..common.page_fault import PageFault
from ..common.page_table import child_of, is_child_kept, kvm_mmu_page_get_gfn, write_spte
from ..common.pin import PFN_NOSLOT, PinnedPfn
from ..common.role import role_access, role_is_ad_disabled, role_is_direct, role_level, shown_access
from ..common.slots import vcpu_address_space
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.page import (
    drop_parent_pte,
    kvm_mmu_get_page,
    link_shadow_page,
    note_mmio_cached,
    role_below,
)
from ..shadow.prefetch import empty_runs, pin_run
from ..shadow.rmap import drop_spte, is_rmap_too_long, mmu_spte_update, rmap_add, rmap_recycle
from ..shadow.try_unsync import mmu_try_to_unsync_pages


def direct_map(kvm: Kvm, vcpu: Vcpu, root: int, fault: PageFault, pinned: PinnedPfn) -> int:
    """Walk down from the root, building tables, and map the page at the level, or below it where that is refused."""
    sp = kvm.pages[root]
    while True:
        if role_level(sp.role) == fault.goal_level:
            if not is_huge_page_disallowed(kvm, sp, fault.gpa):
                break
            fault.goal_level -= 1
        sp = table_below(kvm, vcpu, sp, fault)
    index = spte_index(fault.gpa, fault.goal_level)
    gfn = fault.gfn & ~(kvm_pages_per_hpage(fault.goal_level) - 1)
    if pinned.pfn == PFN_NOSLOT:
        replace_by_mmio_spte(kvm, vcpu, sp, index, fault.gfn)
        return RET_PF_EMULATE
    first = PinnedPfn(
        pinned.pfn & ~(kvm_pages_per_hpage(fault.goal_level) - 1), pinned.hva, pinned.is_host_writable
    )
    verdict = mmu_set_spte(kvm, vcpu, sp, index, gfn, first, fault)
    if not fault.is_unchanged or (verdict != RET_PF_SPURIOUS and kvm.rules.emulate_wins_over_spurious):
        direct_pte_prefetch(kvm, vcpu, sp, index, fault.answer)
    return verdict


def table_below(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, fault: PageFault) -> ShadowPage:
    """The table under the entry for the address, found or made; a large leaf in the way goes after it was got."""
    level = role_level(sp.role)
    index = spte_index(fault.gpa, level)
    spte = sp.sptes.get(index, 0)
    covered = (kvm_pages_per_hpage(level) << PAGE_SHIFT) - 1
    child_gfn = (fault.gpa & PT64_BASE_ADDR_MASK & ~covered) >> PAGE_SHIFT
    role = role_below(kvm, vcpu, sp)
    is_present = word.is_shadow_present_pte(kvm.masks, spte)
    if is_present and not word.is_large_pte(spte):
        child = child_of(kvm, spte)
        if is_child_kept(kvm, child, child_gfn, role):
            return child
    child = kvm_mmu_get_page(kvm, child_gfn, role)
    make_room_for_table(kvm, sp, index)
    link_shadow_page(kvm, sp, index, child)
    if fault.is_huge_page_disallowed:
        is_possible = fault.requested_level >= level
        if is_possible or kvm.rules.nx_marks_all_levels:
            account_nx_huge_page(kvm, child, is_possible)
    return child


def make_room_for_table(kvm: Kvm, sp: ShadowPage, index: int) -> None:
    """Take what an entry maps out of the way of a table, a large leaf or the link to another table."""
    spte = sp.sptes.get(index, 0)
    if not word.is_shadow_present_pte(kvm.masks, spte):
        return
    if word.is_large_pte(spte):
        drop_large_spte(kvm, sp, index)
        return
    note_silent_call(kvm, "page_zap_pte", sp.id, index, shown_spte(kvm, sp, spte))
    drop_parent_pte(kvm, child_of(kvm, spte), sp, index)
    if kvm.rules.large_in_way == "zapped_range":
        first = kvm_mmu_page_get_gfn(sp, index)
        kvm_flush_remote_tlbs_with_address(kvm, first, kvm_pages_per_hpage(role_level(sp.role)))
    else:
        kvm_flush_remote_tlbs(kvm)


def drop_large_spte(kvm: Kvm, sp: ShadowPage, index: int) -> None:
    """Take a large leaf out of the way of a table, with the flush that the kernel makes for it."""
    level = role_level(sp.role)
    kind = kvm.rules.large_in_way
    if kind != "dropped_range":
        note_silent_call(kvm, "page_zap_pte", sp.id, index, shown_spte(kvm, sp, sp.sptes[index]))
    # The range is that of the entry in newer kernels.
    first = kvm_mmu_page_get_gfn(sp, index) if kvm.rules.collapse_flush == "entry" else sp.gfn
    drop_spte(kvm, sp, index)
    kvm.ctr["lpages"] -= 1
    if kind == "zapped_full":
        kvm_flush_remote_tlbs(kvm)
    else:
        kvm_flush_remote_tlbs_with_address(kvm, first, kvm_pages_per_hpage(level))


def mmu_set_spte(
    kvm: Kvm,
    vcpu: Vcpu,
    sp: ShadowPage,
    index: int,
    gfn: int,
    pinned: PinnedPfn,
    fault: PageFault | None,
    access: int = ACC_ALL,
) -> int:
    """Put a leaf into place, whatever was there: a RET_PF value. Without a fault it is a neighbour's, prefetched.

    Bits that a processor sets are not always known: where only these differ, the host's answer says what became of
    the leaf.
    """
    level = role_level(sp.role)
    masks = kvm.masks
    old = sp.sptes.get(index, 0)
    is_prefetch = fault is None or fault.is_prefetch
    flush = False
    if word.is_shadow_present_pte(masks, old):
        is_leaf = word.is_last_spte(old, level)
        has_same_frame = is_leaf and pinned.pfn == word.spte_to_pfn(old)
        if has_same_frame and is_prefetch and kvm.rules.prefetch_over_same_is_spurious:
            if fault is not None:
                fault.is_unchanged = True
            return RET_PF_SPURIOUS
        if not is_leaf:
            drop_parent_pte(kvm, child_of(kvm, old), sp, index)
            flush = True
        elif not has_same_frame:
            drop_spte(kvm, sp, index)
            flush = True
        old = sp.sptes.get(index, 0)
    was_rmapped = word.is_shadow_present_pte(masks, old)
    new, is_write_protected = make_spte(
        kvm, vcpu, sp, old, gfn, pinned, is_prefetch, access=access, try_unsync=mmu_try_to_unsync_pages
    )
    is_same = new == old
    is_written = fault.answer.is_written if fault is not None and fault.answer is not None else None
    if is_written is not None and not (new ^ old) & ~(masks.accessed | masks.dirty):
        is_same = not is_written
    verdict = RET_PF_FIXED
    if was_rmapped and is_same:
        verdict = RET_PF_SPURIOUS
        if fault is not None:
            fault.is_unchanged = True
    else:
        flush |= mmu_spte_update(kvm, sp, index, new)
        note_set_spte(kvm, sp, index, gfn, new)
    if is_write_protected and fault is not None and fault.is_write:
        verdict = RET_PF_WRITE_PROTECTED
    if flush:
        kvm_flush_remote_tlbs_with_address(kvm, gfn, kvm_pages_per_hpage(level))
    if not was_rmapped:
        if word.is_large_pte(new):
            kvm.ctr["lpages"] += 1
        if is_rmap_too_long(rmap_add(kvm, sp, index, gfn)):
            rmap_recycle(kvm, sp, gfn)
    if not role_is_direct(sp.role):
        sp.shadowed_access[index] = access
    return verdict


def replace_by_mmio_spte(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, gfn: int, access: int = ACC_ALL
) -> None:
    """A leaf can still be there where the slot is on its way out."""
    was_mapped = word.is_shadow_present_pte(kvm.masks, sp.sptes.get(index, 0))
    is_dropped = was_mapped and kvm.rules.mmio_over_leaf == "drop_first"
    if is_dropped:
        drop_spte(kvm, sp, index)
    elif was_mapped:
        kvm.has_dangling = True  # the kernel forgets the reverse map, which keeps the entry
    vcpu.stat["pf_mmio_spte_created"] += 1
    old = sp.sptes.get(index, 0)
    mark_mmio_spte(kvm, vcpu, sp, index, gfn, access)
    if kvm.rules.set_spte_for_mmio and sp.sptes[index] != old:
        note_set_spte(kvm, sp, index, gfn, sp.sptes[index])
    if is_dropped:
        kvm_flush_remote_tlbs_with_address(kvm, gfn, kvm_pages_per_hpage(role_level(sp.role)))


def mark_mmio_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, gfn: int, access: int = ACC_ALL) -> None:
    """Store an MMIO entry of the current generation of the vCPU's own address space."""
    gen = mmio_generation(kvm.rules, kvm.memslots[vcpu_address_space(vcpu)].generation)
    access = shown_access(kvm.rules, access)
    spte = encode_mmio_spte(kvm.rules, kvm.masks, gfn, access, gen)
    note_mmio_cached(kvm, sp)
    note_silent_call(kvm, "make_mmio_spte", gfn, access)
    note_silent_call(kvm, "make_mmio_spte_ret", hex(spte))
    note_mark_mmio(kvm, sp, index, gfn, spte, gen)
    write_spte(sp, index, spte)


def direct_pte_prefetch(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, faulting: int, answer: HostAnswer | None
) -> None:
    """Map the runs of empty entries in the aligned group of eight, run by run, until one cannot be mapped."""
    if role_is_ad_disabled(sp.role) or role_level(sp.role) > PT_PAGE_TABLE_LEVEL:
        return
    if kvm.invalidation.in_progress:
        return
    for start, end, is_open in empty_runs(kvm, sp, faulting):
        if is_open and kvm.rules.prefetch_drops_open_run:
            return
        if not direct_pte_prefetch_many(kvm, vcpu, sp, start, end, answer):
            return


def direct_pte_prefetch_many(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, start: int, end: int, answer: HostAnswer | None
) -> bool:
    """Map entries start..end (end exclusive) as far as their pages can be pinned at once."""
    gfn = kvm_mmu_page_get_gfn(sp, start)
    run = pin_run(kvm, vcpu, sp, start, end, answer)
    for position, pinned in enumerate(run):
        mmu_set_spte(kvm, vcpu, sp, start + position, gfn + position, pinned, None, role_access(sp.role))
    return bool(run)
