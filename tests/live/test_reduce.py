"""Reduced dumps: the same VMs and verdicts, some 13 kB, and never a byte of the guest's memory or registers."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kvm_mmu import live
from kvm_mmu.errors import LiveError
from kvm_mmu.live import packed
from kvm_mmu.live.kernel import LiveKernel
from kvm_mmu.live.names import NAMES
from kvm_mmu.live.program import open_source, prepare
from kvm_mmu.live.reduce import reduced
from memory_of import Changeable

SECRET = b"GUEST-SECRET-\xa5\x5a\xc3"


def test_same_vms_in_a_few_kilobytes(dump, tmp_path: Path):
    data = reduced(open_source(str(dump.elf), facts=dump.folder))
    assert len(data) < 20_000
    out = tmp_path / "small.xz"
    out.write_bytes(data)
    with live.open(str(dump.elf), facts=dump.folder) as kernel, live.open(str(out)) as small:
        assert [vm.snapshot() for vm in small.vms()] == [vm.snapshot() for vm in kernel.vms()]
        assert all(vm.audit().verdict == "clean" for vm in small.vms())
        assert small.masks == kernel.masks
        assert small.opened.faults == []
    # A small one of a small one is the same.
    assert len(reduced(open_source(str(out)))) <= len(data) + 200


@pytest.mark.parametrize(
    "case", ["6.1.192/npt0", "6.12.117/npt0_p32", "6.1.192/npt1tdp0", "6.1.192/npt1tdp1"]
)
def test_guest_memory_and_registers_are_never_kept(case: str, dumps):
    dump = dumps[case]
    memory = Changeable(dump.elf, dump.folder)
    program = packed.open_core(memory.core, "a dump with guest memory")
    page = (SECRET * 300)[:4096]
    frames: set[int] = set()
    # Every page that a leaf of any VM maps, and the memory of the host around it, is full of the secret.
    for vm in memory.clean.vms():
        columns = vm.entries()
        for raw, level in zip(
            columns["spte"][columns["kind"] == "leaf"].tolist(), columns["level"][columns["kind"] == "leaf"].tolist(),
            strict=True,
        ):  # fmt: skip
            first = (raw & (1 << 40) - 1) >> 12 & ~((1 << 9 * (level - 1)) - 1)
            frames.update(range(first, first + (1 << 9 * (level - 1))))
    held = {s.physical // 4096 + i for s in memory.core.segments for i in range(len(s.data) // 4096)}
    assert not frames & held, "the dump itself holds guest memory"
    for frame in frames:
        program.add_memory_segment(frame * 4096, 4096, lambda _a, n, at, _p: page[at : at + n], True)
    # All of every vCPU but the fields that are read: registers, FPU, debug registers.
    kept = LiveKernel(prepare(program, "with guest memory", dump.folder))
    layout = kept.opened.layout
    size = layout.size("struct kvm_vcpu")
    known = np.zeros(size, bool)
    for key in (key for key in NAMES if key.startswith("vcpu.")):
        field = layout.find(key)
        if field is not None:
            known[field.offset : field.offset + field.size] = True
    filled = (SECRET * (size // len(SECRET) + 1))[:size]
    for vm in kept.vms():
        for vcpu in vm.vcpus:
            for at in np.flatnonzero(~known).tolist():
                address = memory.physical(vcpu.address + at)
                byte = filled[at : at + 1]
                program.add_memory_segment(
                    address, 1, lambda _a, n, at, _p, byte=byte: byte[at : at + n], True
                )
    whole = lzma.decompress(reduced(kept.opened))
    for at in range(len(SECRET) - 3):
        assert SECRET[at : at + 4] not in whole
    core = packed.read_core(whole, "the small dump")
    assert not frames & {s.physical // 4096 + i for s in core.segments for i in range(len(s.data) // 4096)}


def test_command_writes_it_whole(dumps, tmp_path: Path):
    dump = dumps["6.12.117/npt1tdp0"]
    out = tmp_path / "small.xz"
    out.write_text("what was there before")
    words = [sys.executable, "-m", "kvm_mmu", "live"]
    done = subprocess.run(
        [*words, "reduce", str(tmp_path / "none"), str(out)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, out.read_text()) == (2, "what was there before")
    assert done.stderr.startswith("kvm-mmu live reduce: ")
    done = subprocess.run(
        [*words, "reduce", str(dump.elf), str(out), "--facts", str(dump.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*words, str(out), "--json"], capture_output=True, text=True, check=False)
    assert [vm["pid"] for vm in json.loads(done.stdout)["vms"]] == [
        vm["pid"] for vm in dump.json("live.json")
    ]
    assert not list(tmp_path.glob(".kvm-mmu-*"))


@pytest.mark.parametrize("cut", [10, 1000, 5000, 11000])
def test_small_dump_cut_short_is_an_error_in_words(cut: int, dumps, tmp_path: Path):
    dump = dumps["6.1.192/npt1tdp1"]
    out = tmp_path / "small.xz"
    out.write_bytes(reduced(open_source(str(dump.elf), facts=dump.folder))[:cut])
    with pytest.raises(LiveError, match=r"cut short|damaged"):
        live.open(str(out))
