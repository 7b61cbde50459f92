"""Syncing all that lies below the roots of a vCPU.

Owns nothing. Models kvm_mmu_sync_roots of v5.0 to v6.12.
"""

from __future__ import annotations

from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_mode import mode_of
from .sync import mmu_sync_children
from .sync_v6 import mmu_sync_children_v6


def sync_below(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage) -> None:
    if kvm.rules.is_level_requested:
        mmu_sync_children_v6(kvm, vcpu, sp, can_yield=True)
    else:
        mmu_sync_children(kvm, vcpu, sp)


def kvm_mmu_sync_roots(kvm: Kvm, vcpu: Vcpu) -> None:
    """Sync below the current roots; those of other CR3 values stay as they are."""
    if mode_of(vcpu).name == "none" or not vcpu.roots:
        return
    vcpu.mmio_gva = 0
    if mode_of(vcpu).name == "long":
        root = kvm.pages.get(vcpu.roots[0])
        if root is not None and (root.unsync or root.unsync_child_bitmap):
            sync_below(kvm, vcpu, root)
        return
    for page_id in vcpu.roots:
        if page_id:
            sync_below(kvm, vcpu, kvm.pages[page_id])
