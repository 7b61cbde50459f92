"""A small dump in one file: ELF with KVM's own data, the types and symbols it needs in notes, packed with xz.

Owns: the form that `reduce` writes and `open` reads; also reads any ELF core that was packed with xz. The memory is
given to drgn by functions, so that nothing is unpacked to a file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kvm_mmu.errors import LiveError
from kvm_mmu.live.symbols import facts_of

#: The name and types of our notes: types (BTF), symbols (JSON), what wrote it (JSON).
NOTE, NOTE_TYPES, NOTE_SYMBOLS, NOTE_ABOUT = b"KVM_MMU", 1, 2, 3
#: Unpacked at most: reduced dumps have one or two MiB.
MAX_BYTES = 1 << 30
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_PT_LOAD, _PT_NOTE, _ET_CORE, _EM_X86_64 = 1, 4, 4, 62


class Segment(NamedTuple):
    """A run of memory: physical address and bytes."""

    physical: int
    data: bytes


class Core(NamedTuple):
    """What an ELF core holds: memory by physical address, notes by (name, type)."""

    segments: list[Segment]
    notes: dict[tuple[bytes, int], bytes]


def read_core(data: bytes, source: str) -> Core:
    """Take an ELF core apart.

    Raises:
        LiveError: no ELF core of an x86-64 kernel, or a header that leads out of it.
    """
    if len(data) < _HEADER.size or data[:6] != b"\x7fELF\x02\x01":
        raise LiveError(f"{source}: unpacked it is no 64-bit ELF file")
    head = _HEADER.unpack_from(data)
    kind, machine, at, size, count = head[1], head[2], head[5], head[9], head[10]
    if kind != _ET_CORE or machine != _EM_X86_64 or size != _SEGMENT.size:
        raise LiveError(f"{source}: an ELF file of type {kind}, machine {machine}; expected a core of x86-64")
    segments: list[Segment] = []
    notes: dict[tuple[bytes, int], bytes] = {}
    for number in range(count):
        if at + size * (number + 1) > len(data):
            raise LiveError(f"{source}: program header {number} of {count} is cut off")
        kind, _, offset, _, physical, in_file, _, _ = _SEGMENT.unpack_from(data, at + size * number)
        if kind not in (_PT_LOAD, _PT_NOTE):
            continue
        if offset + in_file > len(data):
            raise LiveError(f"{source}: segment {number} ends at {offset + in_file}, the file at {len(data)}")
        piece = data[offset : offset + in_file]
        if kind == _PT_LOAD:
            segments.append(Segment(physical, piece))
        else:
            notes.update(_notes(piece, source))
    return Core(segments, notes)


def _notes(data: bytes, source: str) -> dict[tuple[bytes, int], bytes]:
    found: dict[tuple[bytes, int], bytes] = {}
    at = 0
    while at + _NOTE.size <= len(data):
        name_size, size, kind = _NOTE.unpack_from(data, at)
        at += _NOTE.size
        end = at + (name_size + 3 & ~3)
        if end + size > len(data):
            raise LiveError(f"{source}: a note of {size} bytes is cut off")
        found[data[at : at + name_size].rstrip(b"\0"), kind] = data[end : end + size]
        at = end + (size + 3 & ~3)
    return found


def write_core(segments: Sequence[Segment], notes: Sequence[tuple[bytes, int, bytes]]) -> bytes:
    """Make an ELF core: the other direction."""
    note = b"".join(_one_note(*one) for one in notes)
    count = len(segments) + 1
    at = _HEADER.size + _SEGMENT.size * count
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    made = [
        _HEADER.pack(
            ident, _ET_CORE, _EM_X86_64, 1, 0, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, count, 0, 0, 0
        ),
        _SEGMENT.pack(_PT_NOTE, 4, at, 0, 0, len(note), len(note), 4),
    ]
    offset = at + len(note)
    for segment in segments:
        size = len(segment.data)
        made.append(_SEGMENT.pack(_PT_LOAD, 6, offset, 0, segment.physical, size, size, 1))
        offset += size
    return b"".join([*made, note, *(segment.data for segment in segments)])


def _one_note(name: bytes, kind: int, data: bytes) -> bytes:
    whole = name + b"\0"
    return (
        _NOTE.pack(len(whole), len(data), kind)
        + whole.ljust(len(whole) + 3 & ~3, b"\0")
        + data.ljust(len(data) + 3 & ~3, b"\0")
    )


def open_packed(data: bytes, source: str) -> tuple[Any, tuple[bytes, dict[str, tuple[int, int]]] | None]:
    """Open an unpacked core by functions, and give back the types and symbols that it carries (None: none).

    Raises:
        LiveError: it is no kernel's core.
    """
    core = read_core(data, source)
    program = open_core(core, source)
    types, symbols = core.notes.get((NOTE, NOTE_TYPES)), core.notes.get((NOTE, NOTE_SYMBOLS))
    if types is None or symbols is None:
        return program, None
    return program, (types, facts_of(symbols, f"{source}: its note of symbols"))


def open_core(core: Core, source: str, is_live: bool = False) -> Any:
    """Give a core's memory to drgn as a kernel of its own transport.

    Raises:
        LiveError: it has no VMCOREINFO.
    """
    from kvm_mmu.live.program import new_program

    info = core.notes.get((b"VMCOREINFO", 0))
    if info is None:
        raise LiveError(f"{source}: no VMCOREINFO in it, so no Linux kernel's memory")
    program = new_program()
    program.set_linux_kernel_custom(info.rstrip(b"\0") + b"\n", is_live)
    for segment in core.segments:
        if segment.data:
            program.add_memory_segment(segment.physical, len(segment.data), _reader(segment.data), True)
    return program


def _reader(data: bytes) -> Callable[[int, int, int, bool], bytes]:
    return lambda _address, count, offset, _physical: data[offset : offset + count]


def about(**said: object) -> bytes:
    """The note that says what wrote a dump."""
    return json.dumps(said, sort_keys=True).encode()
