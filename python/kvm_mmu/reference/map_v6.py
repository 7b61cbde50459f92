"""Building the path to a direct mapping and storing it, as v6.1 and v6.12 do.

Owns the writing of new leaves in v6. Models direct_map, disallowed_hugepage_adjust, mmu_set_spte, make_spte,
make_mmio_spte, mark_mmio_spte and direct_pte_prefetch of v6.1 and v6.12 for direct pages.

What differs from v5: the large leaf in the way of a table goes only after the table was got; a leaf that is there
already is not written again and ends the fault without prefetch; the dirty bit comes only with a W that the old word
did not have, and an old MMIO word has it; a run of empty entries at the end of the prefetch group is mapped too; an
MMIO entry is stored before all of that, without prefetch.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import spte as word
from .constants import (
    ACC_ALL,
    EPERM,
    PAGE_SHIFT,
    PT64_BASE_ADDR_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
    PTE_PREFETCH_NUM,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    kvm_pages_per_hpage,
    spte_index,
)
from .flush import kvm_flush_remote_tlbs_with_address
from .host_memory import HostAnswer
from .map import note_mmio_cached, pin_run
from .mmio import encode_mmio_spte, mmio_generation
from .page import child_of, drop_parent_pte, kvm_mmu_get_page, link_shadow_page
from .pin import PFN_NOSLOT, PinnedPfn
from .rmap import (
    drop_spte,
    is_rmap_too_long,
    kvm_mmu_page_get_gfn,
    mmu_spte_update,
    rmap_add,
    rmap_recycle,
    shown_spte,
    write_spte,
)
from .role import role_is_ad_disabled, role_level
from .slots import kvm_page_track_is_active, kvm_vcpu_mark_page_dirty, vcpu_address_space
from .state import Kvm, ShadowPage, Vcpu


@dataclass(frozen=True, slots=True)
class Mapping:
    """What a fault wants mapped."""

    gpa: int
    level: int
    pinned: PinnedPfn
    is_write: bool
    is_exec: bool
    answer: HostAnswer | None


def direct_map(kvm: Kvm, vcpu: Vcpu, root: int, mapping: Mapping) -> int:
    """Walk down from the root, building tables, and map the page at the level, or below it where that is refused."""
    sp = kvm.pages[root]
    level = mapping.level
    while True:
        if role_level(sp.role) == level:
            if not is_huge_page_disallowed(kvm, sp, mapping.gpa):
                break
            level -= 1
        sp = table_below(kvm, vcpu, sp, mapping)
    index = spte_index(mapping.gpa, level)
    gfn = mapping.gpa >> PAGE_SHIFT & ~(kvm_pages_per_hpage(level) - 1)
    if mapping.pinned.pfn == PFN_NOSLOT:
        replace_by_mmio_spte(kvm, vcpu, sp, index, mapping.gpa >> PAGE_SHIFT)
        return RET_PF_EMULATE
    pinned = mapping.pinned
    pinned = PinnedPfn(pinned.pfn & ~(kvm_pages_per_hpage(level) - 1), pinned.hva, pinned.is_host_writable)
    is_written = mapping.answer.is_written if mapping.answer is not None else None
    verdict, is_spurious = mmu_set_spte(
        kvm, vcpu, sp, index, gfn, pinned, is_write_fault=mapping.is_write, is_written=is_written
    )
    if not is_spurious:
        direct_pte_prefetch(kvm, vcpu, sp, index, mapping.answer)
    return verdict


def is_huge_page_disallowed(kvm: Kvm, sp: ShadowPage, gpa: int) -> bool:
    """Whether the entry holds a table that was made because the guest executed from a huge page."""
    level = role_level(sp.role)
    spte = sp.sptes.get(spte_index(gpa, level), 0)
    if level == PT_PAGE_TABLE_LEVEL or not kvm.config.nx_huge_pages:
        return False
    if not word.is_shadow_present_pte(kvm.masks, spte) or word.is_large_pte(spte):
        return False
    return child_of(kvm, spte).nx_huge_page_disallowed


def table_below(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, mapping: Mapping) -> ShadowPage:
    """The table under the entry for the address, found or made; a large leaf in the way goes after it was got."""
    level = role_level(sp.role)
    index = spte_index(mapping.gpa, level)
    spte = sp.sptes.get(index, 0)
    if word.is_shadow_present_pte(kvm.masks, spte) and not word.is_large_pte(spte):
        return child_of(kvm, spte)
    covered = (kvm_pages_per_hpage(level) << PAGE_SHIFT) - 1
    child_gfn = (mapping.gpa & PT64_BASE_ADDR_MASK & ~covered) >> PAGE_SHIFT
    child = kvm_mmu_get_page(kvm, vcpu, child_gfn, level - 1)
    if word.is_shadow_present_pte(kvm.masks, spte):
        kvm.events.append(["page_zap_pte", sp.id, index, shown_spte(kvm, sp, spte)])
        drop_spte(kvm, sp, index)
        kvm.ctr["lpages"] -= 1
        kvm_flush_remote_tlbs_with_address(kvm, sp.gfn, kvm_pages_per_hpage(level))
    link_shadow_page(kvm, sp, index, child)
    if kvm.config.nx_huge_pages and mapping.is_exec and role_level(child.role) == PT_PAGE_TABLE_LEVEL:
        child.nx_huge_page_disallowed = True
    return child


def mmu_set_spte(
    kvm: Kvm,
    vcpu: Vcpu,
    sp: ShadowPage,
    index: int,
    gfn: int,
    pinned: PinnedPfn,
    *,
    is_write_fault: bool,
    is_prefetch: bool = False,
    is_written: bool | None = None,
) -> tuple[int, bool]:
    """Put a leaf into place, whatever was there: the RET_PF value, and whether it was there already. Bits that a
    processor sets are not always known: where only these differ, the host's answer says what became of the leaf."""
    level = role_level(sp.role)
    masks = kvm.masks
    old = sp.sptes.get(index, 0)
    flush = False
    if word.is_shadow_present_pte(kvm.masks, old):
        if level > PT_PAGE_TABLE_LEVEL and not word.is_large_pte(old):
            drop_parent_pte(kvm, child_of(kvm, old), sp, index)
            flush = True
        elif pinned.pfn != word.spte_to_pfn(old):
            drop_spte(kvm, sp, index)
            flush = True
        old = sp.sptes.get(index, 0)
    was_rmapped = word.is_shadow_present_pte(kvm.masks, old)
    new, is_write_protected = make_spte(kvm, vcpu, sp, old, gfn, pinned, is_prefetch)
    verdict = RET_PF_EMULATE if is_write_protected and is_write_fault else RET_PF_RETRY
    is_same = new == old
    if is_written is not None and not (new ^ old) & ~(masks.accessed | masks.dirty):
        is_same = not is_written
    if was_rmapped and is_same:
        return verdict, True
    flush |= mmu_spte_update(kvm, sp, index, new)
    kvm.events.append(["set_spte", sp.id, index, gfn, shown_spte(kvm, sp, new), level])
    if flush:
        kvm_flush_remote_tlbs_with_address(kvm, gfn, kvm_pages_per_hpage(level))
    if not was_rmapped:
        if word.is_large_pte(new):
            kvm.ctr["lpages"] += 1
        if is_rmap_too_long(rmap_add(kvm, sp, index, gfn)):
            rmap_recycle(kvm, sp, gfn)
    return verdict, False


def make_spte(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, old: int, gfn: int, pinned: PinnedPfn, is_prefetch: bool
) -> tuple[int, bool]:
    """The word of a leaf with every access right the host allows, and whether tracking took W from it."""
    masks = kvm.masks
    level = role_level(sp.role)
    has_ad_bits = not role_is_ad_disabled(sp.role)
    is_executable = level == PT_PAGE_TABLE_LEVEL or not kvm.config.nx_huge_pages
    spte = (
        masks.mmu_present | masks.present | masks.user | masks.leaf_memory_type | masks.me | masks.suppress_ve
    )
    spte |= masks.x if is_executable else masks.nx
    spte |= 0 if has_ad_bits else masks.ad_disabled
    spte |= masks.accessed if has_ad_bits and not is_prefetch else 0
    spte |= PT_PAGE_SIZE_MASK if level > PT_PAGE_TABLE_LEVEL else 0
    spte |= pinned.pfn << PAGE_SHIFT
    if not pinned.is_host_writable:
        return spte, False
    spte |= masks.host_writeable
    # The word that was there, also that of an MMIO entry: what it allows to write needs no second look.
    if not word.is_writable_pte(old):
        is_tracked = kvm_page_track_is_active(kvm, vcpu, gfn)
        kvm.events.append(["try_unsync", gfn, 1, int(is_prefetch)])
        kvm.events.append(["try_unsync_ret", -EPERM if is_tracked else 0])
        if is_tracked:
            return spte, True
        spte |= masks.dirty if has_ad_bits else 0
    kvm_vcpu_mark_page_dirty(kvm, vcpu, gfn)
    return spte | PT_WRITABLE_MASK | masks.mmu_writeable, False


def replace_by_mmio_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, gfn: int) -> None:
    """A leaf can still be there where the slot is on its way out."""
    was_mapped = word.is_shadow_present_pte(kvm.masks, sp.sptes.get(index, 0))
    if was_mapped:
        drop_spte(kvm, sp, index)
    mark_mmio_spte(kvm, vcpu, sp, index, gfn)
    if was_mapped:
        kvm_flush_remote_tlbs_with_address(kvm, gfn, kvm_pages_per_hpage(role_level(sp.role)))


def mark_mmio_spte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, gfn: int) -> None:
    """Store an MMIO entry of the current generation of the vCPU's own address space."""
    gen = mmio_generation(kvm.rules, kvm.memslots[vcpu_address_space(vcpu)].generation)
    spte = encode_mmio_spte(kvm.rules, kvm.masks, gfn, ACC_ALL, gen)
    note_mmio_cached(kvm, sp)
    kvm.events.append(["make_mmio_spte", gfn, ACC_ALL])
    kvm.events.append(["make_mmio_spte_ret", hex(spte)])
    kvm.events.append(["mark_mmio", sp.id, index, gfn, spte & ACC_ALL, gen])
    write_spte(sp, index, spte)


def direct_pte_prefetch(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, faulting: int, answer: HostAnswer | None
) -> None:
    """Map the runs of empty entries in the aligned group of eight, run by run, until one cannot be mapped."""
    if role_is_ad_disabled(sp.role) or role_level(sp.role) > PT_PAGE_TABLE_LEVEL:
        return
    group = faulting & ~(PTE_PREFETCH_NUM - 1)
    start = None
    for index in range(group, group + PTE_PREFETCH_NUM):
        spte = sp.sptes.get(index, 0)
        if index == faulting or word.is_shadow_present_pte(kvm.masks, spte):
            if start is not None and not direct_pte_prefetch_many(kvm, vcpu, sp, start, index, answer):
                return
            start = None
        elif start is None:
            start = index
    if start is not None:
        direct_pte_prefetch_many(kvm, vcpu, sp, start, group + PTE_PREFETCH_NUM, answer)


def direct_pte_prefetch_many(
    kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, start: int, end: int, answer: HostAnswer | None
) -> bool:
    """Map entries start..end (end exclusive) as far as their pages can be pinned at once."""
    gfn = kvm_mmu_page_get_gfn(sp, start)
    run = pin_run(kvm, vcpu, sp, start, end, answer)
    for position, pinned in enumerate(run):
        mmu_set_spte(
            kvm, vcpu, sp, start + position, gfn + position, pinned, is_write_fault=False, is_prefetch=True
        )
    return bool(run)
