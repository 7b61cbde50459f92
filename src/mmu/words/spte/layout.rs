//! Bit positions of an SPTE, and what of them differs between kernels, with the proofs that they do not overlap.
//!
//! | bits | v5.0-v5.3 | v5.4, v5.10 | v6.1 to v7.1 | v7.2 and later |
//! |---|---|---|---|---|
//! | 1 | writable | same | same |
//! | 7 | large leaf (PS); in an MMIO SPTE a generation bit | same | same |
//! | host-writable, MMU-writable | 10, 11 | 10, 11 | 9, 10; with EPT 57, 58 |
//! | 11 | | | MMU-present |
//! | 12-51 | page frame, or the arena index of the child table | same | same |
//! | kind | 62: A/D disabled, or MMIO | 52-53: 1 A/D disabled, 3 MMIO | 52-53: 1 A/D disabled |
//! | R and X saved while access-tracked | 52, 54 | 54, 56 | 54, 56 |
//! | an empty entry | 0 | 0 | 0; in v6.12 bit 63 |

/// The entry allows writing.
pub const WRITABLE: u64 = 1 << 1;
/// A leaf above level 1.
pub const LARGE: u64 = 1 << 7;
/// Page frame number, in place.
pub const PFN_FIELD: u64 = ((1 << 52) - 1) & !0xfff;
/// The bits saved while an entry is access-tracked: R and X.
pub const SAVED_MASK: u64 = 0b101;

/// Where a kernel keeps what is its own in an SPTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpteLayout {
    /// The bits host-writable and MMU-writable, legacy masks.
    pub writeable: [u8; 2],
    /// The same with EPT masks.
    pub writeable_ept: [u8; 2],
    /// Set in every entry the MMU made, but not in an MMIO SPTE; 0 where there is no such bit.
    pub mmu_present: u64,
    /// The bits that say what kind of entry it is.
    pub kind: u64,
    /// Their value in an entry without accessed and dirty bits.
    pub kind_ad_disabled: u64,
    /// Their value in an MMIO SPTE; also in the MMIO mask.
    pub kind_mmio: u64,
    /// `kind` and `kind_ad_disabled` with EPT masks.
    pub kind_ept: u64,
    /// The same for an entry without accessed and dirty bits.
    pub kind_ad_disabled_ept: u64,
    /// How far R and X are shifted while an entry is access-tracked, legacy masks.
    pub saved_shift: u8,
    /// The same with EPT masks.
    pub saved_shift_ept: u8,
    /// What an empty entry reads as.
    pub nonpresent: u64,
    /// What an entry of a table that is being removed reads as, beside `nonpresent`.
    pub frozen: u64,
    /// The highest bit an MMIO SPTE's generation may use.
    pub generation_top: u8,
}

impl SpteLayout {
    /// v5.0 to v5.3.
    pub const V5_0: Self = Self {
        writeable: [10, 11],
        writeable_ept: [10, 11],
        mmu_present: 0,
        kind: 1 << 62,
        kind_ad_disabled: 1 << 62,
        kind_mmio: 1 << 62,
        kind_ept: 1 << 62,
        kind_ad_disabled_ept: 1 << 62,
        saved_shift: 52,
        saved_shift_ept: 52,
        nonpresent: 0,
        frozen: 0x5a0,
        generation_top: 61,
    };
    /// v5.4. The kind overlaps the generation of an MMIO SPTE; that is the kernel's.
    pub const V5_4: Self = Self {
        kind: 3 << 52,
        kind_ad_disabled: 1 << 52,
        kind_mmio: 3 << 52,
        kind_ept: 3 << 52,
        kind_ad_disabled_ept: 1 << 52,
        saved_shift: 54,
        saved_shift_ept: 54,
        ..Self::V5_0
    };
    /// v5.10: an MMIO SPTE leaves bit 62 to the generation.
    pub const V5_10: Self = Self { generation_top: 62, ..Self::V5_4 };
    /// v6.1.
    pub const V6_1: Self = Self {
        writeable: [9, 10],
        writeable_ept: [57, 58],
        mmu_present: 1 << 11,
        kind_mmio: 0,
        generation_top: 62,
        ..Self::V5_4
    };
    /// v6.12.
    pub const V6_12: Self = Self { nonpresent: 1 << 63, ..Self::V6_1 };
    /// v7.2: with EPT the kernel's own bits moved.
    pub const V7_2: Self = Self {
        writeable_ept: [53, 55],
        kind_ept: 3 << 60,
        kind_ad_disabled_ept: 1 << 60,
        saved_shift_ept: 52,
        frozen: 0x1a0,
        ..Self::V6_12
    };
}

const fn disjoint(groups: &[u64]) -> bool {
    let mut seen = 0;
    let mut at = 0;
    while at < groups.len() {
        if seen & groups[at] != 0 {
            return false;
        }
        seen |= groups[at];
        at += 1;
    }
    true
}

const fn is_sound(layout: &SpteLayout) -> bool {
    let (legacy, ept) = (layout.writeable, layout.writeable_ept);
    disjoint(&[
        WRITABLE,
        LARGE,
        PFN_FIELD,
        1 << legacy[0],
        1 << legacy[1],
        layout.mmu_present,
        layout.kind,
        SAVED_MASK << layout.saved_shift,
        1 << 63,
    ]) && disjoint(&[
        WRITABLE,
        LARGE,
        PFN_FIELD,
        1 << ept[0],
        1 << ept[1],
        layout.mmu_present,
        layout.kind_ept,
        SAVED_MASK << layout.saved_shift_ept,
        1 << 63,
    ])
}

const _: () = {
    assert!(is_sound(&SpteLayout::V5_0));
    assert!(is_sound(&SpteLayout::V5_4));
    assert!(is_sound(&SpteLayout::V5_10));
    assert!(is_sound(&SpteLayout::V6_1));
    assert!(is_sound(&SpteLayout::V6_12));
    assert!(is_sound(&SpteLayout::V7_2));
};
