"""Offsets and sizes of one kernel, asked of its own types by name.

Owns: the answers. Invariant: a name that is needed and missing is an error that names it, and what was looked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvm_mmu.errors import LiveError
from kvm_mmu.live.btf import MAX_DEPTH
from kvm_mmu.live.names import NAMES


class Field(NamedTuple):
    """Where a thing lies in its structure: offset and size in bytes; elements (`length`) if it is an array (else 0).

    `name` is the kernel's own; `is_pointer` says that it is one.
    """

    offset: int
    size: int
    length: int
    name: str
    is_pointer: bool
    is_signed: bool


class Layout:
    """The layout of the structures of one program.

    Args:
        program: the drgn program, with types.
    """

    def __init__(self, program: Any) -> None:
        self._program = program
        self._fields: dict[str, Field | None] = {}
        self._types: dict[str, Any] = {}
        #: Structures that were asked for, as a reduced dump needs them.
        self.asked: set[str] = set()
        #: Structures that lie in those, and that a name leads through.
        self.passed: set[str] = set()

    def type(self, name: str) -> Any:
        """The drgn type of a structure (`struct kvm`), or None where the kernel has none that is complete."""
        if name not in self._types:
            self.asked.add(name)
            try:
                found = self._program.type(name)
                self._types[name] = found if found.is_complete() else None
            except LookupError:
                self._types[name] = None
            except (ValueError, OverflowError, TypeError) as error:
                raise LiveError(f"type {name}: damaged: {error}") from None
        return self._types[name]

    def size(self, name: str) -> int:
        """The size of a structure in bytes.

        Raises:
            LiveError: there is no such type.
        """
        found = self.type(name)
        if found is None:
            raise LiveError(f"this kernel has no type {name}: cannot read its VMs")
        size = int(found.size)
        if not 0 < size <= 1 << 24:
            raise LiveError(f"type {name}: {size} bytes, expected 1 to 16 MiB")
        return size

    def find(self, key: str) -> Field | None:
        """The place of a thing by its name here (`page.gfn`); None where this kernel has it not."""
        if key not in self._fields:
            row = NAMES[key]
            whole = self.type(row.structure)
            found = None
            try:
                if whole is not None:
                    found = next(
                        (f for path in row.paths if (f := self._member(whole, path)) is not None), None
                    )
            except (ValueError, OverflowError, TypeError) as error:
                raise LiveError(f"type {row.structure}: damaged: {error}") from None
            if found is not None and whole is not None and found.offset + found.size > int(whole.size):
                raise LiveError(
                    f"{row.structure}.{found.name}: ends {found.offset + found.size} bytes into {whole.size}"
                )
            self._fields[key] = found
        return self._fields[key]

    def __getitem__(self, key: str) -> Field:
        found = self.find(key)
        if found is None:
            row = NAMES[key]
            said = " or ".join(row.paths)
            raise LiveError(f"this kernel's {row.structure} has no {said}: its layout is not known here")
        return found

    def has(self, key: str) -> bool:
        """Whether this kernel has a thing."""
        return self.find(key) is not None

    def missing(self) -> list[str]:
        """Every needed name that is missing, `struct kvm.vm_list`."""
        return [
            f"{row.structure}.{' or '.join(row.paths)}"
            for key, row in NAMES.items()
            if row.is_needed and self.find(key) is None
        ]

    def bits(self, name: str) -> dict[str, tuple[int, int]]:
        """The bit fields of a structure, and of anonymous ones in it: name to lowest bit and width."""
        found: dict[str, tuple[int, int]] = {}
        self._bits(self.type(name), 0, found, 0)
        return found

    def _bits(self, whole: Any, first: int, found: dict[str, tuple[int, int]], depth: int) -> None:
        if whole is None or depth > MAX_DEPTH:
            return
        for member in whole.members or ():
            if member.bit_field_size:
                found[member.name] = (first + member.bit_offset, member.bit_field_size)
            elif member.name is None:
                self._bits(_plain(member.type), first + member.bit_offset, found, depth + 1)

    def _member(self, whole: Any, path: str) -> Field | None:
        import drgn

        bits = 0
        found = whole
        for name in path.split("."):
            found = _plain(found)
            if found.kind not in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
                return None
            if found.tag:
                self.passed.add(f"{'struct' if found.kind == drgn.TypeKind.STRUCT else 'union'} {found.tag}")
            try:
                member = found.member(name)
            except (LookupError, TypeError):
                return None
            bits += member.bit_offset
            found = member.type
        found = _plain(found)
        count = 0
        element = found
        for _ in range(MAX_DEPTH):
            if element.kind != drgn.TypeKind.ARRAY:
                break
            count = (count or 1) * (element.length or 0)
            element = _plain(element.type)
        try:
            size = drgn.sizeof(found)
        except TypeError:
            size = 0
        is_signed = bool(getattr(element, "is_signed", False)) if element.kind == drgn.TypeKind.INT else False
        return Field(bits // 8, size, count, path, element.kind == drgn.TypeKind.POINTER, is_signed)


def _plain(found: Any) -> Any:
    import drgn

    for _ in range(MAX_DEPTH):
        if found.kind != drgn.TypeKind.TYPEDEF:
            return found
        found = found.type
    raise LiveError(f"more than {MAX_DEPTH} typedefs behind each other")
