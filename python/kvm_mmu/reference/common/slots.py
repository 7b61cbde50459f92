"""Reading a memory slot: gfn to slot, to host address, to level entry; vetoes, tracking and dirty bits.

Everything here works on slots that exist; creating and replacing them is `memslots`. Models
gfn_to_memslot, gfn_to_index, mmu_gfn_lpage_is_disallowed, kvm_page_track_is_active and mark_page_dirty.
"""

from __future__ import annotations

from .constants import (
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    PAGE_SHIFT,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
    PT64_LEVEL_BITS,
    U64,
    kvm_pages_per_hpage,
)
from .state import Kvm, KvmMemorySlot, Vcpu


def gfn_to_memslot(kvm: Kvm, as_id: int, gfn: int) -> KvmMemorySlot | None:
    """The slot that covers the gfn, also one that is marked invalid."""
    for slot in kvm.memslots[as_id].memslots:
        if slot.base_gfn <= gfn:
            return slot if gfn < slot.base_gfn + slot.npages else None
    return None


def id_to_memslot(kvm: Kvm, as_id: int, slot_id: int) -> KvmMemorySlot | None:
    for slot in kvm.memslots[as_id].memslots:
        if slot.id == slot_id:
            return slot
    return None


def vcpu_address_space(vcpu: Vcpu) -> int:
    return 1 if vcpu.smm else 0


def kvm_vcpu_gfn_to_memslot(kvm: Kvm, vcpu: Vcpu, gfn: int) -> KvmMemorySlot | None:
    return gfn_to_memslot(kvm, vcpu_address_space(vcpu), gfn)


def memslot_is_visible(slot: KvmMemorySlot | None) -> bool:
    return slot is not None and not slot.flags & KVM_MEMSLOT_INVALID


def memslot_is_readonly(slot: KvmMemorySlot) -> bool:
    return slot.flags & KVM_MEM_READONLY != 0


def nr_memslots_dirty_logging(kvm: Kvm) -> int:
    """How many slots log dirty pages, in both address spaces."""
    return sum(
        slot.flags & KVM_MEM_LOG_DIRTY_PAGES != 0 for memslots in kvm.memslots for slot in memslots.memslots
    )


def memslot_is_logged(slot: KvmMemorySlot) -> bool:
    return slot.flags & KVM_MEM_LOG_DIRTY_PAGES != 0


def gfn_to_host_page(slot: KvmMemorySlot, gfn: int) -> int:
    """The number of the host virtual page behind a gfn."""
    return (slot.userspace_addr >> PAGE_SHIFT) + gfn - slot.base_gfn


def gfn_to_index(gfn: int, base_gfn: int, level: int) -> int:
    shift = PT64_LEVEL_BITS * (level - 1)
    return (gfn >> shift) - (base_gfn >> shift)


def slot_level_entries(slot: KvmMemorySlot, level: int) -> int:
    """How many entries of this level the slot touches."""
    return gfn_to_index(slot.base_gfn + slot.npages - 1, slot.base_gfn, level) + 1


def mmu_gfn_lpage_is_disallowed(slot: KvmMemorySlot | None, gfn: int, level: int) -> bool:
    """Whether the large page of the gfn is vetoed.

    One that would reach over the slot's edge always is. A slot is created with those vetoes, but a move keeps the old
    ones, and the kernel then maps outside the slot; here it does not.
    """
    if slot is None:
        return True
    pages = kvm_pages_per_hpage(level)
    first = gfn & ~(pages - 1)
    if first < slot.base_gfn or first + pages > slot.base_gfn + slot.npages:
        return True
    return slot.disallow_lpage[level].get(gfn_to_index(gfn, slot.base_gfn, level), 0) != 0


def update_gfn_disallow_lpage_count(slot: KvmMemorySlot, gfn: int, change: int) -> None:
    for level, counts in slot.disallow_lpage.items():
        index = gfn_to_index(gfn, slot.base_gfn, level)
        counts[index] = counts.get(index, 0) + change


def kvm_page_track_is_active(kvm: Kvm, vcpu: Vcpu, gfn: int) -> bool:
    """Whether writes to the gfn are tracked, in the vCPU's own address space or in any, by the kernel.

    Without a slot in its own there is nothing to write to, tracked or not.
    """
    if kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn) is None:
        return False
    spaces = range(len(kvm.memslots)) if kvm.rules.track_all_spaces else (vcpu_address_space(vcpu),)
    slots = [gfn_to_memslot(kvm, as_id, gfn) for as_id in spaces]
    return any(slot is not None and slot.gfn_track.get(gfn - slot.base_gfn, 0) > 0 for slot in slots)


def kvm_mmu_max_gfn(kvm: Kvm) -> int:
    """The last gfn that may have a slot or an MMIO entry."""
    if not kvm.rules.has_max_gfn:
        return U64
    width = kvm.config.phys_bits if kvm.config.family != "shadow" else 52
    return (1 << (width - PAGE_SHIFT)) - 1


def mark_page_dirty_in_slot(slot: KvmMemorySlot | None, gfn: int) -> None:
    if slot is not None and slot.dirty_bitmap is not None:
        slot.dirty_bitmap.add(gfn - slot.base_gfn)


def kvm_vcpu_mark_page_dirty(kvm: Kvm, vcpu: Vcpu, gfn: int) -> None:
    mark_page_dirty_in_slot(kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn), gfn)


def page_fault_handle_page_track(kvm: Kvm, vcpu: Vcpu, gfn: int, error_code: int) -> bool:
    if error_code & PFERR_RSVD:
        return False
    is_write_to_present = error_code & PFERR_PRESENT and error_code & PFERR_WRITE
    return bool(is_write_to_present) and kvm_page_track_is_active(kvm, vcpu, gfn)
