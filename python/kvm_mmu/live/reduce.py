"""A small dump for a bug report: what a capture of every VM reads, and nothing else of the memory.

Owns: what is kept. Of a structure only the fields that are read here, so no guest registers; of guest memory nothing,
as a capture reads none. Bytes that were not read are zeros. The types and symbols it needs are in its notes.
"""

from __future__ import annotations

import json
import lzma
from typing import Any

from kvm_mmu.errors import LiveError
from kvm_mmu.live import packed
from kvm_mmu.live.btf_writer import SmallBtf
from kvm_mmu.live.capture import Progress, silent
from kvm_mmu.live.kernel import LiveKernel
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import PAGE
from kvm_mmu.live.names import NAMES, VARIABLES, symbol_names
from kvm_mmu.live.program import Opened
from kvm_mmu.live.translate import HostTables, kernel_tables

#: Structures of which only the fields that are asked for are kept; all others are read field by field or are whole.
PARTIAL = ("struct kvm", "struct kvm_vcpu")
#: Pages kept at most (4 GiB).
MAX_PAGES = 1 << 20


class _Kept:
    """Pages of the small dump, by frame, with what was read of each."""

    def __init__(self, opened: Opened, tables: HostTables) -> None:
        self._opened, self._tables = opened, tables
        self._pages: dict[int, bytearray] = {}

    def add_physical(self, address: int, size: int) -> None:
        """Keep a run of physical memory."""
        data = self._opened.memory.read_physical(address, size, "what is kept")
        at = 0
        while at < size:
            frame, offset = divmod(address + at, PAGE)
            count = min(PAGE - offset, size - at)
            page = self._pages.get(frame)
            if page is None:
                if len(self._pages) >= MAX_PAGES:
                    raise LiveError(
                        f"more than {MAX_PAGES:,} pages to keep: reduce one VM (--vm), or --no-rmaps"
                    )
                page = self._pages[frame] = bytearray(PAGE)
            page[offset : offset + count] = data[at : at + count]
            at += count

    def add(self, address: int, size: int) -> None:
        """Keep a run of virtual memory, and the entries of the host's page tables that lead to it."""
        memory = self._opened.memory
        if memory.direct_map <= address < memory.direct_map_end:
            # Read as physical memory everywhere, so no table leads there.
            self.add_physical(address - memory.direct_map, size)
            return
        while size > 0:
            mapped = self._tables.find(address)
            for entry in mapped.entries:
                self.add_physical(entry, 8)
            # A reader may look at a table for each page, so each has its way.
            count = min(size, mapped.length, PAGE - address % PAGE)
            self.add_physical(mapped.physical, count)
            address, size = address + count, size - count

    def segments(self) -> list[packed.Segment]:
        """Runs of neighbouring pages."""
        found: list[packed.Segment] = []
        run: list[int] = []
        for frame in sorted(self._pages):
            if run and frame != run[-1] + 1:
                found.append(self._segment(run))
                run = []
            run.append(frame)
        if run:
            found.append(self._segment(run))
        return found

    def _segment(self, run: list[int]) -> packed.Segment:
        return packed.Segment(run[0] * PAGE, b"".join(bytes(self._pages[frame]) for frame in run))


def reduced(
    opened: Opened, vm: str | None = None, with_rmaps: bool = True, progress: Progress = silent
) -> bytes:
    """Make the small dump of a source.

    Args:
        opened: the source.
        vm: only this VM (process, or 0x.. its address); None: all of them.
        with_rmaps: also the reverse maps.
        progress: told what is read.

    Returns:
        The file, packed.

    Raises:
        LiveError: it cannot be read, or is too large.
    """
    memory = opened.memory
    memory.reads = []
    try:
        kernel = LiveKernel(opened)
        vms = (
            kernel.vms(1, with_rmaps, progress)
            if vm is None
            else [kernel.capture(vm, 1, with_rmaps, progress)]
        )
        facts = kernel.facts
        _ = (
            facts.phys_bits,
            facts.family,
            facts.codec,
            facts.foreign_masks,
            facts.role_bits,
        )  # what a reader asks for
        for name in VARIABLES:
            facts.variable(name)
        symbols = _symbols(opened)
        reads = memory.reads
    finally:
        memory.reads = None
    partial = _partial(opened.layout)
    kept = _Kept(opened, kernel_tables(opened, facts.host_levels))
    progress("what was read, again", len(reads))
    for is_physical, address, size in _merged(reads, partial):
        (kept.add_physical if is_physical else kept.add)(address, size)
    info = opened.vmcoreinfo.encode("latin-1")
    about = packed.about(
        vms=len(vms), release=kernel.release, kept="what a capture reads; no guest memory, no registers"
    )
    core = packed.write_core(
        kept.segments(),
        [
            (b"VMCOREINFO", 0, info),
            (packed.NOTE, packed.NOTE_TYPES, small_types(opened.layout)),
            (packed.NOTE, packed.NOTE_SYMBOLS, json.dumps(symbols).encode()),
            (packed.NOTE, packed.NOTE_ABOUT, about),
        ],
    )
    if len(core) > packed.MAX_BYTES:
        raise LiveError(
            f"{len(core) >> 20} MiB are kept, at most {packed.MAX_BYTES >> 20} can be read again: give --vm"
        )
    return lzma.compress(core, preset=9 | lzma.PRESET_EXTREME)


def _symbols(opened: Opened) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name in symbol_names():
        address = opened.symbol(name)
        if address is not None:
            found[name] = [hex(address), VARIABLES.get(name, 8)]
    return found


def _partial(layout: Layout) -> dict[str, list[tuple[int, int]]]:
    """Of each structure that is kept in part: offset and size of each field."""
    found = {}
    for structure in PARTIAL:
        fields = [
            field for key, row in NAMES.items() if row.structure == structure and (field := layout.find(key))
        ]
        found[structure] = [(field.offset, field.size) for field in fields if field.size]
    return found


def _merged(
    reads: list[tuple[bool, int, int, str]], partial: dict[str, list[tuple[int, int]]]
) -> list[tuple[bool, int, int]]:
    """Reads without those of the middle of structures, each once, neighbours joined."""
    runs: set[tuple[bool, int, int]] = set()
    for is_physical, address, size, structure in reads:
        fields = partial.get(structure)
        if fields is None:
            runs.add((is_physical, address, size))
        else:
            runs.update((is_physical, address + offset, length) for offset, length in fields)
    found: list[tuple[bool, int, int]] = []
    for is_physical, address, size in sorted(runs):
        if found and found[-1][0] == is_physical and address <= found[-1][1] + found[-1][2]:
            last = found[-1]
            found[-1] = (is_physical, last[1], max(last[2], address + size - last[1]))
        else:
            found.append((is_physical, address, size))
    return found


def small_types(layout: Layout) -> bytes:
    """The types that a capture asks for, as small BTF."""
    whole = set(layout.asked) | layout.passed | {"struct kvm_vm_stat"}
    _nested(layout.type("struct kvm_vm_stat"), whole, 0)
    writer = SmallBtf(whole)
    for name in sorted(whole):
        found = layout.type(name)
        if found is not None:
            writer.add(found)
    return writer.data()


def _nested(found: Any, whole: set[str], depth: int) -> None:
    """The named structures that lie in one: statistics are shown whole."""
    import drgn

    while found is not None and found.kind == drgn.TypeKind.TYPEDEF:
        found = found.type
    if found is None or depth > 16 or found.kind not in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
        return
    if found.tag:
        whole.add(f"{'struct' if found.kind == drgn.TypeKind.STRUCT else 'union'} {found.tag}")
    for member in found.members or ():
        _nested(member.type, whole, depth + 1)
