"""BTF: the types that a kernel carries in its own memory, read from bytes. Knows no drgn and no KVM.

Owns: the format (header, type records, strings), vmlinux's and the split form of modules. Invariant: no bytes make it
do anything but give a type or raise `LiveError`; no chain of types is followed without a limit.
Source: the format's public description, the kernel documentation's page on BTF.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from kvm_mmu.errors import LiveError

MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
#: What a chain of modifiers, typedefs or arrays may have at most; real ones have less than ten.
MAX_DEPTH = 64

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)
#: Words that follow a record, and words for each of its members.
_EXTRA = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_PER_MEMBER = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
_LAST_KIND = ENUM64
#: Those that a name is looked for.
_NAMED = frozenset({INT, STRUCT, UNION, ENUM, TYPEDEF, FLOAT, ENUM64})
_SKIPPED = frozenset({VOLATILE, CONST, RESTRICT, TYPE_TAG})


class Member(NamedTuple):
    """A member of a struct or union: name ("" anonymous), id of its type, offset in bits, width of a bit field or 0."""

    name: str
    type_id: int
    bit_offset: int
    bit_width: int


class Record(NamedTuple):
    """One type: id, kind, name, `size` (of a struct, union, int, enum) or the id it refers to, the kind flag."""

    id: int
    kind: int
    name: str
    size: int
    flag: bool


class Btf:
    """The types of one image.

    Args:
        data: the bytes.
        name: what the bytes are called in errors.
        base: the types that these continue (vmlinux, for a module).

    Raises:
        LiveError: the bytes are no BTF, or damaged.
    """

    def __init__(self, data: bytes, name: str = "BTF", base: Btf | None = None) -> None:
        self.name, self.base = name, base
        if len(data) < _HEADER.size:
            raise self.damaged(f"{len(data)} bytes, expected a header of {_HEADER.size}")
        magic, version, _, header, type_at, type_size, text_at, text_size = _HEADER.unpack_from(data)
        if magic != MAGIC or version != 1:
            raise self.damaged(f"begins with {magic:#x} version {version}, expected {MAGIC:#x} version 1")
        types, texts = header + type_at, header + text_at
        if header < _HEADER.size or types % 4 or type_size % 4:
            raise self.damaged(f"a header of {header} bytes with types at {types}, {type_size} bytes long")
        if max(types + type_size, texts + text_size) > len(data):
            raise self.damaged(
                f"types end at {types + type_size} and strings at {texts + text_size}, the data at {len(data)}"
            )
        self._strings = bytes(data[texts : texts + text_size])
        words = array("I")
        words.frombytes(data[types : types + type_size])
        if sys.byteorder == "big":
            words.byteswap()
        self._words = words
        self._first = base.end if base is not None else 1
        self._first_text = base.text_end if base is not None else 0
        self._at = array("I")
        self._by_name: dict[int, list[int]] = {}
        self._index()

    def damaged(self, what: str) -> LiveError:
        """The error about these bytes."""
        return LiveError(f"{self.name}: damaged BTF: {what}")

    def _index(self) -> None:
        words, at, by_name = self._words, self._at, self._by_name
        place, end, number = 0, len(words), self._first
        while place < end:
            if place + 3 > end:
                raise self.damaged(f"type {number} is cut off")
            info = words[place + 1]
            kind = info >> 24 & 31
            if not 1 <= kind <= _LAST_KIND:
                raise self.damaged(f"type {number} is of kind {kind}, expected 1 to {_LAST_KIND}")
            if kind in _NAMED and words[place]:
                by_name.setdefault(words[place], []).append(number)
            at.append(place)
            place += 3 + _EXTRA.get(kind, 0)
            if kind in _PER_MEMBER:
                place += _PER_MEMBER[kind] * (info & 0xFFFF)
            number += 1
        if place != end:
            raise self.damaged(f"type {number - 1} ends {4 * (place - end)} bytes behind the types")

    @property
    def end(self) -> int:
        """The id behind the last one."""
        return self._first + len(self._at)

    @property
    def text_end(self) -> int:
        """The offset behind the last string."""
        return self._first_text + len(self._strings)

    def text(self, offset: int) -> str:
        """The string at an offset."""
        if offset < self._first_text and self.base is not None:
            return self.base.text(offset)
        start = offset - self._first_text
        end = self._strings.find(b"\0", start) if 0 <= start < len(self._strings) else -1
        if end < 0:
            raise self.damaged(f"string {offset} of {self.text_end}")
        return self._strings[start:end].decode("utf-8", "replace")

    def _place(self, type_id: int) -> tuple[Btf, int]:
        if self.base is not None and 0 < type_id < self._first:
            return self.base._place(type_id)
        if not self._first <= type_id < self.end:
            raise self.damaged(f"type {type_id} of {self.end - 1}")
        return self, self._at[type_id - self._first]

    def record(self, type_id: int) -> Record:
        """The type with an id (not 0, which is void)."""
        home, place = self._place(type_id)
        name, info, size = home._words[place : place + 3]
        return Record(type_id, info >> 24 & 31, home.text(name), size, bool(info >> 31))

    def resolved(self, type_id: int) -> Record | None:
        """The type behind const, volatile, restrict and type tags; None for void."""
        for _ in range(MAX_DEPTH):
            if type_id == 0:
                return None
            found = self.record(type_id)
            if found.kind not in _SKIPPED:
                return found
            type_id = found.size
        raise self.damaged(f"type {type_id}: more than {MAX_DEPTH} modifiers, or a circle of them")

    def members(self, type_id: int) -> list[Member]:
        """The members of a struct or union."""
        home, place = self._place(type_id)
        words = home._words
        info = words[place + 1]
        has_widths = info >> 31
        found = []
        for at in range(place + 3, place + 3 + 3 * (info & 0xFFFF), 3):
            offset = words[at + 2]
            found.append(
                Member(
                    home.text(words[at]),
                    words[at + 1],
                    offset & 0xFFFFFF if has_widths else offset,
                    offset >> 24 if has_widths else 0,
                )
            )
        return found

    def enumerators(self, type_id: int) -> list[tuple[str, int]]:
        """Names and values of an enum."""
        home, place = self._place(type_id)
        words = home._words
        info = words[place + 1]
        is_wide, is_signed = info >> 24 & 31 == ENUM64, info >> 31
        step, bits = (3, 64) if is_wide else (2, 32)
        found = []
        for at in range(place + 3, place + 3 + step * (info & 0xFFFF), step):
            value = words[at + 1] | (words[at + 2] << 32 if is_wide else 0)
            found.append(
                (home.text(words[at]), value - (1 << bits) if is_signed and value >> bits - 1 else value)
            )
        return found

    def array(self, type_id: int) -> tuple[int, int]:
        """The id of an array's elements, and how many it has."""
        home, place = self._place(type_id)
        return home._words[place + 3], home._words[place + 5]

    def parameters(self, type_id: int) -> list[tuple[str, int]]:
        """Names and type ids of a function's parameters; id 0 at the end: variadic."""
        home, place = self._place(type_id)
        words = home._words
        count = words[place + 1] & 0xFFFF
        return [(home.text(words[at]), words[at + 1]) for at in range(place + 3, place + 3 + 2 * count, 2)]

    def encoding(self, type_id: int) -> int:
        """How an int is meant: 1 signed, 2 char, 4 bool."""
        home, place = self._place(type_id)
        return home._words[place + 3] >> 24 & 15

    def find(self, name: str, kinds: frozenset[int]) -> Iterator[int]:
        """The ids of the types of a name and one of some kinds; of this image only, not of its base."""
        wanted = name.encode() + b"\0"
        images = (self,) if self.base is None else (self, self.base)
        for image in images:
            start = image._strings.find(wanted)
            while start >= 0:
                for type_id in self._by_name.get(image._first_text + start, ()):
                    if self.record(type_id).kind in kinds:
                        yield type_id
                start = image._strings.find(wanted, start + 1)
