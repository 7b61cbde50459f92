"""Accessed and dirty bits that the processor sets in leaves of the TDP MMU, as a recording tells of them.

Owns nothing. KVM is not told when they are set: it finds them.
"""

from __future__ import annotations

from ..common.constants import PT_WRITABLE_MASK
from ..common.page_table import write_spte
from ..common.role import role_address_space
from ..common.state import Kvm
from .iter import tdp_root_for_each_leaf_pte


def processor_sets(kvm: Kvm, as_id: int, gfns: list[int], is_write: bool) -> None:
    """Marks of accesses that went through without KVM: in the leaf over each gfn, in every root of the space."""
    marks = kvm.masks.accessed | (kvm.masks.dirty if is_write else 0)
    for root in [kvm.pages[number] for number in kvm.tdp_mmu_roots] if kvm.masks.accessed else ():
        for gfn in gfns if role_address_space(root.role) == as_id else ():
            for it in tdp_root_for_each_leaf_pte(kvm, root, gfn, gfn + 1):
                if not is_write or it.old_spte & PT_WRITABLE_MASK:
                    write_spte(it.sp, it.index, it.old_spte | marks)
