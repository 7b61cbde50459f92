//! `Masks`: the run-time SPTE masks of one VM, from the family and the physical address width.
//!
//! Models the mask set-up of v5.0/v5.2 (`kvm_mmu_set_mask_ptes`, `kvm_mmu_set_mmio_spte_mask`, the L1TF mask).

use super::layout::{PFN_FIELD, SPECIAL};
use crate::mmu::config::Family;

/// Masks of one VM. A zero `accessed` means that the entries have no accessed and dirty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's names without shadow_ and _mask")]
pub struct Masks {
    pub user: u64,
    pub accessed: u64,
    pub dirty: u64,
    pub nx: u64,
    pub x: u64,
    pub present: u64,
    pub acc_track: u64,
    pub mmio_mask: u64,
    pub mmio_value: u64,
    pub nonpresent_or_rsvd: u64,
    pub lower_gfn: u64,
    pub me: u64,
    /// Memory type of leaves (EPT: write-back, ignore PAT).
    pub memory_type: u64,
    /// Address bits the host does not have: set in an entry they are reserved.
    pub reserved_address: u64,
}

impl Masks {
    /// The masks of a family on a host of this width (clamped to 36 to 52 bits).
    #[must_use]
    pub const fn new(family: Family, phys_bits: u8, execonly: bool) -> Self {
        let phys_bits = if phys_bits < 36 {
            36
        } else if phys_bits > 52 {
            52
        } else {
            phys_bits
        };
        let (nonpresent_or_rsvd, low_phys_bits) =
            if phys_bits < 47 { (0x1f << (phys_bits - 5), phys_bits - 5) } else { (0, phys_bits) };
        let lower_gfn = ((1 << low_phys_bits) - 1) & !0xfff;
        let reserved_address = PFN_FIELD & !((1 << phys_bits) - 1);
        match family {
            Family::Npt => {
                let mmio = SPECIAL | 1 << 51 | if phys_bits == 52 { 0 } else { 1 };
                Self {
                    user: 1 << 2,
                    accessed: 1 << 5,
                    dirty: 1 << 6,
                    nx: 1 << 63,
                    x: 0,
                    present: 1,
                    acc_track: 0,
                    mmio_mask: mmio,
                    mmio_value: mmio,
                    nonpresent_or_rsvd,
                    lower_gfn,
                    me: 0,
                    memory_type: 0,
                    reserved_address,
                }
            }
            Family::EptAd | Family::EptNoad => {
                let has_ad = matches!(family, Family::EptAd);
                Self {
                    user: 1,
                    accessed: if has_ad { 1 << 8 } else { 0 },
                    dirty: if has_ad { 1 << 9 } else { 0 },
                    nx: 0,
                    x: 1 << 2,
                    present: if execonly { 0 } else { 1 },
                    acc_track: 7,
                    mmio_mask: SPECIAL | 7,
                    mmio_value: SPECIAL | 6,
                    nonpresent_or_rsvd,
                    lower_gfn,
                    me: 0,
                    memory_type: 6 << 3 | 1 << 6,
                    reserved_address,
                }
            }
        }
    }
}
