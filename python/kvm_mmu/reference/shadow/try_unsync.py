"""Whether a gfn may become writable where guest tables are shadowed, from v6 on.

Owns nothing. Models mmu_try_to_unsync_pages of v6.1 and v6.12.
"""

from __future__ import annotations

from ..common.constants import EEXIST, EPERM
from ..common.slots import kvm_page_track_is_active
from ..common.state import Kvm, Vcpu
from .page import for_each_gfn_indirect_valid_sp
from .unsync import kvm_unsync_page


def mmu_try_to_unsync_pages(kvm: Kvm, vcpu: Vcpu, gfn: int, can_unsync: bool, is_prefetch: bool) -> int:
    """0 after the shadows of the gfn became unsync; an errno where they must not, or only a prefetch asks for it."""
    if kvm_page_track_is_active(kvm, vcpu, gfn):
        return -EPERM
    for sp in for_each_gfn_indirect_valid_sp(kvm, gfn):
        if not can_unsync or not kvm.rules.has_unsync:
            return -EPERM
        if sp.unsync:
            continue
        if is_prefetch:
            return -EEXIST
        kvm_unsync_page(kvm, sp)
    return 0
