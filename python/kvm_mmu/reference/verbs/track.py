"""Write protection of one gfn and page tracking.

Owns nothing. Models kvm_mmu_slot_gfn_write_protect, kvm_slot_page_track_add_page and
kvm_slot_page_track_remove_page of v5.0 to v6.12.
"""

from __future__ import annotations

from ..common.flush import kvm_flush_remote_tlbs
from ..common.slots import update_gfn_disallow_lpage_count
from ..common.state import Kvm, KvmMemorySlot
from ..shadow.track import kvm_mmu_rmap_write_protect_gfn, update_gfn_track
from ..tdp.dirty_log import kvm_tdp_mmu_write_protect_gfn


def kvm_mmu_slot_gfn_write_protect(kvm: Kvm, slot: KvmMemorySlot, gfn: int, min_level: int = 1) -> bool:
    """Take the writable and the may-become-writable bit of every mapping of the gfn from a level on; no flush here."""
    if kvm.config.tdp_mmu:
        return kvm_tdp_mmu_write_protect_gfn(kvm, slot, gfn, min_level)
    return kvm_mmu_rmap_write_protect_gfn(kvm, slot, gfn, min_level)


def kvm_slot_page_track_add_page(kvm: Kvm, slot: KvmMemorySlot, gfn: int) -> None:
    update_gfn_track(slot, gfn, 1)
    update_gfn_disallow_lpage_count(slot, gfn, 1)
    if kvm_mmu_slot_gfn_write_protect(kvm, slot, gfn):
        kvm_flush_remote_tlbs(kvm)


def kvm_slot_page_track_remove_page(slot: KvmMemorySlot, gfn: int) -> None:
    if slot.gfn_track.get(gfn - slot.base_gfn, 0) == 0:
        return  # the kernel warns and leaves the counts alone
    update_gfn_track(slot, gfn, -1)
    update_gfn_disallow_lpage_count(slot, gfn, -1)
