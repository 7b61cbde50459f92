//! `Masks`: the run-time SPTE masks of one VM, from the family and the physical address width.
//!
//! Models the mask set-up of v5.0 to v6.12 (`kvm_mmu_set_mask_ptes`, `kvm_mmu_set_mmio_spte_mask`, the L1TF mask).

use super::layout::{PFN_FIELD, SpteLayout};
use crate::mmu::words::config::Family;

/// Mask and value that no word matches: MMIO SPTEs are not made.
pub const NO_MMIO: (u64, u64) = (0, 1);

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
    /// Set in every entry but MMIO ones, so that a violation is an exit and no #VE (EPT, v6.12 and later).
    pub suppress_ve: u64,
    /// Address bits the host does not have: set in an entry they are reserved.
    pub reserved_address: u64,
    /// The host maps the frame writable.
    pub host_writeable: u64,
    /// The MMU would allow writing.
    pub mmu_writeable: u64,
    /// Set in every entry the MMU made; 0 where there is no such bit.
    pub mmu_present: u64,
    /// An entry with none of these bits is not shadow-present.
    pub shadow_present: u64,
    /// Mask and value of entries that are not, whatever their bits: MMIO SPTEs, where the MMU marks no entry as its own.
    pub not_present: (u64, u64),
    /// The bits that say what kind of entry it is.
    pub kind: u64,
    /// Their value in an entry without accessed and dirty bits.
    pub kind_ad_disabled: u64,
    /// How far R and X are shifted while an entry is access-tracked.
    pub saved_shift: u8,
    /// What an empty entry reads as.
    pub nonpresent: u64,
    /// What an entry of a table that is being removed reads as (the TDP MMU's).
    pub frozen: u64,
    /// The part of an access that an MMIO SPTE, and the vCPU's cache from v5.10 on, remembers.
    pub mmio_access: u8,
}

/// What of the host and the kernel the masks follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact about the host")]
pub struct Host {
    /// Which set of masks.
    pub family: Family,
    /// Physical address width, clamped to 36 to 52 bits.
    pub phys_bits: u8,
    /// EPT supports execute-only entries.
    pub execonly: bool,
    /// The L1TF mask is in use.
    pub l1tf: bool,
    /// MMIO SPTEs are made.
    pub mmio_caching: bool,
}

impl Masks {
    /// The masks of v5.0 to v5.3 for a family on a host of this width.
    #[must_use]
    pub const fn new(family: Family, phys_bits: u8, execonly: bool) -> Self {
        Self::of(&SpteLayout::V5_0, Host { family, phys_bits, execonly, l1tf: true, mmio_caching: true })
    }

    /// The masks of a kernel's layout on a host.
    #[must_use]
    pub const fn of(layout: &SpteLayout, host: Host) -> Self {
        let Host { family, phys_bits, execonly, l1tf, mmio_caching } = host;
        let phys_bits = if phys_bits < 36 {
            36
        } else if phys_bits > 52 {
            52
        } else {
            phys_bits
        };
        let (nonpresent_or_rsvd, low_phys_bits) =
            if l1tf && phys_bits < 47 { (0x1f << (phys_bits - 5), phys_bits - 5) } else { (0, phys_bits) };
        let lower_gfn = ((1 << low_phys_bits) - 1) & !0xfff;
        let shadow_present = if layout.mmu_present == 0 { u64::MAX } else { layout.mmu_present };
        let reserved_address = PFN_FIELD & !((1 << phys_bits) - 1);
        let is_ept = matches!(family, Family::EptAd | Family::EptNoad);
        let (mmio_mask, mmio_value) = if is_ept {
            let mmio = (layout.kind_mmio | 7 | layout.nonpresent, layout.kind_mmio | 6);
            if mmio_caching { mmio } else { NO_MMIO }
        } else {
            // Where nothing is made, no word may match: value is not a subset of mask then. A 52-bit host has no
            // reserved bit left, which v5.x does not mind.
            let is_made = mmio_caching && (phys_bits < 52 || layout.mmu_present == 0);
            let mmio = layout.kind_mmio | 1 << 51 | if phys_bits == 52 { 0 } else { 1 };
            if is_made { (mmio, mmio) } else { NO_MMIO }
        };
        let legacy = Self {
            user: 1 << 2,
            accessed: 1 << 5,
            dirty: 1 << 6,
            nx: 1 << 63,
            x: 0,
            present: 1,
            acc_track: 0,
            mmio_mask,
            mmio_value,
            nonpresent_or_rsvd,
            lower_gfn,
            me: 0,
            memory_type: 0,
            suppress_ve: 0,
            reserved_address,
            host_writeable: 1 << layout.writeable[0],
            mmu_writeable: 1 << layout.writeable[1],
            mmu_present: layout.mmu_present,
            shadow_present,
            not_present: if layout.mmu_present == 0 { (mmio_mask, mmio_value) } else { NO_MMIO },
            kind: layout.kind,
            kind_ad_disabled: layout.kind_ad_disabled,
            saved_shift: layout.saved_shift,
            nonpresent: layout.nonpresent,
            frozen: layout.nonpresent | layout.frozen,
            mmio_access: 6,
        };
        if !is_ept {
            return legacy;
        }
        let has_ad = matches!(family, Family::EptAd);
        Self {
            user: 1,
            accessed: if has_ad { 1 << 8 } else { 0 },
            dirty: if has_ad { 1 << 9 } else { 0 },
            nx: 0,
            x: 1 << 2,
            present: if execonly { 0 } else { 1 },
            acc_track: 7,
            mmio_access: 0,
            memory_type: 6 << 3 | 1 << 6,
            suppress_ve: layout.nonpresent,
            host_writeable: 1 << layout.writeable_ept[0],
            mmu_writeable: 1 << layout.writeable_ept[1],
            kind: layout.kind_ept,
            kind_ad_disabled: layout.kind_ad_disabled_ept,
            saved_shift: layout.saved_shift_ept,
            ..legacy
        }
    }
}

/// Not empty and not MMIO; from v6.1 on, marked by the MMU as its own.
#[inline]
#[must_use]
pub const fn is_shadow_present(masks: &Masks, spte: u64) -> bool {
    spte & masks.shadow_present != 0 && spte & masks.not_present.0 != masks.not_present.1
}
