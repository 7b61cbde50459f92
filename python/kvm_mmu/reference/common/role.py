"""The packed page role of a direct shadow page.

    bits    field               bits    field
    0-3     level               11      invalid
    4       v5.0 guest PAE (0 for direct pages), v5.2 to v5.4 8-byte guest entries (1), v6.1 4-byte ones (0)
    7       direct              12      nxe
    8-10    access              13      cr0.wp
    16      A/D disabled        24-31   smm

Pure functions over the word. Models union kvm_mmu_page_role of v5.0 to v7.3; a direct MMU's base role
keeps only nxe, wp, A/D and smm. Where the role is fixed nothing but smm follows the guest: nxe is set, wp is set under
two-dimensional paging and clear for a guest without paging.

v7.2 gives access a read bit and moves what lies above it by one; a role is kept in the older form and only shown so.
"""

from __future__ import annotations

from .constants import ACC_ALL, ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK, EFER_NX, X86_CR0_WP
from .kernels import KernelRules
from .masks import Masks

ROLE_INVALID = 1 << 11
ROLE_SMEP = 1 << 14
ROLE_AD_DISABLED = 1 << 16


def kvm_calc_tdp_mmu_base_role(
    rules: KernelRules, masks: Masks, is_tdp: bool, cr0: int, efer: int, smm: int
) -> int:
    """The mode bits that every direct page of a vCPU in this mode carries."""
    role = 1 << 12 if rules.is_role_fixed or efer & EFER_NX else 0
    role |= 1 << 13 if (is_tdp if rules.is_role_fixed else cr0 & X86_CR0_WP) else 0
    role |= ROLE_AD_DISABLED if masks.accessed == 0 else 0
    return role | smm << 24


def direct_page_role(rules: KernelRules, base_role: int, level: int) -> int:
    """The whole role of a direct page of this level."""
    role = base_role & ~(1 << 4) | level | 1 << 7 | ACC_ALL << 8
    return role | (1 << 4 if rules.direct_role_bit4 else 0)


def child_role(rules: KernelRules, parent: int) -> int:
    """The role of a table below a direct page, taken from that page; the mark invalid goes with it or not."""
    return (parent & ~ROLE_INVALID if rules.child_role_valid else parent) - 1


def shown_access(rules: KernelRules, access: int) -> int:
    """Access bits as the kernel has them: execute 1, write 2, user 4, or read 1, write 2, user 4, execute 8."""
    return access if rules.access_bits == "xwu" else with_read_bit(access)


def with_read_bit(access: int) -> int:
    """Read 1, write 2, user 4, execute 8; reading is always allowed."""
    return access & (ACC_WRITE_MASK | ACC_USER_MASK) | 1 | (8 if access & ACC_EXEC_MASK else 0)


def shown_role(rules: KernelRules, role: int) -> int:
    """The word as the kernel has it."""
    if rules.role_layout != "v7.2":
        return role
    moved = with_read_bit(role_access(role))
    above = role & (ROLE_INVALID | 1 << 12 | 1 << 13)
    smep = role & ROLE_SMEP
    return role & ~(ACC_ALL << 8 | above | smep) | moved << 8 | above << 1 | smep << 6


def role_level(role: int) -> int:
    return role & 0xF


def role_access(role: int) -> int:
    return (role >> 8) & ACC_ALL


def role_is_direct(role: int) -> bool:
    return role & 1 << 7 != 0


def role_smm(role: int) -> int:
    return role >> 24


def role_address_space(role: int) -> int:
    return 1 if role_smm(role) else 0


def role_is_invalid(role: int) -> bool:
    return role & ROLE_INVALID != 0


def role_is_ad_disabled(role: int) -> bool:
    return role & ROLE_AD_DISABLED != 0
