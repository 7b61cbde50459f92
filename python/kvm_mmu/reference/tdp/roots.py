"""The roots of the TDP MMU: one for each mode, shared by the vCPUs, newest first.

Owns `Kvm.tdp_mmu_roots` and the references in `ShadowPage.root_count`. Models kvm_tdp_mmu_get_vcpu_root_hpa,
kvm_tdp_mmu_put_root, the walks over the roots, kvm_tdp_mmu_invalidate_all_roots and
kvm_tdp_mmu_zap_invalidated_roots of v6.1 and v6.12.

Invariant: a root is in the list as long as somebody holds a reference: each vCPU that has it loaded, a walk that
stands on it, and until it is invalidated and zapped the MMU itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..common.role import ROLE_INVALID, role_address_space, role_is_invalid
from ..common.state import Kvm, ShadowPage
from .page import tdp_mmu_free_sp, tdp_mmu_init_sp


def kvm_tdp_mmu_get_vcpu_root(kvm: Kvm, role: int) -> ShadowPage:
    """The root of this role with one more reference; a new one has another of the MMU's own."""
    for root_id in kvm.tdp_mmu_roots:
        root = kvm.pages[root_id]
        if root.role == role:
            root.root_count += 1
            kvm.work["get_page_found"] += 1
            return root
    root = tdp_mmu_init_sp(kvm, 0, role)
    root.root_count = 2
    kvm.tdp_mmu_roots.insert(0, root.id)
    return root


def kvm_tdp_mmu_put_root(kvm: Kvm, root: ShadowPage) -> None:
    """Give a reference up; the last one takes the root out of the list, without a trace."""
    root.root_count -= 1
    if root.root_count == 0:
        kvm.tdp_mmu_roots.remove(root.id)
        tdp_mmu_free_sp(kvm, root)


def next_root(
    kvm: Kvm, previous: ShadowPage | None, as_id: int | None, only_valid: bool
) -> ShadowPage | None:
    """The next root of a walk, with a reference; that of the one before is given up."""
    start = 0 if previous is None else kvm.tdp_mmu_roots.index(previous.id) + 1
    found = None
    for root_id in kvm.tdp_mmu_roots[start:]:
        root = kvm.pages[root_id]
        if only_valid and role_is_invalid(root.role):
            continue
        if as_id is None or role_address_space(root.role) == as_id:
            found = root
            break
    if found is not None:
        found.root_count += 1
    if previous is not None:
        kvm_tdp_mmu_put_root(kvm, previous)
    return found


def for_each_tdp_mmu_root_yield_safe(
    kvm: Kvm, as_id: int | None = None, only_valid: bool = False
) -> Iterator[ShadowPage]:
    """The roots of an address space or of all; each is held while the walk stands on it."""
    root = next_root(kvm, None, as_id, only_valid)
    while root is not None:
        yield root
        root = next_root(kvm, root, as_id, only_valid)


def for_each_valid_tdp_mmu_root_yield_safe(kvm: Kvm, as_id: int | None = None) -> Iterator[ShadowPage]:
    return for_each_tdp_mmu_root_yield_safe(kvm, as_id, only_valid=True)


def kvm_tdp_mmu_invalidate_all_roots(kvm: Kvm) -> None:
    """Front half of the fast zap: no vCPU finds a root any more, and each is to be zapped."""
    for root_id in kvm.tdp_mmu_roots:
        root = kvm.pages[root_id]
        if not role_is_invalid(root.role):
            root.role |= ROLE_INVALID
            root.tdp_mmu_scheduled_root_to_zap = True
