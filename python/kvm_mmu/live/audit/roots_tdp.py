"""Checks of roots and their counts, of the TDP MMU's tables, and of the list of NX huge pages."""

from __future__ import annotations

from collections import Counter

import numpy as np

from kvm_mmu.live.audit.facts import Seen
from kvm_mmu.live.audit.findings import Check
from kvm_mmu.live.page_store import REACHED, TDP, TDP_ROOT
from kvm_mmu.live.vcpus import NO_ROOT, MmuState, VcpuState


def _held(seen: Seen, check: Check | None = None) -> Counter[int]:
    """How many roots in use, or kept from before, each page (row) is."""
    found: Counter[int] = Counter()
    for vcpu in seen.c.vcpus:
        for mmu in vcpu.mmus:
            for hpa, what in _roots_of(mmu):
                row = int(seen.pages.at_table(np.array([hpa], np.uint64))[0])
                if row >= 0:
                    found[row] += 1
                if check is not None:
                    _alive(seen, check, vcpu, mmu, hpa, row, what)
    return found


def _roots_of(mmu: MmuState) -> list[tuple[int, str]]:
    """The physical addresses of the roots of an MMU, with what each is."""
    found = []
    for number, (hpa, _) in enumerate([(mmu.root_hpa, 0), *mmu.prev_roots]):
        what = "its root" if number == 0 else f"its previous root {number - 1}"
        if hpa == NO_ROOT or hpa == 0:
            continue
        if hpa in mmu.special.values():
            found += [
                (entry & (1 << 52) - 1 & ~0xFFF, f"entry {at} of its PAE root")
                for at, entry in enumerate(mmu.pae_entries or ())
                if entry & 1
            ]
        else:
            found.append((hpa, what))
    return found


def _alive(seen: Seen, check: Check, vcpu: VcpuState, mmu: MmuState, hpa: int, row: int, what: str) -> None:
    check.compare(1)
    if row < 0:
        check.find(f"vCPU {vcpu.id}, {mmu.name}: {what} at {hpa:#x} is no table of this VM")
    elif what == "its root" and int(seen.pages.level[row]) != mmu.role & 15:
        check.find(
            f"vCPU {vcpu.id}, {mmu.name}: {what} is {seen.page_name(row)}, its role is of level {mmu.role & 15}"
        )


def root_alive(seen: Seen, check: Check) -> None:
    """A root that a vCPU holds is a table of this VM, of the level of the vCPU's role."""
    _held(seen, check)


def root_count(seen: Seen, check: Check) -> None:
    """A page's count is the number of roots that vCPUs hold of it."""
    held = _held(seen)
    count = seen.pages.column("root_count")
    check.compare(seen.nr_shadow)
    for row in range(seen.nr_shadow):
        if count[row] != held[row]:
            check.find(
                f"{seen.page_name(row)}: counted as root {int(count[row])} times, vCPUs hold it {held[row]} times"
            )


def tdp_refs(seen: Seen, check: Check) -> None:
    """A root of the TDP MMU is held by its vCPUs, and by the MMU until it is invalid."""
    held = _held(seen)
    count = seen.pages.column("root_count")
    for row in range(seen.nr_shadow, len(seen.pages)):
        if not seen.c.where[row] & TDP_ROOT:
            continue
        check.compare(1)
        own = 0 if seen.is_invalid[row] else 1
        if count[row] != held[row] + own:
            check.find(
                f"{seen.page_name(row)}: has {int(count[row])} references, vCPUs hold {held[row]}, the MMU {own}"
            )


def tdp_tree(seen: Seen, check: Check) -> None:
    """The tables of the TDP MMU are those reached from its roots, each linked once, from where it says."""
    c, first = seen.c, seen.nr_shadow
    rows = np.arange(first, len(seen.pages))
    where = c.where[rows]
    below = (where & TDP_ROOT) == 0
    check.compare(len(rows))
    reached = int(((where & REACHED) != 0).sum())
    if c.tdp.counted is not None:
        check.compare(1)
        if c.tdp.counted != reached:
            check.find(f"{c.tdp.counted} tables by the counter, {reached} are reached below the roots")
    elif c.tdp.roots:
        lonely = below & ((where & TDP) == 0)
        check.find_all(
            rows[lonely], lambda row: f"{seen.page_name(row)}: is reached and not on the list of tables"
        )
        lost = below & ((where & REACHED) == 0)
        check.find_all(
            rows[lost], lambda row: f"{seen.page_name(row)}: is on the list of tables and not reached"
        )
    is_tdp = (
        seen.pages.column("is_tdp")[rows] if c.facts.has("mmu_page.is_tdp") else np.ones(len(rows), np.int64)
    )
    check.find_all(
        rows[is_tdp == 0], lambda row: f"{seen.page_name(row)}: is not marked as one of the TDP MMU"
    )
    own = seen.child >= first
    count = (
        np.bincount(seen.child[own], minlength=len(seen.pages))[first:]
        if own.any()
        else np.zeros(len(rows), int)
    )
    wrong = below & ((where & REACHED) != 0) & (count != 1)
    check.find_all(
        rows[wrong],
        lambda row: f"{seen.page_name(row)}: {int(count[row - first])} links lead to it, expected one",
    )
    sptep = np.zeros(len(seen.pages), np.uint64)
    sptep[seen.child[own]] = seen.sptep[seen.links[own]]
    said = seen.pages.unsigned("parents")
    parted = below & (count == 1) & (said[rows] != sptep[rows])
    check.find_all(
        rows[parted],
        lambda row: (
            f"{seen.page_name(row)}: says that {int(said[row]):#x} leads to it, {int(sptep[row]):#x} does"
        ),
    )


def nx_huge_pages(seen: Seen, check: Check) -> None:
    """The list of pages that stand for a large one is that of the pages with the mark, and the VM counts it."""
    c = seen.c
    if c.nx_list is None or not c.facts.has("mmu_page.nx_huge"):
        check.skipped = "this kernel keeps no such list"
        return
    by_address = seen.pages.by_address
    marked = seen.pages.column("nx_huge") != 0
    check.compare(len(c.nx_list) + int(marked.sum()))
    listed: set[int] = set()
    for address in c.nx_list:
        row = by_address.get(address)
        if row is None:
            check.find(f"{address:#x} is on the list and no page of this VM")
        else:
            listed.add(row)
            if not marked[row]:
                check.find(f"{seen.page_name(row)}: is on the list without the mark")
    if not c.facts.marks_pages_off_the_nx_list:
        for row in np.flatnonzero(marked).tolist():
            if row not in listed:
                check.find(f"{seen.page_name(row)}: has the mark and is not on the list")
    said = c.stats.get("nx_lpage_splits")
    said = said.get("counter") if isinstance(said, dict) else said
    if isinstance(said, int):
        check.compare(1)
        if said != len(c.nx_list):
            check.find(f"statistics say {said} such pages, {len(c.nx_list)} are on the list")
