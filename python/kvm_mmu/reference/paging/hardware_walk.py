"""The processor's walk of shadow tables for a guest-virtual address, and the error code when it fails.

Owns nothing. Models what the scenario language defines for `vaccess`: no TLB, CR0.WP always 1 on the host, the guest's
CR4 for SMEP and SMAP.
"""

from __future__ import annotations

from ..common import spte as word
from ..common.constants import (
    PFERR_FETCH,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT_WRITABLE_MASK,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    spte_index,
)
from ..common.masks import bits
from ..common.page_table import vcpu_root, write_spte
from ..common.role import role_level
from ..common.state import Kvm, ShadowPage, Vcpu


def shadow_hardware_walk(kvm: Kvm, vcpu: Vcpu, gva: int, kind: str, is_user: bool) -> int | None:
    """Translate one access: the error code of the fault, None where it goes through."""
    found = hardware_leaf(kvm, vcpu, gva, kind, is_user)
    return found if isinstance(found, int) else None


def hardware_leaf(kvm: Kvm, vcpu: Vcpu, gva: int, kind: str, is_user: bool) -> int | tuple[ShadowPage, int]:
    """The same, with the page and index of the leaf where it goes through."""
    code = {"r": 0, "w": PFERR_WRITE, "x": PFERR_FETCH}[kind] | (PFERR_USER if is_user else 0)
    root = vcpu_root(vcpu, gva)
    if root is None:
        return code
    reserved = bits(kvm.config.phys_bits, 51)
    masks = kvm.masks
    path: list[tuple[ShadowPage, int]] = []
    is_refused, is_user_page = False, True
    sp = kvm.pages[root]
    while True:
        level, index = role_level(sp.role), spte_index(gva, role_level(sp.role))
        spte = sp.sptes.get(index, 0)
        if not spte & 1:
            return code
        is_link = word.is_shadow_present_pte(masks, spte) and not word.is_last_spte(spte, level)
        if not is_link and spte & reserved:
            return code | PFERR_PRESENT | PFERR_RSVD
        path.append((sp, index))
        is_user_page &= spte & masks.user != 0
        is_refused |= kind == "w" and not spte & PT_WRITABLE_MASK
        is_refused |= is_user and not spte & masks.user
        is_refused |= kind == "x" and spte & masks.nx != 0
        if not is_link:
            break
        sp = kvm.pages[word.spte_to_pfn(spte)]
    if not is_user and is_user_page:
        cr4_bit = X86_CR4_SMEP if kind == "x" else X86_CR4_SMAP
        is_refused |= vcpu.cr4 & cr4_bit != 0 and (kind == "x" or not vcpu.ac)
    if is_refused:
        return code | PFERR_PRESENT
    for sp, index in path:
        write_spte(sp, index, sp.sptes[index] | masks.accessed)
    leaf, index = path[-1]
    if kind == "w":
        write_spte(leaf, index, leaf.sptes[index] | masks.dirty)
    return leaf, index
