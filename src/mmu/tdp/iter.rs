//! Stepping through the entries of a root: pre-order, from one gfn to before another, down to a lowest level.
//!
//! Models `tdp_iter_start`, `tdp_iter_next`, `tdp_mmu_iter_need_resched`, v6.1 to v7.3.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::tdp::tdp_walk::TdpIter;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;

impl MmuState {
    /// A walk of a root over `start..end`, on its first entry.
    pub(in crate::mmu) fn tdp_iter(&mut self, root: PageIdx, start: Gfn, end: Gfn, least: u8) -> TdpIter {
        self.stats.tdp_walks += 1;
        TdpIter::new(root, self.arena.key(root).role.level(), start, end, least)
    }

    /// One step: down where the entry links to a table, else to the next entry, up at a table's end.
    #[inline]
    pub(in crate::mmu) fn tdp_next(&mut self, iter: &mut TdpIter) {
        self.stats.tdp_steps += 1;
        self.work.walk_visited += 1;
        if iter.is_yielded {
            iter.restart();
            return;
        }
        if iter.level > iter.least() {
            let spte = self.arena.spte(iter.sptep());
            if is_shadow_present(&self.masks, spte) && !is_last(spte, iter.level) {
                iter.step_down(child_of(spte));
                return;
            }
        }
        iter.step_on();
    }

    /// The word of the entry a walk stands on.
    #[inline]
    pub(in crate::mmu) fn tdp_spte(&self, iter: &TdpIter) -> u64 {
        self.arena.spte(iter.sptep())
    }

    /// Polls for the lock at an entry, where the walk has come on since it last gave it away.
    #[inline]
    pub(in crate::mmu) fn tdp_wants_yield(&mut self, iter: &TdpIter) -> bool {
        iter.has_advanced() && self.lock_is_wanted()
    }
}
