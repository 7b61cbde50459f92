"""Damaged memory, types and files: an error in words, or a VM with its faults said; no crash, hang or much memory."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from kvm_mmu import live
from kvm_mmu.errors import KvmMmuError, LiveError
from kvm_mmu.live import packed
from kvm_mmu.live.btf import Btf
from kvm_mmu.live.drgn_types import BtfTypes
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.names import NAMES
from memory_of import Changeable

DATA = Path(__file__).resolve().parent.parent / "data" / "live"


def test_damaged_btf_is_an_error_in_words():
    import drgn

    whole = (DATA / "6.1.192/npt0/types.btf").read_bytes()
    refused = 0
    for seed in range(600):
        rng = random.Random(seed)
        data = bytearray(whole)
        if seed % 3 == 0:
            data = data[: rng.randrange(len(data))]
        for _ in range(rng.choice((1, 4, 40))):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        try:
            types = BtfTypes(program, [Btf(bytes(data), "damaged")])
            program.register_type_finder("btf", types.find, enable_index=0)
            layout = Layout(program)
            for key in NAMES:
                layout.find(key)
            layout.missing()
        except LiveError:
            refused += 1
    assert refused > 100


def types_of(*records: bytes) -> bytes:
    """BTF of these records, and one string."""
    import struct

    body = b"".join(records)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), 3) + body + b"\0a\0"


def test_circles_of_types_end():
    import struct

    import drgn

    def record(name: int, kind: int, to: int) -> bytes:
        return struct.pack("<III", name, kind << 24, to)

    for kinds in ((8, 8), (10, 10), (2, 8), (8, 10)):  # typedefs, consts and pointers that lead to each other
        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        types = BtfTypes(program, [Btf(types_of(record(1, kinds[0], 2), record(1, kinds[1], 1)), "a circle")])
        with pytest.raises(LiveError, match="damaged BTF"):
            types.type(types.images[0], 1)


def words_of(segments: list[bytearray]) -> list[tuple[bytearray, int]]:
    return [(data, at) for data in segments for at in range(0, len(data), 8) if any(data[at : at + 8])]


@pytest.mark.parametrize("case", ["6.1.192/npt0", "6.1.192/npt1tdp1", "6.12.117/npt0_p32"])
def test_damaged_structures_lose_no_more_than_themselves(case: str, dumps):
    dump = dumps[case]
    core = packed.read_core(dump.elf.read_bytes(), "a dump")
    for seed in range(40):
        rng = random.Random(seed)
        segments = [bytearray(segment.data) for segment in core.segments]
        places = words_of(segments)
        for _ in range(rng.choice((1, 3, 10, 40, 200))):
            data, at = rng.choice(places)
            other, there = rng.choice(places)
            data[at : at + 8] = rng.choice(
                (
                    rng.randbytes(8),
                    bytes(8),
                    b"\xff" * 8,
                    bytes(other[there : there + 8]),
                    bytes(data[at : at + 7]) + b"\1",
                )
            )
        damaged = [
            packed.Segment(s.physical, bytes(data)) for s, data in zip(core.segments, segments, strict=True)
        ]
        try:
            kernel = live.from_program(
                packed.open_core(packed.Core(damaged, core.notes), "damaged"), "damaged", facts=dump.folder
            )
            for vm in kernel.vms():
                if not vm.error:
                    vm.snapshot()
                    vm.audit()
                    vm.summary()
                    vm.to_svg()
        except KvmMmuError as error:
            assert str(error)


HARNESS = """
import random, resource, sys
from pathlib import Path
from kvm_mmu import live
from kvm_mmu.errors import KvmMmuError
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
whole, facts, out = Path(sys.argv[1]).read_bytes(), sys.argv[2], Path(sys.argv[3])
for seed in range(80):
    rng = random.Random(seed)
    data = bytearray(whole)
    if seed % 4 == 0:
        data = data[: rng.randrange(len(data))]
    elif seed % 4 == 1:
        for _ in range(20):
            data[rng.randrange(min(8192, len(data)))] = rng.randrange(256)
    elif seed % 4 == 2:
        data = data[:64] + rng.randbytes(4096)
    else:
        for _ in range(2000):
            data[rng.randrange(len(data))] = rng.randrange(256)
    out.write_bytes(data)
    try:
        kernel = live.open(str(out), facts=facts)
        for vm in kernel.vms():
            if not vm.error:
                vm.audit()
                vm.snapshot()
    except KvmMmuError as error:
        assert str(error)
print("done")
"""


def test_damaged_files_are_errors_in_words(dumps, tmp_path: Path):
    """In a process of its own: drgn reads the headers, and nothing here can say what it does with them."""
    dump = dumps["6.1.192/npt1tdp0"]
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, str(dump.elf), str(dump.folder), str(tmp_path / "damaged")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr[-2000:]


@pytest.mark.parametrize("key", ["active", "tdp_roots", "tdp_pages", "nx_list"])
def test_list_in_a_circle_ends_and_is_said(key: str, dumps):
    dump = dumps["6.1.192/nx_npt1tdp0" if key in ("active", "nx_list") else "6.1.192/npt1tdp1"]
    memory = Changeable(dump.elf, dump.folder)
    first = memory.read(memory.kvm(key), 8)
    memory.write(first, 8, first)
    vm = memory.changed_vm()
    assert any("circle" in fault for fault in vm.faults)
    assert vm.audit().verdict == "not whole" or vm.audit().found


def test_chain_of_a_reverse_map_in_a_circle_ends_and_is_said(dumps):
    dump = dumps["6.12.117/npt0_p32"]
    memory = Changeable(dump.elf, dump.folder)
    slot = memory.state.spaces[0].slots[1]
    heads = memory.read(slot.address + memory.field("memory_slot.rmap").offset, 8)
    chain = memory.read(heads + 8 * int(slot.rmap[1].head[0]), 8) & ~7
    memory.write(chain + memory.field("pte_list_desc.more").offset, 8, chain)
    vm = memory.changed_vm()
    assert any("circle" in fault for fault in vm.faults)


@pytest.mark.parametrize("npages", [0, 1 << 31, 1 << 40, (1 << 64) - 1])
def test_size_of_a_slot_is_limited_before_its_arrays_are_read(npages: int, dumps):
    dump = dumps["6.1.192/npt1tdp0"]
    memory = Changeable(dump.elf, dump.folder)
    memory.write(memory.slot(3, "npages"), 8, npages)
    vm = memory.changed_vm()
    assert any("its arrays are not read" in fault for fault in vm.faults)
    assert vm.audit().found


def test_table_that_is_not_in_the_dump_is_said(dumps):
    dump = dumps["6.1.192/npt1tdp0"]
    memory = Changeable(dump.elf, dump.folder)
    memory.write(memory.page(0, "spt"), 8, memory.state.pages.direct_map + (7 << 30))
    vm = memory.changed_vm()
    assert any("a table at physical" in fault for fault in vm.faults)
    memory.write(memory.page(0, "spt"), 8, 0x1234)
    assert any("not in the direct map" in fault for fault in memory.changed_vm().faults)


def test_control_characters_of_a_source_reach_no_terminal(tmp_path: Path):
    path = tmp_path / "vm\x1b[31mcore"
    path.write_bytes(b"no dump")
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "live", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\\x1b" in done.stderr
