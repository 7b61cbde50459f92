"""Tracked gfns of a slot, and the write protection of one gfn in the reverse maps.

Owns `KvmMemorySlot.gfn_track`. Models kvm_mmu_slot_gfn_write_protect and update_gfn_track of v5.0 to v6.12, as far as
shadow pages go.
"""

from __future__ import annotations

from ..common.constants import PT_MAX_HUGEPAGE_LEVEL
from ..common.state import Kvm, KvmMemorySlot
from .rmap import gfn_to_rmap, rmap_write_protect


def kvm_mmu_rmap_write_protect_gfn(kvm: Kvm, slot: KvmMemorySlot, gfn: int, min_level: int = 1) -> bool:
    """Take the writable and the may-become-writable bit of every leaf of the gfn from a level on; no flush here."""
    protected = False
    for level in range(min_level, PT_MAX_HUGEPAGE_LEVEL + 1):
        head = gfn_to_rmap(slot, gfn, level)
        if head is not None:
            protected |= rmap_write_protect(kvm, head, pt_protect=True)
    return protected


def update_gfn_track(slot: KvmMemorySlot, gfn: int, change: int) -> None:
    index = gfn - slot.base_gfn
    slot.gfn_track[index] = slot.gfn_track.get(index, 0) + change
