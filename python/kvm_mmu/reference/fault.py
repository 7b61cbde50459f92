"""The page fault of a direct MMU, from the error code to the entry or the emulator.

Owns the vCPU's one-entry MMIO cache. Models kvm_mmu_page_fault, handle_mmio_page_fault, tdp_page_fault,
mapping_level, fast_page_fault, try_async_pf, transparent_hugepage_adjust and __direct_map with its prefetch (v5.0
and v5.2). The emulator of the modelled environment always ends in an exit to user space.
"""

from __future__ import annotations

from . import spte as word
from .constants import (
    EFAULT,
    EMULTYPE_RETRY,
    PAGE_SHIFT,
    PFERR_FETCH,
    PFERR_NESTED_GUEST_PAGE,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
    RET_PF_EMULATE,
    RET_PF_INVALID,
    RET_PF_RETRY,
    U32,
    kvm_pages_per_hpage,
    spte_index,
)
from .host_memory import host_mapping_level, is_compound_page
from .map import direct_map
from .masks import bits
from .mmio import (
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_mmio_spte,
    mmio_generation,
)
from .pin import PFN_NOSLOT, PFN_POISONED, PFN_RO_FAULT, PinnedPfn, gfn_to_pfn
from .reclaim import make_mmu_pages_available
from .rmap import kvm_mmu_page_get_gfn, write_spte
from .role import role_level
from .slots import (
    kvm_page_track_is_active,
    kvm_vcpu_gfn_to_memslot,
    kvm_vcpu_mark_page_dirty,
    memslot_is_visible,
    mmu_gfn_lpage_is_disallowed,
    vcpu_address_space,
)
from .state import Kvm, ShadowPage, Vcpu

ADDRESS_BITS = bits(12, 51)


def vcpu_cache_mmio_info(kvm: Kvm, vcpu: Vcpu, gfn: int, access: int) -> None:
    """Remember an MMIO gfn, always by the generation of address space 0; direct faults have no gva."""
    generation = kvm.memslots[0].generation
    if kvm.rules.has_refactored_mmio_gen and generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return
    vcpu.mmio_gva = 0
    vcpu.mmio_gfn = gfn
    vcpu.mmio_access = access
    vcpu.mmio_gen = generation


def vcpu_match_mmio_gpa(kvm: Kvm, vcpu: Vcpu, gpa: int) -> bool:
    """Gfn 0 never matches: 0 means an empty cache."""
    is_current = vcpu.mmio_gen == kvm.memslots[0].generation
    return is_current and vcpu.mmio_gfn != 0 and vcpu.mmio_gfn == gpa >> PAGE_SHIFT


def clear_mmio_info(vcpu: Vcpu) -> None:
    vcpu.mmio_gva = 0
    vcpu.mmio_gfn = 0


def kvm_mmu_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int, error_code: int) -> int:
    """1: resume the guest, 0: exit to user space after emulation, negative: an errno."""
    kvm.work["faults"] += 1
    if error_code & PFERR_RSVD:
        verdict = handle_mmio_page_fault(kvm, vcpu, gpa)
        if verdict == RET_PF_EMULATE:
            return x86_emulate_instruction(kvm, vcpu, gpa, 0)
        if verdict == RET_PF_RETRY:
            return 1
    verdict = tdp_page_fault(kvm, vcpu, gpa, error_code & U32)
    if verdict < 0:
        return verdict
    if verdict == RET_PF_RETRY:
        return 1
    if error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE:
        return 1  # the processor walked a guest table: its indirect pages would go, a direct MMU has none
    is_cached = vcpu_match_mmio_gpa(kvm, vcpu, gpa)
    return x86_emulate_instruction(kvm, vcpu, gpa, 0 if is_cached else EMULTYPE_RETRY)


def x86_emulate_instruction(kvm: Kvm, vcpu: Vcpu, gpa: int, emulation_type: int) -> int:
    kvm.events.append(["emulate", vcpu.id, gpa, emulation_type])
    return 0


def walk_to_last(kvm: Kvm, root: int, gpa: int, stop_below: int = 0) -> tuple[ShadowPage, int, int]:
    """Page, index and value of the entry a lockless walk ends on: not present, a leaf, or too low."""
    sp = kvm.pages[root]
    while True:
        level = role_level(sp.role)
        index = spte_index(gpa, level)
        spte = sp.sptes.get(index, 0)
        is_end = not word.is_shadow_present_pte(kvm.masks, spte) or word.is_last_spte(spte, level)
        if is_end or level < stop_below:
            return sp, index, spte
        sp = kvm.pages[word.spte_to_pfn(spte)]


def handle_mmio_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int) -> int:
    if vcpu_match_mmio_gpa(kvm, vcpu, gpa):
        return RET_PF_EMULATE
    if vcpu.root is None:
        return RET_PF_RETRY
    spte = walk_to_last(kvm, vcpu.root, gpa)[2]
    if not is_mmio_spte(kvm.masks, spte):
        return RET_PF_RETRY
    if not check_mmio_spte(kvm, vcpu, spte):
        return RET_PF_INVALID
    gfn = get_mmio_spte_gfn(kvm.masks, spte)
    access = get_mmio_spte_access(kvm.masks, spte)
    kvm.events.append(["handle_mmio", 0, gfn, access])
    vcpu_cache_mmio_info(kvm, vcpu, gfn, access)
    return RET_PF_EMULATE


def check_mmio_spte(kvm: Kvm, vcpu: Vcpu, spte: int) -> bool:
    """Whether the entry was marked in the current generation of the vCPU's own address space."""
    generation = kvm.memslots[vcpu_address_space(vcpu)].generation
    if kvm.rules.has_refactored_mmio_gen and generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return False
    kvm_gen = mmio_generation(kvm.rules, generation)
    spte_gen = get_mmio_spte_generation(kvm.rules, kvm.masks, spte)
    kvm.events.append(["check_mmio", hex(spte), kvm_gen, spte_gen])
    return kvm_gen == spte_gen


def tdp_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int, error_code: int) -> int:
    """A RET_PF value or a negative errno."""
    gfn = gpa >> PAGE_SHIFT
    if page_fault_handle_page_track(kvm, vcpu, gfn, error_code):
        return RET_PF_EMULATE
    level, is_forced = mapping_level(kvm, vcpu, gfn)
    if not is_forced:
        # From here on a large mapping is about its first page, the page frame lookup included.
        gfn &= ~(kvm_pages_per_hpage(level) - 1)
    if fast_page_fault(kvm, vcpu, gpa, level, error_code):
        return RET_PF_RETRY
    is_write = error_code & PFERR_WRITE != 0
    pinned = gfn_to_pfn(kvm, kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn), gfn, is_write)
    verdict = handle_abnormal_pfn(kvm, vcpu, gfn, pinned)
    if verdict is not None:
        return verdict
    if make_mmu_pages_available(kvm) < 0:
        return RET_PF_RETRY
    if not is_forced:
        gfn, pinned, level = transparent_hugepage_adjust(kvm, vcpu, gpa, gfn, pinned, level)
    return direct_map(kvm, vcpu, gpa, is_write, level, gfn, pinned)


def page_fault_handle_page_track(kvm: Kvm, vcpu: Vcpu, gfn: int, error_code: int) -> bool:
    if error_code & PFERR_RSVD:
        return False
    is_write_to_present = error_code & PFERR_PRESENT and error_code & PFERR_WRITE
    return bool(is_write_to_present) and kvm_page_track_is_active(kvm, vcpu, gfn)


def mapping_level(kvm: Kvm, vcpu: Vcpu, gfn: int) -> tuple[int, bool]:
    """The level to map at, and whether level 1 is forced whatever the host page is."""
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    if slot is None or not memslot_is_visible(slot) or slot.dirty_bitmap is not None:
        return PT_PAGE_TABLE_LEVEL, True
    host_level = host_mapping_level(kvm, gfn)
    level = PT_PAGE_TABLE_LEVEL
    while level < min(host_level, kvm.config.lpage_level):
        if mmu_gfn_lpage_is_disallowed(slot, gfn, level + 1):
            break
        level += 1
    return level, False


def page_fault_can_be_fast(kvm: Kvm, error_code: int) -> bool:
    """With access tracking any entry may only lack bits; otherwise only a write protection is quick."""
    if error_code & PFERR_RSVD:
        return False
    if error_code & PFERR_FETCH and error_code & PFERR_PRESENT:
        return False
    is_write_protection = error_code & PFERR_PRESENT and error_code & PFERR_WRITE
    return kvm.masks.acc_track != 0 or bool(is_write_protection)


def fast_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int, level: int, error_code: int) -> bool:
    """Mend an entry without the lock; true when the fault is dealt with."""
    if vcpu.root is None or not page_fault_can_be_fast(kvm, error_code):
        return False
    sp, index, old = walk_to_last(kvm, vcpu.root, gpa, stop_below=level)
    handled = False
    if word.is_last_spte(old, role_level(sp.role)):
        if word.is_access_allowed(kvm.masks, error_code, old):
            handled = True
        else:
            handled = fast_pf_fix_spte(kvm, vcpu, sp, index, old, error_code)
    shown_old, shown_new = (shown_spte(kvm, sp, spte) for spte in (old, sp.sptes.get(index, 0)))
    kvm.events.append(["fast_pf", vcpu.id, gpa, error_code, sp.id, index, shown_old, shown_new, int(handled)])
    return handled


def shown_spte(kvm: Kvm, sp: ShadowPage, spte: int) -> str:
    """An entry as events show it: the address of a table is not part of the model."""
    is_present = word.is_shadow_present_pte(kvm.masks, spte)
    if is_present and not word.is_last_spte(spte, role_level(sp.role)):
        spte &= ~ADDRESS_BITS
    return hex(spte)


def fast_pf_fix_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, old: int, error_code: int) -> bool:
    new = old
    if word.is_access_track_spte(kvm.masks, old):
        new = word.restore_acc_track_spte(kvm.masks, new)
    if error_code & PFERR_WRITE and word.spte_can_locklessly_be_made_writable(old):
        new |= PT_WRITABLE_MASK
        if role_level(sp.role) > PT_PAGE_TABLE_LEVEL:
            return False  # dirty logging must see which small page is written
    if new == old or not word.is_access_allowed(kvm.masks, error_code, new):
        return False
    write_spte(sp, index, new)
    if word.is_writable_pte(new) and not word.is_writable_pte(old):
        kvm_vcpu_mark_page_dirty(kvm, vcpu, kvm_mmu_page_get_gfn(sp, index))
    return True


def handle_abnormal_pfn(kvm: Kvm, vcpu: Vcpu, gfn: int, pinned: PinnedPfn) -> int | None:
    """The end of a fault whose page frame is none; None when the fault goes on."""
    if pinned.pfn == PFN_RO_FAULT:
        return RET_PF_EMULATE
    if pinned.pfn == PFN_POISONED:
        kvm.events.append(["hwpoison_signal", pinned.hva])
        return RET_PF_RETRY
    if pinned.pfn == PFN_NOSLOT:
        vcpu_cache_mmio_info(kvm, vcpu, gfn, 7)
        return None
    return -EFAULT if pinned.pfn < 0 else None


def transparent_hugepage_adjust(
    kvm: Kvm, vcpu: Vcpu, gpa: int, gfn: int, pinned: PinnedPfn, level: int
) -> tuple[int, PinnedPfn, int]:
    """Map 2 MiB where the small page is part of a huge one and nothing speaks against it."""
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    if (
        level == PT_PAGE_TABLE_LEVEL
        and pinned.pfn >= 0
        and is_compound_page(kvm.host, pinned.pfn)
        and not mmu_gfn_lpage_is_disallowed(slot, gpa >> PAGE_SHIFT, PT_DIRECTORY_LEVEL)
    ):
        within = kvm_pages_per_hpage(PT_DIRECTORY_LEVEL) - 1
        first = PinnedPfn(pinned.pfn & ~within, pinned.hva, pinned.is_host_writable)
        return gfn & ~within, first, PT_DIRECTORY_LEVEL
    return gfn, pinned, level
