"""Run-time SPTE masks: which bits the vendor module sets for each family and physical width.

Owns `Masks`. Models kvm_mmu_set_mask_ptes, kvm_mmu_set_mmio_spte_mask and the L1TF part of
kvm_mmu_reset_all_pte_masks (v5.0 to v6.12), and the places of KVM's own bits, which moved:

                               v5.0 to v5.3   v5.4, v5.10   v6.1, v6.12               v7.2
      host / MMU writable      10 / 11        10 / 11       9 / 10, EPT 57 / 58       9 / 10, EPT 53 / 55
      MMU present              -              -             11                        11
      without A/D bits         62             52            52                        52, EPT 60
      R and X saved from       52             54            54                        54, EPT 52
      MMIO entries also have   62             52, 53        -                         -
      empty                    0              0             0, from v6.12 bit 63      bit 63

From v6.12 on every present entry of EPT has bit 63, too (no virtualization exception); MMIO entries do not.

Invariant: the MMIO value is a subset of the MMIO mask; a value of 0 means that there are no MMIO entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .constants import ACC_USER_MASK, ACC_WRITE_MASK, PAGE_SHIFT, SPTE_SPECIAL_MASK
from .errors import ScenarioError, cut
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
    # From here on not part of a header of format 1.
    leaf_memory_type: int  # EPT: write-back and ignore-PAT
    suppress_ve: int  # EPT, v6.12 and later: in every entry but MMIO ones
    host_writeable: int
    mmu_writeable: int
    mmu_present: int  # 0: the kernel tells a present entry by its being neither empty nor MMIO
    spte_kinds: int  # the field that says whether accessed and dirty bits are in use
    ad_disabled: int  # its value when they are not
    saved_bits_shift: int
    mmio_access: int  # the bits of an MMIO entry that hold an access
    empty: int  # what an empty entry reads as; it is not stored
    frozen: int

    def to_header(self) -> dict[str, str]:
        """The masks as a scenario header writes them: hex strings."""
        names = (
            "user accessed dirty nx x present acc_track mmio_mask mmio_value nonpresent_or_rsvd lower_gfn me"
        )
        return {name: hex(getattr(self, name)) for name in names.split()}

    def to_header_6(self, shows_memory_type: bool) -> dict[str, Any]:
        """The masks as a header of format 6 writes them."""
        header: dict[str, Any] = {
            "mmio_value": hex(self.mmio_value),
            "mmio": hex(self.mmio_mask | (self.suppress_ve if self.mmio_value else 0)),
            "mmio_access": hex(self.mmio_access),
            "user": hex(self.user),
            "accessed": hex(self.accessed),
            "dirty": hex(self.dirty),
            "nx": hex(self.nx),
            "x": hex(self.x),
            "present": hex(self.present | self.suppress_ve),
            "acc_track": hex(self.acc_track),
            "host_writable": hex(self.host_writeable),
            "mmu_writable": hex(self.mmu_writeable),
            "nonpresent_or_rsvd": hex(self.nonpresent_or_rsvd),
            "me": hex(self.me),
            "me_value": hex(self.me),
            "nonpresent": hex(self.empty),
            "frozen": hex(self.frozen),
            "lower_gfn": hex(self.lower_gfn),
            "mmio_caching": int(self.mmio_value != 0),
        }
        if shows_memory_type:
            header["memtype"] = hex(bits(3, 6) if self.leaf_memory_type else 0)
        return header


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
    empty: int
    frozen: int


SECOND_KINDS = bits(52, 53)
EMPTY_FROM_V6_12 = 1 << 63
# The fields of `OwnBits` in their order.
_V5_0 = OwnBits(1 << 10, 1 << 11, 0, SPTE_SPECIAL_MASK, SPTE_SPECIAL_MASK, 52, SPTE_SPECIAL_MASK, 0, 0)
_V5_4 = OwnBits(1 << 10, 1 << 11, 0, SECOND_KINDS, 1 << 52, 54, SECOND_KINDS, 0, 0)
_V6_1 = OwnBits(1 << 9, 1 << 10, 1 << 11, SECOND_KINDS, 1 << 52, 54, 0, 0, 0x5A0)
_V6_1_EPT = replace(_V6_1, host_writeable=1 << 57, mmu_writeable=1 << 58)
_V6_12 = replace(_V6_1, empty=EMPTY_FROM_V6_12, frozen=EMPTY_FROM_V6_12 | 0x5A0)
_V6_12_EPT = replace(_V6_1_EPT, empty=EMPTY_FROM_V6_12, frozen=EMPTY_FROM_V6_12 | 0x5A0)
_V7_2 = replace(_V6_12, frozen=EMPTY_FROM_V6_12 | 0x1A0)
_V7_2_EPT = replace(
    _V7_2,
    host_writeable=1 << 53,
    mmu_writeable=1 << 55,
    spte_kinds=bits(60, 61),
    ad_disabled=1 << 60,
    saved_bits_shift=52,
)

# By the fact `spte_layout`: with legacy and with EPT masks.
OWN_BITS: dict[str, tuple[OwnBits, OwnBits]] = {
    "v5.0": (_V5_0, _V5_0),
    "v5.4": (_V5_4, _V5_4),
    "v5.10": (_V5_4, _V5_4),
    "v6.1": (_V6_1, _V6_1_EPT),
    "v6.12": (_V6_12, _V6_12_EPT),
    "v7.2": (_V7_2, _V7_2_EPT),
}


def make_masks(
    rules: KernelRules, family: str, phys_bits: int, execonly: int, *, l1tf: int = 1, mmio_caching: int = 1
) -> Masks:
    """The masks of a family on a host with this physical address width; `l1tf`: the CPU has that bug."""
    if family not in FAMILIES:
        raise ScenarioError(f"unknown family {cut(family)}; the reference has {', '.join(FAMILIES)}")
    # L1TF: an entry that is not present carries inverted top address bits where the host has room for them.
    low_phys_bits = phys_bits
    nonpresent_or_rsvd = 0
    if l1tf and phys_bits < 52 - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN:
        low_phys_bits = phys_bits - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN
        nonpresent_or_rsvd = bits(low_phys_bits, phys_bits - 1)
    lower_gfn = bits(PAGE_SHIFT, low_phys_bits - 1)
    is_legacy = family in LEGACY_FAMILIES
    own = OWN_BITS[rules.spte_layout][0 if is_legacy else 1]
    if is_legacy:
        # A host with 52 physical bits has no reserved bit left, so the MMIO entry must not be present, or there is
        # none where it can be done without.
        mmio_mask = mmio_value = own.mmio | 1 << 51 | (1 if phys_bits < 52 else 0)
        has_mmio = not (rules.has_mmio_caching and phys_bits == 52)
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
        host_writeable=own.host_writeable,
        mmu_writeable=own.mmu_writeable,
        mmu_present=own.mmu_present,
        spte_kinds=own.spte_kinds,
        ad_disabled=own.ad_disabled,
        saved_bits_shift=own.saved_bits_shift,
        mmio_access=ACC_WRITE_MASK | ACC_USER_MASK if is_legacy else 0,
        suppress_ve=0 if is_legacy else own.empty,
        empty=own.empty,
        frozen=own.frozen,
    )
