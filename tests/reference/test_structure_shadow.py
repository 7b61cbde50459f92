"""Random operations of guests with page tables of their own leave a reference VM whole after every step."""

from __future__ import annotations

import random
from typing import Any

import pytest
from kvm_mmu.reference import Engine
from kvm_mmu.reference.common.errors import KernelBug
from kvm_mmu.reference.common.pte_list import pte_list_entries
from kvm_mmu.reference.common.role import role_is_direct, role_is_invalid, role_level
from kvm_mmu.reference.common.state import Kvm

from structure import assert_structure  # isort: skip

PAGE = 0x1000
MEMORY = 0x800000
SLOT = {"id": 0, "gpa": 0, "size": MEMORY, "hva": "0x200000000"}
#: CR3 may name any of these pages, so that a table is sometimes used at two levels.
TABLES = range(1, 7)
REGISTERS = {
    "long": {"cr0": 0x80010001, "cr4": 0x20, "efer": 0xD00},
    "long_wp0": {"cr0": 0x80000001, "cr4": 0x100020, "efer": 0xD00},
    "pae": {"cr0": 0x80010001, "cr4": 0x20, "efer": 0x800},
    "p32": {"cr0": 0x80010001, "cr4": 0x10, "efer": 0},
    "none": {"cr0": 0x10001, "cr4": 0, "efer": 0},
}


def standard_entries() -> dict[int, int]:
    """Tables 1 to 3 lead to the level-1 tables 4 to 6, which map every low gfn, themselves included, to itself."""
    entries = {PAGE * level + 8 * i: PAGE * (level + 1) | 0x67 for level in (1, 2) for i in range(4)}
    entries |= {PAGE * 3 + 8 * i: PAGE * (4 + i % 3) | 0x67 for i in range(4)}
    return entries | {PAGE * table + 8 * i: PAGE * i | 0x67 for table in (4, 5, 6) for i in range(12)}


STANDARD = standard_entries()


def random_entry(choose: random.Random) -> dict[str, int]:
    """A store into a table: mostly of level 1, mostly of what it held at first or little else."""
    gpa = choose.choice([*STANDARD, *[gpa for gpa in STANDARD if gpa >= 4 * PAGE] * 3])
    value = STANDARD[gpa]
    if choose.random() < 0.5:
        value = choose.choice([value ^ 2, value & ~0x60, 0, 0xFEE00067, 0x200067, 0x400065, 0xE7])
    return {"gpa": gpa, "val": value, "bytes": 8}


def random_op(choose: random.Random, vcpus: int) -> dict[str, Any]:
    vcpu = {"vcpu": choose.randrange(vcpus)}
    entry = random_entry(choose)
    gva = choose.choice([0, 0x200000, 0x400000, 0x40000000]) + PAGE * choose.randrange(12)
    table = PAGE * choose.choice([1, 1, 1, *TABLES])
    access = {**vcpu, "gva": gva, "kind": choose.choice("rwx"), "user": choose.randrange(2)}
    makers: list[tuple[int, dict[str, Any]]] = [
        (8, {"op": "vaccess", **access}),
        (3, {"op": "poke", **vcpu, **entry}),
        (8, {"op": "gwrite", **vcpu, "gva": entry["gpa"], **entry, "user": 0}),
        (3, {"op": "emul_write", **vcpu, **entry, "bytes": choose.choice([1, 2, 4, 8])}),
        (3, {"op": "invlpg", **vcpu, "gva": gva}),
        (3, {"op": "set_cr3", **vcpu, "cr3": table}),
        (1, {"op": "set_regs", **vcpu, **REGISTERS[choose.choice([*REGISTERS, "long"])], "cr3": table}),
        (1, {"op": "unprotect", "gfn": choose.choice(TABLES)}),
        (1, {"op": "change_mmu_pages", "n": choose.choice([8, 20, 100])}),
        (1, {"op": "shrink", "n": 1}),
        (1, {"op": "zap_all"}),
        (1, {"op": "unmap_hva", "start": 0x200000000, "end": 0x200000000 + choose.choice([PAGE, MEMORY])}),
        (
            1,
            {
                "op": "set_memslot",
                "id": 0,
                "gpa": 0,
                "size": MEMORY,
                "hva": "0x200000000",
                "flags": choose.randrange(2),
            },
        ),
        (1, {"op": "host_huge", "hva": 0x200200000, "npages": 512, "kind": choose.choice(["thp", "none"])}),
    ]
    weights = [weight for weight, _ in makers]
    return choose.choices([op for _, op in makers], weights)[0]


def assert_unsync(kvm: Kvm) -> None:
    """Every way up from an unsync page is marked, and the counts in the slots are those of the pages."""
    indirect = [
        sp for sp in kvm.pages.values() if not role_is_direct(sp.role) and not role_is_invalid(sp.role)
    ]
    assert kvm.indirect_shadow_pages == len(indirect)
    for sp in kvm.pages.values():
        if sp.unsync:
            assert role_level(sp.role) == 1
            assert not role_is_direct(sp.role)
        if sp.unsync or sp.unsync_child_bitmap:
            for parent, index in pte_list_entries(sp.parent_ptes):
                assert index in kvm.pages[parent].unsync_child_bitmap, "an unsync page that no walk finds"
    tracked: dict[int, int] = {}
    for sp in indirect:
        if role_level(sp.role) > 1:
            tracked[sp.gfn] = tracked.get(sp.gfn, 0) + 1
    (slot,) = kvm.memslots[0].memslots
    assert {gfn: count for gfn, count in slot.gfn_track.items() if count} == tracked


def assert_tables_are_not_writable(kvm: Kvm) -> None:
    """No entry lets the guest write a table whose shadow is not unsync."""
    protected = {
        sp.gfn
        for sp in kvm.pages.values()
        if not role_is_direct(sp.role) and not role_is_invalid(sp.role) and not sp.unsync
    }
    (slot,) = kvm.memslots[0].memslots
    for gfn in protected:
        head = slot.rmap[1].get(gfn)
        for page, index in pte_list_entries(head) if head is not None else ():
            assert not kvm.pages[page].sptes[index] & 2, f"gfn {gfn:#x} is a table and writable"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kernel", ["v5.0", "v5.0-seed", "v5.2", "v6.1", "v6.12"])
def test_random_operations_keep_the_structure(kernel: str, seed: int) -> None:
    choose = random.Random(f"{kernel} {seed}")
    is_newer = kernel.startswith("v6")
    config = {"family": "shadow", "vcpus": 2, **({"tdp_mmu": 0} if is_newer else {})}
    engine = Engine(kernel, config, format=6 if is_newer else 1)
    engine.apply({"op": "set_memslot", **SLOT})
    for gpa, value in STANDARD.items():
        engine.apply({"op": "poke", "gpa": gpa, "val": value})
    unsynced = 0
    for _ in range(200):
        try:
            line = engine.apply(random_op(choose, 2))
        except KernelBug:
            break  # a guest that changes its tables behind the MMU's back stops kernels of v5
        unsynced += sum(event[0] == "unsync" for event in line["events"])
        assert_structure(engine.kvm)
        assert_unsync(engine.kvm)
        assert_tables_are_not_writable(engine.kvm)
    assert unsynced, "a run without an unsync page shows little"
    assert engine.clone().digest() == engine.digest()
