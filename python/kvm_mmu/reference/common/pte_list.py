"""The list behind a reverse-map head and behind a page's parent entries, in the kernel's order.

Owns `PteList`. A head is empty, holds one SPTE directly, or a chain of descriptors, of three entries or of fourteen;
the order of iteration, the undercount of `pte_list_add` and the way a hole is filled are results of that shape and are
kept. Models pte_list_add, pte_list_remove and the rmap iterator of v5.0 to v6.12.

Invariant: `direct` and `chain` are never both set, no descriptor in the chain is empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .kernels import KernelRules

# A descriptor of three has no count of its entries; a full one is not counted when another is appended to it.
UNCOUNTED_EXT = 3

Sptep = tuple[int, int]  # (shadow page id, index of the entry)


@dataclass(slots=True)
class PteList:
    direct: Sptep | None = None
    chain: list[list[Sptep]] = field(default_factory=list)


def pte_list_is_empty(head: PteList) -> bool:
    return head.direct is None and not head.chain


def pte_list_first(head: PteList) -> Sptep | None:
    if head.direct is not None:
        return head.direct
    return head.chain[0][0] if head.chain else None


def pte_list_entries(head: PteList) -> list[Sptep]:
    """All entries in list order, as a copy: the caller may change the list meanwhile."""
    if head.direct is not None:
        return [head.direct]
    return [sptep for desc in head.chain for sptep in desc]


def pte_list_add(rules: KernelRules, head: PteList, sptep: Sptep) -> int:
    """Add an entry; returns how many were there, with short descriptors three too few whenever one is appended."""
    if pte_list_is_empty(head):
        head.direct = sptep
        return 0
    if head.direct is not None:
        head.chain = [[head.direct, sptep]]
        head.direct = None
        return 1
    if rules.pte_list_order == "front":
        count = sum(map(len, head.chain))
        if len(head.chain[0]) == rules.pte_list_ext:
            head.chain.insert(0, [])
        head.chain[0].append(sptep)
        return count
    count = 0
    position = 0
    while len(head.chain[position]) == rules.pte_list_ext and position + 1 < len(head.chain):
        position += 1
        count += rules.pte_list_ext
    if len(head.chain[position]) == rules.pte_list_ext:
        head.chain.append([])
        position += 1
        count += rules.pte_list_ext if rules.pte_list_ext != UNCOUNTED_EXT else 0
    count += len(head.chain[position])
    head.chain[position].append(sptep)
    return count


def pte_list_remove(rules: KernelRules, head: PteList, sptep: Sptep) -> bool:
    """Remove an entry; false when it was not there (the kernel stops with a BUG)."""
    if head.direct is not None:
        if head.direct != sptep:
            return False
        head.direct = None
        return True
    for position, desc in enumerate(head.chain):
        if sptep in desc:
            # The last used slot of the same descriptor, or of the first, fills the hole: [a, b, c] loses a as [c, b].
            if rules.pte_list_order == "front":
                position = 0
            last = head.chain[position].pop()
            if last != sptep:
                desc[desc.index(sptep)] = last
            if not head.chain[position]:
                del head.chain[position]
            return True
    return False
