"""Shadow pages: the gfn hash, finding or creating a page, links to parents, freeing.

Owns the creation and the end of shadow pages, `page_hash`, `n_used_mmu_pages` and the parent lists. Models
kvm_mmu_get_page, kvm_mmu_alloc_page, kvm_mmu_free_page, link_shadow_page and drop_parent_pte for direct pages
(v5.0 to v6.12).

Invariant: a page's parent list names exactly the entries that hold its address.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..common import spte as word
from ..common.constants import GOLDEN_RATIO_64, KVM_MMU_HASH_SHIFT, U64
from ..common.events import note_get_page
from ..common.flush import kvm_flush_remote_tlbs
from ..common.page_table import is_obsolete_sp, write_spte
from ..common.pte_list import (
    pte_list_add,
    pte_list_entries,
    pte_list_first,
    pte_list_is_empty,
    pte_list_remove,
)
from ..common.role import (
    child_role,
    direct_page_role,
    role_is_ad_disabled,
    role_is_direct,
    role_is_invalid,
    role_level,
)
from ..common.state import Kvm, ShadowPage, Vcpu
from .active_list import list_add_head
from .unsync import mark_unsync


def kvm_page_table_hashfn(gfn: int) -> int:
    """The bucket of a gfn: a multiplicative hash, top twelve bits."""
    return (gfn * GOLDEN_RATIO_64 & U64) >> (64 - KVM_MMU_HASH_SHIFT)


def is_valid_sp(kvm: Kvm, sp: ShadowPage) -> bool:
    """Whether the hash may give the page out; obsolete pages count only where a plan makes pages obsolete."""
    return not role_is_invalid(sp.role) and not (kvm.filters_obsolete and is_obsolete_sp(kvm, sp))


def for_each_sp(kvm: Kvm, gfn: int) -> Iterator[ShadowPage]:
    """The pages in the bucket of a gfn, newest first; other gfns of the bucket come too."""
    for page_id in list(kvm.page_hash.get(kvm_page_table_hashfn(gfn), ())):
        yield kvm.pages[page_id]


def for_each_gfn_indirect_valid_sp(kvm: Kvm, gfn: int) -> Iterator[ShadowPage]:
    """The live pages that shadow the guest table at a gfn, newest first."""
    for sp in for_each_sp(kvm, gfn):
        if sp.gfn == gfn and not role_is_direct(sp.role) and is_valid_sp(kvm, sp):
            yield sp


def kvm_mmu_get_page(kvm: Kvm, gfn: int, role: int) -> ShadowPage:
    """The direct page of this gfn and role, found or created."""
    collisions = 0
    found = None
    for sp in for_each_sp(kvm, gfn):
        if not is_valid_sp(kvm, sp):
            continue
        if sp.gfn != gfn:
            collisions += 1
        elif sp.role == role:
            found = sp
            break
    if found is not None:
        kvm.work["get_page_found"] += 1
        note_get_page(kvm, found, role, 0)
    else:
        found = kvm_mmu_alloc_page(kvm, gfn, role)
        note_get_page(kvm, found, role, 1)
    kvm.ctr["max_collisions"] = max(kvm.ctr["max_collisions"], collisions)
    most = kvm.stat["max_mmu_page_hash_collisions"]
    kvm.stat["max_mmu_page_hash_collisions"] = max(most, collisions)
    return found


def role_below(kvm: Kvm, vcpu: Vcpu, parent: ShadowPage) -> int:
    """The role of a child table: the vCPU's mode, or what the parent has, by the kernel."""
    if kvm.rules.is_role_fixed:
        return child_role(kvm.rules, parent.role)
    return direct_page_role(kvm.rules, vcpu.base_role, role_level(parent.role) - 1)


def kvm_mmu_alloc_page(kvm: Kvm, gfn: int, role: int) -> ShadowPage:
    """A new, empty page at the head of the active list and of its bucket."""
    kvm.pages_created += 1
    sp = ShadowPage(id=kvm.pages_created, gfn=gfn, role=role, mmu_valid_gen=kvm.mmu_valid_gen)
    kvm.pages[sp.id] = sp
    list_add_head(kvm.active, sp.id)
    kvm.page_hash.setdefault(kvm_page_table_hashfn(gfn), []).insert(0, sp.id)
    kvm.n_used_mmu_pages += 1
    kvm.ctr["cache_miss"] += 1
    kvm.stat["mmu_cache_miss"] += 1
    kvm.ctr["created"] += 1
    kvm.work["get_page_created"] += 1
    return sp


def kvm_mmu_free_page(kvm: Kvm, sp: ShadowPage) -> None:
    """The end of a page that is already off the active list and flushed from every TLB."""
    bucket = kvm_page_table_hashfn(sp.gfn)
    kvm.page_hash[bucket].remove(sp.id)
    if not kvm.page_hash[bucket]:
        del kvm.page_hash[bucket]
    if kvm.has_dangling:
        forget_dangling(kvm, sp)
    del kvm.pages[sp.id]
    kvm.work["pages_freed"] += 1
    kvm.ctr["freed"] += 1


def forget_dangling(kvm: Kvm, sp: ShadowPage) -> None:
    """Lists forget the entries of a page that goes; the kernel's do not, and what it reads then nobody can say."""
    for memslots in kvm.memslots:
        for slot in memslots.memslots:
            for heads in slot.rmap.values():
                for number in list(heads):
                    for sptep in pte_list_entries(heads[number]):
                        if sptep[0] == sp.id:
                            pte_list_remove(kvm.rules, heads[number], sptep)
                    if pte_list_is_empty(heads[number]):
                        del heads[number]


def bound_parents(kvm: Kvm, child: ShadowPage) -> None:
    """A page that has as many parents as it may have loses all: what a kernel does is not known, this is assumed."""
    most = kvm.rules.max_parents
    if most and len(pte_list_entries(child.parent_ptes)) >= most:
        kvm_mmu_unlink_parents(kvm, child)
        kvm_flush_remote_tlbs(kvm)


def link_shadow_page(kvm: Kvm, parent: ShadowPage, index: int, child: ShadowPage) -> None:
    bound_parents(kvm, child)
    write_spte(parent, index, word.make_link_spte(kvm.masks, child.id, role_is_ad_disabled(child.role)))
    kvm.work["parent_steps"] += 1
    pte_list_add(kvm.rules, child.parent_ptes, (parent.id, index))
    if child.unsync or child.unsync_child_bitmap:
        mark_unsync(kvm, parent, index)


def drop_parent_pte(kvm: Kvm, child: ShadowPage, parent: ShadowPage, index: int) -> None:
    pte_list_remove(kvm.rules, child.parent_ptes, (parent.id, index))
    kvm.work["parent_steps"] += 1
    write_spte(parent, index, 0)


def kvm_mmu_unlink_parents(kvm: Kvm, sp: ShadowPage) -> None:
    while (first := pte_list_first(sp.parent_ptes)) is not None:
        drop_parent_pte(kvm, sp, kvm.pages[first[0]], first[1])


def note_mmio_cached(kvm: Kvm, sp: ShadowPage) -> None:
    """The page holds an MMIO entry, or held one; plans ask for it on every kernel."""
    if not sp.mmio_cached:
        sp.mmio_cached = True
        kvm.mmio_pages[sp.id] = None
