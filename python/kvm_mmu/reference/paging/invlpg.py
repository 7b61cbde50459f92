"""INVLPG: one address is read again from the guest's tables, in the current roots and in the previous ones.

Owns nothing. Models kvm_mmu_invlpg and invlpg of v5.0 to v5.4. Only unsync pages can be stale, so others are left
alone; the entry is zapped and filled again at once, and the page stays unsync.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import PAGE_SIZE, kvm_pages_per_hpage, spte_index
from ..common.flush import kvm_flush_remote_tlbs_with_address
from ..common.page_table import kvm_mmu_page_get_gfn, vcpu_root
from ..common.role import role_level
from ..common.state import Kvm, ShadowPage, Vcpu
from ..shadow.guest_memory import kvm_vcpu_read_guest
from ..shadow.guest_mode import mode_of
from ..shadow.zap import mmu_page_zap_pte
from .gpte import get_level1_sp_gpa
from .prefetch import prefetch_gpte
from .sync_v6 import sync_spte


def is_noncanonical_address(gva: int) -> bool:
    return gva >> 47 not in (0, (1 << 17) - 1)


def kvm_mmu_invlpg(kvm: Kvm, vcpu: Vcpu, gva: int) -> None:
    if is_noncanonical_address(gva) or mode_of(vcpu).name == "none":
        return
    invlpg_in_root(kvm, vcpu, gva, vcpu_root(vcpu, gva) if vcpu.roots else None, has_root=bool(vcpu.roots))
    for previous in vcpu.prev_roots:
        if previous is not None:
            invlpg_in_root(kvm, vcpu, gva, previous[1], has_root=True)


def kvm_mmu_invalidate_current(kvm: Kvm, vcpu: Vcpu, gva: int) -> None:
    """The same for the current roots alone."""
    if not is_noncanonical_address(gva) and vcpu.roots:
        invlpg_in_root(kvm, vcpu, gva, vcpu_root(vcpu, gva), has_root=True)


def invlpg_in_root(kvm: Kvm, vcpu: Vcpu, gva: int, root: int | None, has_root: bool) -> None:
    if vcpu.mmio_gva == gva & ~(PAGE_SIZE - 1):
        vcpu.mmio_gva = 0
    if not has_root:
        if kvm.rules.invlpg_warn_line:
            kvm.events.append(["WARN", f"paging_tmpl.h:{kvm.rules.invlpg_warn_line}", "1"])
            kvm.ctr["warn"] += 1
        return
    is_sync = kvm.rules.invlpg_syncs
    page_id = root
    while page_id is not None:
        sp = kvm.pages[page_id]
        level = role_level(sp.role)
        index = spte_index(gva, level)
        spte = sp.sptes.get(index, 0)
        if is_sync and sp.unsync:
            sync_entry(kvm, vcpu, sp, index)
            spte = sp.sptes.get(index, 0)
        if word.is_last_spte(spte, level):
            if sp.unsync and not is_sync:
                renew_entry(kvm, vcpu, sp, index)
            return
        if not word.is_shadow_present_pte(kvm.masks, spte) or not sp.unsync_child_bitmap:
            return
        page_id = word.spte_to_pfn(spte)


def sync_entry(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int) -> None:
    """Compare an entry of an unsync page with the guest's; one whose guest entry cannot be read goes."""
    changed = sync_spte(kvm, vcpu, sp, index)
    if changed is None:
        mmu_page_zap_pte(kvm, sp, index)
    if changed is None or changed:
        gfn = kvm_mmu_page_get_gfn(sp, index)
        kvm_flush_remote_tlbs_with_address(kvm, gfn, kvm_pages_per_hpage(role_level(sp.role)))


def renew_entry(kvm: Kvm, vcpu: Vcpu, sp: ShadowPage, index: int) -> None:
    """Zap an entry of an unsync page, with a flush if it mapped something, and fill it from the guest's entry."""
    spte = sp.sptes.get(index, 0)
    if spte:
        mmu_page_zap_pte(kvm, sp, index)
    if word.is_shadow_present_pte(kvm.masks, spte):
        kvm_flush_remote_tlbs_with_address(kvm, sp.gfn, 1)
    gpa = get_level1_sp_gpa(vcpu, sp, index)
    entry = kvm_vcpu_read_guest(kvm, vcpu, gpa, mode_of(vcpu).entry_size)
    if entry is not None:
        prefetch_gpte(kvm, vcpu, sp, index, entry, no_dirty_log=False)
