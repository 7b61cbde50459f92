"""Checks of leaves: reverse maps, statistics, bits, and where a writable one may not be."""

from __future__ import annotations

import numpy as np

from kvm_mmu.live.audit.facts import WRITABLE, Seen
from kvm_mmu.live.audit.findings import Check
from kvm_mmu.live.slots import LOG_DIRTY
from kvm_mmu.words.bits import own_bits

#: Bits of a present entry that the processor knows, EPT's and the others': R/W/X or P/W/U, cache attributes, PS, G.
_LOW_BITS = 0xFFF
_NO_RMAPS = "reverse maps were not read"


def _rmaps(seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every reverse-map entry: SPTE address, address space, level, gfn of its head."""
    columns: list[tuple[np.ndarray, ...]] = [
        (np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64))
    ]
    for space, slot in seen.all_slots:
        for level, heads in slot.rmap.items():
            shift = 9 * (level - 1)
            gfn = (heads.head.astype(np.uint64) + np.uint64(slot.base >> shift)) << np.uint64(shift)
            columns.append((heads.sptep, np.full(len(gfn), space), np.full(len(gfn), level), gfn))
    sptep, space_of, level_of, gfn_of = (np.concatenate(column) for column in zip(*columns, strict=True))
    return sptep, space_of, level_of, gfn_of


def leaf_rmap(seen: Seen, check: Check) -> None:
    """Every leaf of a shadow page stands once in the reverse map of its gfn and level."""
    if not seen.c.with_rmaps:
        check.skipped = _NO_RMAPS
        return
    leaves = np.flatnonzero(seen.is_leaf & (seen.page < seen.nr_shadow))
    sptep, _, _, _ = _rmaps(seen)
    sptep = np.sort(sptep)
    at = seen.sptep[leaves]
    count = np.searchsorted(sptep, at, "right") - np.searchsorted(sptep, at)
    check.compare(len(leaves))
    check.find_all(
        np.flatnonzero(count != 1),
        lambda n: (
            f"{seen.entry_name(int(leaves[n]))}: stands {int(count[n])} times in reverse maps, expected once"
        ),
    )


def rmap_leaf(seen: Seen, check: Check) -> None:
    """Every entry of a reverse map is a leaf of that gfn, level and address space."""
    if not seen.c.with_rmaps:
        check.skipped = _NO_RMAPS
        return
    leaves = np.flatnonzero(seen.is_leaf & (seen.page < seen.nr_shadow))
    sptep, space, level, gfn = _rmaps(seen)
    order = np.argsort(seen.sptep[leaves], kind="stable")
    leaves = leaves[order]
    at = seen.sptep[leaves]
    check.compare(len(sptep))
    if not len(sptep):
        return
    place = np.minimum(np.searchsorted(at, sptep), max(len(at) - 1, 0))
    is_leaf = at[place] == sptep if len(at) else np.zeros(len(sptep), np.bool_)
    own = leaves[place] if len(at) else np.zeros(len(sptep), np.int64)
    good = is_leaf.copy()
    if len(at):
        step = (np.uint64(1) << (level - 1).astype(np.uint64) * np.uint64(9)) - np.uint64(1)
        good &= (
            (seen.level[own] == level) & (seen.space[own] == space) & (seen.entries.gfn[own] & ~step == gfn)
        )

    def say(n: int) -> str:
        where = f"reverse map of gfn {int(gfn[n]):#x}, level {int(level[n])}, address space {int(space[n])}"
        if not is_leaf[n]:
            return f"{where}: {seen.place_name(int(sptep[n]))}, is no leaf"
        return f"{where}: {seen.entry_name(int(own[n]))} is of gfn {int(seen.entries.gfn[own[n]]):#x}"

    check.find_all(np.flatnonzero(~good), say)


def page_stats(seen: Seen, check: Check) -> None:
    """The VM's statistics of mapped pages are the leaves by level."""
    stats = seen.c.stats
    level = seen.level[seen.is_leaf]
    if isinstance(stats.get("pages"), list):
        for number, value in enumerate(stats["pages"], 1):
            said = value.get("counter") if isinstance(value, dict) else value
            check.compare(1)
            count = int((level == number).sum())
            if said != count:
                check.find(f"statistics say {said} leaves of level {number}, there are {count}")
    elif isinstance(stats.get("lpages"), int):
        check.compare(1)
        count = int((level > 1).sum())
        if stats["lpages"] != count:
            check.find(f"statistics say {stats['lpages']} large leaves, there are {count}")
    else:
        check.skipped = "this kernel does not count mapped pages"


def spte_writable(seen: Seen, check: Check) -> None:
    """A writable leaf is one where host and MMU let the guest write."""
    facts = seen.c.facts
    leaves = np.flatnonzero(seen.is_leaf & (seen.entries.raw & WRITABLE != 0))
    both = np.uint64(facts.host_writable | facts.mmu_writable)
    check.compare(len(leaves))
    check.find_all(
        np.flatnonzero(seen.entries.raw[leaves] & both != both),
        lambda n: (
            f"{seen.entry_name(int(leaves[n]))}: is writable, without the bits of host and MMU that allow it"
        ),
    )


def spte_bits(seen: Seen, check: Check) -> None:
    """An entry is a leaf, a link or an MMIO SPTE; its address fits the host, and no bit of it is unknown."""
    facts, raw = seen.c.facts, seen.entries.raw
    own = own_bits(facts.row.profile, facts.is_ept)
    known = _LOW_BITS | facts.address_mask | 7 << own.saved | (1 << own.kind_width) - 1 << own.kind
    for name in ("nx", "x", "user", "accessed", "dirty", "present", "memtype", "me_value", "me"):
        known |= facts.masks.get(name, 0)
    known |= facts.host_writable | facts.mmu_writable
    if facts.present_bit is not None and own.empty:
        known |= own.empty
    present = np.flatnonzero(seen.is_leaf | seen.is_link)
    check.compare(len(raw))
    check.find_all(
        np.flatnonzero(raw[present] & ~np.uint64(known) != 0),
        lambda n: (
            f"{seen.entry_name(int(present[n]))}: has bits {int(raw[present[n]]) & ~known:#x} that are unknown"
        ),
    )
    width = np.uint64(facts.phys_bits)
    check.find_all(
        np.flatnonzero(seen.words.address(raw[present]) >> width != 0),
        lambda n: f"{seen.entry_name(int(present[n]))}: its address has more than {facts.phys_bits} bits",
    )
    other = np.flatnonzero(~(seen.is_leaf | seen.is_link | seen.is_mmio))
    frozen = seen.words.is_frozen(raw[other])
    check.find_all(other[~frozen], lambda at: f"{seen.entry_name(at)}: is neither present nor an MMIO SPTE")
    check.find_all(
        other[frozen], lambda at: f"{seen.entry_name(at)}: is frozen, and nothing is being taken down"
    )


def write_protected_tables(seen: Seen, check: Check) -> None:
    """No leaf lets the guest write to a table that is shadowed and in sync, in the same address space."""
    pages = seen.pages
    shadowed = np.flatnonzero(seen.is_active & ~seen.is_direct & (pages.column("unsync") == 0))
    leaves = np.flatnonzero(seen.is_leaf & (seen.entries.raw & WRITABLE != 0))
    check.compare(len(shadowed))
    if not len(shadowed) or not len(leaves):
        return
    for space in range(len(seen.c.spaces)):
        tables = np.unique(pages.gfn[shadowed[pages.space[shadowed] == space]])
        own = leaves[seen.space[leaves] == space]
        size = np.uint64(1) << ((seen.level[own] - 1) * 9).astype(np.uint64)
        first = seen.entries.gfn[own] & ~(size - np.uint64(1))
        inside = np.searchsorted(tables, first + size) - np.searchsorted(tables, first)
        check.find_all(
            np.flatnonzero(inside > 0),
            lambda n, own=own, tables=tables, first=first: (
                f"{seen.entry_name(int(own[n]))}: is writable and maps gfn "
                f"{int(tables[np.searchsorted(tables, first[n])]):#x}, a table that is shadowed and in sync"
            ),
        )


def dirty_log(seen: Seen, check: Check) -> None:
    """In a slot with a dirty log a writable leaf is of 4 KiB and its page is marked dirty."""
    if seen.c.facts.family == "ept_ad":
        check.skipped = "with EPT's dirty bits the processor may keep the log (PML)"
        return
    leaves = np.flatnonzero(seen.is_leaf & (seen.entries.raw & WRITABLE != 0))
    slot_of = seen.slot_of(seen.space[leaves], seen.entries.gfn[leaves])
    starts_set = bool(seen.c.counters.get("manual_dirty_log", 0) & 2)
    for number, (_, slot) in enumerate(seen.all_slots):
        if not slot.flags & LOG_DIRTY or slot.dirty is None:
            continue
        own = leaves[slot_of == number]
        dirty = np.concatenate(([0], np.cumsum(slot.is_dirty)))
        size = np.int64(1) << (seen.level[own] - 1) * 9
        offset = (seen.entries.gfn[own].astype(np.int64) & ~(size - 1)) - slot.base
        first, last = np.clip(offset, 0, slot.npages), np.clip(offset + size, 0, slot.npages)
        is_marked = dirty[last] - dirty[first] == last - first
        good = is_marked & ((seen.level[own] == 1) | starts_set)
        check.compare(len(own))
        check.find_all(
            np.flatnonzero(~good),
            lambda n, own=own, is_marked=is_marked, slot=slot: (
                f"slot {slot.id}: {seen.entry_name(int(own[n]))}: is writable and "
                + ("large" if is_marked[n] else "not marked dirty")
            ),
        )
