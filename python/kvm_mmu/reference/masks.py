"""Run-time SPTE masks: which bits the vendor module sets for each family and physical width.

Owns `Masks`. Models kvm_mmu_set_mask_ptes, kvm_mmu_set_mmio_spte_mask and the L1TF part of
kvm_mmu_reset_all_pte_masks (v5.0 to v5.2). Invariant: the MMIO value is a subset of the MMIO mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from .constants import PAGE_SHIFT, SPTE_SPECIAL_MASK
from .errors import ScenarioError

FAMILIES = ("npt", "ept_ad", "ept_noad")
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
    leaf_memory_type: int  # EPT: write-back and ignore-PAT; not part of a header

    def to_header(self) -> dict[str, str]:
        """The masks as a scenario header writes them: hex strings."""
        names = (
            "user accessed dirty nx x present acc_track mmio_mask mmio_value nonpresent_or_rsvd lower_gfn me"
        )
        return {name: hex(getattr(self, name)) for name in names.split()}


def bits(low: int, high: int) -> int:
    """A mask of the bits low..high, both included; empty when high is below low."""
    return ((1 << (high + 1)) - 1) & ~((1 << low) - 1) if high >= low else 0


def make_masks(family: str, phys_bits: int, execonly: int) -> Masks:
    """The masks of a family on a host with this physical address width."""
    if family not in FAMILIES:
        raise ScenarioError(f"unknown family {family!r}; the reference has {', '.join(FAMILIES)}")
    # L1TF: an entry that is not present carries inverted top address bits where the host has room for them.
    if phys_bits < 52 - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN:
        low_phys_bits = phys_bits - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN
        nonpresent_or_rsvd = bits(low_phys_bits, phys_bits - 1)
    else:
        low_phys_bits = phys_bits
        nonpresent_or_rsvd = 0
    lower_gfn = bits(PAGE_SHIFT, low_phys_bits - 1)
    if family == "npt":
        # A host with 52 physical bits has no reserved bit left, so the MMIO entry must not be present.
        mmio = SPTE_SPECIAL_MASK | 1 << 51 | (1 if phys_bits < 52 else 0)
        return Masks(
            user=1 << 2,
            accessed=1 << 5,
            dirty=1 << 6,
            nx=1 << 63,
            x=0,
            present=1,
            acc_track=0,
            mmio_mask=mmio,
            mmio_value=mmio,
            nonpresent_or_rsvd=nonpresent_or_rsvd,
            lower_gfn=lower_gfn,
            me=0,
            leaf_memory_type=0,
        )
    has_ad_bits = family == "ept_ad"
    return Masks(
        user=1 << 0,
        accessed=1 << 8 if has_ad_bits else 0,
        dirty=1 << 9 if has_ad_bits else 0,
        nx=0,
        x=1 << 2,
        present=0 if execonly else 1,
        acc_track=0b111,
        mmio_mask=SPTE_SPECIAL_MASK | 0b111,
        mmio_value=SPTE_SPECIAL_MASK | 0b110,  # writable but not readable: a misconfiguration exit
        nonpresent_or_rsvd=nonpresent_or_rsvd,
        lower_gfn=lower_gfn,
        me=0,
        leaf_memory_type=6 << 3 | 1 << 6,
    )
