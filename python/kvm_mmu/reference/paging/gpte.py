"""What a guest entry of a level-1 table says, and where it stands.

Owns nothing. Models prefetch_invalid_gpte, pte_prefetch_gfn_to_pfn, get_level1_sp_gpa and rmap_write_protect of v5.0 to
v6.12.
"""

from __future__ import annotations

from ..common.constants import PAGE_SHIFT, PT_PAGE_TABLE_LEVEL
from ..common.host_memory import HostAnswer, can_pin_for_write_atomically, host_frame
from ..common.pin import PinnedPfn
from ..common.role import role_access
from ..common.slots import gfn_to_host_page, kvm_vcpu_gfn_to_memslot, memslot_is_readonly
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_memory import kvm_vcpu_gfn_to_visible_slot
from ..shadow.guest_mode import is_rsvd_bits_set, mode_of, role_quadrant
from ..shadow.guest_walk import PT_ACCESSED, PT_PRESENT, gpte_access, protect_clean_gpte
from ..shadow.rmap import drop_spte
from ..shadow.track import kvm_mmu_rmap_write_protect_gfn


def is_prefetch_invalid_gpte(vcpu: Vcpu, entry: int) -> bool:
    """Whether an entry of a level-1 table maps nothing now, or the guest never used it."""
    if not entry & PT_PRESENT or not entry & PT_ACCESSED:
        return True
    return is_rsvd_bits_set(mode_of(vcpu), entry, PT_PAGE_TABLE_LEVEL)


def prefetch_invalid_gpte(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, entry: int) -> bool:
    """Drop the shadow of an entry that is no good, also an MMIO one."""
    if not is_prefetch_invalid_gpte(vcpu, entry):
        return False
    drop_spte(kvm, sp, index)
    return True


def gpte_gfn_and_access(vcpu: Vcpu, sp: ShadowPage, entry: int) -> tuple[int, int]:
    """What an entry of the table that a page shadows maps, and the rights that the page may give."""
    gfn = (entry & mode_of(vcpu).address_mask) >> PAGE_SHIFT
    return gfn, protect_clean_gpte(role_access(sp.role) & gpte_access(entry), entry)


def pte_prefetch_gfn_to_pfn(
    kvm: Kvm, vcpu: Vcpu, gfn: int, no_dirty_log: bool, answer: HostAnswer | None = None
) -> PinnedPfn | None:
    """The host page behind a gfn if it can be had at once and writable."""
    slot = kvm_vcpu_gfn_to_visible_slot(kvm, vcpu, gfn)
    if slot is None or memslot_is_readonly(slot) or (no_dirty_log and slot.dirty_bitmap is not None):
        return None
    page = gfn_to_host_page(slot, gfn)
    if answer is None or answer.found is None:
        is_found = can_pin_for_write_atomically(kvm.host, page)
    else:
        is_found = gfn in answer.found
    if not is_found:
        return None
    return PinnedPfn(host_frame(kvm.host, page), page << PAGE_SHIFT, is_host_writable=True)


def get_level1_sp_gpa(vcpu: Vcpu, sp: ShadowPage, index: int) -> int:
    """Where the guest entry is that an entry of a level-1 page shadows; two pages share a table of 4-byte entries."""
    size = mode_of(vcpu).entry_size
    first = role_quadrant(sp.role) << 9 if size == 4 else 0
    return (sp.gfn << PAGE_SHIFT) + (first + index) * size


def rmap_write_protect_gfn(kvm: Kvm, vcpu: Vcpu, gfn: int) -> bool:
    """rmap_write_protect: in the slot of the vCPU; true when something could be written before."""
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    return slot is not None and kvm_mmu_rmap_write_protect_gfn(kvm, slot, gfn)
