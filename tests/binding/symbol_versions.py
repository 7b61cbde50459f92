"""Which versions of which libraries a shared object asks for, read from its version needs (ELF64, little endian).

The loader compares exactly these names: an object that needs GLIBC_2.34 does not load on a host with 2.28,
whatever the name of its wheel says. Read here, and not by readelf, so that nothing has to be installed.
"""

from __future__ import annotations

import struct

# Section types of the ELF specification; GNU's extension for version needs.
SHT_GNU_VERNEED = 0x6FFFFFFE
SHT_SYMTAB = 2


class NotElf(Exception):
    """The bytes are no ELF64 object in little endian."""


def sections(image: bytes) -> list[tuple[int, int, int, int, int]]:
    """Type, offset, size, link and info of every section."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise NotElf("no ELF64 object in little endian")
    (table,) = struct.unpack_from("<Q", image, 0x28)
    size, count = struct.unpack_from("<HH", image, 0x3A)
    found = []
    for number in range(count):
        _, kind, _, _, offset, length, link, info, _, _ = struct.unpack_from(
            "<IIQQQQIIQQ", image, table + number * size
        )
        found.append((kind, offset, length, link, info))
    return found


def text(image: bytes, at: int) -> str:
    return image[at : image.index(b"\0", at)].decode("ascii")


def needed(image: bytes) -> dict[str, set[str]]:
    """Library name to the versions asked of it: `{"libc.so.6": {"GLIBC_2.28", ...}}`."""
    every = sections(image)
    found: dict[str, set[str]] = {}
    for kind, offset, _, link, count in every:
        if kind != SHT_GNU_VERNEED:
            continue
        names = every[link][1]
        at = offset
        for _ in range(count):
            _, entries, library, first, following = struct.unpack_from("<HHIII", image, at)
            versions = found.setdefault(text(image, names + library), set())
            entry = at + first
            for _ in range(entries):
                _, _, _, name, step = struct.unpack_from("<IHHII", image, entry)
                versions.add(text(image, names + name))
                entry += step
            at += following
    return found


def oldest_glibc(image: bytes) -> tuple[int, int]:
    """The oldest C library of GNU that has every symbol version asked for; (0, 0) where none is asked for."""
    asked = {version for versions in needed(image).values() for version in versions}
    numbers = [
        tuple(map(int, version.removeprefix("GLIBC_").split("."))) for version in asked if "GLIBC_" in version
    ]
    return max(((number[0], number[1]) for number in numbers), default=(0, 0))


def is_stripped(image: bytes) -> bool:
    """True if the table of static symbols is gone, and with it the debug information."""
    return all(kind != SHT_SYMTAB for kind, *_ in sections(image))
