"""A write to a guest table that the emulator did, and the zap of a table's shadows.

Owns `ShadowPage.write_flooding_count` going up. Models kvm_mmu_pte_write, detect_write_misaligned,
detect_write_flooding, get_written_sptes, need_remote_flush and kvm_mmu_unprotect_page of v5.0 to v5.4.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PT64_BASE_ADDR_MASK,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    PT_WRITABLE_MASK,
    X86_CR4_PAE,
)
from ..common.role import role_level
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_memory import kvm_vcpu_read_guest, kvm_vcpu_write_guest
from ..shadow.guest_mode import ROLE_MODE_MASK, has_8_byte_entries, mode_of, role_quadrant
from ..shadow.page import for_each_gfn_indirect_valid_sp
from ..shadow.zap import kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page, mmu_page_zap_pte
from .prefetch import prefetch_gpte
from .sync import kvm_mmu_flush_or_zap


def emulated_write(kvm: Kvm, vcpu: Vcpu, gpa: int, value: int, size: int) -> int:
    """Store what the emulator writes, and tell the MMU; -EFAULT without a slot."""
    error = kvm_vcpu_write_guest(kvm, vcpu, gpa, value, size)
    if not error:
        kvm_mmu_pte_write(kvm, vcpu, gpa, size)
    return error


def kvm_mmu_pte_write(kvm: Kvm, vcpu: Vcpu, gpa: int, size: int) -> None:
    """Zap the entries that a write changed, and fill those of level 1 again; pages written too often go as a whole."""
    if not kvm.indirect_shadow_pages:
        return
    gfn = gpa >> PAGE_SHIFT
    refills = not kvm.rules.is_level_requested
    if vcpu.cr4 & X86_CR4_PAE and size == 4:
        gpa, size = gpa & ~7, 8
    entry = kvm_vcpu_read_guest(kvm, vcpu, gpa, size) if size in (4, 8) else 0
    invalid_list: list[int] = []
    remote = local = False
    for sp in for_each_gfn_indirect_valid_sp(kvm, gfn):
        if detect_write_misaligned(kvm, sp, gpa, size) or detect_write_flooding(kvm, sp):
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
            continue
        indices = get_written_sptes(kvm, sp, gpa)
        local |= refills and bool(indices)
        for index in indices:
            remote |= write_entry(kvm, vcpu, sp, index, entry or 0 if refills else 0)
    kvm_mmu_flush_or_zap(kvm, vcpu, invalid_list, remote, local)


def detect_write_misaligned(kvm: Kvm, sp: ShadowPage, gpa: int, size: int) -> bool:
    """Whether a write is of no whole entry: then the page is likely no table any more."""
    offset = gpa & PAGE_SIZE - 1
    entry_size = 8 if has_8_byte_entries(kvm, sp.role) else 4
    if offset % entry_size == 0 and size == 1:
        return False  # some guests clear an entry by one byte
    return size < 4 or (offset ^ offset + size - 1) & ~(entry_size - 1) != 0


def detect_write_flooding(kvm: Kvm, sp: ShadowPage) -> bool:
    """Whether a table above level 1 is written again and again without being used."""
    if role_level(sp.role) == PT_PAGE_TABLE_LEVEL:
        return False
    sp.write_flooding_count += 1
    return 0 < kvm.rules.write_flood_limit <= sp.write_flooding_count


def get_written_sptes(kvm: Kvm, sp: ShadowPage, gpa: int) -> list[int]:
    """The entries of a page that shadow what was written; none where it shadows another part of the table."""
    offset = gpa & PAGE_SIZE - 1
    if has_8_byte_entries(kvm, sp.role):
        return [offset // 8]
    offset *= 2
    number = 1
    if role_level(sp.role) == PT_DIRECTORY_LEVEL:
        offset = (offset & ~7) * 2  # an entry of 4 MiB takes two of 2 MiB
        number = 2
    if offset >> PAGE_SHIFT != role_quadrant(sp.role):
        return []
    first = (offset & PAGE_SIZE - 1) // 8
    return list(range(first, first + number))


def write_entry(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int, entry: int) -> bool:
    """Zap one entry and map what the guest's says now; true when others than this vCPU must flush."""
    old = sp.sptes.get(index, 0)
    if old:
        mmu_page_zap_pte(kvm, sp, index)
    is_same_mode = (sp.role ^ vcpu.base_role) & ROLE_MODE_MASK == 0
    if entry and is_same_mode and role_level(sp.role) == PT_PAGE_TABLE_LEVEL and mode_of(vcpu).name != "none":
        mask = (1 << 8 * mode_of(vcpu).entry_size) - 1
        prefetch_gpte(kvm, vcpu, sp, index, entry & mask, no_dirty_log=False)
    return need_remote_flush(kvm, old, sp.sptes.get(index, 0))


def need_remote_flush(kvm: Kvm, old: int, new: int) -> bool:
    """Whether a present entry became another page or lost a right."""
    masks = kvm.masks
    if not word.is_shadow_present_pte(masks, old):
        return False
    if not word.is_shadow_present_pte(masks, new) or (old ^ new) & PT64_BASE_ADDR_MASK:
        return True
    rights = masks.present | PT_WRITABLE_MASK | masks.user | masks.nx
    return (old ^ masks.nx) & ~(new ^ masks.nx) & rights != 0


def kvm_mmu_unprotect_page(kvm: Kvm, gfn: int) -> int:
    """Zap the shadows of a table, so that the guest may write it; 1 if there was one."""
    invalid_list: list[int] = []
    is_done = False
    for sp in for_each_gfn_indirect_valid_sp(kvm, gfn):
        is_done |= not kvm.rules.unprotect_counts_freed
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
    is_done |= bool(invalid_list)
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    return int(is_done)
