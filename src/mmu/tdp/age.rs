//! Aging the leaves of the TDP MMU.
//!
//! Models `age_gfn_range` and `test_age_gfn` of the TDP MMU, v6.1 to v7.3.

use crate::mmu::pages::walk::{is_accessed, is_ad_disabled, is_last, is_shadow_present, pfn_of};
use crate::mmu::tdp::tdp_walk::{Entry, Roots, TdpIter};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::WRITABLE;
use crate::mmu::words::spte::make::make_access_track;

impl MmuState {
    /// Whether any leaf over the range was accessed; forgets that it was, unless it is only asked for.
    pub(in crate::mmu) fn tdp_age(&mut self, as_id: u8, start: Gfn, end: Gfn, is_test: bool) -> bool {
        let only_valid = self.config.kernel.aging_is_lockless;
        let mut any = false;
        for root in self.tdp_roots(Roots { as_id: Some(as_id), only_valid }) {
            let mut iter = self.tdp_iter(root, start, end, PAGE_TABLE);
            while iter.is_valid() {
                let spte = self.tdp_spte(&iter);
                let is_leaf = is_shadow_present(&self.masks, spte) && is_last(spte, iter.level);
                if is_leaf && is_accessed(&self.masks, spte) {
                    any = true;
                    if !is_test && !is_chosen(Mutant::TdpAgeKeepsAccessed) {
                        self.tdp_age_spte(&iter, as_id, spte);
                    }
                }
                self.tdp_next(&mut iter);
            }
        }
        any
    }

    /// The processor used or wrote what these gfns map, through leaves that allow it, and told nobody.
    pub(in crate::mmu) fn tdp_set_by_processor(&mut self, as_id: u8, gfns: &[u64], is_write: bool) {
        if self.masks.accessed == 0 {
            return;
        }
        let bits = self.masks.accessed | if is_write { self.masks.dirty } else { 0 };
        for root in self.tdp_roots(Roots { as_id: Some(as_id), only_valid: false }) {
            for &gfn in gfns {
                let mut iter = self.tdp_iter(root, Gfn(gfn), Gfn(gfn).plus(1), PAGE_TABLE);
                while iter.is_valid() {
                    let spte = self.tdp_spte(&iter);
                    let is_leaf = is_shadow_present(&self.masks, spte) && is_last(spte, iter.level);
                    if is_leaf && (!is_write || spte & WRITABLE != 0) {
                        self.spte_set_by_hardware(iter.sptep(), bits);
                    }
                    self.tdp_next(&mut iter);
                }
            }
        }
    }

    fn tdp_age_spte(&mut self, iter: &TdpIter, as_id: u8, old: u64) {
        let entry = Entry { as_id, gfn: iter.gfn, level: iter.level };
        let has_ad = self.masks.accessed != 0 && !is_ad_disabled(&self.masks, old);
        let new = if has_ad { old & !self.masks.accessed } else { make_access_track(&self.masks, old) };
        let loses_write = !has_ad && old & WRITABLE != 0 && self.config.kernel.copies_ad_on_zap;
        if loses_write {
            self.push_dirty(pfn_of(old));
        }
        self.spte_set(iter.sptep(), new);
        self.push_tdp_change(entry, old, new, 0, 1);
        if loses_write && self.config.kernel.tdp_age_marks_twice {
            self.push_dirty(pfn_of(old));
        }
        if !has_ad {
            for vcpu in &mut self.vcpus {
                vcpu.tlb.tolerate_writes(iter.gfn, iter.level);
            }
        }
    }
}
