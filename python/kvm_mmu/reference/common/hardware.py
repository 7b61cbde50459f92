"""The processor's own walk of the shadow tables, and the error code when it fails.

Owns the setting of accessed and dirty bits by hardware. Models what the scenario language defines for EPT and NPT: no
TLB, every access walks.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import spte as word
from .constants import (
    PAGE_SHIFT,
    PFERR_FETCH,
    PFERR_GUEST_FINAL,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT64_BASE_ADDR_MASK,
    PT_WRITABLE_MASK,
    spte_index,
)
from .masks import LEGACY_FAMILIES, bits
from .page_table import vcpu_root, write_spte
from .role import role_level
from .slots import kvm_vcpu_mark_page_dirty, nr_memslots_dirty_logging
from .state import Kvm, ShadowPage, Vcpu

EPT_READABLE = 1
EPT_EXECUTABLE = 1 << 2
EPT_RWX = 0b111
PT_USER = 1 << 2
PT_NX = 1 << 63


@dataclass(frozen=True, slots=True)
class HardwareFault:
    error_code: int


def ept_entry_fault(kvm: Kvm, spte: int, kind: str) -> int | None:
    """The error code an EPT entry gives for an access, None when it lets it through."""
    code = PFERR_GUEST_FINAL | {"r": PFERR_USER, "w": PFERR_WRITE, "x": PFERR_FETCH}[kind]
    rwx = spte & EPT_RWX
    if rwx == 0:
        return code
    is_write_only = rwx & PT_WRITABLE_MASK and not rwx & EPT_READABLE
    is_exec_only = rwx == EPT_EXECUTABLE and not kvm.config.execonly
    if is_write_only or is_exec_only or spte & bits(kvm.config.phys_bits, 51):
        return PFERR_RSVD  # a misconfiguration
    needed = {"r": EPT_READABLE, "w": PT_WRITABLE_MASK, "x": EPT_EXECUTABLE}[kind]
    return None if spte & needed else code | PFERR_PRESENT


def npt_entry_fault(kvm: Kvm, spte: int, kind: str) -> int | None:
    """The error code an NPT entry gives for an access, None when it lets it through."""
    code = {"r": 0, "w": PFERR_WRITE, "x": PFERR_FETCH}[kind]
    if kvm.config.family == "npt":  # a guest without paging on shadow tables runs as supervisor
        code |= PFERR_GUEST_FINAL | PFERR_USER
    if not spte & 1:
        return code
    if spte & bits(kvm.config.phys_bits, 51):
        return code | PFERR_PRESENT | PFERR_RSVD
    is_refused = (kind == "w" and not spte & PT_WRITABLE_MASK) or (kind == "x" and spte & PT_NX)
    return code | PFERR_PRESENT if is_refused or not spte & PT_USER else None


def hardware_walk(kvm: Kvm, vcpu: Vcpu, gpa: int, kind: str) -> HardwareFault | None:
    """Translate one access from a loaded root; None is success."""
    root = vcpu_root(vcpu, gpa)
    assert root is not None
    entry_fault = npt_entry_fault if kvm.config.family in LEGACY_FAMILIES else ept_entry_fault
    path: list[tuple[ShadowPage, int]] = []
    sp = kvm.pages[root]
    while True:
        level = role_level(sp.role)
        index = spte_index(gpa, level)
        spte = sp.sptes.get(index, 0)
        is_leaf = word.is_last_spte(spte, level) or not word.is_shadow_present_pte(kvm.masks, spte)
        # A table's address is its id, not part of the model, so it cannot be out of the host's reach.
        seen = spte if is_leaf else spte & ~PT64_BASE_ADDR_MASK
        error_code = entry_fault(kvm, seen, kind)
        if error_code is not None:
            return HardwareFault(error_code)
        path.append((sp, index))
        if word.is_last_spte(spte, level):
            break
        sp = kvm.pages[word.spte_to_pfn(spte)]
    if kvm.masks.accessed:
        set_accessed_and_dirty(kvm, vcpu, path, gpa, kind)
    return None


def set_accessed_and_dirty(
    kvm: Kvm, vcpu: Vcpu, path: list[tuple[ShadowPage, int]], gpa: int, kind: str
) -> None:
    """A on the whole path; D in the leaf of a write, logged at once where page modification logging is on."""
    for sp, index in path:
        write_spte(sp, index, sp.sptes[index] | kvm.masks.accessed)
    if kind != "w":
        return
    leaf, index = path[-1]
    spte = leaf.sptes[index]
    write_spte(leaf, index, spte | kvm.masks.dirty)
    logs = not kvm.rules.pml_while_logging or nr_memslots_dirty_logging(kvm) > 0
    if kvm.config.pml and logs and not spte & kvm.masks.dirty:
        gfn = gpa >> PAGE_SHIFT
        kvm.events.append(["pml", gfn])
        kvm_vcpu_mark_page_dirty(kvm, vcpu, gfn)
