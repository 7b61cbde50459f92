"""Where a kernel's ranged flush begins, and what of it stays in a TLB: `flush.range.1` and `.2`, core and reference.

Which kernel does which is a fact of its row; the audit of the core says `tlb_stale` where a leaf was missed.
"""

from __future__ import annotations

from typing import Any

import pytest
from kvm_mmu.machine.kernel_bugs import BUGS
from kvm_mmu.machine.profiles import kernels
from kvm_mmu.reference import Engine
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.types import KVM_MEMSLOT_INVALID

HVA = 0x4000000000
M2, K4 = 1 << 21, 1 << 12
#: The second 2 MiB of a slot: not where the table of level 2 begins.
AT = M2
ENGINES = {"core": MachineEngine, "reference": Engine}
ROWS = sorted(kernels)


def engine(backend: str, kernel: str, flush_range: int = 1) -> Any:
    one = ENGINES[backend](
        kernel, {"family": "npt", "phys_bits": 46, "flush_range": flush_range, "tdp_mmu": 0, "vcpus": 2}
    )
    one.apply({"op": "set_memslot", "id": 0, "gpa": 0, "size": 4 * M2, "hva": HVA})
    return one


def flushes(line: dict[str, Any]) -> list[list[Any]]:
    return [event for event in line["events"] if event[0] in ("flush", "flush_range")]


def large_in_way(one: Any) -> dict[str, Any]:
    """vCPU 1 has a 2 MiB leaf in its TLB; vCPU 0 writes to it while the dirty log is on, which wants 4 KiB."""
    one.apply({"op": "host_huge", "hva": HVA, "npages": 2048, "kind": "thp"})
    one.apply({"op": "access", "vcpu": 1, "gpa": AT, "kind": "w"})
    one.apply({"op": "set_memslot", "id": 0, "gpa": 0, "size": 4 * M2, "hva": HVA, "flags": 1})
    one.apply({"op": "access", "vcpu": 1, "gpa": AT, "kind": "r"})
    line: dict[str, Any] = one.apply({"op": "access", "vcpu": 0, "gpa": AT + K4, "kind": "w"})
    return line


def collapse(one: Any) -> dict[str, Any]:
    """The dirty log ends over a leaf of 4 KiB whose host page has become huge; it is the last of its table."""
    one.apply({"op": "set_memslot", "id": 0, "gpa": 0, "size": 4 * M2, "hva": HVA, "flags": 1})
    one.apply({"op": "access", "vcpu": 1, "gpa": AT + M2 - K4, "kind": "w"})
    one.apply({"op": "host_huge", "hva": HVA, "npages": 2048, "kind": "thp"})
    line: dict[str, Any] = one.apply({"op": "slot", "as": 0, "id": 0, "what": "zap_collapsible"})
    return line


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("kernel", ROWS)
def test_a_large_leaf_in_the_way(kernel: str, backend: str) -> None:
    facts = kernels[kernel].facts
    first = {"table": 0, "entry": AT // K4}[str(facts["collapse_flush"])]
    wanted = {
        "dropped_range": [["flush_range", first, 512]],
        "zapped_range": [["flush_range", AT // K4, 512]],
        "zapped_full": [["flush"]],
    }[str(facts["large_in_way"])]
    assert flushes(large_in_way(engine(backend, kernel)))[:1] == wanted
    assert flushes(large_in_way(engine(backend, kernel, flush_range=0)))[:1] == [["flush"]]


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("kernel", ROWS)
def test_a_collapsed_leaf(kernel: str, backend: str) -> None:
    first = {"table": AT, "entry": AT + M2 - K4}[str(kernels[kernel].facts["collapse_flush"])] // K4
    assert flushes(collapse(engine(backend, kernel))) == [["flush_range", first, 1]]


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("case", [large_in_way, collapse], ids=lambda case: case.__name__)
def test_the_audit_says_which_kernels_leave_a_stale_translation(kernel: str, case: Any) -> None:
    one = engine("core", kernel)
    case(one)
    facts = kernels[kernel].facts
    misses = facts["collapse_flush"] == "table"
    if case is large_in_way:
        misses = misses and facts["large_in_way"] == "dropped_range"
    assert ("tlb_stale" in {name for name, _ in one.vm.audit()}) is misses


def test_the_table_of_bugs_names_these_kernels() -> None:
    by_rule = {bug.rules: bug.kernels for bug in BUGS}
    stale = [row for row in kernels if kernels[row].facts["collapse_flush"] == "table"]
    assert by_rule["flush.range.2",] == stale
    assert by_rule["flush.range.1",] == [
        row for row in stale if kernels[row].facts["large_in_way"] == "dropped_range"
    ]


@pytest.mark.parametrize("kernel", ROWS)
def test_an_mmio_spte_over_a_leaf(kernel: str) -> None:
    """`mmio.fault.7`: over a leaf it leaves that in the TLB and in its list; dropped first, it is flushed."""
    one = MachineEngine(f"{kernel}:invalid_slot_retries=no", {"family": "npt", "tdp_mmu": 0}, None, 1)
    one.apply({"op": "set_memslot", "id": 0, "gpa": 0, "size": M2, "hva": HVA})
    one.apply({"op": "access", "gpa": 0, "kind": "w"})
    slot, generation = one.vm.memslots.get(0), one.vm.memslots.generations[0]
    one.vm.install_slot(0, generation + 2, (slot.id, slot.base, slot.npages, slot.hva, KVM_MEMSLOT_INVALID))
    one.apply({"op": "fault", "gpa": 0, "err": 4})
    is_stale = kernels[kernel].facts["mmio_over_leaf"] == "overwrite"
    assert [name for name, _ in one.vm.audit()] == ["rmap_leaf", "tlb_stale"] * is_stale
