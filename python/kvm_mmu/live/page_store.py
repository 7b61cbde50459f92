"""Where the pages of a VM are found: the active list, the hash, the zapped list, the roots and tables of the TDP MMU.

Owns: which page was met where, in which order, and what each link of the lists said. Invariant: a page is read once and
has one row, wherever it was met.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import LiveError
from kvm_mmu.live.chains import MAX_LIST, Faults, chain_nodes, list_nodes
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import Memory

#: Where a page was met, a bit each, under the names that a snapshot has.
ACTIVE, HASH, ZAPPED, TDP_ROOT, TDP, REACHED = 1, 2, 4, 8, 16, 32
WHERE = {
    ACTIVE: "active",
    HASH: "hash",
    ZAPPED: "zapped_obsolete",
    TDP_ROOT: "tdp_root",
    TDP: "tdp",
    REACHED: "reached",
}
BUCKETS, _HASH_SHIFT = 4096, 52
_GOLDEN = 0x61C8864680B583EB


def bucket_of(gfn: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The hash bucket of each gfn."""
    with np.errstate(over="ignore"):
        return (gfn * np.uint64(_GOLDEN) >> np.uint64(_HASH_SHIFT)).astype(np.int64)


@dataclass
class PageStore:
    """The pages met so far: their bytes by address, in the order of the first meeting."""

    memory: Memory
    layout: Layout
    faults: Faults
    raw: dict[int, bytes] = field(default_factory=dict)
    where: dict[int, int] = field(default_factory=dict)
    #: The buckets that a page was met in.
    buckets: dict[int, list[int]] = field(default_factory=dict)
    #: Lists in which a `prev` does not lead back: the list, the page, what its `prev` says, what was before it.
    bad_links: list[tuple[str, int, int, int]] = field(default_factory=list)
    #: Lists that did not lead back to their head.
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._size = self.layout.size("struct kvm_mmu_page")
        self._link = self.layout["mmu_page.link"].offset
        self._hash_link = self.layout["mmu_page.hash_link"].offset

    def add(self, address: int, where: int) -> bool:
        """Note that a page was met; reads it if it was not known. False where it cannot be read."""
        if address not in self.raw:
            try:
                self.raw[address] = self.memory.read(address, self._size, "a shadow page")
            except LiveError as error:
                self.faults.add(error)
                return False
        self.where[address] = self.where.get(address, 0) | where
        return True

    def walk_list(self, head: int, what: str, where: int, link: int | None = None) -> list[int]:
        """Follow a list of pages.

        Args:
            head: address of its head.
            what: its name.
            where: what a page met here is.
            link: where the node lies in a page; None: `link`.

        Returns:
            Addresses of the pages, in order.
        """
        offset = self._link if link is None else link
        before = len(self.faults)
        found: list[int] = []
        last = head
        for node in list_nodes(self.memory, head, what, self.faults, MAX_LIST, (offset, self._size)):
            address = node.address - offset
            self.raw.setdefault(address, node.whole)
            self.where[address] = self.where.get(address, 0) | where
            found.append(address)
            if node.prev != node.before:
                self._bad(what, address, node.prev, node.before)
            last = node.address
        if len(self.faults) != before:
            self.broken.append(what)
        elif found:
            try:
                said = self.memory.number(head + 8, 8, what)
                if said != last:
                    self._bad(what, head, said, last)
            except LiveError as error:
                self.faults.add(error)
        return found

    def _bad(self, what: str, address: int, said: int, expected: int) -> None:
        if len(self.bad_links) < self.faults.LIMIT:
            self.bad_links.append((what, address, said, expected))

    def walk_hash(self, kvm: int, raw: bytes) -> list[int]:
        """Follow every chain of the hash; the pages that were met nowhere before, in the order of buckets."""
        place = self.layout["kvm.hash"]
        if place.is_pointer:
            array = int.from_bytes(raw[place.offset : place.offset + 8], "little")
            if not array:
                return []
            heads = self.memory.words(array, BUCKETS, "the hash of pages")
        else:
            heads = np.frombuffer(raw, "<u8", place.length or BUCKETS, place.offset)
        found: list[int] = []
        for bucket in np.flatnonzero(heads).tolist():
            for node in chain_nodes(
                int(heads[bucket]), self._next_in_hash, f"hash bucket {bucket}", self.faults
            ):
                address = node - self._hash_link
                if address not in self.raw:
                    found.append(address)
                if self.add(address, HASH):
                    self.buckets.setdefault(address, []).append(bucket)
        return [address for address in found if address in self.raw]

    def _next_in_hash(self, node: int) -> int:
        raw = self.raw.get(node - self._hash_link)
        if raw is None:
            return 0  # it could not be read, which was said
        return int.from_bytes(raw[self._hash_link : self._hash_link + 8], "little")
