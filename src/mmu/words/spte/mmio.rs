//! MMIO SPTE codec: an entry the hardware refuses, which remembers gfn, access and memslot generation.
//!
//! Models `mark_mmio_spte`, `get_mmio_spte_gfn`, `get_mmio_spte_access`, `get_mmio_spte_generation` of v5.0 and v5.2. With
//! EPT masks the access bits lie under the mask, so it reads back as 0; with 52 physical bits and legacy masks bit 51 of
//! the mask lies in the address, so the gfn reads back with bit 39 set. Both are the kernel's.

use super::masks::Masks;
use crate::mmu::words::generation::GenerationBits;

/// Access bits an MMIO SPTE stores: write and user, never exec.
pub const STORED_ACCESS: u8 = 0b110;

/// How far address bits under the L1TF mask are moved up.
const L1TF_SHIFT: u32 = 5;

/// The entry for a gfn that no slot backs.
#[must_use]
pub fn make_mmio_spte(masks: &Masks, layout: &impl GenerationBits, gfn: u64, access: u32, slots_gen: u64) -> u64 {
    let gpa = gfn << 12;
    layout.encode(layout.compared(slots_gen))
        | masks.mmio_value
        | u64::from(access & u32::from(STORED_ACCESS))
        | gpa
        | masks.nonpresent_or_rsvd
        | (gpa & masks.nonpresent_or_rsvd) << L1TF_SHIFT
}

/// Whether the word is an MMIO SPTE.
#[must_use]
#[inline]
pub const fn is_mmio(masks: &Masks, spte: u64) -> bool {
    spte & masks.mmio_mask == masks.mmio_value
}

/// The gfn read back.
#[must_use]
pub const fn mmio_gfn(masks: &Masks, spte: u64) -> u64 {
    (spte & masks.lower_gfn | (spte >> L1TF_SHIFT) & masks.nonpresent_or_rsvd) >> 12
}

/// The access read back.
#[must_use]
pub fn mmio_access(masks: &Masks, layout: &impl GenerationBits, spte: u64) -> u32 {
    let access = spte & !(layout.spte_mask() | masks.mmio_mask) & 0xfff;
    u32::try_from(access).unwrap_or(0)
}

/// The generation read back.
#[must_use]
pub fn mmio_gen(masks: &Masks, layout: &impl GenerationBits, spte: u64) -> u64 {
    layout.decode(spte & !masks.mmio_mask)
}

/// Whether the entry was made under this memslot generation.
#[must_use]
pub fn is_fresh(masks: &Masks, layout: &impl GenerationBits, spte: u64, slots_gen: u64) -> bool {
    !layout.is_refused(slots_gen) && layout.compared(slots_gen) == mmio_gen(masks, layout, spte)
}
