"""Rules of the TDP MMU that no recording or vector decides alone, each in the fewest steps that show it.

Most are read in the source only (docs/reference/kernels.md says of each fact how it is known); the rest are of kernels
that were recorded but never stepped. The core runs the same in tests/differential/test_lockstep_tdp.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.reference import Engine
from kvm_mmu.reference.common.slots import id_to_memslot
from kvm_mmu.reference.common.state import ShadowPage
from kvm_mmu.reference.verbs.notifier import (
    kvm_mmu_invalidate_end,
    kvm_mmu_notifier_invalidate_range_start,
    kvm_set_spte_hva,
)

MIB2 = 0x20_0000
HVA = 0x2_0000_0000
HOST = HVA >> 12


def vm(kernel: str, **config: Any) -> Engine:
    return Engine(kernel, {"family": "npt", **config}, format=6)


def slot(engine: Engine, id: int = 0, gpa: int = 0, size: int = 2 * MIB2, flags: int = 0, **more: Any) -> Any:
    op = {"op": "set_memslot", "id": id, "gpa": gpa, "size": size, "hva": HVA + gpa, "flags": flags, **more}
    return engine.apply(op)["events"]


def huge(engine: Engine, kind: str = "thp", npages: int = 4096) -> None:
    engine.apply({"op": "host_huge", "hva": HVA, "npages": npages, "kind": kind})


def access(engine: Engine, gpa: int, kind: str = "w", vcpu: int = 0) -> list[Any]:
    events: list[Any] = engine.apply({"op": "access", "gpa": gpa, "kind": kind, "vcpu": vcpu})["events"]
    return events


def changes(events: list[Any]) -> list[Any]:
    return [event for event in events if event[0] == "spte"]


def names(events: list[Any]) -> list[str]:
    return [event[0] for event in events]


def leaves(engine: Engine, level: int) -> int:
    return int(engine.state()["stat"][{1: "pages_4k", 2: "pages_2m", 3: "pages_1g"}[level]])


def table(engine: Engine, gfn: int, level: int) -> ShadowPage:
    found = [sp for sp in engine.kvm.pages.values() if sp.gfn == gfn and sp.role & 0xF == level]
    assert len(found) == 1
    return found[0]


BOTH = pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
LATER = pytest.mark.parametrize("kernel", ["v6.18", "v7.1", "v7.3"])


@BOTH
def test_a_write_to_what_is_writable_is_spurious_on_the_fast_path(kernel: str) -> None:
    engine = vm(kernel)
    slot(engine)
    access(engine, 0x1000)
    done = engine.apply({"op": "fault", "gpa": 0x1000, "err": 1 << 32 | 7})
    assert done["ret"] == 1
    (fast,) = done["events"]
    assert fast[0] == "fast_pf"
    assert fast[6] == fast[7]
    assert fast[8:] == [1, 0]


@BOTH
def test_a_range_that_begins_inside_a_large_leaf_unmaps_it_whole(kernel: str) -> None:
    engine = vm(kernel)
    huge(engine)
    slot(engine)
    access(engine, 0)
    assert leaves(engine, 2) == 1
    hva = HVA + 0x5000
    events = engine.apply({"op": "unmap_hva", "start": hva, "end": hva + 0x1000})["events"]
    assert [event[2:4] for event in changes(events)] == [[0, 2]]
    assert leaves(engine, 2) == 0


@BOTH
def test_a_range_of_gfns_is_flushed_as_it_was_given(kernel: str) -> None:
    engine = vm(kernel, flush_range=1)
    slot(engine)
    access(engine, 0x3000)
    events = engine.apply({"op": "zap_gfn_range", "start": 2, "end": 70})["events"]
    assert events[-1] == ["flush_range", 2, 68]


@BOTH
def test_a_table_that_begins_outside_the_slot_is_not_collapsed(kernel: str) -> None:
    engine = vm(kernel, eager_split=0)
    huge(engine)
    slot(engine, 0, 0, MIB2 // 2)
    slot(engine, 1, MIB2 // 2, MIB2 // 2, flags=1)
    access(engine, MIB2 // 2)
    assert changes(slot(engine, 1, MIB2 // 2, MIB2 // 2)) == []
    assert leaves(engine, 1) == 1


@BOTH
def test_what_is_vetoed_is_not_collapsed(kernel: str) -> None:
    engine = vm(kernel)
    huge(engine)
    slot(engine, 0, 0, MIB2 + 0x1000, flags=1)
    access(engine, 0)
    access(engine, MIB2)
    removed = [event[1:4] for event in slot(engine, 0, 0, MIB2 + 0x1000) if event[0] == "prepare_zap"]
    assert [gfn for _, gfn, _ in removed] == [0], "of the two tables only the first could be one leaf"


@BOTH
def test_initially_set_pages_protect_the_large_leaves_over_the_ends_of_a_mask(kernel: str) -> None:
    """The second one only where the two gfns, rounded up, are of different large pages: also inside of one."""
    engine = vm(kernel, eager_split=0)
    huge(engine)
    engine.apply({"op": "manual_protect", "on": 3})
    slot(engine)
    access(engine, 0)
    access(engine, MIB2)
    slot(engine, flags=1)
    masked = {"op": "pt_masked", "id": 0, "offset": 448, "what": "enable_log_dirty"}
    inside = engine.apply({**masked, "mask": 0b110})
    assert [event[2:4] for event in changes(inside["events"])] == [[0, 2]]
    assert inside["ctr"]["tdp_walks"] == 2, "one gfn to protect, and the mask"
    both_ends = engine.apply({**masked, "offset": 0, "mask": 0b11})
    assert both_ends["ctr"]["tdp_walks"] == 3, "0 and 1 round up to different large pages"


@pytest.mark.parametrize(("kernel", "last"), [("v6.1", 1), ("v6.12", 2)])
def test_the_split_for_a_mask_reaches_its_last_page(kernel: str, last: int) -> None:
    engine = vm(kernel)
    huge(engine)
    engine.apply({"op": "manual_protect", "on": 3})
    slot(engine)
    access(engine, 0)
    access(engine, MIB2)
    slot(engine, flags=1)
    masked = {"op": "pt_masked", "id": 0, "offset": 511, "what": "enable_log_dirty", "mask": 0b11}
    events = engine.apply(masked)["events"]
    assert names(events).count("split") == last


@BOTH
def test_aging_with_accessed_bits_only_clears_them(kernel: str) -> None:
    engine = vm(kernel)
    slot(engine)
    access(engine, 0x1000)
    aged = engine.apply({"op": "age_hva", "start": HVA, "end": HVA + 0x2000, "flush": 1})
    assert aged["ret"] == 1
    assert names(aged["events"]) == ["age_hva", "spte", "flush"]
    assert int(aged["events"][1][4], 16) ^ int(aged["events"][1][5], 16) == 0x20
    again = engine.apply({"op": "age_hva", "start": HVA, "end": HVA + 0x2000, "flush": 1})
    assert names(again["events"]) == ["age_hva"]


@LATER
def test_later_kernels_do_not_flush_for_aging(kernel: str) -> None:
    engine = vm(kernel)
    slot(engine)
    access(engine, 0x1000)
    aged = engine.apply({"op": "age_hva", "start": HVA, "end": HVA + 0x2000, "flush": 1})
    assert aged["ret"] == 1
    assert names(aged["events"]) == ["age_hva", "spte"]


def test_a_changed_host_page_is_mapped_read_only_while_an_invalidation_is_open() -> None:
    """In the kernel's own order the page is unmapped before, so that there is never anything to change."""
    engine = vm("v6.1")
    slot(engine)
    access(engine, 0x1000)
    kvm = engine.kvm
    kvm.events = []
    kvm_set_spte_hva(kvm, HVA + 0x1000, 0x77, 0)
    assert changes(kvm.events) == []
    assert kvm_mmu_notifier_invalidate_range_start(kvm, HVA + 0x8000, HVA + 0x9000)
    kvm_set_spte_hva(kvm, HVA + 0x1000, 0x77, 0)
    kvm_mmu_invalidate_end(kvm)
    told = changes(kvm.events)
    assert [event[4:6] for event in told] == [["0x200001e67", "0x0"], ["0x0", "0x77845"]]
    assert kvm.events[-1] == ["flush"]


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_a_walk_under_way_comes_to_a_root_that_was_invalidated_or_not(kernel: str) -> None:
    """While the zap of a root is interrupted, a write protection of one gfn sees it in v6.1, in v6.12 no more."""
    engine = vm(kernel)
    slot(engine)
    slot(engine, 1, 1 << 30)
    access(engine, 0)
    access(engine, 1 << 30)
    protect = {"op": "gfn_write_protect", "gfn": 1 << 18}
    engine.apply({"op": "lock_break", "need": 1, "do": [[protect]]})
    done = engine.apply({"op": "zap_all"})
    assert done["nested"] == [{"op": "gfn_write_protect", "ret": int(kernel == "v6.1")}]


@LATER
def test_the_end_of_the_log_puts_the_large_leaf_in_place(kernel: str) -> None:
    engine = vm(kernel, flush_range=1)
    huge(engine)
    slot(engine, flags=1)
    access(engine, 0x3000, "r")
    access(engine, 0x5000)
    events = slot(engine)
    removal = [event for event in changes(events) if event[3] == 2]
    assert len(removal) == 1
    assert removal[0][7] is None
    new = int(removal[0][5], 16)
    assert new >> 12 == HOST
    assert new & 0xE7 == 0xE7, "large, with A, D and W of the first page that is mapped below"
    assert events[-1] == ["flush_range", 0, 1024]
    assert leaves(engine, 2) == 1
    assert leaves(engine, 1) == 0


@LATER
def test_an_empty_table_is_not_recovered(kernel: str) -> None:
    engine = vm(kernel)
    huge(engine)
    slot(engine, flags=1)
    access(engine, 0x3000)
    engine.apply({"op": "unmap_hva", "start": HVA, "end": HVA + MIB2})
    assert changes(slot(engine)) == []


@LATER
def test_a_leaf_that_allows_the_access_ends_the_fault_unseen(kernel: str) -> None:
    engine = vm(kernel)
    slot(engine)
    access(engine, 0x1000)
    done = engine.apply({"op": "fault", "gpa": 0x1000, "err": 1 << 32 | 4})
    assert names(done["events"]) == ["requested", "pfn_accessed"]
    assert done["ret"] == 6
    again = engine.apply({"op": "prefault", "gpa": 0x1000, "size": 0x1000})
    assert "spte" not in names(again["events"])


def nx_tables(kernel: str, number: int) -> Engine:
    """So many tables on the list of the recovery."""
    engine = vm(kernel, nx_huge=1)
    huge(engine)
    slot(engine, size=number * MIB2)
    for at in range(number):
        access(engine, at * MIB2)
        access(engine, at * MIB2, "x")
    assert engine.state()["stat"]["nx_lpage_splits"] == number
    return engine


@pytest.mark.parametrize(("kernel", "second"), [("v6.1", 1), ("v6.12", 1), ("v6.18", 2), ("v7.3", 2)])
def test_what_the_recovery_took_counts_on_in_later_kernels(kernel: str, second: int) -> None:
    engine = nx_tables(kernel, 4)
    first = engine.apply({"op": "nx_recover", "ratio": 2})["events"]
    assert names(first).count("prepare_zap") == 2
    again = engine.apply({"op": "nx_recover", "ratio": 2})["events"]
    assert names(again).count("prepare_zap") == second


@pytest.mark.parametrize(("kernel", "number"), [("v6.1", 1), ("v6.12", 1), ("v6.18", 512), ("v7.3", 512)])
def test_the_recovery_takes_whole_tables_under_the_shared_lock(kernel: str, number: int) -> None:
    """One page of the table is mapped in v6.1, where a fetch does not split; all else is empty or split from one."""
    engine = nx_tables(kernel, 1)
    if kernel != "v6.1":
        engine.apply({"op": "unmap_hva", "start": HVA + 0x1000, "end": HVA + MIB2})
    done = engine.apply({"op": "nx_recover", "ratio": 1})
    assert done["ctr"]["spte_changed"] == 1 + number
    assert done["events"][-1] == ["flush"]


@pytest.mark.parametrize(
    ("kernel", "first"), [("v6.12", "spte"), ("v7.1", "spte"), ("v7.2.6", "prepare_zap")]
)
def test_when_a_lost_table_is_told(kernel: str, first: str) -> None:
    engine = vm(kernel)
    slot(engine)
    access(engine, 0x1000)
    engine.apply({"op": "unmap_hva", "start": HVA, "end": HVA + MIB2})
    events = engine.apply({"op": "flush_shadow_all"})["events"]
    assert events[0][0] == first
    assert sorted(set(names(events))) == ["prepare_zap", "spte"]


def test_a_mark_of_nx_stays_on_a_table_that_is_not_counted() -> None:
    """v6.12: a fetch in a logged slot marks its table; with the log off again no large leaf takes the table's place."""
    engine = vm("v6.12", nx_huge=1)
    huge(engine)
    slot(engine, flags=1)
    access(engine, 0, "x")
    marked = table(engine, 0, 1)
    assert marked.nx_huge_page_disallowed
    assert not marked.is_possible_nx_huge_page
    assert engine.state()["stat"]["nx_lpage_splits"] == 0
    id_to_memslot(engine.kvm, 0, 0).dirty_bitmap = None  # type: ignore[union-attr]
    access(engine, 0x1000, "r")
    assert table(engine, 0, 1) is marked
    assert leaves(engine, 2) == 0
