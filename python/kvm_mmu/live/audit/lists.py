"""Checks of lists and counters: active list, hash, generation, limits, the way back from a table to its page."""

from __future__ import annotations

import numpy as np

from kvm_mmu.live.audit.facts import Seen
from kvm_mmu.live.audit.findings import Check
from kvm_mmu.live.page_store import HASH, ZAPPED, bucket_of

#: A VM may have a page of tables for so many of memory, and never less than so many tables.
PAGES_PER_TABLE, FEWEST = 50, 64


def active_links(seen: Seen, check: Check) -> None:
    """A list reads the same from both ends, and leads back to its head."""
    store = seen.c.store
    check.compare(len(store.where))
    for what, address, said, expected in store.bad_links:
        check.find(f"{what}: the prev of {address:#x} is {said:#x}, {expected:#x} is before it")
    for what in store.broken:
        check.find(f"{what} does not lead back to its head")


def used_pages(seen: Seen, check: Check) -> None:
    """The pages in use are those of the active list and the zapped roots that are still loaded."""
    off = slice(seen.c.nr_active, seen.nr_shadow)
    in_use = int(((seen.pages.column("root_count")[off] > 0) & (seen.c.where[off] & ZAPPED == 0)).sum())
    used = seen.c.counters["used"]
    check.compare(1)
    if used != seen.c.nr_active + in_use:
        check.find(f"{used} in use; {seen.c.nr_active} on the active list and {in_use} zapped roots in use")


def page_limit(seen: Seen, check: Check) -> None:
    """The limit follows the memory where nobody asked for another, and the memory is the sum of the slots."""
    counters = seen.c.counters
    total = sum(slot.npages for _, slot in seen.all_slots)
    if "nr_memslot_pages" in counters:
        check.compare(1)
        if counters["nr_memslot_pages"] != total:
            check.find(f"{counters['nr_memslot_pages']} pages in memslots, their sum is {total}")
    if counters["requested"] or (not total and not counters["max"]):
        return
    check.compare(1)
    limit = max(FEWEST, total // PAGES_PER_TABLE)
    if counters["max"] != limit:
        check.find(f"the limit is {counters['max']}, expected {limit} of {total} pages in memslots")


def hash_bucket(seen: Seen, check: Check) -> None:
    """Every page of the list stands once in the bucket of its gfn, and nothing stands there but zapped roots."""
    pages, c = seen.pages, seen.c
    wanted = bucket_of(pages.gfn)
    root_count = pages.column("root_count")
    check.compare(c.nr_shadow)
    for row in range(c.nr_shadow):
        buckets = c.store.buckets.get(int(pages.addresses[row]), [])
        is_listed, is_zapped = row < c.nr_active, bool(c.where[row] & ZAPPED)
        if buckets != [int(wanted[row])] and (is_listed or buckets):
            said = ", ".join(map(str, buckets)) or "none"
            check.find(f"{seen.page_name(row)}: in bucket {said}, expected {int(wanted[row])}")
        elif not is_listed and not is_zapped and c.where[row] & HASH and root_count[row] <= 0:
            check.find(f"{seen.page_name(row)}: in the hash, not on the active list, and no root in use")
        elif not is_listed and not is_zapped and not seen.is_invalid[row]:
            check.find(f"{seen.page_name(row)}: in the hash and not on the active list, but not zapped")


def hash_unique(seen: Seen, check: Check) -> None:
    """There is one live page of a gfn and role."""
    live = np.flatnonzero(seen.is_active & ~seen.is_invalid)
    check.compare(len(live))
    order = live[np.lexsort((seen.pages.role[live], seen.pages.gfn[live]))]
    same = (seen.pages.gfn[order[1:]] == seen.pages.gfn[order[:-1]]) & (
        seen.pages.role[order[1:]] == seen.pages.role[order[:-1]]
    )
    check.find_all(
        np.flatnonzero(same),
        lambda at: (
            f"{seen.page_name(int(order[at]))} and {seen.page_name(int(order[at + 1]))}: the same gfn and role"
        ),
    )


def valid_gen(seen: Seen, check: Check) -> None:
    """The pages of the list are of the VM's valid generation."""
    if "valid_gen" not in seen.c.counters or not seen.c.facts.has("mmu_page.valid_gen"):
        check.skipped = "this kernel's pages have no valid generation"
        return
    own = seen.c.counters["valid_gen"]
    found = seen.pages.column("valid_gen")
    check.compare(seen.c.nr_active)
    check.find_all(
        np.flatnonzero(seen.is_active & (found != own)),
        lambda row: f"{seen.page_name(row)}: of generation {int(found[row])}, the VM's is {own}",
    )


def page_back_pointer(seen: Seen, check: Check) -> None:
    """`struct page` of every table leads back to its page."""
    back = seen.c.back
    check.compare(len(back))
    check.find_all(
        np.flatnonzero(back != seen.pages.addresses),
        lambda row: f"{seen.page_name(row)}: struct page of its table says {int(back[row]):#x}",
    )
    for physical, said in seen.c.tdp.lost:
        check.find(f"the table at physical {physical:#x}: struct page says {said:#x}, which is not its page")
