"""Wrong versions of single rules of the TDP MMU, each with a recorded vector that notices it.

A mutant replaces one function of the reference, or turns one fact round, for the length of a test; the package itself
holds none. The facts turned round say which kernels the vectors tell apart.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.reference import Engine
from kvm_mmu.reference.common import kernels
from kvm_mmu.reference.common.page_table import child_of, write_spte
from kvm_mmu.reference.common.state import Kvm, ShadowPage
from kvm_mmu.reference.tdp import change, collapse, map, page, roots, split, zap
from kvm_mmu.reference.tdp.iter import TdpIter
from kvm_mmu.reference.verbs import notifier, zap_run
from kvm_mmu.reference.verbs import roots as verbs_roots

from planted import Planted, assert_noticed, difference, each_of  # isort: skip

VECTORS = Path(__file__).resolve().parents[1] / "data" / "vectors"


def first_difference(name: str) -> int | None:
    """The first step that is not as recorded; a mutant may also end in an error of its own."""
    raw = lzma.decompress((VECTORS / f"{name}.tdp1.jsonl.xz").read_bytes())
    header, *lines = [json.loads(line) for line in raw.decode().splitlines() if line]
    return difference(
        Engine(header["variant"], header["config"], format=6), lines, (AssertionError, KeyError, ValueError)
    )


def frozen_left_behind(kvm: Kvm, it: TdpIter) -> None:
    zap_spte_atomic(kvm, it)
    write_spte(it.sp, it.index, kvm.masks.frozen)


def only_present_entries_frozen(kvm: Kvm, sp: ShadowPage, _shared: bool) -> None:
    remove(kvm, sp, False)


def reference_lost(kvm: Kvm, role: int) -> ShadowPage:
    root = get_root(kvm, role)
    root.root_count = max(root.root_count - 1, 1)
    return root


def new_root_at_the_tail(kvm: Kvm, role: int) -> ShadowPage:
    root = get_root(kvm, role)
    if kvm.tdp_mmu_roots[0] == root.id:
        kvm.tdp_mmu_roots.append(kvm.tdp_mmu_roots.pop(0))
    return root


def invalid_roots_found(kvm: Kvm) -> None:
    for root_id in kvm.tdp_mmu_roots:
        kvm.pages[root_id].tdp_mmu_scheduled_root_to_zap = True


def reference_put_twice(kvm: Kvm, root: ShadowPage) -> None:
    put_root(kvm, root)
    if root.root_count > 0:
        put_root(kvm, root)


def dirty_lost_with_the_table(kvm: Kvm, it: TdpIter) -> None:
    table = child_of(kvm, it.old_spte)
    for index, spte in table.sptes.items():
        table.sptes[index] = spte & ~kvm.masks.dirty
    zap_spte_atomic(kvm, it)


def yield_without_flush(kvm: Kvm, it: TdpIter, _flush: bool, shared: bool) -> bool:
    return cond_resched(kvm, it, False, shared)


def entries_removed_from_the_last(kvm: Kvm, sp: ShadowPage, shared: bool) -> None:
    last = max(sp.sptes, default=0)
    sp.sptes = {last - index: spte for index, spte in sp.sptes.items()}
    remove(kvm, sp, shared)


def no_flush(*_: Any) -> None:
    return None


def nx_mark_lost(_kvm: Kvm, _sp: ShadowPage, _is_possible: bool) -> None:
    return None


def children_keep_the_large_bit(kvm: Kvm, huge_spte: int, level: int, index: int) -> int:
    return split_spte(kvm, huge_spte, level, index) | 1 << 7


def everything_may_collapse(_kvm: Kvm, it: TdpIter, _slot: Any) -> bool:
    return it.level <= 3 and it.old_spte & 1 << 7 == 0 and it.old_spte & 1 << 11 != 0


def table_not_counted(kvm: Kvm, parent: ShadowPage, gfn: int) -> ShadowPage:
    kvm.tdp_mmu_pages -= 1
    return init_child(kvm, parent, gfn)


def one_pass(kvm: Kvm, root: ShadowPage, shared: bool, can_yield: bool) -> None:
    zap.tdp_mmu_zap_root_at_level(kvm, root, root.role & 0xF, shared, can_yield)


def aging_of_nothing(*_: Any) -> bool:
    return False


zap_spte_atomic, remove = change.tdp_mmu_zap_spte_atomic, change.handle_removed_pt
put_root, cond_resched = roots.kvm_tdp_mmu_put_root, zap.tdp_mmu_iter_cond_resched
get_root, split_spte = roots.kvm_tdp_mmu_get_vcpu_root, split.make_huge_page_split_spte
init_child = page.tdp_mmu_init_child_sp

# (what is wrong, where, which function, its wrong version, the vector that notices)
MUTANTS: list[Planted] = [
    (
        "frozen left behind",
        collapse,
        "tdp_mmu_zap_spte_atomic",
        frozen_left_behind,
        "v6.12/thp_dirty_eager.npt",
    ),
    (
        "shared as exclusive",
        change,
        "handle_removed_pt",
        only_present_entries_frozen,
        "v6.12/zap_all_huge.npt",
    ),
    ("reference lost", verbs_roots, "kvm_tdp_mmu_get_vcpu_root", reference_lost, "v6.12/smm_roots.npt"),
    ("new root last", verbs_roots, "kvm_tdp_mmu_get_vcpu_root", new_root_at_the_tail, "v6.12/smm_roots.npt"),
    (
        "old roots stay valid",
        zap_run,
        "kvm_tdp_mmu_invalidate_all_roots",
        invalid_roots_found,
        "v6.12/zap_all_active_roots.npt",
    ),
    ("fault forgets its flush", map, "flush_replaced_table", no_flush, "v6.12/collapse_by_fault.npt"),
    ("NX mark lost", map, "account_nx_huge_page", nx_mark_lost, "v6.12/nx_huge_thp.npt"),
    (
        "split keeps bit 7",
        split,
        "make_huge_page_split_spte",
        children_keep_the_large_bit,
        "v6.12/thp_split_ops.npt",
    ),
    ("all collapses", collapse, "is_collapsible", everything_may_collapse, "v6.12/dirty_log_get.npt"),
    ("table not counted", map, "tdp_mmu_init_child_sp", table_not_counted, "v6.12/fault_basic.npt"),
    ("a root in one pass", zap, "tdp_mmu_zap_root", one_pass, "v6.12/zap_all_active_roots.npt"),
    (
        "reference put twice",
        verbs_roots,
        "kvm_tdp_mmu_put_root",
        reference_put_twice,
        "v6.12/three_vcpus.npt",
    ),
    (
        "D lost on collapse",
        collapse,
        "tdp_mmu_zap_spte_atomic",
        dirty_lost_with_the_table,
        "v6.12/thp_dirty_eager.npt",
    ),
    (
        "a yield forgets the walk's flush",
        zap,
        "tdp_mmu_iter_cond_resched",
        yield_without_flush,
        "v6.12/unmap_lock_break.npt",
    ),
    (
        "entries removed from the last",
        change,
        "handle_removed_pt",
        entries_removed_from_the_last,
        "v6.12/thp_dirty_eager.npt",
    ),
    ("nothing ages", notifier, "kvm_tdp_mmu_age_gfn_range", aging_of_nothing, "v6.12/aging.npt"),
]


@each_of(MUTANTS)
def test_a_vector_notices(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_noticed(planted, first_difference, monkeypatch)


# A fact, its other value, and a vector of each kernel that notices when it has that of the other.
FACTS: list[tuple[str, str, Any, str]] = [
    ("v6.1", "tdp_load_needs_room", False, "fault_noslot_vm.ept_ad"),
    ("v6.12", "tdp_load_needs_room", True, "fault_noslot_vm.npt"),
    ("v6.1", "tdp_root_zap", "each_level", "delete_lock_break.ept_ad"),
    ("v6.12", "tdp_root_zap", "large", "delete_lock_break.npt"),
    ("v6.1", "tdp_atomic_zap", "flush_first", "flush_range.ept_ad"),
    ("v6.12", "tdp_atomic_zap", "report_first", "flush_range.npt"),
    ("v6.1", "tdp_large_in_way", "split", "nx_dirty_log.ept_ad"),
    ("v6.12", "tdp_large_in_way", "zapped", "nx_dirty_log.npt"),
    ("v6.1", "tdp_fault_flush", "leaf", "flush_range_collapse.ept_ad"),
    ("v6.12", "tdp_fault_flush", "table", "flush_range_collapse.npt"),
    ("v6.1", "tdp_walks_invalid_roots", False, "random_03_breaks_200.npt"),
    ("v6.12", "tdp_walks_invalid_roots", True, "random_03_breaks_200.npt"),
    ("v6.1", "tdp_split_drops_lock", True, "flush_range.ept_ad"),
    ("v6.12", "tdp_split_drops_lock", False, "flush_range.npt"),
    ("v6.1", "tdp_log_marks_dirty", True, "aging_dirty_log.ept_ad"),
    ("v6.12", "tdp_log_marks_dirty", False, "aging_dirty_log.npt"),
    ("v6.1", "tdp_age_marks_twice", False, "aging.ept_noad"),
    ("v6.12", "tdp_age_marks_twice", True, "aging.ept_noad"),
    ("v6.1", "tdp_collapse", "in_place", "flush_range.ept_ad"),
    ("v6.12", "tdp_allowed_is_spurious", True, "nx_dirty_log.npt"),
    ("v6.12", "tdp_nx_recovery_shared", True, "nx_dirty_log.npt"),
    ("v6.1", "tdp_subtree_first", True, "collapse_by_fault.ept_ad"),
    ("v6.1", "nx_marks_all_levels", True, "nx_dirty_log.ept_ad"),
    ("v6.1", "nx_recovery_spares_logged", True, "nx_dirty_log.ept_ad"),
]


@pytest.mark.parametrize(("kernel", "fact", "value", "vector"), FACTS, ids=lambda of: str(of))
def test_a_vector_tells_the_kernels_apart(
    kernel: str, fact: str, value: Any, vector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = kernels.KERNELS[kernel]
    assert getattr(rules, fact) != value
    monkeypatch.setitem(kernels.KERNELS, kernel, replace(rules, **{fact: value}))
    assert first_difference(f"{kernel}/{vector}") is not None
