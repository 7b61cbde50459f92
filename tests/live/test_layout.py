"""Names that a kernel has or has not: newest first, old ones found where the new are missing, chains of either age.

No dump of a kernel before 6.1 exists here. What can be held without one is held on types made by hand.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvm_mmu.errors import LiveError
from kvm_mmu.live.btf import Btf
from kvm_mmu.live.chains import Faults, chain_nodes, list_nodes
from kvm_mmu.live.drgn_types import BtfTypes
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import Memory
from kvm_mmu.live.rmaps import PteLists

U64, POINTER, CHAR, SPTES3 = 1, 2, 3, 4


def btf_of(structures: dict[str, list[tuple[str, int, int]]], size: int = 64) -> bytes:
    """BTF of structures whose members are (name, type, offset in bytes); types 1 to 4 are those above."""
    texts, offsets = b"\0", {}

    def text(name: str) -> int:
        nonlocal texts
        if name not in offsets:
            offsets[name] = len(texts)
            texts += name.encode() + b"\0"
        return offsets[name]

    types = struct.pack("<IIII", text("u64"), 1 << 24, 8, 64)
    types += struct.pack("<III", 0, 2 << 24, 0)
    types += struct.pack("<IIII", text("u8"), 1 << 24, 1, 8)
    types += struct.pack("<IIIIII", 0, 3 << 24, 0, POINTER, U64, 3)
    for name, members in structures.items():
        types += struct.pack("<III", text(name), 4 << 24 | len(members), size)
        for member, of, offset in members:
            types += struct.pack("<III", text(member), of, 8 * offset)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(texts)) + types + texts


def program_of(data: bytes) -> Any:
    import drgn

    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.register_type_finder("btf", BtfTypes(program, [Btf(data)]).find, enable_index=0)
    return program


def test_newest_name_wins_and_an_old_one_is_found():
    both = Layout(
        program_of(btf_of({"kvm_mmu_page": [("gfns", POINTER, 8), ("shadowed_translation", POINTER, 16)]}))
    )
    assert (both["mmu_page.translation"].name, both["mmu_page.translation"].offset) == (
        "shadowed_translation",
        16,
    )
    old = Layout(
        program_of(btf_of({"kvm_mmu_page": [("gfns", POINTER, 8)], "kvm_mmu": [("root_hpa", U64, 24)]}))
    )
    assert (old["mmu_page.translation"].name, old["mmu_page.translation"].offset) == ("gfns", 8)
    assert old["mmu.root_hpa"].offset == 24
    assert old.find("mmu_page.is_tdp") is None
    with pytest.raises(LiveError, match="struct kvm_mmu_page has no link"):
        old["mmu_page.link"]
    missing = old.missing()
    assert "struct kvm_mmu_page.link" in missing
    assert "struct kvm_mmu.root.hpa or root_hpa" not in missing
    assert "struct kvm_mmu_page.tdp_mmu_page" not in missing  # a kernel may be without


@given(
    st.lists(
        st.tuples(st.sampled_from(["gfn", "spt", "link", "unsync", "root_count"]), st.integers(0, 56)),
        unique_by=lambda x: x[0],
    )
)
def test_offsets_are_those_of_the_types(members: list[tuple[str, int]]):
    layout = Layout(program_of(btf_of({"kvm_mmu_page": [(name, U64, offset) for name, offset in members]})))
    for name, offset in members:
        assert (layout[f"mmu_page.{name}"].offset, layout[f"mmu_page.{name}"].size) == (offset, 8)


def test_member_behind_the_end_of_its_structure_is_refused():
    layout = Layout(program_of(btf_of({"kvm_mmu_page": [("gfn", U64, 60)]})))
    with pytest.raises(LiveError, match="ends 68 bytes into 64"):
        layout.find("mmu_page.gfn")


class Bytes:
    """A program whose memory is a run of bytes at 0x1000."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, address: int, size: int, _physical: bool = False) -> bytes:
        at = address - 0x1000
        if not 0 <= at <= len(self.data) - size:
            raise ValueError("could not find memory segment")
        return self.data[at : at + size]


def memory_of(words: list[int]) -> Memory:
    memory = Memory(Bytes(np.array(words, "<u8").tobytes()))
    memory.direct_map = memory.direct_map_end = (1 << 64) - 1
    return memory


def test_chain_of_the_old_form_ends_at_the_first_empty_place():
    layout = Layout(
        program_of(btf_of({"pte_list_desc": [("sptes", SPTES3, 0), ("more", POINTER, 24)]}, size=32))
    )
    lists = PteLists(memory_of([0x10, 0x20, 0x30, 0x1020, 0x40, 0, 0x99, 0]), layout)
    faults = Faults()
    found = lists.expand(np.array([5, 7]), np.array([0x1001, 0x88], np.uint64), "a map", faults)
    assert (found.head.tolist(), found.sptep.tolist(), faults) == (
        [5, 5, 5, 5, 7],
        [0x10, 0x20, 0x30, 0x40, 0x88],
        [],
    )


def test_list_without_an_end_is_said():
    # A list that leads back to its middle, one that leads nowhere, and one that is sound.
    for words, said in (
        ([0x1010, 0x1020, 0x1020, 0x1000, 0x1010, 0x1010], "circle"),
        ([0x1010, 0x1010, 0, 0x1000], "is 0"),
        ([0x1010, 0x1010, 0x999, 0x1000], "cannot be read"),
        ([0x1010, 0x1010, 0x1000, 0x1000], ""),
    ):
        faults = Faults()
        nodes = list(list_nodes(memory_of(words), 0x1000, "a list", faults))
        assert nodes
        assert bool(faults) == bool(said)
        assert said in " ".join(faults)


def test_limit_of_a_list_and_of_a_chain_holds():
    faults = Faults()
    words = [value for at in range(40) for value in (0x1000 + 16 * (at + 1), 0)]
    assert len(list(list_nodes(memory_of(words), 0x1000, "a list", faults, limit=10))) == 10
    assert len(list(chain_nodes(1, lambda at: at + 1, "a chain", faults, limit=10))) == 10
    assert len(faults) == 2


def test_faults_are_counted_not_kept_without_end():
    faults = Faults()
    for at in range(1000):
        faults.add(at)
    assert len(faults) == Faults.LIMIT + 1
