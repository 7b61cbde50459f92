"""The types of BTF as drgn asks for them: a type finder over the images of a kernel.

Types are made when they are asked for, members when they are looked at, so a chain of structures that point at each
other ends. Modules come before vmlinux, which only declares some of their structures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvm_mmu.live import btf
from kvm_mmu.live.btf import Btf, Record


class BtfTypes:
    """Makes drgn types of BTF for one program.

    Args:
        program: the drgn program.
        images: modules first, vmlinux last.
    """

    def __init__(self, program: Any, images: Sequence[Btf]) -> None:
        import drgn

        self._drgn, self._program = drgn, program
        self.images = list(images)
        self._made: dict[tuple[int, int], Any] = {}
        kinds = drgn.TypeKind
        self._kinds = {
            kinds.STRUCT: {btf.STRUCT},
            kinds.UNION: {btf.UNION},
            kinds.ENUM: {btf.ENUM, btf.ENUM64},
            kinds.TYPEDEF: {btf.TYPEDEF},
            kinds.INT: {btf.INT},
            kinds.BOOL: {btf.INT},
            kinds.FLOAT: {btf.FLOAT},
        }

    def add(self, images: Sequence[Btf]) -> None:
        """Look in these first from now on."""
        self.images[:0] = images

    def find(self, _program: Any, kinds: Any, name: str, filename: str | None) -> Any:
        """What drgn calls: the first complete type of that name, or None."""
        if filename:
            return None
        wanted = frozenset(mine for kind in kinds for mine in self._kinds.get(kind, ()))
        for image in self.images:
            for type_id in image.find(name, wanted):
                return self.type(image, type_id)
        return None

    def type(self, image: Btf, type_id: int, depth: int = 0) -> Any:
        """The drgn type of an id."""
        if depth > btf.MAX_DEPTH:
            raise image.damaged(f"type {type_id}: more than {btf.MAX_DEPTH} types in each other, or a circle")
        record = image.resolved(type_id)
        if record is None:
            return self._program.void_type()
        home = image
        while home.base is not None and record.id < home.base.end:
            home = home.base
        key = (id(home), record.id)
        if key not in self._made:
            try:
                self._made[key] = self._make(home, record, depth)
            except (ValueError, TypeError, OverflowError) as error:
                raise image.damaged(f"type {record.id} {record.name!r}: {error}") from None
        return self._made[key]

    def _make(self, image: Btf, record: Record, depth: int) -> Any:
        program, kind = self._program, record.kind
        name = record.name or None
        if kind == btf.INT:
            encoding = image.encoding(record.id)
            if encoding & 4:
                return program.bool_type(record.name, record.size)
            return program.int_type(record.name, record.size, bool(encoding & 1))
        if kind == btf.FLOAT:
            return program.float_type(record.name, record.size)
        if kind == btf.PTR:
            return program.pointer_type(self.type(image, record.size, depth + 1))
        if kind == btf.ARRAY:
            element, count = image.array(record.id)
            return program.array_type(self.type(image, element, depth + 1), count)
        if kind in (btf.STRUCT, btf.UNION):
            make = program.struct_type if kind == btf.STRUCT else program.union_type
            return make(name, record.size, self._members(image, record.id))
        if kind in (btf.ENUM, btf.ENUM64):
            values = image.enumerators(record.id)
            whole = program.int_type(
                "long" if record.size == 8 else "int", record.size, any(value < 0 for _, value in values)
            )
            made = [self._drgn.TypeEnumerator(said, value) for said, value in values]
            return program.enum_type(name, whole, made)
        if kind == btf.FWD:
            make = program.union_type if record.flag else program.struct_type
            return make(name, None, None) if name else program.void_type()
        if kind == btf.TYPEDEF:
            return program.typedef_type(record.name, self.type(image, record.size, depth + 1))
        if kind == btf.FUNC_PROTO:
            # Nobody calls a function of the dump: a pointer to one is enough.
            return program.function_type(program.void_type(), (), False)
        raise image.damaged(f"type {record.id} of kind {kind} where a type of data is expected")

    def _members(self, image: Btf, type_id: int) -> list[Any]:
        made = []
        for member in image.members(type_id):
            made.append(
                self._drgn.TypeMember(
                    self._lazy(image, member.type_id, member.bit_width),
                    member.name or None,
                    member.bit_offset,
                )
            )
        return made

    def _lazy(self, image: Btf, type_id: int, width: int) -> Callable[[], Any]:
        def make() -> Any:
            found = self.type(image, type_id)
            if not width:
                return found
            return self._drgn.Object(self._program, found, bit_field_size=width)

        return make
