"""Wrong versions of single rules, each with the recorded vector that notices it: the vectors do test these rules.

A mutant replaces one function of the reference for the length of a test; the package itself holds none.
"""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.reference import Engine
from kvm_mmu.reference.common.mmio import mmio_generation
from kvm_mmu.reference.common.pte_list import pte_list_entries
from kvm_mmu.reference.common.state import ActiveList, Kvm, ShadowPage, Vcpu
from kvm_mmu.reference.shadow import page, zap
from kvm_mmu.reference.shadow.active_list import list_add_head
from kvm_mmu.reference.shadow.zap import Prepared
from kvm_mmu.reference.v5 import map
from kvm_mmu.reference.verbs import memslots, zap_run
from kvm_mmu.reference.verbs.zap_run import ZapRun

from planted import Planted, assert_noticed, difference, each_of  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {"v5.0": "v5.0", "seed": "v5.0-seed", "v5.2": "v5.2"}


def vector_lines(name: str) -> list[dict[str, Any]]:
    shared = Path(os.environ.get("KVM_MMU_SHARED", ROOT.parent / "shared")) / "vectors"
    for top in (ROOT / "tests" / "data" / "vectors", shared):
        for path in (top / f"{name}.jsonl.xz", top / f"{name}.jsonl"):
            if path.exists():
                raw = path.read_bytes()
                text = lzma.decompress(raw) if path.suffix == ".xz" else raw
                return [json.loads(line) for line in text.decode().splitlines() if line]
    pytest.skip(f"vector {name} is not here: set KVM_MMU_SHARED to run this test")


def first_difference(name: str) -> int | None:
    """The first step that is not as recorded."""
    header, *lines = vector_lines(name)
    return difference(Engine(KERNELS[header["variant"]], header["config"]), lines)


def never_restart(_run: ZapRun, _prepared: Prepared) -> bool:
    return False


def restart_on_children_only(_run: ZapRun, prepared: Prepared) -> bool:
    return prepared.nr_children > 0


def batch_reset_without_a_drop(kvm: Kvm, run: ZapRun) -> bool:
    if run.plan.batch is None or run.batch < run.plan.batch:
        return False
    run.batch = 0
    return zap_run.offer_lock(kvm, run)


def wrap_mask_a_bit_short(rules: Any, generation: int) -> int:
    return mmio_generation(rules, generation) & ~(1 << (18 if rules.generation_layout != "v5.0" else 19))


def new_page_at_the_tail(active: ActiveList, page_id: int) -> None:
    list_add_head(active, page_id)
    oldest, second = active.prev[0], active.next[page_id]
    if oldest == page_id:
        return
    active.next[0], active.prev[second] = second, 0
    active.next[oldest], active.prev[page_id] = page_id, oldest
    active.next[page_id], active.prev[0] = 0, page_id


mark_mmio_spte = map.mark_mmio_spte


def flag_on_the_parent_table(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, gfn: int, access: int) -> None:
    had = sp.mmio_cached
    mark_mmio_spte(kvm, vcpu, sp, index, gfn, access)
    sp.mmio_cached = had
    for parent, _ in pte_list_entries(sp.parent_ptes):
        kvm.pages[parent].mmio_cached = True


def flush_skipped(_kvm: Kvm) -> None:
    return None


# (what is wrong, where, which function, its wrong version, the vector that notices)
MUTANTS: list[Planted] = [
    ("never restart", zap_run, "must_restart", never_restart, "seed/wrap_as0_forced.npt"),
    (
        "restart on children only",
        zap_run,
        "must_restart",
        restart_on_children_only,
        "seed/wrap_as0_forced.npt",
    ),
    (
        "batch reset without a drop",
        zap_run,
        "offer_before_prepare",
        batch_reset_without_a_drop,
        "v5.0/hash_collisions.ept_ad",
    ),
    ("new page at the tail", page, "list_add_head", new_page_at_the_tail, "v5.0/reclaim_order.npt"),
    ("flag on the parent table", map, "mark_mmio_spte", flag_on_the_parent_table, "v5.2/wrap_as0_forced.npt"),
    ("flush skipped", zap, "kvm_flush_remote_tlbs", flush_skipped, "v5.0/zap_all_active_roots.npt"),
]


@each_of(MUTANTS)
def test_a_vector_notices(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_noticed(planted, first_difference, monkeypatch)


@pytest.mark.parametrize(("kernel", "half_lap"), [("v5.0", 0x80000), ("v5.2", 0x40000)])
def test_half_a_lap_is_no_wrap(kernel: str, half_lap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No vector passes half a lap, so a wrap mask that is a bit short is noticed here."""

    def zaps_at_half_a_lap() -> bool:
        engine = Engine(kernel, {"family": "npt"})
        slot = {"op": "set_memslot", "id": 0, "gpa": 0, "size": 0x200000, "hva": 0x200000000}
        engine.apply(slot)
        engine.apply({"op": "access", "gpa": 0xFEE00000, "kind": "r"})
        step = 4 if kernel == "v5.0" else 2
        engine.apply({"op": "set_generation", "as": 1, "gen": half_lap - step})
        line = engine.apply({**slot, "as": 1})
        assert engine.state()["as"][1]["gen"] == hex(half_lap)
        return any(event[0] == "prepare_zap" for event in line["events"])

    assert not zaps_at_half_a_lap()
    monkeypatch.setattr(memslots, "mmio_generation", wrap_mask_a_bit_short)
    assert zaps_at_half_a_lap()
