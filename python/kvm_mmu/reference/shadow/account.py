"""The pages that shadow guest tables, in the slots: tracked writes above level 1, and no large pages over them.

Owns `Kvm.indirect_shadow_pages`. Models account_shadowed and unaccount_shadowed of v5.0 to v6.12. The slot is that of
the page's own address space.
"""

from __future__ import annotations

from ..common.constants import PT_PAGE_TABLE_LEVEL
from ..common.flush import kvm_flush_remote_tlbs
from ..common.role import role_address_space, role_level
from ..common.slots import gfn_to_memslot, update_gfn_disallow_lpage_count
from ..common.state import Kvm, ShadowPage
from .track import kvm_mmu_rmap_write_protect_gfn, update_gfn_track


def account_shadowed(kvm: Kvm, sp: ShadowPage) -> None:
    """A new indirect page: writes to its table are tracked, or, at level 1, only large pages over it are vetoed."""
    kvm.indirect_shadow_pages += 1
    slot = gfn_to_memslot(kvm, role_address_space(sp.role), sp.gfn)
    if slot is None:
        return
    update_gfn_disallow_lpage_count(slot, sp.gfn, 1)
    if role_level(sp.role) > PT_PAGE_TABLE_LEVEL:
        update_gfn_track(slot, sp.gfn, 1)
        if kvm_mmu_rmap_write_protect_gfn(kvm, slot, sp.gfn):
            kvm_flush_remote_tlbs(kvm)


def unaccount_shadowed(kvm: Kvm, sp: ShadowPage) -> None:
    """Undo `account_shadowed` when the page is zapped the first time."""
    kvm.indirect_shadow_pages -= 1
    slot = gfn_to_memslot(kvm, role_address_space(sp.role), sp.gfn)
    if slot is None:
        return
    if role_level(sp.role) > PT_PAGE_TABLE_LEVEL:
        if slot.gfn_track.get(sp.gfn - slot.base_gfn, 0) == 0:
            return  # tracking of the gfn was ended by somebody else, with the veto
        update_gfn_track(slot, sp.gfn, -1)
    update_gfn_disallow_lpage_count(slot, sp.gfn, -1)
