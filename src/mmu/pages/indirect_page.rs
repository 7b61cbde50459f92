//! `Indirect`: what only a page has that shadows a table of the guest: for each entry the gfn and the access it was made
//! with, which of its children are unsync, and how often it was written.
//!
//! Models `gfns`/`shadowed_translation`, `unsync_child_bitmap` and `write_flooding_count` of `struct kvm_mmu_page`, v5.0 to
//! v6.12. Invariant: the header's `unsync_children` is the number of bits set.

use serde::{Deserialize, Serialize};

use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::ENTRIES;

const ACCESS_BITS: u32 = 3;
const WORD_BITS: usize = 64;

/// The part of a shadow page's header that direct pages do without.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Indirect {
    /// gfn above access, by entry. A stale one is harmless.
    shadowed: Box<[u64]>,
    unsync_children: [u64; ENTRIES / WORD_BITS],
    /// Emulated writes to the table since it was last used.
    pub flood: u32,
}

impl Default for Indirect {
    fn default() -> Self {
        Self { shadowed: vec![0; ENTRIES].into_boxed_slice(), unsync_children: [0; ENTRIES / WORD_BITS], flood: 0 }
    }
}

impl Indirect {
    /// Whether every entry has its place.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        self.shadowed.len() == ENTRIES
    }

    /// The gfn an entry was made for.
    #[inline]
    #[must_use]
    pub fn gfn(&self, index: u16) -> Gfn {
        Gfn(self.shadowed[usize::from(index) % ENTRIES] >> ACCESS_BITS)
    }

    /// The access the guest's entries gave it then.
    #[must_use]
    pub fn access(&self, index: u16) -> u8 {
        (self.shadowed[usize::from(index) % ENTRIES] & 7).to_le_bytes()[0]
    }

    /// Notes what an entry is made for.
    pub fn set_shadowed(&mut self, index: u16, gfn: Gfn, access: u8) {
        self.shadowed[usize::from(index) % ENTRIES] = gfn.0 << ACCESS_BITS | u64::from(access & 7);
    }

    /// Whether a child is marked unsync, or as one that has such children.
    #[must_use]
    pub const fn is_unsync_child(&self, index: u16) -> bool {
        self.unsync_children[index as usize / WORD_BITS % 8] >> (index as usize % WORD_BITS) & 1 != 0
    }

    /// Marks a child; whether it was not marked.
    pub const fn mark_unsync_child(&mut self, index: u16) -> bool {
        let was = self.is_unsync_child(index);
        self.unsync_children[index as usize / WORD_BITS % 8] |= 1 << (index as usize % WORD_BITS);
        !was
    }

    /// Takes a mark away; whether there was one.
    pub const fn clear_unsync_child(&mut self, index: u16) -> bool {
        let was = self.is_unsync_child(index);
        self.unsync_children[index as usize / WORD_BITS % 8] &= !(1 << (index as usize % WORD_BITS));
        was
    }

    /// Indices of the marked children, ascending.
    pub fn unsync_children(&self) -> impl Iterator<Item = u16> + '_ {
        (0_u16..512).filter(|&index| self.is_unsync_child(index))
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + ENTRIES * size_of::<u64>()
    }
}
