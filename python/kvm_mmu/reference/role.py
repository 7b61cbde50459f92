"""The packed page role of a direct shadow page.

    bits    field               bits    field
    0-3     level               11      invalid
    4       v5.0 guest PAE (0 for direct pages), v5.2 to v5.4 8-byte guest entries (1), v6.1 4-byte ones (0)
    7       direct              12      nxe
    8-10    access              13      cr0.wp
    16      A/D disabled        24-31   smm

Pure functions over the word. Models union kvm_mmu_page_role of v5.0 to v6.12; a direct MMU's base role
keeps only nxe, wp, A/D and smm. In v6 nothing but smm follows the guest: nxe is set, wp is set under two-dimensional
paging and clear for a guest without paging.
"""

from __future__ import annotations

from .constants import ACC_ALL, EFER_NX, X86_CR0_WP
from .kernels import KernelRules
from .masks import Masks

ROLE_INVALID = 1 << 11
ROLE_AD_DISABLED = 1 << 16


def kvm_calc_tdp_mmu_base_role(
    rules: KernelRules, masks: Masks, is_tdp: bool, cr0: int, efer: int, smm: int
) -> int:
    """The mode bits that every direct page of a vCPU in this mode carries."""
    role = 1 << 12 if rules.is_v6 or efer & EFER_NX else 0
    role |= 1 << 13 if (is_tdp if rules.is_v6 else cr0 & X86_CR0_WP) else 0
    role |= ROLE_AD_DISABLED if masks.accessed == 0 else 0
    return role | smm << 24


def direct_page_role(rules: KernelRules, base_role: int, level: int) -> int:
    """The whole role of a direct page of this level."""
    role = base_role | level | 1 << 7 | ACC_ALL << 8
    return role | (1 << 4 if rules.direct_role_has_8_byte_gptes else 0)


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
