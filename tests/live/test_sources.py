"""Opening a source: what is no kernel's memory, transports of one's own, kdump files, memory that moves."""

from __future__ import annotations

import builtins
import lzma
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import live
from kvm_mmu.errors import LiveError
from kvm_mmu.live import packed
from kvm_mmu.live.kernel_facts import row_of
from kvm_mmu.live.program import open_source
from memory_of import Changeable

CASE = "6.1.192/npt1tdp0"


def transport(
    core: packed.Core, reads: Callable[[int, bytes], bytes] | None = None
) -> Callable[[Any, str], None]:
    """A way to a running kernel that is a dump: what QEMU's monitor or /proc/kcore gives drgn, without either."""

    def connect(program: Any, _source: str) -> None:
        program.set_linux_kernel_custom(core.notes[b"VMCOREINFO", 0].rstrip(b"\0") + b"\n", True)
        for segment in core.segments:
            data = segment.data

            def read(address: int, count: int, offset: int, _physical: bool, data: bytes = data) -> bytes:
                found = data[offset : offset + count]
                return found if reads is None else reads(address, found)

            program.add_memory_segment(segment.physical, len(data), read, True)

    return connect


@pytest.mark.parametrize("source", ["/proc/kcore", "qmp:monitor.sock"])
def test_running_kernel_is_read_like_its_dump(source: str, dumps):
    dump = dumps[CASE]
    core = packed.read_core(dump.elf.read_bytes(), "a dump")
    with live.open(source, facts=dump.folder, connect=transport(core)) as kernel:
        vms = kernel.vms(tries=3)
        assert kernel.opened.is_live
        assert [(vm.settled, vm.state.tries) for vm in vms] == [(True, 1), (True, 1)]
        found = [{k: v for k, v in vm.snapshot().items() if k not in ("settled", "tries")} for vm in vms]
    with live.open(str(dump.elf), facts=dump.folder) as still:
        wanted = [
            {k: v for k, v in vm.snapshot().items() if k not in ("settled", "tries")} for vm in still.vms()
        ]
        assert still.vms()[0].settled is None
    assert found == wanted


class Moving:
    """Memory of which a counter of the VM changes at each of the first looks."""

    def __init__(self, physical: int, looks: int) -> None:
        self.physical, self.looks, self.count = physical, looks, 0

    def __call__(self, address: int, found: bytes) -> bytes:
        at = self.physical - address
        if 0 <= at < len(found) and self.count < self.looks:
            self.count += 1
            return found[:at] + bytes([self.count & 0xFF]) + found[at + 1 :]
        return found


def test_vm_that_moves_is_read_until_it_holds_still(dumps):
    dump = dumps[CASE]
    memory = Changeable(dump.elf, dump.folder)
    place = memory.physical(memory.kvm("invalidate_seq"))
    moving = Moving(place, 7)
    kernel = live.open("qmp:x", facts=dump.folder, connect=transport(memory.core, moving))
    vm = kernel.capture(pid=memory.vm.pid, tries=20)
    assert vm.settled is True
    assert 2 <= vm.state.tries <= 8
    assert vm.audit().verdict == "clean"
    # One that never does is given as it was last, and says so.
    kernel = live.open("qmp:x", facts=dump.folder, connect=transport(memory.core, Moving(place, 10_000)))
    vm = kernel.capture(pid=memory.vm.pid, tries=3)
    assert (vm.settled, vm.state.tries) == (False, 3)


def test_busy_vm_does_not_settle(dumps):
    dump = dumps[CASE]
    memory = Changeable(dump.elf, dump.folder)
    memory.write(memory.kvm("mmu_rwlock"), 4, 0x100)
    core = packed.read_core(memory.elf(), "a busy one")
    kernel = live.open("qmp:x", facts=dump.folder, connect=transport(core))
    first, second = kernel.vms(tries=2)
    assert (first.settled, second.settled) == (False, True)


def test_transport_that_fails_is_said(dumps):
    def refuse(_program: Any, _source: str) -> None:
        raise ConnectionRefusedError("nobody listens")

    with pytest.raises(LiveError, match="qmp:gone: cannot be opened: nobody listens"):
        live.open("qmp:gone", connect=refuse)

    def forbid(_program: Any, _source: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(LiveError, match="needs root"):
        live.open("/proc/kcore", connect=forbid)


def test_socket_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(LiveError, match="cannot be opened"):
        live.open(f"qmp:{tmp_path}/none.sock")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x7fELF" + bytes(60), b"KDUMP   " + bytes(600), b"\xfd7zXZ\0" + bytes(40)]
)
def test_file_that_is_no_dump_is_an_error_in_words(data: bytes, tmp_path: Path):
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    with pytest.raises(LiveError, match="vmcore: "):
        live.open(str(path))


def test_folder_and_missing_file_are_errors_in_words(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(LiveError):
            live.open(str(path))


def test_core_of_a_process_is_refused(dumps, tmp_path: Path):
    core = packed.read_core(dumps[CASE].elf.read_bytes(), "a dump")
    path = tmp_path / "core"
    path.write_bytes(packed.write_core(core.segments, []))
    with pytest.raises(LiveError):
        live.open(str(path))


def test_any_core_may_be_packed_with_xz(dumps, tmp_path: Path):
    dump = dumps[CASE]
    path = tmp_path / "mini.elf.xz"
    path.write_bytes(lzma.compress(dump.elf.read_bytes()))
    with live.open(str(path), facts=dump.folder) as kernel:
        assert [vm.pid for vm in kernel.vms()] == [vm["pid"] for vm in dump.json("live.json")]


def kdump(core: packed.Core) -> bytes:
    """A dump in the compressed form of kdump (diskdump, version 6): one bitmap page after another, pages by zlib."""
    block = 4096
    pages = {
        s.physical // block + i: s.data[i * block :][:block]
        for s in core.segments
        for i in range(len(s.data) // block)
    }
    last = max(pages) + 1
    bitmap = bytearray(-(-last // (8 * block)) * block)
    for frame in pages:
        bitmap[frame >> 3] |= 1 << (frame & 7)
    info = core.notes[b"VMCOREINFO", 0]
    note = (
        struct.pack("<III", 11, len(info), 0) + b"VMCOREINFO\0\0" + info.ljust(-(-len(info) // 4) * 4, b"\0")
    )
    sub_blocks = 1 + -(-len(note) // block)
    uts = b"".join(text.ljust(65, b"\0") for text in (b"Linux", b"host", b"6.1.0", b"#1", b"x86_64", b""))
    head = b"KDUMP   " + struct.pack("<i", 6) + uts
    head = head.ljust(len(head) + -len(head) % 8, b"\0") + struct.pack("<qq", 0, 0)
    head += struct.pack("<IiiiIIIIIi", 1, block, sub_blocks, 2 * len(bitmap) // block, last, 0, 0, 0, 0, 1)
    # Base, level, split; first and last page; where VMCOREINFO, notes and erased data are; the pages again, in 64 bits.
    sub = struct.pack(
        "<QiiQQQQQQQQQQQ", 0, 0, 0, 0, 0, 2 * block + 24, len(info), 2 * block, len(note), 0, 0, 0, last, last
    )
    out = head.ljust(block, b"\0") + sub.ljust(block, b"\0") + note.ljust((sub_blocks - 1) * block, b"\0")
    out += bytes(bitmap) * 2
    at = len(out) + 24 * len(pages)
    table, data = b"", b""
    for frame in sorted(pages):
        piece = zlib.compress(pages[frame])
        table += struct.pack("<QIIQ", at + len(data), len(piece), 1, 0)
        data += piece
    return out + table + data


def test_kdump_compressed_file_is_read(dumps, tmp_path: Path):
    dump = dumps[CASE]
    path = tmp_path / "vmcore.kdump"
    path.write_bytes(kdump(packed.read_core(dump.elf.read_bytes(), "a dump")))
    with (
        live.open(str(path), facts=dump.folder) as kernel,
        live.open(str(dump.elf), facts=dump.folder) as plain,
    ):
        assert [vm.snapshot() for vm in kernel.vms()] == [vm.snapshot() for vm in plain.vms()]


def test_facts_that_are_missing_or_damaged_are_said(dumps, tmp_path: Path):
    dump = dumps[CASE]
    with pytest.raises(LiveError, match=r"types\.btf, symbols\.json"):
        live.open(str(dump.elf), facts=tmp_path)
    (tmp_path / "types.btf").write_bytes(b"not BTF at all, which is more than a header")
    (tmp_path / "symbols.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LiveError, match="damaged BTF"):
        live.open(str(dump.elf), facts=tmp_path)
    (tmp_path / "types.btf").write_bytes((dump.folder / "types.btf").read_bytes())
    with pytest.raises(LiveError, match="kvm is not loaded"):
        live.open(str(dump.elf), facts=tmp_path)
    (tmp_path / "symbols.json").write_text('{"vm_list": 7}', encoding="utf-8")
    with pytest.raises(LiveError, match="expected JSON of name to"):
        live.open(str(dump.elf), facts=tmp_path)


def test_missing_name_is_named(dumps, tmp_path: Path):
    """Where a structure has another name for a thing, the thing is named; nothing is guessed."""
    dump = dumps[CASE]
    data = (dump.folder / "types.btf").read_bytes()
    assert data.count(b"\0n_used_mmu_pages\0") == 1
    (tmp_path / "types.btf").write_bytes(data.replace(b"\0n_used_mmu_pages\0", b"\0n_XXXX_mmu_pages\0"))
    (tmp_path / "symbols.json").write_bytes((dump.folder / "symbols.json").read_bytes())
    with pytest.raises(LiveError, match=r"struct kvm\.arch\.n_used_mmu_pages"):
        live.open(str(dump.elf), facts=tmp_path)


@pytest.mark.parametrize(
    ("release", "row", "is_known"),
    [
        ("6.1.0-56-amd64", "v6.1", True),
        ("6.12.117+deb12-amd64", "v6.12", True),
        ("6.6.3", "v6.1", False),
        ("6.8.0-45-generic", "v6.1", False),
        ("9.1.0", "v7.3", False),
        ("2.6.32", "v5.0", False),
        ("garbage", "v5.0", False),
        ("5.10.0-8-amd64", "v5.10", True),
    ],
)
def test_row_of_a_release(release: str, row: str, is_known: bool):
    found = row_of(release)
    assert (found.profile.name, found.is_known) == (row, is_known)
    if not is_known:
        assert "unknown kernel" in found.said
    if row not in ("v6.1", "v6.12"):
        assert "unknown kernel" in found.said or "no dump of this kernel" in found.said


def test_unknown_kernel_is_read_and_said_to_be_unknown(dumps, tmp_path: Path):
    dump = dumps[CASE]
    core = packed.read_core(dump.elf.read_bytes(), "a dump")
    notes = {**core.notes}
    notes[b"VMCOREINFO", 0] = notes[b"VMCOREINFO", 0].replace(
        b"OSRELEASE=6.1.0-56-amd64", b"OSRELEASE=6.7.9-other-64"
    )
    path = tmp_path / "other.elf"
    path.write_bytes(
        packed.write_core(core.segments, [(name, kind, data) for (name, kind), data in notes.items()])
    )
    with live.open(str(path), facts=dump.folder) as kernel:
        assert kernel.release == "6.7.9-other-64"
        assert any("unknown kernel" in note for note in kernel.notes)
        assert all(vm.audit().verdict == "clean" for vm in kernel.vms())
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "live", str(path), "--facts", str(dump.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "unknown kernel" in done.stdout.replace("\n  ", " ")


def test_kernel_without_vms_says_so(dumps):
    dump = dumps[CASE]
    memory = Changeable(dump.elf, dump.folder)
    head = memory.clean.facts.vm_list
    memory.write(head, 8, head)
    memory.write(head + 8, 8, head)
    kernel = memory.changed()
    assert kernel.vms() == []
    with pytest.raises(LiveError, match="it has none"):
        kernel.capture(1)


def test_list_of_vms_that_is_torn_keeps_those_before(dumps):
    dump = dumps[CASE]
    memory = Changeable(dump.elf, dump.folder)
    memory.write(memory.kvm("vm_list"), 8, 0x10)
    kernel = memory.changed()
    assert len(kernel.vms()) == 1
    assert any("list of VMs" in note for note in kernel.notes)


def test_without_drgn_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, dumps):
    whole = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "drgn":
            raise ImportError(name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LiveError, match=r"pip install 'kvm_mmu\[live\]'"):
        open_source(str(dumps[CASE].elf))
