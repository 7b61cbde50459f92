//! Pure construction of ordinary SPTEs: leaf, link, access-tracked form.
//!
//! Models the bits of v5.0 to v6.12 `set_spte`, `make_spte`, `link_shadow_page`, `mark_spte_for_access_track` and its undoing.

use super::layout::{LARGE, PFN_FIELD, SAVED_MASK, WRITABLE};
use super::masks::Masks;
use crate::mmu::words::access::{ACC_EXEC, ACC_USER};
use crate::mmu::words::addr::Pfn;
use crate::mmu::words::level::PAGE_TABLE;

/// What a leaf is made from, before write permission is decided.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// Access the guest has.
    pub access: u8,
    /// Level of the table it goes into.
    pub level: u8,
    /// The frame.
    pub pfn: Pfn,
    /// Mapped before anybody asked: not accessed yet.
    pub speculative: bool,
    /// The host maps the frame writable.
    pub host_writable: bool,
    /// The page has no accessed and dirty bits.
    pub ad_disabled: bool,
}

/// A leaf without write permission.
#[must_use]
#[inline]
pub const fn make_leaf(masks: &Masks, leaf: &Leaf) -> u64 {
    let mut spte =
        masks.present | masks.mmu_present | masks.memory_type | masks.suppress_ve | (leaf.pfn.hva() & PFN_FIELD);
    if leaf.ad_disabled {
        spte |= masks.kind_ad_disabled;
    } else if !leaf.speculative {
        spte |= masks.accessed;
    }
    spte |= if leaf.access & ACC_EXEC != 0 { masks.x } else { masks.nx };
    if leaf.access & ACC_USER != 0 {
        spte |= masks.user;
    }
    if leaf.level > PAGE_TABLE {
        spte |= LARGE;
    }
    if leaf.host_writable {
        spte |= masks.host_writeable;
    }
    spte
}

/// The entry that links to a child table, named by its arena index.
#[must_use]
pub const fn make_link(masks: &Masks, child: u32, ad_disabled: bool) -> u64 {
    let ad = if ad_disabled { masks.kind_ad_disabled } else { masks.accessed };
    ((child as u64) << 12)
        | masks.present
        | masks.mmu_present
        | masks.suppress_ve
        | WRITABLE
        | masks.user
        | masks.x
        | masks.me
        | ad
}

/// The form in which the next access will be seen: A cleared, or R, W and X taken away with R and X saved.
#[must_use]
pub const fn make_access_track(masks: &Masks, spte: u64) -> u64 {
    if spte & masks.kind != masks.kind_ad_disabled {
        return spte & !masks.accessed;
    }
    if spte & masks.acc_track == 0 {
        return spte;
    }
    (spte | (spte & SAVED_MASK) << masks.saved_shift) & !masks.acc_track
}

/// An access-tracked entry with R and X put back.
#[must_use]
pub const fn restore_access_track(masks: &Masks, spte: u64) -> u64 {
    let saved = (spte >> masks.saved_shift) & SAVED_MASK;
    spte & !masks.acc_track & !(SAVED_MASK << masks.saved_shift) | saved
}
