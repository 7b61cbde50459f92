"""NX huge pages: which tables stand where a fetch from a huge page was, and which the recovery may take.

Owns `Kvm.possible_nx_huge_pages` and its count. Models account_nx_huge_page, unaccount_nx_huge_page,
track_possible_nx_huge_page and disallowed_hugepage_adjust of v6.1 and v6.12.
"""

from __future__ import annotations

from . import spte as word
from .constants import PT_PAGE_TABLE_LEVEL, spte_index
from .page_table import child_of
from .role import role_level
from .state import Kvm, ShadowPage


def account_nx_huge_page(kvm: Kvm, sp: ShadowPage, is_possible: bool) -> None:
    """A table that stands where a fetch from a huge page was; the recovery may take it if it could be a leaf."""
    sp.nx_huge_page_disallowed = True
    if is_possible and not sp.is_possible_nx_huge_page:
        sp.is_possible_nx_huge_page = True
        kvm.possible_nx_huge_pages.append(sp.id)
        kvm.possible_nx_count += 1
        kvm.stat["nx_lpage_splits"] += 1


def unaccount_nx_huge_page(kvm: Kvm, sp: ShadowPage) -> None:
    sp.nx_huge_page_disallowed = False
    if sp.is_possible_nx_huge_page:
        sp.is_possible_nx_huge_page = False
        kvm.possible_nx_huge_pages.remove(sp.id)
        kvm.possible_nx_count -= 1
        kvm.stat["nx_lpage_splits"] -= 1


def is_huge_page_disallowed(kvm: Kvm, sp: ShadowPage, gpa: int) -> bool:
    """Whether the entry holds a table that may not give way: any, or one that a fetch from a huge page made."""
    level = role_level(sp.role)
    spte = sp.sptes.get(spte_index(gpa, level), 0)
    if level == PT_PAGE_TABLE_LEVEL or not kvm.nx_huge_pages:
        return False
    if not word.is_shadow_present_pte(kvm.masks, spte) or word.is_large_pte(spte):
        return False
    return kvm.rules.nx_keeps_any_table or child_of(kvm, spte).nx_huge_page_disallowed
