"""active_mmu_pages: every live shadow page, newest at the head.

Owns all changes to `ActiveList`. Models the kernel's list_add, list_del and list_move on that list.
Invariant: `next` and `prev` describe one ring through 0.
"""

from __future__ import annotations

from ..common.state import ActiveList


def list_add_head(active: ActiveList, page_id: int) -> None:
    first = active.next[0]
    active.next[0], active.prev[page_id] = page_id, 0
    active.next[page_id], active.prev[first] = first, page_id


def list_del(active: ActiveList, page_id: int) -> None:
    before, after = active.prev.pop(page_id), active.next.pop(page_id)
    active.next[before], active.prev[after] = after, before


def list_move_head(active: ActiveList, page_id: int) -> None:
    list_del(active, page_id)
    list_add_head(active, page_id)


def list_contains(active: ActiveList, page_id: int) -> bool:
    return page_id in active.next


def list_is_empty(active: ActiveList) -> bool:
    return active.next[0] == 0


def list_tail(active: ActiveList) -> int:
    """The oldest page, 0 when the list is empty."""
    return active.prev[0]


def list_pages(active: ActiveList) -> list[int]:
    """Page ids from the head to the tail."""
    found = []
    page_id = active.next[0]
    while page_id:
        found.append(page_id)
        page_id = active.next[page_id]
    return found
