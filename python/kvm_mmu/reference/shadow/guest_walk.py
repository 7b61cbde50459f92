"""The walk of the guest's own tables: what an address translates to for the guest, or the fault that it gets.

Owns `GuestWalk` and the accessed and dirty bits in guest memory. Models walk_addr_generic, permission_fault,
gpte_access, protect_clean_gpte and update_accessed_dirty_bits of v5.0 to v6.12. A fault writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..common.constants import (
    ACC_ALL,
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    PAGE_SHIFT,
    PFERR_FETCH,
    PFERR_PK,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_SIZE_MASK,
    PT_PAGE_TABLE_LEVEL,
)
from ..common.errors import ScenarioError
from ..common.events import note_guest_walk
from ..common.masks import bits
from ..common.slots import kvm_vcpu_mark_page_dirty, memslot_is_readonly
from ..common.state import GuestMode, Kvm, Vcpu
from .guest_memory import kvm_vcpu_gfn_to_visible_slot, kvm_vcpu_read_guest, write_guest
from .guest_mode import is_rsvd_bits_set, mode_of

PT_PRESENT = 1 << 0
PT_ACCESSED = 1 << 5
PT_DIRTY = 1 << 6
PT64_NX_SHIFT = 63


@dataclass(slots=True)
class GuestWalk:
    """One walk: per level walked the table's gfn, the entry's address and its value, and what they come to.

    `error_code` is None where the guest may do what it wants, else what its page fault says.
    """

    max_level: int
    level: int
    error_code: int | None = None
    gfn: int = 0
    pt_access: int = ACC_ALL
    pte_access: int = ACC_ALL
    table_gfn: dict[int, int] = field(default_factory=dict)
    pte_gpa: dict[int, int] = field(default_factory=dict)
    ptes: dict[int, int] = field(default_factory=dict)
    access_above: dict[int, int] = field(default_factory=dict)  # what the entries above a level allow


def gpte_access(entry: int) -> int:
    """The rights that one entry gives."""
    access = entry & ACC_WRITE_MASK | entry & ACC_USER_MASK
    return access if entry >> PT64_NX_SHIFT else access | ACC_EXEC_MASK


def protect_clean_gpte(access: int, entry: int) -> int:
    """A page that the guest has not written is mapped read-only, so that its first write is seen."""
    return access if entry & PT_DIRTY else access & ~ACC_WRITE_MASK


def permission_fault(
    mode: GuestMode, access: int, key: int, error_code: int, ac: int, pkru: int, *, is_implicit: bool = False
) -> int:
    """Whether the rights of all entries together refuse what the error code says was wanted: 0, or why."""
    is_user = error_code & PFERR_USER != 0
    is_fetch = error_code & PFERR_FETCH != 0
    is_write = error_code & PFERR_WRITE != 0
    is_user_page = access & ACC_USER_MASK != 0
    is_binding = is_user or mode.wp  # whether what forbids writes forbids this one
    if mode.pke and is_user_page and not is_fetch:
        no_access, no_write = pkru >> 2 * key & 1, pkru >> 2 * key + 1 & 1
        if no_access or (is_write and no_write and (is_user or mode.keys_obey_wp)):
            return PFERR_PRESENT | PFERR_PK
    if is_write and not access & ACC_WRITE_MASK and is_binding:
        return PFERR_PRESENT
    if is_user and not is_user_page:
        return PFERR_PRESENT
    if is_fetch and mode.nx and not access & ACC_EXEC_MASK:
        return PFERR_PRESENT
    if is_user or not is_user_page:
        return 0
    is_kept_out = mode.smep if is_fetch else mode.smap and (is_implicit or not ac)
    return PFERR_PRESENT if is_kept_out else 0


def protection_key(mode: GuestMode, entry: int) -> int:
    """The key of a leaf."""
    return entry >> 59 & 0xF if mode.name == "long" else 0


def is_last_gpte(mode: GuestMode, level: int, entry: int) -> bool:
    if level == PT_PAGE_TABLE_LEVEL:
        return True
    if not entry & PT_PAGE_SIZE_MASK:
        return False
    return mode.pse if mode.name == "p32" else level < mode.root_level


def gpte_index(mode: GuestMode, gva: int, level: int) -> int:
    return gva >> PAGE_SHIFT + mode.index_bits * (level - 1) & (1 << mode.index_bits) - 1


def pse36_gfn_delta(entry: int) -> int:
    """Bits 13 to 16 of a large entry of 4 bytes are address bits 32 to 35."""
    return (entry >> 13 & 0xF) << 32 - PAGE_SHIFT


def has_room_for_walk(kvm: Kvm, vcpu: Vcpu) -> bool:
    """Whether the kernel's walk has room for the levels of the guest's tables.

    A kernel without a bound writes past the end of its walk; one with a bound finds nothing, and its VM is dead.
    """
    levels, most = mode_of(vcpu).root_level, kvm.rules.walk_levels
    if levels <= most:
        return True
    if kvm.rules.walk_bound == "none":
        raise ScenarioError(
            f"kernel {kvm.rules.name}: its walk has room for {most} levels of a guest's tables, this guest's have"
            f" {levels}: the kernel writes past the end there"
        )
    kvm.is_bugged = True
    return False


def walk_addr(kvm: Kvm, vcpu: Vcpu, gva: int, error_code: int) -> GuestWalk:
    """Walk until nothing changes under the walk's own accessed bits."""
    note_guest_walk(kvm, "walk", gva, hex(error_code))
    while True:
        walk = walk_addr_once(kvm, vcpu, gva, error_code)
        if walk is not None:
            return walk


def walk_addr_once(kvm: Kvm, vcpu: Vcpu, gva: int, error_code: int) -> GuestWalk | None:
    mode = mode_of(vcpu)
    level, table = mode.root_level, vcpu.cr3 & mode.address_mask
    if mode.name == "pae":
        table = vcpu.pdptrs[gva >> 30 & 3]
        note_guest_walk(kvm, "walk_pte", hex(table), level)
        level -= 1
        if not table & PT_PRESENT:
            return noted(kvm, refused(mode, GuestWalk(level, level), error_code, 0))
        table &= mode.address_mask
    walk = GuestWalk(max_level=level, level=level)

    def read(gpa: int, level: int) -> int | None:
        entry = kvm_vcpu_read_guest(kvm, vcpu, gpa, mode.entry_size)
        if entry is not None:
            note_guest_walk(kvm, "walk_pte", hex(entry), level)
        return entry

    follow_entries(mode, walk, gva, table, error_code, read)
    judge_rights(mode, walk, error_code, vcpu.ac, vcpu.pkru)
    if walk.error_code is not None:
        return noted(kvm, walk)
    return walk if update_accessed_dirty_bits(kvm, vcpu, walk, error_code & PFERR_WRITE != 0) else None


def walk_entries(
    mode: GuestMode,
    entries: dict[int, int],
    gva: int,
    error_code: int,
    ac: int,
    pkru: int,
    *,
    is_implicit: bool,
) -> GuestWalk:
    """Walk entries that lie nowhere, by level, and set their bits in the walk; `pae` has a PDPTE that is present."""
    top = mode.root_level - (mode.name == "pae")
    walk = GuestWalk(max_level=top, level=top)
    if mode.name == "none":
        walk.gfn = gva >> PAGE_SHIFT
        return walk
    follow_entries(mode, walk, gva, 0, error_code, lambda _, level: entries.get(level))
    judge_rights(mode, walk, error_code, ac, pkru, is_implicit=is_implicit)
    if walk.error_code is None:
        for level in walk.ptes:
            walk.ptes[level] |= accessed_dirty_bits(walk, level, error_code)
    return walk


def follow_entries(
    mode: GuestMode,
    walk: GuestWalk,
    gva: int,
    table: int,
    error_code: int,
    read: Callable[[int, int], int | None],
) -> None:
    """Down to the leaf; the walk has an error code where an entry ends it."""
    level = walk.level
    while True:
        walk.level = level
        walk.access_above[level] = walk.pte_access
        gpa = table + gpte_index(mode, gva, level) * mode.entry_size
        walk.table_gfn[level], walk.pte_gpa[level] = table >> PAGE_SHIFT, gpa
        entry = read(gpa, level)
        if entry is None or not entry & PT_PRESENT:
            refused(mode, walk, error_code, 0)
            return
        if is_rsvd_bits_set(mode, entry, level):
            refused(mode, walk, error_code, PFERR_PRESENT | PFERR_RSVD)
            return
        walk.ptes[level] = entry
        walk.pt_access, walk.pte_access = walk.pte_access, walk.pte_access & gpte_access(entry)
        if is_last_gpte(mode, level, entry):
            walk.gfn = gpte_to_gfn(mode, gva, entry, level)
            return
        table = entry & mode.address_mask
        level -= 1


def judge_rights(
    mode: GuestMode, walk: GuestWalk, error_code: int, ac: int, pkru: int, *, is_implicit: bool = False
) -> None:
    """The verdict on a walk that came to its leaf; a leaf that the guest has not written gives no write to a read."""
    if walk.error_code is not None:
        return
    leaf = walk.ptes[walk.level]
    key = protection_key(mode, leaf)
    reason = permission_fault(mode, walk.pte_access, key, error_code, ac, pkru, is_implicit=is_implicit)
    if reason:
        refused(mode, walk, error_code, reason)
    elif not error_code & PFERR_WRITE:
        walk.pte_access = protect_clean_gpte(walk.pte_access, leaf)


def gpte_to_gfn(mode: GuestMode, gva: int, entry: int, level: int) -> int:
    """The gfn that a leaf gives the address."""
    within = bits(0, mode.index_bits * (level - 1) - 1)
    gfn = (entry & mode.address_mask) >> PAGE_SHIFT & ~within | gva >> PAGE_SHIFT & within
    if mode.name == "p32" and level == PT_DIRECTORY_LEVEL:
        gfn += pse36_gfn_delta(entry)
    return gfn


def refused(mode: GuestMode, walk: GuestWalk, error_code: int, reason: int) -> GuestWalk:
    """End the walk with the code of the guest's fault."""
    code = reason | error_code & (PFERR_WRITE | PFERR_USER)
    if error_code & PFERR_FETCH and (mode.nx or mode.smep):
        code |= PFERR_FETCH
    walk.error_code = code
    return walk


def noted(kvm: Kvm, walk: GuestWalk) -> GuestWalk:
    """A walk that failed, with its event."""
    assert walk.error_code is not None
    note_guest_walk(kvm, "walk_error", hex(walk.error_code))
    return walk


def accessed_dirty_bits(walk: GuestWalk, level: int, error_code: int) -> int:
    """The bits that an allowed access leaves in an entry."""
    is_dirtied = error_code & PFERR_WRITE and level == walk.level
    return PT_ACCESSED | PT_DIRTY if is_dirtied else PT_ACCESSED


def update_accessed_dirty_bits(kvm: Kvm, vcpu: Vcpu, walk: GuestWalk, is_write: bool) -> bool:
    """Set A in every entry and D in the leaf of a write, top first; false when an entry changed and all begins anew."""
    size = mode_of(vcpu).entry_size
    for level in range(walk.max_level, walk.level - 1, -1):
        old, gpa = walk.ptes[level], walk.pte_gpa[level]
        new = old | PT_ACCESSED
        if not old & PT_ACCESSED:
            note_guest_walk(kvm, "set_accessed", gpa)
        if is_write and level == walk.level and not old & PT_DIRTY:
            note_guest_walk(kvm, "set_dirty", gpa)
            new |= PT_DIRTY
        if new == old:
            continue
        slot = kvm_vcpu_gfn_to_visible_slot(kvm, vcpu, walk.table_gfn[level])
        if slot is None or memslot_is_readonly(slot):
            continue
        if kvm_vcpu_read_guest(kvm, vcpu, gpa, size) != old:
            return False
        write_guest(kvm, vcpu, gpa, new, size)
        kvm_vcpu_mark_page_dirty(kvm, vcpu, walk.table_gfn[level])
        walk.ptes[level] = new
    return True
