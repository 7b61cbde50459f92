"""The tables of the TDP MMU: its roots, the list or counter of its tables, and what is reached below the roots.

Owns: the way from an entry to its table (`struct page`, field `private`), and the order of tables. Invariant: a table
is read once, whatever leads to it, so links in a circle end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import LiveError
from kvm_mmu.live.kernel_facts import KernelFacts
from kvm_mmu.live.memory import Memory
from kvm_mmu.live.page_store import REACHED, TDP, TDP_ROOT, PageStore
from kvm_mmu.live.pages import Entries, Pages, Words, read_entries

I64 = npt.NDArray[np.int64]
#: Tables of a VM at most.
MAX_TABLES = 1 << 24


@dataclass
class TdpTables:
    """What the TDP MMU has: addresses of its pages in order (roots first), and what its list or counter says.

    Args:
        order: addresses of the pages.
        roots: how many of these are roots.
        counted: what the counter says; None where there is a list.
        lost: links whose table has no page: physical address, what `struct page` says.
    """

    order: list[int] = field(default_factory=list)
    roots: int = 0
    counted: int | None = None
    lost: list[tuple[int, int]] = field(default_factory=list)


class BackPointers:
    """From the physical address of a table to its `struct kvm_mmu_page`."""

    def __init__(self, memory: Memory, facts: KernelFacts, private: int) -> None:
        self._memory, self._facts, self._private = memory, facts, private

    def of(self, physical: int) -> int:
        """What the field `private` of the page's `struct page` says."""
        at = self._facts.vmemmap + (physical >> 12) * self._facts.page_size + self._private
        return self._memory.number(at, 8, "a struct page")


def read_tdp(
    store: PageStore,
    facts: KernelFacts,
    words: Words,
    back: BackPointers,
    kvm: int,
    raw: bytes,
    tick: Callable[[int], None],
) -> TdpTables:
    """Find the roots and every table below them.

    Args:
        store: takes the pages.
        facts: of the kernel.
        words: what entries say.
        back: the way to a table's page.
        kvm: address of the VM.
        raw: its bytes.
        tick: told how many tables were found.

    Returns:
        The tables in order.
    """
    layout = store.layout
    found = TdpTables()
    place = layout.find("kvm.tdp_roots")
    if place is None:
        return found
    roots = store.walk_list(kvm + place.offset, "the list of TDP roots", TDP_ROOT)
    listed: list[int] = []
    pages = layout.find("kvm.tdp_pages")
    if pages is not None and roots:
        if pages.size >= 16:
            listed = store.walk_list(kvm + pages.offset, "the list of TDP tables", TDP)
        else:
            found.counted = int.from_bytes(
                raw[pages.offset : pages.offset + pages.size], "little", signed=True
            )
    order = list(dict.fromkeys(roots + listed))
    found.roots = len(set(roots))
    links = _follow(store, words, back, order, found, tick)
    below = _depth_first(order[: found.roots], links)
    known = set(order)
    for address in below:
        store.where[address] |= REACHED
    # A list says the order itself; where there is only a counter the way down from the roots does.
    found.order = order + [address for address in below if address not in known]
    return found


def _follow(
    store: PageStore,
    words: Words,
    back: BackPointers,
    first: list[int],
    found: TdpTables,
    tick: Callable[[int], None],
) -> dict[int, list[int]]:
    """Read the tables wave by wave; the children of each page by address, in the order of its entries."""
    links: dict[int, list[int]] = {}
    by_table: dict[int, int] = {}
    wave = list(first)
    spt = store.layout["mmu_page.spt"].offset
    while wave:
        pages = Pages(store.layout, wave, [store.raw[address] for address in wave], store.memory.direct_map)
        for address, table in zip(wave, pages.table.tolist(), strict=True):
            by_table.setdefault(table, address)
            links.setdefault(address, [])
        raw, owner = _raw_links(store.memory, pages, words, store)
        wave = []
        for row, physical in zip(owner.tolist(), raw.tolist(), strict=True):
            child = by_table.get(physical)
            if child is None:
                try:
                    child = back.of(physical)
                    is_known = child in store.raw
                    if not store.memory.direct_map <= child < store.memory.direct_map_end:
                        raise LiveError(
                            f"struct page of the table at physical {physical:#x} says page {child:#x}"
                        )
                    if not store.add(child, 0) or (
                        int.from_bytes(store.raw[child][spt : spt + 8], "little")
                        != physical + store.memory.direct_map
                    ):
                        if not is_known:
                            store.raw.pop(child, None)
                            store.where.pop(child, None)
                        raise LiveError(f"page {child:#x} is not that of the table at physical {physical:#x}")
                except LiveError as error:
                    store.faults.add(error)
                    found.lost.append((physical, child or 0))
                    continue
                by_table[physical] = child
                if len(by_table) > MAX_TABLES:
                    store.faults.add(f"more than {MAX_TABLES:,} tables of the TDP MMU")
                    return links
                wave.append(child)
            links[int(pages.addresses[row])].append(child)
        tick(len(by_table))
    return links


def _raw_links(
    memory: Memory, pages: Pages, words: Words, store: PageStore
) -> tuple[npt.NDArray[np.uint64], I64]:
    entries: Entries = read_entries(memory, pages, words, None, store.faults)
    is_link = words.is_link(entries.raw, pages.level[entries.page])
    return words.address(entries.raw[is_link]), entries.page[is_link].astype(np.int64)


def _depth_first(roots: list[int], links: dict[int, list[int]]) -> list[int]:
    """Tables below the roots, each once, a table before what is below it."""
    seen = set(roots)
    found: list[int] = []
    for root in roots:
        todo = list(reversed(links.get(root, ())))
        while todo:
            address = todo.pop()
            if address in seen:
                continue
            seen.add(address)
            found.append(address)
            todo.extend(reversed(links.get(address, ())))
    return found
