"""A page fault as it goes on: what was wanted, and then the slot, the levels and the goal.

Owns `PageFault`. Models struct kvm_page_fault of v6.1 and v6.12.
"""

from __future__ import annotations

from dataclasses import dataclass

from .constants import (
    PAGE_SHIFT,
    PFERR_FETCH,
    PFERR_USER,
    PFERR_WRITE,
    PT_MAX_HUGEPAGE_LEVEL,
    PT_PAGE_TABLE_LEVEL,
)
from .host_memory import HostAnswer
from .state import KvmMemorySlot


@dataclass(slots=True)
class PageFault:
    """A fault as it goes on: the address, what was wanted, and then the slot, the levels and the goal."""

    gpa: int
    error_code: int
    answer: HostAnswer | None = None
    is_prefetch: bool = False
    slot: KvmMemorySlot | None = None
    sequence: int = 0
    requested_level: int = PT_PAGE_TABLE_LEVEL
    goal_level: int = PT_PAGE_TABLE_LEVEL
    is_huge_page_disallowed: bool = False
    is_unchanged: bool = False  # the leaf was there already
    max_level: int = PT_MAX_HUGEPAGE_LEVEL
    walked_gfn: int | None = None  # what a guest's own tables translate the address to
    is_write_to_own_table: bool = False  # that gfn is one of these tables

    @property
    def gfn(self) -> int:
        return self.gpa >> PAGE_SHIFT if self.walked_gfn is None else self.walked_gfn

    @property
    def is_user(self) -> bool:
        return self.error_code & PFERR_USER != 0

    @property
    def is_write(self) -> bool:
        return self.error_code & PFERR_WRITE != 0

    @property
    def is_exec(self) -> bool:
        return self.error_code & PFERR_FETCH != 0
