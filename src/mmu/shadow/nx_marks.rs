//! Marks of tables that stand where a large leaf would, but for the workaround of NX huge pages, and their list.
//!
//! Models v6.1/v6.12 `account_nx_huge_page`, `track_possible_nx_huge_page` and their counterparts. Invariant: what is on
//! the list bears the mark. Who takes such tables away again is `zap/nx_recovery`.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::mutants::{Mutant, is_chosen};

impl MmuState {
    /// A fetch linked a table below an entry of this level, where it could have had a leaf of the level asked for.
    pub(in crate::mmu) fn note_nx(&mut self, table: PageIdx, level: u8, asked: u8) {
        let is_possible = asked >= level;
        if is_chosen(Mutant::DisallowedMarkForgotten) || !is_possible && !self.config.kernel.nx_marks_all_levels {
            return;
        }
        self.arena.page_mut(table).nx_huge_page_disallowed = true;
        if is_possible {
            self.nx_list.push_back(table);
        }
    }

    /// The table goes, or need not be zapped any more.
    pub(in crate::mmu) fn forget_nx(&mut self, table: PageIdx) {
        if std::mem::take(&mut self.arena.page_mut(table).nx_huge_page_disallowed) {
            self.nx_list.remove(table);
        }
    }
}
