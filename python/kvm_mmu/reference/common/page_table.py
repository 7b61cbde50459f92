"""What both kinds of page table share: the store of an entry, the statistics, the marks on host pages.

Owns the storing of entries and the page statistics. Models kvm_update_page_stats, kvm_set_pfn_accessed,
kvm_set_pfn_dirty, is_obsolete_sp and kvm_mmu_page_get_gfn of v5.0 to v6.12. A table's physical address is its id.
"""

from __future__ import annotations

from . import spte as word
from .constants import PT64_LEVEL_BITS
from .role import direct_page_role, role_is_invalid, role_level
from .state import Kvm, ShadowPage, Vcpu


def is_obsolete_sp(kvm: Kvm, sp: ShadowPage) -> bool:
    if kvm.rules.obsolete_if_invalid and role_is_invalid(sp.role):
        return True
    if kvm.config.tdp_mmu:
        return False  # its tables have no generation
    return sp.mmu_valid_gen != kvm.mmu_valid_gen


def vcpu_root(vcpu: Vcpu, gpa: int) -> int | None:
    """The root page that an address is translated from; of four each has a GiB. Page 0 is a root that maps nothing."""
    if len(vcpu.roots) > 1:
        return vcpu.roots[gpa >> 30 & 3] or None
    return (vcpu.roots[0] or None) if vcpu.roots else None


def root_role(kvm: Kvm, vcpu: Vcpu, level: int) -> int:
    return direct_page_role(kvm.rules, vcpu.base_role, level)


def child_of(kvm: Kvm, spte: int) -> ShadowPage:
    """The shadow page a non-leaf entry points to."""
    return kvm.pages[word.spte_to_pfn(spte)]


def is_child_kept(kvm: Kvm, child: ShadowPage, gfn: int, role: int) -> bool:
    """Whether a fault of 6.x keeps the table that an entry links, where it wants one with this gfn and role."""
    kept = kvm.rules.child_reuse
    if kept == "gfn":
        return child.gfn == gfn
    return kept != "gfn_role" or (child.gfn == gfn and child.role == role)


PAGE_STATS = {1: "pages_4k", 2: "pages_2m", 3: "pages_1g"}


def kvm_mmu_page_get_gfn(sp: ShadowPage, index: int) -> int:
    """The first gfn that an entry of a direct page translates.

    An address above the root's range comes to the tables of another one; then the leaf's own gfn counts.
    """
    if index in sp.aliased:
        return sp.aliased[index]
    return sp.gfn + (index << (PT64_LEVEL_BITS * (role_level(sp.role) - 1)))


def kvm_set_pfn_accessed(kvm: Kvm, pfn: int) -> None:
    kvm.events.append(["pfn_accessed", pfn])
    kvm.ctr["pfn_accessed"] += 1


def kvm_set_pfn_dirty(kvm: Kvm, pfn: int) -> None:
    kvm.events.append(["pfn_dirty", pfn])
    kvm.ctr["pfn_dirty"] += 1


def write_spte(sp: ShadowPage, index: int, spte: int) -> None:
    """The one place that stores an SPTE; a zero leaves the sparse table."""
    if spte:
        sp.sptes[index] = spte
    else:
        sp.sptes.pop(index, None)


def kvm_update_page_stats(kvm: Kvm, level: int, change: int) -> None:
    kvm.stat[PAGE_STATS[level]] += change


def has_guest_tables(kvm: Kvm) -> bool:
    """Whether guests have page tables of their own that must be shadowed."""
    return kvm.config.family == "shadow" and kvm.config.guest_paging != 0
