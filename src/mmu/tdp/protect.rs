//! Taking W or D from leaves of the TDP MMU: for the dirty log of a slot, of the pages of a mask, and of one gfn.
//!
//! Models `wrprot_gfn_range`, `clear_dirty_gfn_range`, `clear_dirty_pt_masked`, `write_protect_gfn`, v6.1 to v7.3. Whoever
//! asks owes the flush.

use crate::mmu::pages::walk::{is_ad_disabled, is_last, is_shadow_present, pfn_of};
use crate::mmu::tdp::tdp_walk::{Entry, Lock, Roots, TdpIter};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::spte::layout::WRITABLE;

/// Pages of a word of the dirty bitmap.
const WORD: u64 = 64;

impl MmuState {
    /// Takes W from the leaf a walk stands on, and with it what lets the lock-free fault give it back; whether it changed.
    pub(in crate::mmu) fn tdp_write_protect(&mut self, iter: &TdpIter, for_good: bool, lock: Lock) -> bool {
        let old = self.tdp_spte(iter);
        let lost = if for_good { WRITABLE | self.masks.mmu_writeable } else { WRITABLE };
        self.tdp_set_spte(iter.sptep(), iter.gfn, old & !lost, lock);
        old & lost != 0
    }

    /// Takes D from the leaf a walk stands on, or W where D is not in use; whether it changed.
    pub(in crate::mmu) fn tdp_clear_dirty(&mut self, iter: &TdpIter, lock: Lock) -> bool {
        let old = self.tdp_spte(iter);
        let lost = self.dirty_bit(old);
        self.tdp_set_spte(iter.sptep(), iter.gfn, old & !lost, lock);
        old & lost != 0
    }

    /// What says that the page of a leaf was written.
    const fn dirty_bit(&self, spte: u64) -> u64 {
        if self.masks.dirty == 0 || is_ad_disabled(&self.masks, spte) { WRITABLE } else { self.masks.dirty }
    }

    /// Protects the small leaves of the gfns that a mask names from `first` on; whether any changed.
    pub(in crate::mmu) fn tdp_protect_masked(&mut self, as_id: u8, first: Gfn, mask: u64, is_wrprot: bool) -> bool {
        if mask == 0 {
            return false;
        }
        let only_valid = !self.config.kernel.tdp_walks_invalid_roots;
        let mut any = false;
        for root in self.tdp_roots(Roots { as_id: Some(as_id), only_valid }) {
            let mut left = mask;
            let start = first.plus(u64::from(mask.trailing_zeros()));
            let mut iter = self.tdp_iter(root, start, first.plus(WORD), PAGE_TABLE);
            while iter.is_valid() {
                let spte = self.tdp_spte(&iter);
                if is_shadow_present(&self.masks, spte) && is_last(spte, iter.level) {
                    if left == 0 {
                        break;
                    }
                    let bit = if iter.level == PAGE_TABLE { 1 << (iter.gfn.0 - first.0) } else { 0 };
                    if left & bit != 0 {
                        left &= !bit;
                        let lost = if is_wrprot { WRITABLE } else { self.dirty_bit(spte) };
                        any |= self.tdp_clear_for_log(&iter, as_id, spte, lost);
                    }
                }
                self.tdp_next(&mut iter);
            }
        }
        any
    }

    fn tdp_clear_for_log(&mut self, iter: &TdpIter, as_id: u8, old: u64, lost: u64) -> bool {
        if old & lost == 0 {
            return false;
        }
        let new = old & !lost;
        if self.config.kernel.tdp_log_marks_dirty {
            self.spte_set(iter.sptep(), new);
            self.push_tdp_change(Entry { as_id, gfn: iter.gfn, level: iter.level }, old, new, 0, 1);
            self.push_dirty(pfn_of(old));
        } else {
            self.tdp_set_spte(iter.sptep(), iter.gfn, new, Lock::Exclusive);
        }
        true
    }

    /// Takes W from the leaves over one gfn from a level up, also against the lock-free fault; whether any changed.
    pub(in crate::mmu) fn tdp_write_protect_gfn(&mut self, as_id: u8, gfn: Gfn, least: u8) -> bool {
        let only_valid = !self.config.kernel.tdp_walks_invalid_roots;
        let mut any = false;
        for root in self.tdp_roots(Roots { as_id: Some(as_id), only_valid }) {
            let mut iter = self.tdp_iter(root, gfn, gfn.plus(1), least);
            while iter.is_valid() {
                let spte = self.tdp_spte(&iter);
                if is_shadow_present(&self.masks, spte) && is_last(spte, iter.level) {
                    any |= self.tdp_write_protect(&iter, true, Lock::Exclusive);
                }
                self.tdp_next(&mut iter);
            }
        }
        any
    }
}
