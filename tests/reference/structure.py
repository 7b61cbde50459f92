"""What must hold between the parts of a reference VM after every operation."""

from __future__ import annotations

from collections import Counter

from kvm_mmu.reference.common import spte as word
from kvm_mmu.reference.common.page_table import kvm_mmu_page_get_gfn
from kvm_mmu.reference.common.pte_list import pte_list_entries
from kvm_mmu.reference.common.role import role_address_space, role_is_invalid, role_level
from kvm_mmu.reference.common.slots import gfn_to_index, gfn_to_memslot
from kvm_mmu.reference.common.state import Kvm
from kvm_mmu.reference.shadow.active_list import list_pages
from kvm_mmu.reference.shadow.page import kvm_page_table_hashfn


def assert_structure(kvm: Kvm) -> None:
    """Fail with the broken fact: lists, hash, links in both directions, reverse maps in both directions, counts."""
    active = list_pages(kvm.active)
    assert len(set(active)) == len(active)
    assert set(kvm.active.next) == set(kvm.active.prev) == {0, *active}
    waiting = set(kvm.pages) - set(active)
    # A root that was zapped while in use may be on no list, but counted until its last user gives it up.
    given_up = {page for page in waiting if kvm.rules.zapped_root_leaves and kvm.pages[page].root_count > 0}
    assert waiting - given_up == set(kvm.zapped_obsolete_pages), "a page is neither active nor waiting"
    assert kvm.n_used_mmu_pages == len(active) + len(given_up)
    assert all(role_is_invalid(kvm.pages[page].role) for page in given_up)
    hashed = [page for bucket in kvm.page_hash.values() for page in bucket]
    assert sorted(hashed) == sorted(kvm.pages)
    roots = Counter(root for vcpu in kvm.vcpus for root in vcpu.roots)
    parents: dict[int, list[tuple[int, int]]] = {page: [] for page in kvm.pages}
    mapped: list[tuple[int, int, int, int]] = []
    for page, sp in kvm.pages.items():
        assert page in kvm.page_hash[kvm_page_table_hashfn(sp.gfn)]
        assert sp.root_count == roots[page]
        level = role_level(sp.role)
        for index, spte in sp.sptes.items():
            assert spte, "an empty entry is stored"
            if not word.is_shadow_present_pte(kvm.masks, spte):
                assert sp.mmio_cached
                assert page in kvm.mmio_pages
            elif word.is_last_spte(spte, level):
                mapped.append((page, index, level, kvm_mmu_page_get_gfn(sp, index)))
            else:
                child = kvm.pages[word.spte_to_pfn(spte)]
                assert role_level(child.role) == level - 1
                assert not role_is_invalid(child.role)
                parents[child.id].append((page, index))
    for page, sp in kvm.pages.items():
        assert sorted(pte_list_entries(sp.parent_ptes)) == sorted(parents[page])
    assert set(kvm.mmio_pages) <= set(active)
    assert_rmaps(kvm, mapped)


def assert_rmaps(kvm: Kvm, mapped: list[tuple[int, int, int, int]]) -> None:
    heads: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for as_id, memslots in enumerate(kvm.memslots):
        bases = [slot.base_gfn for slot in memslots.memslots]
        assert bases == sorted(bases, reverse=True)
        for slot in memslots.memslots:
            for level, level_heads in slot.rmap.items():
                for index, head in level_heads.items():
                    assert pte_list_entries(head), "an empty head is kept"
                    for sptep in pte_list_entries(head):
                        heads.setdefault(sptep, []).append((as_id * 1000 + slot.id, level, index))
    for page, entry, level, gfn in mapped:
        as_id = role_address_space(kvm.pages[page].role)
        slot = gfn_to_memslot(kvm, as_id, gfn)
        assert slot is not None, "a mapping of a gfn without a slot"
        expected = (as_id * 1000 + slot.id, level, gfn_to_index(gfn, slot.base_gfn, level))
        assert heads.pop((page, entry), None) == [expected]
    assert not heads, "a reverse map names an entry that maps nothing"
