"""Memory slots and the memslot generation: creating, deleting, moving, re-flagging, publishing.

Owns `Kvm.memslots`, with the reference's own generation arithmetic and order. Models __kvm_set_memory_region,
install_new_memslots, kvm_arch_memslots_updated, kvm_mmu_invalidate_mmio_sptes and
kvm_arch_commit_memory_region of v5.0 to v6.12.

Invariants: slots are in descending base order; generations of the two address spaces never meet (v5.0 2 and 0
modulo 4, later even and odd). v5.0 never detects the wrap of address space 0, because it starts at -150 and steps
over zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common import constants as c
from ..common.constants import (
    EEXIST,
    EINVAL,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    PT_PAGE_TABLE_LEVEL,
)
from ..common.events import note_silent_call
from ..common.flush import kvm_arch_flush_remote_tlbs_memslot
from ..common.kernels import KernelRules
from ..common.lock import NESTED_IN_PUBLICATION, run_nested_ops
from ..common.mmio import KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS, has_progress_flag, mmio_generation
from ..common.slots import id_to_memslot, kvm_mmu_max_gfn, nr_memslots_dirty_logging, slot_level_entries
from ..common.state import Kvm, KvmMemorySlot, KvmMemslots, Op
from ..shadow.reclaim import kvm_mmu_calculate_default_mmu_pages, kvm_mmu_change_mmu_pages
from .dirty_log import (
    enable_pml_log,
    kvm_mmu_slot_remove_write_access,
    kvm_mmu_slot_set_dirty,
    kvm_mmu_slot_try_split_huge_pages,
    kvm_mmu_zap_collapsible_sptes,
)
from .zap_memslot import kvm_mmu_zap_memslot
from .zap_run import ZapTarget, run_zap_plan


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """struct kvm_userspace_memory_region and the address space it is for."""

    as_id: int
    slot: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    flags: int


@dataclass(slots=True)
class Publications:
    """The operations to run while each array of one call is published but still in progress."""

    during: list[list[Op]]
    done: int = 0


def initial_generation(rules: KernelRules, as_id: int) -> int:
    return as_id if has_progress_flag(rules) else (2 * as_id - 150) & c.U64


def kvm_mmu_invalidate_mmio_sptes(kvm: Kvm, generation: int) -> None:
    """The wrap check: when the kept part came round to zero, stale MMIO entries would look fresh."""
    note_silent_call(kvm, "invalidate_mmio", hex(generation))
    gen = mmio_generation(kvm.rules, generation)
    if has_progress_flag(kvm.rules):
        gen &= ~(c.KVM_ADDRESS_SPACE_NUM - 1)  # the low bits tell the address spaces apart
    if gen == 0 and (kvm.masks.mmio_value or kvm.rules.wrap_zaps_without_caching):
        run_zap_plan(kvm, kvm.plans["wrap"])


def install_new_memslots(kvm: Kvm, memslots: KvmMemslots, publications: Publications) -> None:
    """The end of an update: the new array, already in place, becomes visible and gets its generation."""
    old = memslots.generation
    if has_progress_flag(kvm.rules):
        memslots.generation = old | KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
    else:
        memslots.generation = (old + 1) & c.U64
    kvm.events.append(["srcu_sync"])
    kvm.ctr["srcu_sync"] += 1
    number = publications.done
    publications.done += 1
    if number < len(publications.during):
        run_nested_ops(kvm, NESTED_IN_PUBLICATION, publications.during[number])
    if has_progress_flag(kvm.rules):
        # The check comes before anybody can see the final generation.
        final = memslots.generation & ~KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
        final = (final + c.KVM_ADDRESS_SPACE_NUM) & c.U64
        note_silent_call(kvm, "memslots_updated", hex(final))
        kvm_mmu_invalidate_mmio_sptes(kvm, final)
        memslots.generation = final
    else:
        memslots.generation = (memslots.generation + 2 * c.KVM_ADDRESS_SPACE_NUM - 1) & c.U64
        kvm_mmu_invalidate_mmio_sptes(kvm, memslots.generation)


def check_memory_region(rules: KernelRules, region: MemoryRegion) -> int:
    """What the kernel refuses before it looks at the slots."""
    npages = region.memory_size >> c.PAGE_SHIFT
    is_user_slot = region.slot < rules.mem_slots - c.KVM_PRIVATE_MEM_SLOTS
    refused = (
        region.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)
        or region.memory_size % c.PAGE_SIZE
        or region.guest_phys_addr % c.PAGE_SIZE
        or (is_user_slot and region.userspace_addr % c.PAGE_SIZE)
        or (is_user_slot and region.userspace_addr + region.memory_size > c.TASK_SIZE_MAX)
        or region.as_id >= c.KVM_ADDRESS_SPACE_NUM
        or region.slot >= rules.mem_slots
        or (region.guest_phys_addr + region.memory_size) & c.U64 < region.guest_phys_addr
        or npages > c.KVM_MEM_MAX_NR_PAGES
    )
    return -EINVAL if refused else 0


def overlaps_another(memslots: KvmMemslots, region: MemoryRegion) -> bool:
    base = region.guest_phys_addr >> c.PAGE_SHIFT
    end = base + (region.memory_size >> c.PAGE_SHIFT)
    return any(
        slot.id != region.slot and slot.base_gfn < end and base < slot.base_gfn + slot.npages
        for slot in memslots.memslots
    )


def reaches_above_max_gfn(kvm: Kvm, region: MemoryRegion) -> bool:
    return (region.guest_phys_addr + region.memory_size >> c.PAGE_SHIFT) - 1 > kvm_mmu_max_gfn(kvm)


def new_lpage_vetoes(slot: KvmMemorySlot) -> None:
    """kvm_arch_create_memslot: no large page over the slot's ragged ends, none at all if it cannot align."""
    for level, counts in slot.disallow_lpage.items():
        pages = c.kvm_pages_per_hpage(level)
        entries = slot_level_entries(slot, level)
        slot.lpage_entries[level] = entries
        if slot.base_gfn % pages:
            counts[0] = 1
        if (slot.base_gfn + slot.npages) % pages:
            counts[entries - 1] = 1
        if (slot.base_gfn ^ (slot.userspace_addr >> c.PAGE_SHIFT)) % pages:
            counts.update(dict.fromkeys(range(entries), 1))


def grow_lpage_vetoes(slot: KvmMemorySlot) -> None:
    """A move can touch one more large page than the arrays were made for; the kernel reads past their end.

    Here the arrays grow, and the large page that reaches over the slot's end is vetoed.
    """
    for level, counts in slot.disallow_lpage.items():
        entries = slot_level_entries(slot, level)
        for index in range(slot.lpage_entries[level], entries):
            counts[index] = 1
        slot.lpage_entries[level] = max(entries, slot.lpage_entries[level])


def note_placed(memslots: KvmMemslots, slot: KvmMemorySlot) -> None:
    memslots.placements += 1
    slot.placed = memslots.placements


def insert_memslot(memslots: KvmMemslots, slot: KvmMemorySlot) -> None:
    note_placed(memslots, slot)
    memslots.memslots.append(slot)
    memslots.memslots.sort(key=lambda entry: -entry.base_gfn)


def kvm_set_memory_region(kvm: Kvm, region: MemoryRegion, during: list[list[Op]]) -> int:
    """KVM_SET_USER_MEMORY_REGION; size 0 deletes."""
    error = check_memory_region(kvm.rules, region)
    if error:
        return error
    memslots = kvm.memslots[region.as_id]
    slot = id_to_memslot(kvm, region.as_id, region.slot)
    publications = Publications(during)
    if region.memory_size == 0:
        return -EINVAL if slot is None else delete_memslot(kvm, memslots, slot, publications)
    base_gfn = region.guest_phys_addr >> c.PAGE_SHIFT
    if slot is None:
        if overlaps_another(memslots, region):
            return -EEXIST
        if reaches_above_max_gfn(kvm, region):
            return -EINVAL
        return create_memslot(kvm, memslots, region, publications)
    if (
        slot.userspace_addr != region.userspace_addr
        or slot.npages != region.memory_size >> c.PAGE_SHIFT
        or (slot.flags ^ region.flags) & KVM_MEM_READONLY
    ):
        return -EINVAL
    if slot.base_gfn != base_gfn:
        if overlaps_another(memslots, region):
            return -EEXIST
        return move_memslot(kvm, memslots, slot, region, publications)
    if slot.flags != region.flags:
        old_flags = slot.flags
        set_slot_flags(kvm, slot, region.flags)
        note_placed(memslots, slot)
        install_new_memslots(kvm, memslots, publications)
        kvm_arch_commit_memory_region(kvm, slot, old_flags, "flags")
    return 0


def set_slot_flags(kvm: Kvm, slot: KvmMemorySlot, flags: int) -> None:
    """The bitmap goes with the log flag and stays while the flag stays.

    Initially set, every page counts as dirty: nothing is write-protected until its bit is cleared.
    """
    slot.flags = flags
    if not flags & KVM_MEM_LOG_DIRTY_PAGES:
        slot.dirty_bitmap = None
    elif slot.dirty_bitmap is None:
        slot.dirty_bitmap = set(range(slot.npages)) if kvm.dirty_log_initially_set else set()


def create_memslot(kvm: Kvm, memslots: KvmMemslots, region: MemoryRegion, publications: Publications) -> int:
    slot = KvmMemorySlot(
        id=region.slot,
        base_gfn=region.guest_phys_addr >> c.PAGE_SHIFT,
        npages=region.memory_size >> c.PAGE_SHIFT,
        userspace_addr=region.userspace_addr,
        flags=0,
        as_id=region.as_id,
    )
    new_lpage_vetoes(slot)
    set_slot_flags(kvm, slot, region.flags)
    insert_memslot(memslots, slot)
    install_new_memslots(kvm, memslots, publications)
    kvm_arch_commit_memory_region(kvm, slot, 0, "create")
    return 0


def retire_memslot(kvm: Kvm, memslots: KvmMemslots, slot: KvmMemorySlot, publications: Publications) -> None:
    """First half of a delete or move: publish the slot as invalid, then take it out of the MMU."""
    slot.flags |= KVM_MEMSLOT_INVALID
    note_placed(memslots, slot)
    install_new_memslots(kvm, memslots, publications)
    kvm_arch_flush_shadow_memslot(kvm, slot)


def kvm_arch_flush_shadow_memslot(kvm: Kvm, slot: KvmMemorySlot) -> None:
    note_silent_call(kvm, "flush_shadow_memslot")
    if kvm.rules.has_slot_zap_all_quirk and not kvm.slot_zap_all:
        kvm_mmu_zap_memslot(kvm, slot)
        return
    run_zap_plan(kvm, kvm.plans["slot_removal"], ZapTarget(slot=slot))


def delete_memslot(kvm: Kvm, memslots: KvmMemslots, slot: KvmMemorySlot, publications: Publications) -> int:
    old_flags = slot.flags
    retire_memslot(kvm, memslots, slot, publications)
    memslots.memslots = [other for other in memslots.memslots if other is not slot]
    install_new_memslots(kvm, memslots, publications)
    kvm_arch_commit_memory_region(kvm, None, old_flags, "delete")
    return 0


def move_memslot(
    kvm: Kvm, memslots: KvmMemslots, slot: KvmMemorySlot, region: MemoryRegion, publications: Publications
) -> int:
    """Up to v5.4 the arrays go along, although they were made for the old base.

    Later a move to where no slot may be is found out only when the slot is already gone, and is put back.
    """
    old_flags = slot.flags
    retire_memslot(kvm, memslots, slot, publications)
    if reaches_above_max_gfn(kvm, region):
        slot.flags = old_flags
        note_placed(memslots, slot)
        install_new_memslots(kvm, memslots, publications)
        return -EINVAL
    memslots.memslots = [other for other in memslots.memslots if other is not slot]
    slot.base_gfn = region.guest_phys_addr >> c.PAGE_SHIFT
    if kvm.rules.move_renews_arrays:
        slot.rmap = {level: {} for level in slot.rmap}
        slot.disallow_lpage = {level: {} for level in slot.disallow_lpage}
        slot.gfn_track = {}
        new_lpage_vetoes(slot)
    else:
        grow_lpage_vetoes(slot)
    set_slot_flags(kvm, slot, region.flags)
    insert_memslot(memslots, slot)
    install_new_memslots(kvm, memslots, publications)
    kvm_arch_commit_memory_region(kvm, slot, old_flags, "move")
    return 0


def kvm_arch_commit_memory_region(kvm: Kvm, slot: KvmMemorySlot | None, old_flags: int, change: str) -> None:
    """After the last publication; `slot` is None when it was deleted."""
    if kvm.n_requested_mmu_pages == 0 and (not kvm.rules.limit_on_resize or change in ("create", "delete")):
        kvm_mmu_change_mmu_pages(kvm, kvm_mmu_calculate_default_mmu_pages(kvm))
    new_flags = slot.flags if slot is not None else 0
    if kvm.rules.pml_while_logging and (old_flags ^ new_flags) & KVM_MEM_LOG_DIRTY_PAGES:
        kvm_mmu_update_cpu_dirty_logging(kvm, bool(new_flags & KVM_MEM_LOG_DIRTY_PAGES))
    if slot is None:
        return
    if kvm.rules.walk_on_log_change:
        if change == "flags":
            kvm_mmu_slot_apply_flags(kvm, slot, old_flags)
        return
    is_logged = slot.flags & KVM_MEM_LOG_DIRTY_PAGES
    if old_flags & KVM_MEM_LOG_DIRTY_PAGES and not is_logged:
        kvm_mmu_zap_collapsible_sptes(kvm, slot)
    if slot.flags & KVM_MEM_READONLY or (is_logged and not kvm.config.pml):
        kvm_mmu_slot_remove_write_access(kvm, slot)
    elif is_logged:
        enable_pml_log(kvm, slot)
    elif kvm.config.pml:
        kvm_mmu_slot_set_dirty(kvm, slot)


def kvm_mmu_update_cpu_dirty_logging(kvm: Kvm, is_on: bool) -> None:
    """Tell the vCPUs when the first slot begins to log or the last one has ended."""
    count = nr_memslots_dirty_logging(kvm)
    if kvm.config.pml and ((is_on and count == 1) or not count):
        for vcpu in kvm.vcpus:
            vcpu.requests |= c.KVM_REQ_UPDATE_CPU_DIRTY_LOGGING


def kvm_mmu_slot_apply_flags(kvm: Kvm, slot: KvmMemorySlot, old_flags: int) -> None:
    """Dirty logging was turned on or off; a read-only slot has nothing to protect or to make large again."""
    if slot.flags & KVM_MEM_READONLY or not (old_flags ^ slot.flags) & KVM_MEM_LOG_DIRTY_PAGES:
        return
    if not slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        kvm_mmu_zap_collapsible_sptes(kvm, slot)
        return
    if kvm.dirty_log_initially_set:
        return
    if kvm.eager_page_split and kvm.rules.has_eager_split:
        kvm_mmu_slot_try_split_huge_pages(kvm, slot, PT_PAGE_TABLE_LEVEL)
    if kvm.config.pml:
        enable_pml_log(kvm, slot)
    else:
        kvm_mmu_slot_remove_write_access(kvm, slot)
    if kvm.rules.log_on_flush == "always":
        kvm_arch_flush_remote_tlbs_memslot(kvm, slot)
