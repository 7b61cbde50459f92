"""The page fault of a direct MMU of v6.1 and v6.12, from the MMIO check on.

Owns nothing. Models direct_page_fault, fast_page_fault, kvm_faultin_pfn, kvm_mmu_hugepage_adjust and
is_page_fault_stale of v6.1 and v6.12, as far as direct pages go.

The order: page tracking, the lock-free path, the host's page, a stale root (the fault comes again), reclaim, the level,
and then the mapping in `map_v6`. With MMIO caching off an access without a slot ends at the emulator before anything is
built.
"""

from __future__ import annotations

from . import spte as word
from .constants import (
    PAGE_SHIFT,
    PFERR_FETCH,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    U32,
)
from .fault_v5 import handle_abnormal_pfn, page_fault_handle_page_track
from .host_memory import HOST_LEVEL_V6, HostAnswer, host_page_kind
from .map_v6 import Mapping, direct_map
from .mmio_fault import walk_to_last
from .page import is_obsolete_sp, vcpu_root
from .pin import PFN_NOSLOT, PinnedPfn, gfn_to_pfn
from .reclaim import make_mmu_pages_available
from .rmap import kvm_mmu_page_get_gfn, shown_spte, write_spte
from .role import role_level
from .slots import kvm_vcpu_gfn_to_memslot, kvm_vcpu_mark_page_dirty, mmu_gfn_lpage_is_disallowed
from .state import Kvm, KvmMemorySlot, ShadowPage, Vcpu

NEITHER, FIXED, SPURIOUS = 0, 1, 2


def direct_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int, error_code: int, answer: HostAnswer | None) -> int:
    """A RET_PF value or a negative errno."""
    gfn = gpa >> PAGE_SHIFT
    if page_fault_handle_page_track(kvm, vcpu, gfn, error_code):
        return RET_PF_EMULATE
    if fast_page_fault(kvm, vcpu, gpa, error_code):
        return RET_PF_RETRY
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    pinned = gfn_to_pfn(kvm, slot, gfn, error_code & PFERR_WRITE != 0, answer)
    verdict = handle_abnormal_pfn(kvm, vcpu, gfn, pinned)
    if verdict is not None:
        return verdict
    if pinned.pfn == PFN_NOSLOT:
        if not kvm.masks.mmio_value:
            return RET_PF_EMULATE
        if answer is not None and answer.is_retry:
            return RET_PF_RETRY
    root = vcpu_root(vcpu, gpa)
    if root is None or is_obsolete_sp(kvm, kvm.pages[root]):
        return RET_PF_RETRY
    if make_mmu_pages_available(kvm) < 0:
        return RET_PF_RETRY
    is_exec = error_code & PFERR_FETCH != 0
    level = kvm_mmu_hugepage_adjust(kvm, slot, gfn, pinned, is_exec, answer)
    is_write = error_code & PFERR_WRITE != 0
    return direct_map(kvm, vcpu, root, Mapping(gpa, level, pinned, is_write, is_exec, answer))


def kvm_mmu_hugepage_adjust(
    kvm: Kvm,
    slot: KvmMemorySlot | None,
    gfn: int,
    pinned: PinnedPfn,
    is_exec: bool,
    answer: HostAnswer | None,
) -> int:
    """The level to ask for: what the host maps and nothing vetoes."""
    if slot is None or pinned.pfn < 0:
        return PT_PAGE_TABLE_LEVEL
    if answer is not None:
        return answer.level
    if slot.dirty_bitmap is not None or (is_exec and kvm.config.nx_huge_pages):
        return PT_PAGE_TABLE_LEVEL
    most = min(HOST_LEVEL_V6[host_page_kind(kvm.host, pinned.pfn)], kvm.config.lpage_level)
    level = PT_PAGE_TABLE_LEVEL
    while level < most and not mmu_gfn_lpage_is_disallowed(slot, gfn, level + 1):
        level += 1
    return level


def page_fault_can_be_fast(kvm: Kvm, error_code: int) -> bool:
    """A write to a present entry; without accessed bits also an entry that was made not present to see its use."""
    if error_code & PFERR_RSVD:
        return False
    if not error_code & PFERR_PRESENT:
        return kvm.masks.accessed == 0
    return error_code & PFERR_WRITE != 0


def fast_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int, error_code: int) -> bool:
    """Mend an entry without the lock, or find that there is nothing to mend; true when that ends the fault."""
    root = vcpu_root(vcpu, gpa)
    if root is None or not page_fault_can_be_fast(kvm, error_code):
        return False
    sp, index, old = walk_to_last(kvm, root, gpa)
    handled = NEITHER
    if word.is_shadow_present_pte(kvm.masks, old) and word.is_last_spte(old, role_level(sp.role)):
        if word.is_access_allowed(kvm.masks, error_code, old):
            handled = SPURIOUS
        elif fast_pf_fix_spte(kvm, vcpu, sp, index, old, error_code):
            handled = FIXED
    shown_old, shown_new = (shown_spte(kvm, sp, spte) for spte in (old, sp.sptes.get(index, 0)))
    shown_code = error_code if kvm.rules.fast_pf_shows_whole_error_code else error_code & U32
    kvm.events.append(["fast_pf", vcpu.id, gpa, shown_code, sp.id, index, shown_old, shown_new, handled])
    return handled != NEITHER


def fast_pf_fix_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, old: int, error_code: int) -> bool:
    new = old
    if word.is_access_track_spte(kvm.masks, old):
        new = word.restore_acc_track_spte(kvm.masks, new)
    if error_code & PFERR_WRITE and word.spte_can_locklessly_be_made_writable(kvm.masks, old):
        new |= PT_WRITABLE_MASK
        slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, kvm_mmu_page_get_gfn(sp, index))
        is_logged = slot is not None and slot.dirty_bitmap is not None
        if role_level(sp.role) > PT_PAGE_TABLE_LEVEL and is_logged:
            return False  # dirty logging must see which small page is written
    if new == old or not word.is_access_allowed(kvm.masks, error_code, new):
        return False
    write_spte(sp, index, new)
    if word.is_writable_pte(new) and not word.is_writable_pte(old):
        kvm_vcpu_mark_page_dirty(kvm, vcpu, kvm_mmu_page_get_gfn(sp, index))
    return True
