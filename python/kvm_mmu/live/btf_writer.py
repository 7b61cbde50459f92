"""Small BTF: only the structures that were asked for, and of what lies in them or behind pointers only the size.

Owns: which types a reduced dump carries. Works on drgn's types, so BTF and debug information give the same.
"""

from __future__ import annotations

import struct
from typing import Any

from kvm_mmu.errors import LiveError
from kvm_mmu.live import btf

_HEADER = struct.Struct("<HBBIIIII")
_RECORD = struct.Struct("<III")


class SmallBtf:
    """Makes BTF of drgn types.

    Args:
        whole: names of the structures that are written with their members.
    """

    def __init__(self, whole: set[str]) -> None:
        self._whole = whole
        self._types = bytearray()
        self._texts = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}
        self._known: dict[tuple[Any, ...], int] = {}
        self._count = 0

    def _text(self, text: str | None) -> int:
        text = text or ""
        if text not in self._offsets:
            self._offsets[text] = len(self._texts)
            self._texts += text.encode() + b"\0"
        return self._offsets[text]

    def _reserve(self, key: tuple[Any, ...] | None) -> int:
        self._count += 1
        if key is not None:
            self._known[key] = self._count
        return self._count

    def add(self, found: Any, depth: int = 0) -> int:
        """Write a type and what it needs; its id (0: void)."""
        import drgn

        if depth > btf.MAX_DEPTH:
            raise LiveError(f"more than {btf.MAX_DEPTH} types in each other")
        kinds = drgn.TypeKind
        kind = found.kind
        while kind == kinds.TYPEDEF:
            found = found.type
            kind = found.kind
        if kind in (kinds.VOID, kinds.FUNCTION):
            return 0
        if kind in (kinds.INT, kinds.BOOL, kinds.ENUM, kinds.FLOAT):
            return self._number(found, kinds)
        if kind == kinds.POINTER:
            return self._one(("pointer",), btf.PTR, "", 0)
        if kind == kinds.ARRAY:
            return self._array(found, depth)
        if kind in (kinds.STRUCT, kinds.UNION):
            return self._structure(found, depth)
        raise LiveError(f"a type of kind {kind.name}: cannot be written")

    def _one(self, key: tuple[Any, ...], kind: int, name: str, size: int, extra: bytes = b"") -> int:
        if key not in self._known:
            self._reserve(key)
            self._types += _RECORD.pack(self._text(name), kind << 24, size) + extra
        return self._known[key]

    def _number(self, found: Any, kinds: Any) -> int:
        size = found.type.size if found.kind == kinds.ENUM and found.type is not None else (found.size or 0)
        is_signed = bool(getattr(found, "is_signed", False))
        encoding = 4 if found.kind == kinds.BOOL else int(is_signed)
        name = f"{'bool' if encoding == 4 else 's' if is_signed else 'u'}{8 * size}"
        return self._one(
            ("int", size, encoding), btf.INT, name, size, struct.pack("<I", encoding << 24 | 8 * size)
        )

    def _array(self, found: Any, depth: int) -> int:
        element = self.add(found.type, depth + 1)
        if element == 0:
            element = self._one(("int", 1, 0), btf.INT, "u8", 1, struct.pack("<I", 8))
        index = self._one(("int", 4, 0), btf.INT, "u32", 4, struct.pack("<I", 32))
        length = found.length or 0
        return self._one(
            ("array", element, length), btf.ARRAY, "", 0, struct.pack("<III", element, index, length)
        )

    def _structure(self, found: Any, depth: int) -> int:
        import drgn

        kind = btf.STRUCT if found.kind == drgn.TypeKind.STRUCT else btf.UNION
        word = "struct" if kind == btf.STRUCT else "union"
        name = found.tag
        if not found.is_complete():
            return 0
        key = (word, name) if name else None
        if key is not None and key in self._known:
            return self._known[key]
        is_whole = name is None or f"{word} {name}" in self._whole
        number = self._reserve(key)
        place = len(self._types)
        members = list(found.members or ()) if is_whole else []
        self._types += bytes(_RECORD.size + 12 * len(members))
        # What lies in it is written behind it, under ids of its own: its place is kept free meanwhile.
        rest, self._types = self._types, bytearray()
        made = b""
        for member in members:
            offset, width = member.bit_offset, member.bit_field_size or 0
            if offset >> 24:
                raise LiveError(f"{word} {name}.{member.name}: lies too far behind the beginning")
            made += struct.pack(
                "<III", self._text(member.name), self.add(member.type, depth + 1), width << 24 | offset
            )
        rest += self._types
        head = _RECORD.pack(self._text(name), 1 << 31 | kind << 24 | len(members), found.size)
        rest[place : place + len(head) + len(made)] = head + made
        self._types = rest
        return number

    def data(self) -> bytes:
        """The bytes."""
        head = _HEADER.pack(
            btf.MAGIC, 1, 0, _HEADER.size, 0, len(self._types), len(self._types), len(self._texts)
        )
        return head + bytes(self._types) + bytes(self._texts)
