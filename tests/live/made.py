"""A kernel's memory made by hand, with the layout of a real one: VMs larger than any dump at hand.

Everything lies in the direct map of one run of physical memory; only `struct page` has virtual addresses of its own.
Sound by construction: the audit of what is made here is clean, or the maker is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from kvm_mmu import live
from kvm_mmu.live.btf import Btf
from kvm_mmu.live.drgn_types import BtfTypes
from kvm_mmu.live.kernel import LiveKernel
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.page_store import bucket_of

DIRECT_MAP, VMEMMAP = 0xFFFF888000000000, 0xFFFFEA0000000000
#: What kvm_amd has on a host of 40 bits.
MASKS = {
    "shadow_host_writable_mask": 1 << 9,
    "shadow_mmu_writable_mask": 1 << 10,
    "shadow_nx_mask": 1 << 63,
    "shadow_x_mask": 0,
    "shadow_user_mask": 4,
    "shadow_accessed_mask": 0x20,
    "shadow_dirty_mask": 0x40,
    "shadow_mmio_value": 0x8000000000001,
    "shadow_mmio_mask": 0x8000000000001,
    "shadow_mmio_access_mask": 6,
    "shadow_present_mask": 1,
    "shadow_memtype_mask": 0,
    "shadow_me_value": 0,
    "shadow_me_mask": 0,
    "shadow_acc_track_mask": 0,
    "shadow_nonpresent_or_rsvd_mask": 0,
    "shadow_nonpresent_or_rsvd_lower_gfn_mask": 0xFFFFFFF000,
    "page_offset_base": DIRECT_MAP,
    "vmemmap_base": VMEMMAP,
    "shadow_phys_bits": 40,
    "enable_mmio_caching": 1,
    "tdp_enabled": 1,
    "tdp_mmu_enabled": 0,
    "max_huge_page_level": 3,
    "nx_huge_pages": 0,
}
LINK, LEAF = 0x827, 0xE67


class Made:
    """A kernel with one VM under NPT without the TDP MMU, of the types of a real dump.

    Args:
        facts: the folder of the types.
        nr_tables: tables of level 1, of neighbouring 2 MiB.
        leaves: leaves in each.
    """

    def __init__(self, facts: Path, nr_tables: int, leaves: int) -> None:
        import drgn

        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        program.register_type_finder(
            "btf", BtfTypes(program, [Btf((facts / "types.btf").read_bytes())]).find, enable_index=0
        )
        self.layout = Layout(program)
        self.facts = facts
        uppers = -(-nr_tables // 512)
        self.nr_pages = nr_tables + uppers + 2
        npages = nr_tables * 512
        self.memory = np.zeros((2 << 20) + self.nr_pages * (4096 + 256) + npages * 9 + (8 << 20), np.uint8)
        self.next = 4096
        self.private: dict[int, int] = {}
        self.symbols: dict[str, list[Any]] = {}
        self._variables()
        self._pages(nr_tables, uppers, leaves)
        self._slots(npages, nr_tables, leaves)

    def take(self, size: int, align: int = 64) -> int:
        """Room for something: its virtual address."""
        at = -(-self.next // align) * align
        self.next = at + size
        assert self.next <= len(self.memory)
        return DIRECT_MAP + at

    def put(self, address: int, size: int, value: int) -> None:
        """Write a number."""
        at = address - DIRECT_MAP
        self.memory[at : at + size] = np.frombuffer(value.to_bytes(size, "little"), np.uint8)

    def set(self, address: int, key: str, value: int, size: int = 0) -> None:
        """Write a field of a structure."""
        field = self.layout[key]
        self.put(address + field.offset, size or field.size, value)

    def at(self, address: int, key: str) -> int:
        """Where a field is."""
        return address + self.layout[key].offset

    def _variables(self) -> None:
        for name, value in MASKS.items():
            address = self.take(8, 8)
            self.put(address, 8, value)
            self.symbols[name] = [hex(address), 8]
        head = self.take(16)
        self.kvm = self.take(self.layout.size("struct kvm"), 4096)
        node = self.at(self.kvm, "kvm.vm_list")
        self.symbols["vm_list"] = [hex(head), 16]
        for one, other in ((head, node), (node, head)):
            self.put(one, 8, other)
            self.put(one + 8, 8, other)
        self.set(self.kvm, "kvm.pid", 4711)

    def _pages(self, nr_tables: int, uppers: int, leaves: int) -> None:
        size = self.layout.size("struct kvm_mmu_page")
        levels = [4, 3] + [2] * uppers + [1] * nr_tables
        gfns = [0, 0] + [at << 18 for at in range(uppers)] + [at << 9 for at in range(nr_tables)]
        parents = [None, (0, 0)] + [(1, at) for at in range(uppers)]
        parents += [(2 + at // 512, at % 512) for at in range(nr_tables)]
        pages = [self.take(size) for _ in levels]
        first = self.take(4096 * len(levels), 4096)
        tables = [first + 4096 * at for at in range(len(levels))]
        self.tables, self.pages = tables, pages
        buckets: dict[int, list[int]] = {}
        for at, (page, table, level, gfn) in enumerate(zip(pages, tables, levels, gfns, strict=True)):
            self.set(page, "mmu_page.gfn", gfn)
            self.set(page, "mmu_page.role", 0x3780 | level)
            self.set(page, "mmu_page.spt", table)
            self.private[table - DIRECT_MAP >> 12] = page
            parent = parents[at]
            if parent is not None:
                sptep = tables[parent[0]] + 8 * parent[1]
                self.put(sptep, 8, table - DIRECT_MAP | LINK)
                self.put(self.at(page, "mmu_page.parents"), 8, sptep)
            buckets.setdefault(int(bucket_of(np.array([gfn], np.uint64))[0]), []).append(page)
        words = (
            self.memory[tables[-nr_tables] - DIRECT_MAP :][: 4096 * nr_tables]
            .view("<u8")
            .reshape(nr_tables, 512)
        )
        frames = (
            np.arange(nr_tables * leaves, dtype=np.uint64).reshape(nr_tables, leaves) + np.uint64(0x100000)
        ) << np.uint64(12)
        words[:, :leaves] = frames | np.uint64(LEAF)
        nodes = [
            self.at(self.kvm, "kvm.active"),
            *(self.at(page, "mmu_page.link") for page in reversed(pages)),
        ]
        for one, other in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            self.put(one, 8, other)
            self.put(other + 8, 8, one)
        field = self.layout["kvm.hash"]
        array = self.at(self.kvm, "kvm.hash")
        if field.is_pointer:
            array = self.take(8 * 4096)
            self.set(self.kvm, "kvm.hash", array)
        for bucket, chain in buckets.items():
            place = array + 8 * bucket
            for page in chain:
                node = self.at(page, "mmu_page.hash_link")
                self.put(place, 8, node)
                self.put(node + 8, 8, place)
                place = node
        for name in ("nx_list", "zapped"):
            if self.layout.has(f"kvm.{name}"):
                head = self.at(self.kvm, f"kvm.{name}")
                self.put(head, 8, head)
                self.put(head + 8, 8, head)
        self.set(self.kvm, "kvm.used", len(pages))

    def _slots(self, npages: int, nr_tables: int, leaves: int) -> None:
        layout = self.layout
        slot = self.take(layout.size("struct kvm_memory_slot"))
        self.slot = slot
        for key, value in {"npages": npages, "hva": 0x7F0000000000}.items():
            self.set(slot, f"memory_slot.{key}", value)
        rmap = self.take(8 * npages, 4096)
        self.put(self.at(slot, "memory_slot.rmap"), 8, rmap)
        heads = self.memory[rmap - DIRECT_MAP :][: 8 * npages].view("<u8").reshape(nr_tables, 512)
        first = np.uint64(self.tables[-nr_tables])
        heads[:, :leaves] = (
            first
            + np.arange(nr_tables, dtype=np.uint64)[:, None] * np.uint64(4096)
            + np.arange(leaves, dtype=np.uint64) * np.uint64(8)
        )
        for as_id in range(layout["kvm.memslots"].length):
            memslots = self.take(layout.size("struct kvm_memslots"))
            self.put(self.at(self.kvm, "kvm.memslots") + 8 * as_id, 8, memslots)
            self.set(memslots, "memslots.generation", 2 + as_id)
            if as_id == 0:
                self.put(self.at(memslots, "memslots.id_hash"), 8, self.at(slot, "memory_slot.id_node"))
        if layout.has("kvm.nr_memslot_pages"):
            self.set(self.kvm, "kvm.nr_memslot_pages", npages)
        self.set(self.kvm, "kvm.max", max(64, npages // 50))
        if layout.has("kvm.valid_gen"):
            self.set(self.kvm, "kvm.valid_gen", 0)
        stat = layout.type("struct kvm_vm_stat")
        self.put(self.at(self.kvm, "kvm.stat") + stat.member("pages").bit_offset // 8, 8, nr_tables * leaves)

    def kernel(self, folder: Path) -> LiveKernel:
        """The kernel, opened; its symbols are written into a folder."""
        import drgn

        (folder / "types.btf").write_bytes((self.facts / "types.btf").read_bytes())
        (folder / "symbols.json").write_text(json.dumps(self.symbols), encoding="utf-8")
        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        info = "OSRELEASE=6.1.192\nPAGESIZE=4096\nNUMBER(pgtable_l5_enabled)=0\n"
        info += "SYMBOL(swapper_pg_dir)=ffffffff82000000\n"
        program.set_linux_kernel_custom(
            (
                info + "NUMBER(phys_base)=0\nKERNELOFFSET=0\nNUMBER(VMALLOC_START)=0xffffc90000000000\n"
            ).encode(),
            False,
        )
        whole = self.memory.tobytes()
        program.add_memory_segment(0, len(whole), lambda _a, n, at, _p: whole[at : at + n], True)
        program.add_memory_segment(DIRECT_MAP, len(whole), lambda _a, n, at, _p: whole[at : at + n])
        size = self.layout.size("struct page")
        private = self.layout["page.private"].offset

        def struct_page(address: int, count: int, _offset: int, _physical: bool) -> bytes:
            frame, inside = divmod(address - VMEMMAP, size)
            assert (inside, count) == (private, 8)
            return self.private.get(frame, 0).to_bytes(8, "little")

        program.add_memory_segment(VMEMMAP, 1 << 36, struct_page)
        return live.from_program(program, "memory made by hand", facts=folder)
