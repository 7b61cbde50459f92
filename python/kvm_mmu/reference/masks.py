"""Run-time SPTE masks: which bits the vendor module sets for each family and physical width.

Owns `Masks`. Models kvm_mmu_set_mask_ptes, kvm_mmu_set_mmio_spte_mask and the L1TF part of
kvm_mmu_reset_all_pte_masks (v5.0 to v6.12), and the places of KVM's own bits, which moved:

                               v5.0 to v5.3   v5.4       v6.1, v6.12
      host / MMU writable      10 / 11        10 / 11    9 / 10, EPT 57 / 58
      MMU present              -              -          11
      without A/D bits         62             52         52
      R and X saved from       52             54         54
      MMIO entries also have   62             52, 53     -

Invariant: the MMIO value is a subset of the MMIO mask; a value of 0 means that there are no MMIO entries.
"""

from __future__ import annotations

from dataclasses import dataclass

from .constants import PAGE_SHIFT, SPTE_SPECIAL_MASK
from .errors import ScenarioError
from .kernels import KernelRules

# `shadow`: legacy masks and no two-dimensional paging; here only guests that have no paging of their own.
FAMILIES = ("npt", "ept_ad", "ept_noad", "shadow")
LEGACY_FAMILIES = ("npt", "shadow")
SHADOW_NONPRESENT_OR_RSVD_MASK_LEN = 5


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks by the names a scenario header gives them."""

    user: int
    accessed: int
    dirty: int
    nx: int
    x: int
    present: int
    acc_track: int
    mmio_mask: int
    mmio_value: int
    nonpresent_or_rsvd: int
    lower_gfn: int
    me: int
    # From here on not part of a header.
    leaf_memory_type: int  # EPT: write-back and ignore-PAT
    suppress_ve: int  # EPT, v6.12 and later: in every entry but MMIO ones
    host_writeable: int
    mmu_writeable: int
    mmu_present: int  # 0: the kernel tells a present entry by its being neither empty nor MMIO
    spte_kinds: int  # the field that says whether accessed and dirty bits are in use
    ad_disabled: int  # its value when they are not
    saved_bits_shift: int

    def to_header(self) -> dict[str, str]:
        """The masks as a scenario header writes them: hex strings."""
        names = (
            "user accessed dirty nx x present acc_track mmio_mask mmio_value nonpresent_or_rsvd lower_gfn me"
        )
        return {name: hex(getattr(self, name)) for name in names.split()}


def bits(low: int, high: int) -> int:
    """A mask of the bits low..high, both included; empty when high is below low."""
    return ((1 << (high + 1)) - 1) & ~((1 << low) - 1) if high >= low else 0


@dataclass(frozen=True, slots=True)
class OwnBits:
    """The bits that KVM itself chose."""

    host_writeable: int
    mmu_writeable: int
    mmu_present: int
    spte_kinds: int
    ad_disabled: int
    saved_bits_shift: int
    mmio: int


def own_bits(rules: KernelRules, is_legacy: bool) -> OwnBits:
    kinds = bits(52, 53)
    if rules.is_v6:
        host, mmu = (1 << 9, 1 << 10) if is_legacy else (1 << 57, 1 << 58)
        return OwnBits(host, mmu, 1 << 11, kinds, 1 << 52, 54, 0)
    if rules.has_spte_kinds:
        return OwnBits(1 << 10, 1 << 11, 0, kinds, 1 << 52, 54, kinds)
    return OwnBits(1 << 10, 1 << 11, 0, SPTE_SPECIAL_MASK, SPTE_SPECIAL_MASK, 52, SPTE_SPECIAL_MASK)


def make_masks(
    rules: KernelRules, family: str, phys_bits: int, execonly: int, *, l1tf: int = 1, mmio_caching: int = 1
) -> Masks:
    """The masks of a family on a host with this physical address width; `l1tf`: the CPU has that bug."""
    if family not in FAMILIES:
        raise ScenarioError(f"unknown family {family!r}; the reference has {', '.join(FAMILIES)}")
    # L1TF: an entry that is not present carries inverted top address bits where the host has room for them.
    low_phys_bits = phys_bits
    nonpresent_or_rsvd = 0
    if l1tf and phys_bits < 52 - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN:
        low_phys_bits = phys_bits - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN
        nonpresent_or_rsvd = bits(low_phys_bits, phys_bits - 1)
    lower_gfn = bits(PAGE_SHIFT, low_phys_bits - 1)
    is_legacy = family in LEGACY_FAMILIES
    own = own_bits(rules, is_legacy)
    if is_legacy:
        # A host with 52 physical bits has no reserved bit left, so the MMIO entry must not be present (v5)
        # or there is none (v6).
        mmio_mask = mmio_value = own.mmio | 1 << 51 | (1 if phys_bits < 52 else 0)
        has_mmio = not (rules.is_v6 and phys_bits == 52)
    else:
        # Writable but not readable: a misconfiguration exit.
        mmio_mask, mmio_value = own.mmio | 0b111, own.mmio | 0b110
        has_mmio = True
    if not (has_mmio and mmio_caching):
        mmio_mask = mmio_value = 0
    has_ad_bits = family == "ept_ad"
    return Masks(
        user=1 << 2 if is_legacy else 1 << 0,
        accessed=1 << 5 if is_legacy else 1 << 8 if has_ad_bits else 0,
        dirty=1 << 6 if is_legacy else 1 << 9 if has_ad_bits else 0,
        nx=1 << 63 if is_legacy else 0,
        x=0 if is_legacy else 1 << 2,
        present=1 if is_legacy or not execonly else 0,
        acc_track=0 if is_legacy else 0b111,
        mmio_mask=mmio_mask,
        mmio_value=mmio_value,
        nonpresent_or_rsvd=nonpresent_or_rsvd,
        lower_gfn=lower_gfn,
        me=0,
        leaf_memory_type=0 if is_legacy else 6 << 3 | 1 << 6,
        suppress_ve=0 if is_legacy else rules.empty_spte,
        host_writeable=own.host_writeable,
        mmu_writeable=own.mmu_writeable,
        mmu_present=own.mmu_present,
        spte_kinds=own.spte_kinds,
        ad_disabled=own.ad_disabled,
        saved_bits_shift=own.saved_bits_shift,
    )
