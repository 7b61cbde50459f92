//! Tables of the TDP MMU that stand where a large leaf could: the marks of instruction fetches while large leaves are not
//! executable, and the recovery that zaps such tables again.
//!
//! Models `track_possible_nx_huge_page`, `untrack_possible_nx_huge_page`, `kvm_recover_nx_huge_pages` on tables of the TDP
//! MMU, v6.1 to v7.3.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::tdp::tdp_walk::Lock;
use crate::mmu::vm::runs::{NxRun, Step};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::mutants::{Mutant, is_chosen};

impl MmuState {
    /// A fetch linked a table below an entry of this level, where it could have had a leaf of the level asked for.
    pub(in crate::mmu) fn tdp_note_nx(&mut self, table: PageIdx, level: u8, asked: u8) {
        let is_possible = asked >= level;
        if is_chosen(Mutant::DisallowedMarkForgotten) || !is_possible && !self.config.kernel.nx_marks_all_levels {
            return;
        }
        self.arena.page_mut(table).nx_huge_page_disallowed = true;
        if is_possible && self.nx_list.push_back(table) {
            self.tdp.nr_nx_possible += 1;
        }
    }

    /// A table goes, or stays for good: its mark goes, and its place on the list. A recovery of some kernels lowers the
    /// count of another list.
    pub(in crate::mmu) fn tdp_unlist_nx(&mut self, table: PageIdx, is_counted: bool) {
        if !std::mem::take(&mut self.arena.page_mut(table).nx_huge_page_disallowed) {
            return;
        }
        if self.nx_list.remove(table) && is_counted {
            self.tdp.nr_nx_possible = self.tdp.nr_nx_possible.saturating_sub(1);
        }
    }

    /// One run of the recovery: one in `ratio` of the tables counted, none if it is 0.
    pub(in crate::mmu) const fn tdp_nx_run(&self, ratio: u64) -> NxRun {
        let left = if ratio == 0 { 0 } else { self.tdp.nr_nx_possible.div_ceil(ratio) };
        NxRun { left, flush: false }
    }

    /// Zaps the tables that were listed first.
    pub(in crate::mmu) fn drive_tdp_nx(&mut self, nx: &mut NxRun) -> Step {
        let is_shared = self.config.kernel.tdp_nx_recovery_shared;
        let lock = if is_shared { Lock::Shared } else { Lock::Exclusive };
        while nx.left > 0 {
            let Some(table) = self.nx_list.front() else { break };
            nx.left -= 1;
            let key = self.arena.key(table);
            let (gfn, as_id) = (key.gfn, key.role.as_id());
            let slot = self.find_slot(as_id, gfn);
            let is_logged = slot.is_some_and(|slot| self.slot_body(slot).dirty.is_some());
            let is_spared = self.config.kernel.nx_recovery_spares_logged && is_logged;
            self.tdp_unlist_nx(table, !self.config.kernel.tdp_nx_count_kept);
            if !is_spared && let Some(sptep) = self.pte_lists.first(self.arena.page(table).parents) {
                self.tdp_set_spte(sptep, gfn, 0, lock);
                nx.flush = true;
            }
            if self.lock_is_wanted() {
                if std::mem::take(&mut nx.flush) {
                    self.flush_remote_tlbs();
                }
                if self.cond_resched_of(u8::from(is_shared)) {
                    return Step::LockBreak;
                }
            }
        }
        if std::mem::take(&mut nx.flush) {
            self.flush_remote_tlbs();
        }
        Step::Done
    }
}
