"""What a guest does with its page tables: a stream of steps, built in or read from a file.

A step maps, protects or unmaps pages, touches them, or switches the address space. How the guest flushes after a change
is no part of a stream: that is what the policies of `lab.sync_policies` differ in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.scenario.scenario_text import numbered_lines, open_text, read_object, shown_name

#: Where a stream's pages lie for the guest, and in its memory.
GVA, GPA, PAGE = 0x4000_0000, 0x80_0000, 0x1000
MOST_PAGES = 4096
DOES = ("map", "protect", "unmap", "touch", "space")
KINDS = ("r", "w", "x")


@dataclass(frozen=True)
class Step:
    """One thing that a guest does.

    Attributes:
        does: `map`, `protect`, `unmap`, `touch` or `space`.
        page: first page, by number; of `space` the number of the address space.
        pages: how many.
        frame: of `map`: first frame of the guest's memory, by number.
        flags: of `map` and `protect`: letters `r w u x`.
        kind: of `touch`: `r`, `w` or `x`, from user mode.
    """

    does: str
    page: int
    pages: int = 1
    frame: int = 0
    flags: str = "rwu"
    kind: str = "w"


@dataclass(frozen=True)
class GuestStream:
    """A named stream.

    Attributes:
        name: what it is called.
        about: what guest does that.
        steps: in order.
    """

    name: str
    about: str
    steps: tuple[Step, ...]


def _allocator() -> Iterator[Step]:
    """Rounds of mapping, touching and unmapping."""
    for round_ in range(8):
        yield Step("map", 0, 32, frame=round_ % 2 * 32)
        yield Step("touch", 0, 32)
        yield Step("unmap", 0, 32)


def _copy_on_write() -> Iterator[Step]:
    """Pages are made read-only together, and each write brings one back elsewhere."""
    yield Step("map", 0, 64)
    yield Step("touch", 0, 64)
    for round_ in range(3):
        yield Step("protect", 0, 64, flags="ru")
        for page in range(0, 64, 4):
            yield Step("touch", page, 1, kind="w")
            yield Step("map", page, 1, frame=64 + 64 * (round_ & 1) + page)
            yield Step("touch", page, 1)
            yield Step("touch", page + 1, 1, kind="r")


def _processes() -> Iterator[Step]:
    """Two address spaces in turn, a little changed in each."""
    for space in (0, 1):
        yield Step("space", space)
        yield Step("map", 0, 24, frame=space * 64)
        yield Step("touch", 0, 24)
    for turn in range(12):
        yield Step("space", turn & 1)
        yield Step("protect", turn, 2, flags="ru")
        yield Step("touch", 0, 24, kind="r")
        yield Step("protect", turn, 2, flags="rwu")
        yield Step("touch", turn, 2)


def _sparse() -> Iterator[Step]:
    """One page in each 2 MiB, so that upper tables are written all the time."""
    for round_ in range(3):
        for page in range(0, 16 * 512, 512):
            yield Step("map", page + round_, 1, frame=page // 512)
            yield Step("touch", page + round_, 1)
        for page in range(0, 16 * 512, 512):
            yield Step("unmap", page + round_, 1)


_BUILT_IN: dict[str, tuple[str, Callable[[], Iterator[Step]]]] = {
    "allocator": ("maps, touches and unmaps 32 pages, eight times", _allocator),
    "copy-on-write": ("64 pages made read-only, every fourth written back, three times", _copy_on_write),
    "processes": ("two address spaces in turn, two pages changed in each", _processes),
    "sparse": ("one page in each 2 MiB, mapped and unmapped", _sparse),
}
#: Streams by name.
STREAMS = {name: GuestStream(name, about, tuple(steps())) for name, (about, steps) in _BUILT_IN.items()}


def read_stream(text: str) -> GuestStream:
    """A stream by its name, or from a file with one step a line.

    Args:
        text: a name of `STREAMS`, or the path of a file whose lines are JSON objects: `do`, `page`, `pages`, `frame`,
            `flags`, `kind`.

    Raises:
        UsageError: neither a name nor a readable file, or a line that is no step; the message names the line.
    """
    if text in STREAMS:
        return STREAMS[text]
    if not Path(text).exists():
        raise UsageError(
            f"guest {shown(text)}: expected {', '.join(STREAMS)}, or a file with one step a line"
        )
    steps = []
    with open_text(text) as lines:
        for number, line in numbered_lines(lines, shown_name(text)):
            where = f"{shown_name(text)}:{number}"
            if line.strip():
                steps.append(_step(read_object(line, where), where))
    if not steps:
        raise UsageError(f"{shown_name(text)}: no steps")
    return GuestStream(Path(text).name, "from a file", tuple(steps))


def _step(found: dict[str, object], where: str) -> Step:
    def number(key: str, default: int, low: int, high: int) -> int:
        value = found.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(f"{where}: {key} is {shown(value)}; expected a number from {low} to {high}")
        return value

    def one_of(key: str, default: str, words: tuple[str, ...]) -> str:
        value = found.get(key, default)
        if not isinstance(value, str) or value not in words:
            raise UsageError(f"{where}: {key} is {shown(value)}; expected one of {', '.join(words)}")
        return value

    flags = found.get("flags", "rwu")
    if not isinstance(flags, str) or set(flags) - set("rwux"):
        raise UsageError(f"{where}: flags is {shown(flags)}; expected letters of r, w, u and x")
    unknown = set(found) - {"do", "page", "pages", "frame", "flags", "kind"}
    if unknown:
        raise UsageError(f"{where}: unknown key {shown(min(unknown))}")
    return Step(
        one_of("do", "", DOES),
        number("page", 0, 0, 1 << 18),
        number("pages", 1, 1, MOST_PAGES),
        number("frame", 0, 0, MOST_PAGES),
        flags,
        one_of("kind", "w", KINDS),
    )
