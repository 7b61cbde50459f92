"""How a guest pages: its mode, the reserved bits of its entries and the roles that its tables' shadows carry.

Owns `Vcpu.mode`, the MMU context. Models kvm_init_shadow_mmu, reset_rsvds_bits_mask and the role functions of v5.0 to
v6.12. The context is built anew only when its signature changed.

      mode   levels   entries               root
      none   -        -                     four direct pages
      p32    2        1024 of 4 bytes       CR3, four shadow pages of 2 MiB leaves
      pae    2        512 of 8 bytes        four PDPTEs that the processor keeps
      long   4        512 of 8 bytes        CR3
"""

from __future__ import annotations

from dataclasses import replace

from ..common.constants import (
    ACC_ALL,
    EFER_LMA,
    EFER_NX,
    PT64_BASE_ADDR_MASK,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
)
from ..common.masks import bits
from ..common.role import child_role, direct_page_role
from ..common.state import GuestMode, Kvm, ShadowPage, Vcpu

PT32_BASE_ADDR_MASK = bits(12, 31)
ROLE_8_BYTE_ENTRIES = 1 << 4
ROLE_4_BYTE_ENTRIES = 1 << 4  # from v6 on
ROLE_SMEP_SMAP_ANDNOT_WP = 3 << 14
#: The bits of a role that say in which mode the vCPU is.
ROLE_MODE_MASK = 0xFF03F010


def is_pae_paging(vcpu: Vcpu) -> bool:
    """Whether the processor translates through the four PDPTEs it keeps."""
    return bool(vcpu.cr0 & X86_CR0_PG and vcpu.cr4 & X86_CR4_PAE and not vcpu.efer & EFER_LMA)


def mode_of(vcpu: Vcpu) -> GuestMode:
    """The context, which every vCPU with shadow paging has."""
    assert vcpu.mode is not None
    return vcpu.mode


def kvm_calc_shadow_base_role(kvm: Kvm, vcpu: Vcpu) -> int:
    """The mode bits that every page of a vCPU in this mode carries, up to v5.4 direct ones but bit 4.

    Bit 4 says that entries have 8 bytes, from v6 on that they have 4, and NX is always on there; without paging
    nothing follows the registers then.
    """
    wp = vcpu.cr0 & X86_CR0_WP != 0
    if kvm.rules.is_role_fixed:
        role = 1 << 12
        if not vcpu.cr0 & X86_CR0_PG:
            return role | vcpu.smm << 24
        role |= 0 if vcpu.cr4 & X86_CR4_PAE else ROLE_4_BYTE_ENTRIES
    else:
        role = ROLE_8_BYTE_ENTRIES if vcpu.cr4 & X86_CR4_PAE else 0
        role |= 1 << 12 if vcpu.efer & EFER_NX else 0
    role |= 1 << 13 if wp else 0
    role |= 1 << 14 if vcpu.cr4 & X86_CR4_SMEP and (kvm.rules.role_has_smep or not wp) else 0
    role |= 1 << 15 if vcpu.cr4 & X86_CR4_SMAP and not wp else 0
    return role | vcpu.smm << 24


def kvm_init_shadow_mmu(kvm: Kvm, vcpu: Vcpu) -> None:
    """Take the registers into the context, if anything that it was built for changed."""
    base_role = kvm_calc_shadow_base_role(kvm, vcpu)
    cr4 = X86_CR4_SMEP | X86_CR4_SMAP | X86_CR4_PSE | X86_CR4_PKE | X86_CR4_LA57
    signature: tuple[int, ...] = (base_role, vcpu.cr0 & X86_CR0_PG, vcpu.cr4 & cr4)
    if kvm.rules.is_role_fixed:
        signature += (vcpu.efer & (EFER_NX | EFER_LMA), vcpu.cr4 & X86_CR4_PAE)
    if vcpu.mode is not None and vcpu.mode.signature == signature:
        return
    vcpu.base_role = base_role
    vcpu.mode = make_guest_mode(kvm, vcpu, signature)


def make_guest_mode(kvm: Kvm, vcpu: Vcpu, signature: tuple[int, ...]) -> GuestMode:
    mode = guest_mode(vcpu.cr0, vcpu.cr4, vcpu.efer, kvm.config.phys_bits, signature)
    before = vcpu.mode
    if kvm.rules.keys_obey_wp or before is None or not before.keys_obey_wp:
        return mode
    # Older kernels only add to the table of protection keys, as long as the guest leaves them on.
    was_on = before.signature[2] & X86_CR4_PKE != 0
    return replace(mode, keys_obey_wp=True) if was_on and vcpu.cr4 & X86_CR4_PKE else mode


def guest_mode(cr0: int, cr4: int, efer: int, phys_bits: int, signature: tuple[int, ...] = ()) -> GuestMode:
    """How a guest pages whose registers hold this."""
    if not cr0 & X86_CR0_PG:
        name = "none"
    elif efer & EFER_LMA:
        name = "long"
    else:
        name = "pae" if cr4 & X86_CR4_PAE else "p32"
    has_five_levels = name == "long" and cr4 & X86_CR4_LA57 != 0
    nx = name in ("long", "pae") and efer & EFER_NX != 0
    is_32_bit = name == "p32"
    pse = cr4 & X86_CR4_PSE != 0
    return GuestMode(
        name=name,
        root_level=5 if has_five_levels else {"none": 0, "p32": 2, "pae": 3, "long": 4}[name],
        entry_size=4 if is_32_bit else 8,
        index_bits=10 if is_32_bit else 9,
        address_mask=PT32_BASE_ADDR_MASK if is_32_bit else PT64_BASE_ADDR_MASK,
        nx=nx,
        wp=cr0 & X86_CR0_WP != 0,
        smep=cr4 & X86_CR4_SMEP != 0,
        smap=cr4 & X86_CR4_SMAP != 0,
        pse=pse,
        pke=name == "long" and cr4 & X86_CR4_PKE != 0,
        keys_obey_wp=cr0 & X86_CR0_WP != 0,
        rsvd=reset_rsvds_bits_mask(name, phys_bits, nx, pse),
        signature=signature,
    )


def reset_rsvds_bits_mask(
    name: str, phys_bits: int, nx: bool, pse: bool
) -> tuple[dict[int, int], dict[int, int]]:
    """The reserved bits of an entry without and with the PS bit, by level; level 3 of pae is a PDPTE at its load."""
    if name == "none":
        return {}, {}
    if name == "p32":
        return {1: 0, 2: 0}, {1: 0, 2: bits(17, 21) if pse else 0}
    no_nx = 0 if nx else 1 << 63
    if name == "pae":
        high = bits(phys_bits, 62) | no_nx
        pdpte = bits(phys_bits, 63) | bits(5, 8) | bits(1, 2)
        return {1: high, 2: high, 3: pdpte}, {1: high, 2: high | bits(13, 20)}
    high = bits(phys_bits, 51) | no_nx
    small = dict.fromkeys((1, 2, 3, 4, 5), high)
    no_ps = high | 1 << 7
    return small, {1: high, 2: high | bits(13, 20), 3: high | bits(13, 29), 4: no_ps, 5: no_ps}


def is_rsvd_bits_set(mode: GuestMode, entry: int, level: int) -> bool:
    return entry & mode.rsvd[entry >> 7 & 1][level] != 0


def role_quadrant(role: int) -> int:
    return role >> 5 & 3


def has_8_byte_entries(kvm: Kvm, role: int) -> bool:
    """Whether the guest table that a page shadows has entries of 8 bytes."""
    return (role & ROLE_8_BYTE_ENTRIES != 0) != kvm.rules.is_role_fixed


def child_page_role(kvm: Kvm, parent: ShadowPage, index: int, is_direct: bool, access: int) -> int:
    """From v6 on the role of a table below an entry: that of the entry's own table, but for level and access."""
    role = child_role(kvm.rules, parent.role) & ~(ACC_ALL << 8 | 3 << 5 | 1 << 7)
    role |= access << 8 | (1 << 7 if is_direct else 0)
    return role | (index & 1) << 5 if role & ROLE_4_BYTE_ENTRIES else role


def shadow_page_role(kvm: Kvm, vcpu: Vcpu, gva: int, level: int, is_direct: bool, access: int) -> int:
    """The role of a page of this vCPU; where the guest has two levels, the part of its table that the page shadows."""
    role = vcpu.base_role | level
    if is_direct:
        role = direct_page_role(kvm.rules, vcpu.base_role, level) & ~(ACC_ALL << 8)
    if mode_of(vcpu).name == "p32":
        role |= (gva >> (12 + 9 * level) & (1 << level) - 1) << 5
    return role | access << 8
