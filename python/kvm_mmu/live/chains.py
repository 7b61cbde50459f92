"""Following a kernel's lists and chains: each with a limit, and an end where a link leads back.

A link that was torn while it was read, or by a crash, may lead anywhere. A chain then ends with a sentence in place of
the rest: what was read is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvm_mmu.errors import LiveError
from kvm_mmu.live.memory import Memory

#: More than any kernel has: pages of a VM, hash chains, descriptors, slots, VMs, modules.
MAX_LIST = 1 << 23
MAX_CHAIN = 1 << 16


class Faults(list[str]):
    """What could not be read, in words: one sentence each, and at most some hundred."""

    LIMIT = 200

    def add(self, what: object) -> None:
        """Keep a sentence; those behind the limit are counted in the last one."""
        if len(self) < self.LIMIT:
            self.append(str(what))
        elif len(self) == self.LIMIT:
            self.append("and more that could not be read")


class Node(NamedTuple):
    """A node of a list: its address, its `prev`, the address before it on the way, the bytes of what holds it."""

    address: int
    prev: int
    before: int
    whole: bytes


def list_nodes(
    memory: Memory,
    head: int,
    what: str,
    faults: Faults,
    limit: int = MAX_LIST,
    whole: tuple[int, int] = (0, 16),
) -> Iterator[Node]:
    """The nodes of a circular list (`list_head`), in order.

    Args:
        memory: where it lies.
        head: address of the head.
        what: its name in errors.
        faults: takes a sentence where the list breaks.
        limit: nodes at most.
        whole: where the node lies in what holds it, and the size of that, read with it.

    Yields:
        Each node.
    """
    offset, size = whole
    try:
        address = memory.number(head, 8, what)
        before, count, marker, power = head, 0, 0, 1
        while address != head:
            if address == 0:
                if before != head:
                    faults.add(f"{what}: a link behind {before:#x} is 0, expected a way back to the head")
                return
            if address == marker:
                faults.add(f"{what}: the link to {address:#x} was seen before: a circle without the head")
                return
            if count >= limit:
                faults.add(f"{what}: more than {limit:,} links")
                return
            if count == power:  # the marker moves on: a circle is seen after at most three times its length
                marker, power = address, power * 2
            raw = memory.read(address - offset, size, what)
            following = int.from_bytes(raw[offset : offset + 8], "little")
            yield Node(address, int.from_bytes(raw[offset + 8 : offset + 16], "little"), before, raw)
            before, address, count = address, following, count + 1
    except LiveError as error:
        faults.add(error)


def chain_nodes(
    first: int, following: Callable[[int], int], what: str, faults: Faults, limit: int = MAX_CHAIN
) -> Iterator[int]:
    """The nodes of a chain that ends with 0.

    Args:
        first: address of the first node, or 0.
        following: reads the address behind one.
        what: its name in errors.
        faults: takes a sentence where the chain breaks.
        limit: nodes at most.

    Yields:
        Addresses.
    """
    seen: set[int] = set()
    address = first
    try:
        while address:
            if address in seen:
                faults.add(f"{what}: the link to {address:#x} was seen before: a circle")
                return
            if len(seen) >= limit:
                faults.add(f"{what}: more than {limit:,} links")
                return
            seen.add(address)
            yield address
            address = following(address)
    except LiveError as error:
        faults.add(error)
