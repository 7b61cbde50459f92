"""A fault on a reserved bit: is it the MMIO access that an entry remembers, and is the entry still current?

Owns the vCPU's one-entry MMIO cache and the lockless walk to the entry a fault is about. Models
handle_mmio_page_fault, check_mmio_spte, vcpu_cache_mmio_info and vcpu_match_mmio_gpa of v5.0 to v6.12.
"""

from __future__ import annotations

from . import spte as word
from .constants import PAGE_SHIFT, PAGE_SIZE, RET_PF_EMULATE, RET_PF_INVALID, RET_PF_RETRY, spte_index
from .mmio import (
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    has_progress_flag,
    is_mmio_spte,
    mmio_generation,
)
from .page_table import vcpu_root
from .role import role_level
from .slots import vcpu_address_space
from .state import Kvm, ShadowPage, Vcpu


def mmio_cache_generation(kvm: Kvm, vcpu: Vcpu) -> int:
    """What the vCPU's cache goes by: always address space 0, or the vCPU's own, by the kernel."""
    return kvm.memslots[vcpu_address_space(vcpu) if kvm.rules.mmio_cache_space == "own" else 0].generation


def vcpu_cache_mmio_info(kvm: Kvm, vcpu: Vcpu, gfn: int, access: int, gva: int = 0) -> None:
    """Remember an MMIO gfn and the generation; two-dimensional paging has no gva."""
    generation = mmio_cache_generation(kvm, vcpu)
    if has_progress_flag(kvm.rules) and generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return
    vcpu.mmio_gva = gva & ~(PAGE_SIZE - 1)
    vcpu.mmio_gfn = gfn
    vcpu.mmio_access = access
    vcpu.mmio_gen = generation


def vcpu_match_mmio_gpa(kvm: Kvm, vcpu: Vcpu, gpa: int) -> bool:
    """Gfn 0 never matches: 0 means an empty cache."""
    is_current = vcpu.mmio_gen == mmio_cache_generation(kvm, vcpu)
    return is_current and vcpu.mmio_gfn != 0 and vcpu.mmio_gfn == gpa >> PAGE_SHIFT


def vcpu_match_mmio_gva(kvm: Kvm, vcpu: Vcpu, gva: int) -> bool:
    is_current = vcpu.mmio_gen == mmio_cache_generation(kvm, vcpu)
    return is_current and vcpu.mmio_gva != 0 and vcpu.mmio_gva == gva & ~(PAGE_SIZE - 1)


def is_guest_paging(vcpu: Vcpu) -> bool:
    """Whether addresses of the vCPU's faults are guest-virtual ones."""
    return vcpu.mode is not None and vcpu.mode.name != "none"


def mmio_info_in_cache(kvm: Kvm, vcpu: Vcpu, address: int) -> bool:
    """Whether the vCPU's cache knows the address of a fault, by gva where the guest pages, else by gfn."""
    match = vcpu_match_mmio_gva if is_guest_paging(vcpu) else vcpu_match_mmio_gpa
    return match(kvm, vcpu, address)


def clear_mmio_info(vcpu: Vcpu) -> None:
    vcpu.mmio_gva = 0
    vcpu.mmio_gfn = 0


def walk_to_last(kvm: Kvm, root: int, gpa: int, stop_below: int = 0) -> tuple[ShadowPage, int, int]:
    """Page, index and value of the entry a lockless walk ends on: not present, a leaf, or too low."""
    sp = kvm.pages[root]
    is_counted = kvm.config.tdp_mmu
    kvm.ctr["tdp_walks"] += is_counted
    while True:
        kvm.ctr["tdp_steps"] += is_counted
        level = role_level(sp.role)
        index = spte_index(gpa, level)
        spte = sp.sptes.get(index, 0)
        is_end = not word.is_shadow_present_pte(kvm.masks, spte) or word.is_last_spte(spte, level)
        if is_end or level < stop_below:
            return sp, index, spte
        sp = kvm.pages[word.spte_to_pfn(spte)]


def handle_mmio_page_fault(kvm: Kvm, vcpu: Vcpu, gpa: int) -> int:
    if mmio_info_in_cache(kvm, vcpu, gpa):
        return RET_PF_EMULATE
    root = vcpu_root(vcpu, gpa)
    if root is None:
        return RET_PF_RETRY
    spte = walk_to_last(kvm, root, gpa)[2]
    if not is_mmio_spte(kvm.masks, spte):
        return RET_PF_RETRY
    if not check_mmio_spte(kvm, vcpu, spte):
        return RET_PF_INVALID
    gfn = get_mmio_spte_gfn(kvm.masks, spte)
    access = get_mmio_spte_access(kvm.rules, kvm.masks, spte)
    gva = gpa if is_guest_paging(vcpu) else 0
    kvm.events.append(["handle_mmio", gva, gfn, access])
    vcpu_cache_mmio_info(kvm, vcpu, gfn, access, gva)
    return RET_PF_EMULATE


def check_mmio_spte(kvm: Kvm, vcpu: Vcpu, spte: int) -> bool:
    """Whether the entry was marked in the current generation of the vCPU's own address space."""
    generation = kvm.memslots[vcpu_address_space(vcpu)].generation
    if has_progress_flag(kvm.rules) and generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return False
    kvm_gen = mmio_generation(kvm.rules, generation)
    spte_gen = get_mmio_spte_generation(kvm.rules, kvm.masks, spte)
    kvm.events.append(["check_mmio", hex(spte), kvm_gen, spte_gen])
    return kvm_gen == spte_gen
