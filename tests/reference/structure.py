"""What must hold between the parts of a reference VM after every operation."""

from __future__ import annotations

from collections import Counter

from kvm_mmu.reference.common import spte as word
from kvm_mmu.reference.common.page_table import kvm_mmu_page_get_gfn
from kvm_mmu.reference.common.pte_list import pte_list_entries
from kvm_mmu.reference.common.role import ROLE_INVALID, role_address_space, role_is_invalid, role_level
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
    roots.update(previous[1] for vcpu in kvm.vcpus for previous in vcpu.prev_roots if previous is not None)
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


def assert_tdp_structure(kvm: Kvm) -> None:
    """The same for the TDP MMU: who holds a root, who links a table, what is counted, where what may stand."""
    holders = Counter(root for vcpu in kvm.vcpus for root in vcpu.roots)
    assert len(set(kvm.tdp_mmu_roots)) == len(kvm.tdp_mmu_roots)
    for root_id in kvm.tdp_mmu_roots:
        root = kvm.pages[root_id]
        is_kept = not role_is_invalid(root.role) or root.tdp_mmu_scheduled_root_to_zap
        assert root.root_count == holders.pop(root_id, 0) + is_kept
        assert role_is_invalid(root.role) or not root.tdp_mmu_scheduled_root_to_zap
        assert root.gfn == 0
        assert root.ptep is None
    assert not holders, "a vCPU has a root that is not in the list"
    valid = [
        kvm.pages[root_id].role
        for root_id in kvm.tdp_mmu_roots
        if not role_is_invalid(kvm.pages[root_id].role)
    ]
    assert len(set(valid)) == len(valid), "two valid roots of one mode"
    assert kvm.tdp_mmu_pages == len(kvm.pages) - len(kvm.tdp_mmu_roots)
    linked = set(kvm.tdp_mmu_roots)
    leaves = Counter[int]()
    for page, sp in kvm.pages.items():
        level = role_level(sp.role)
        for index, spte in sp.sptes.items():
            assert spte not in (0, kvm.masks.empty, kvm.masks.frozen)
            if not word.is_shadow_present_pte(kvm.masks, spte):
                assert level == 1, "an MMIO entry above level 1"
            elif word.is_last_spte(spte, level):
                assert level <= kvm.config.lpage_level
                leaves[level] += 1
            else:
                child = kvm.pages[word.spte_to_pfn(spte)]
                assert child.id not in linked, "a table is linked twice"
                linked.add(child.id)
                assert child.ptep == (page, index)
                assert child.role == (sp.role & ~ROLE_INVALID) - 1
                assert child.gfn == kvm_mmu_page_get_gfn(sp, index)
    assert linked == set(kvm.pages), "a table that nobody links"
    assert [kvm.stat[name] for name in ("pages_4k", "pages_2m", "pages_1g")] == [
        leaves[level] for level in (1, 2, 3)
    ]
    listed = [page for page, sp in kvm.pages.items() if sp.is_possible_nx_huge_page]
    assert sorted(kvm.possible_nx_huge_pages) == sorted(listed)
    assert kvm.stat["nx_lpage_splits"] == len(listed)
    assert kvm.rcu_frees == 0
    assert not kvm.page_hash
    assert list_pages(kvm.active) == []
    assert all(
        not heads for memslots in kvm.memslots for slot in memslots.memslots for heads in slot.rmap.values()
    )
