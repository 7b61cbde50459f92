"""Checks of links: what they lead to, and what the children say of them."""

from __future__ import annotations

import numpy as np

from kvm_mmu.live.audit.facts import Seen
from kvm_mmu.live.audit.findings import Check


def link_level(seen: Seen, check: Check) -> None:
    """A link leads to a live table one level below."""
    links, child = seen.links, seen.child
    check.compare(len(links))
    is_known = child >= 0
    check.find_all(
        np.flatnonzero(~is_known),
        lambda at: f"{seen.entry_name(int(links[at]))}: leads to no page of this VM",
    )
    wrong = is_known & (seen.pages.level[child] != seen.level[links] - 1)
    check.find_all(
        np.flatnonzero(wrong),
        lambda at: f"{seen.entry_name(int(links[at]))}: leads to {seen.page_name(int(child[at]))}",
    )
    dead = is_known & ~wrong & seen.is_invalid[child] & ~seen.is_invalid[seen.page[links]]
    check.find_all(
        np.flatnonzero(dead),
        lambda at: (
            f"{seen.entry_name(int(links[at]))}: leads to {seen.page_name(int(child[at]))}, which was zapped"
        ),
    )


def link_child(seen: Seen, check: Check) -> None:
    """A link of a direct page leads to a direct page of its own gfn, and any link to one of its own address space."""
    links, child = seen.links, seen.child
    known = np.flatnonzero(child >= 0)
    links, child = links[known], child[known]
    parent = seen.page[links]
    check.compare(len(links))
    is_direct = seen.is_direct[parent]
    wrong = is_direct & (~seen.is_direct[child] | (seen.pages.gfn[child] != seen.entries.gfn[links]))
    wrong |= seen.pages.space[parent] != seen.pages.space[child]
    check.find_all(
        np.flatnonzero(wrong),
        lambda at: (
            f"{seen.entry_name(int(links[at]))}: is of gfn {int(seen.entries.gfn[links[at]]):#x} and leads to "
            f"{seen.page_name(int(child[at]))}"
        ),
    )


def _parents(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Child row and SPTE address of every parent that shadow pages name."""
    rows = [row for row in seen.c.parents if row < seen.nr_shadow]
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    child = np.repeat(rows, [len(seen.c.parents[row]) for row in rows])
    return child.astype(np.int64), np.concatenate([seen.c.parents[row] for row in rows])


def _shadow_links(seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entry, child row and SPTE address of links that lead to a shadow page."""
    own = (seen.child >= 0) & (seen.child < seen.nr_shadow)
    links = seen.links[own]
    return links, seen.child[own], seen.sptep[links]


def link_parent(seen: Seen, check: Check) -> None:
    """Every link stands once among its child's parents."""
    links, child, sptep = _shadow_links(seen)
    named, at = _parents(seen)
    check.compare(len(links))
    order = np.argsort(at, kind="stable")
    named, at = named[order], at[order]
    first, last = np.searchsorted(at, sptep), np.searchsorted(at, sptep, "right")
    count = last - first
    said = np.where(count > 0, named[np.minimum(first, max(len(named) - 1, 0))] if len(named) else -1, -1)
    check.find_all(
        np.flatnonzero((count != 1) | (said != child)),
        lambda n: (
            f"{seen.entry_name(int(links[n]))}: stands {int(count[n])} times among the parents, expected once, "
            f"at {seen.page_name(int(child[n]))}"
        ),
    )


def parent_link(seen: Seen, check: Check) -> None:
    """Every parent that a page names is a link to the page."""
    _, child, sptep = _shadow_links(seen)
    named, at = _parents(seen)
    check.compare(len(at))
    order = np.argsort(sptep, kind="stable")
    child, sptep = child[order], sptep[order]
    place = np.searchsorted(sptep, at)
    inside = np.minimum(place, max(len(sptep) - 1, 0))
    good = (sptep[inside] == at) & (child[inside] == named) if len(sptep) else np.zeros(len(at), np.bool_)
    check.find_all(
        np.flatnonzero(~good),
        lambda n: (
            f"{seen.page_name(int(named[n]))}: its parent {seen.place_name(int(at[n]))}, is no link to it"
        ),
    )


def unsync_marks(seen: Seen, check: Check) -> None:
    """The count of unsync children is that of the bits, and every parent of such a page has its bit set."""
    pages = seen.pages
    bits = np.unpackbits(pages.bytes_of("unsync_bitmap"), axis=1, bitorder="little")
    count = bits.sum(axis=1).astype(np.int64)
    said = pages.column("unsync_children")
    rows = np.arange(len(pages)) < seen.nr_shadow
    check.compare(int(rows.sum()))
    check.find_all(
        np.flatnonzero(rows & (count != said)),
        lambda row: (
            f"{seen.page_name(row)}: says {int(said[row])} unsync children, {int(count[row])} bits are set"
        ),
    )
    links, child, _ = _shadow_links(seen)
    needs = (pages.column("unsync")[child] != 0) | (said[child] > 0)
    links, child = links[needs], child[needs]
    check.compare(len(links))
    check.find_all(
        np.flatnonzero(bits[seen.page[links], seen.index[links]] == 0),
        lambda n: (
            f"{seen.entry_name(int(links[n]))}: leads to {seen.page_name(int(child[n]))}, which is or has an "
            "unsync page, and has no mark"
        ),
    )
