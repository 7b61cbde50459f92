//! `LeavesGone`: how many entries went at once, and what they were: leaves, used, written, large.
//!
//! Ours; the kernels look at one entry at a time. Most tables hold leaves that differ in their frames and in the bits that
//! the processor sets, so that one of them says what all are.

use crate::mmu::pages::walk::{is_accessed, is_ad_disabled, is_dirty, is_large};
use crate::mmu::words::spte::layout::PFN_FIELD;
use crate::mmu::words::spte::masks::{Masks, is_shadow_present};

/// How many at a time are compared.
const RUN: usize = 64;

/// Counts of entries that went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::mmu) struct LeavesGone {
    /// Entries that were not zero.
    pub cleared: u64,
    /// Those that were present.
    pub leaves: u64,
    pub accessed: i64,
    pub dirty: i64,
    pub large: i64,
}

impl LeavesGone {
    /// One more.
    #[inline]
    pub fn add(&mut self, masks: &Masks, spte: u64) {
        self.cleared += u64::from(spte != 0);
        if is_shadow_present(masks, spte) {
            self.leaves += 1;
            self.accessed += i64::from(is_accessed(masks, spte));
            self.dirty += i64::from(is_dirty(masks, spte));
            self.large += i64::from(is_large(spte));
        }
    }

    /// All of these.
    pub fn add_all(&mut self, masks: &Masks, words: &[u64]) {
        for run in words.chunks(RUN) {
            match one_of_alike(masks, run) {
                Some(spte) => self.add_alike(masks, spte, run),
                None => run.iter().for_each(|&spte| self.add(masks, spte)),
            }
        }
    }

    /// More leaves that are like this one, but for their frames and the bits that the processor sets.
    #[inline]
    pub fn add_alike(&mut self, masks: &Masks, spte: u64, words: &[u64]) {
        let count = words.len() as u64;
        let of_all = |is_so: bool| if is_so { count.cast_signed() } else { 0 };
        let having = |bits: u64| words.iter().fold(0, |sum: i64, word| sum.wrapping_add(i64::from(word & bits != 0)));
        let has_ad = !is_ad_disabled(masks, spte);
        let is_counted = has_ad && masks.accessed != 0;
        self.accessed += if is_counted { having(masks.accessed) } else { of_all(is_accessed(masks, spte)) };
        let is_counted = has_ad && masks.dirty != 0;
        self.dirty += if is_counted { having(masks.dirty) } else { of_all(is_dirty(masks, spte)) };
        self.large += of_all(is_large(spte));
        self.cleared += count;
        self.leaves += count;
    }
}

/// One of some present leaves, if they differ in nothing but their frames and the bits that the processor sets.
#[inline]
pub(in crate::mmu) fn one_of_alike(masks: &Masks, words: &[u64]) -> Option<u64> {
    let (all, any) = words.iter().fold((u64::MAX, 0), |(all, any), &word| (all & word, any | word));
    // A bit of a frame may be one that an MMIO SPTE is known by.
    let said = (!PFN_FIELD | masks.not_present.0) & !(masks.accessed | masks.dirty);
    let first = words.first().copied()?;
    ((all ^ any) & said == 0 && first & said != 0 && is_shadow_present(masks, first)).then_some(first)
}
