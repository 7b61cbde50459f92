//! The recovery of NX huge pages: zaps tables that instruction fetches marked, so that large leaves may come back.
//!
//! Models v6.1/v6.12 `kvm_recover_nx_huge_pages` on shadow pages. The marks are `shadow/nx_marks`.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::tables::Tables;
use crate::mmu::vm::runs::{NxRun, Run, Step};
use crate::mmu::vm::state::MmuState;

impl MmuState {
    /// One run of the recovery: one in `ratio` of the tables on the list, none if it is 0.
    pub(in crate::mmu) fn nx_run(&self, ratio: u64) -> NxRun {
        if self.tables() == Tables::Tdp {
            return self.tdp_nx_run(ratio);
        }
        let listed = self.nx_list.len() as u64;
        NxRun { left: if ratio == 0 { 0 } else { listed.div_ceil(ratio) }, flush: false }
    }

    pub(in crate::mmu) fn drive_nx(&mut self, nx: &mut NxRun, run: &mut Run) -> Step {
        if self.tables() == Tables::Tdp {
            return self.drive_tdp_nx(nx);
        }
        let mut flush = false;
        while nx.left > 0 {
            let Some(table) = self.nx_list.front() else { break };
            nx.left -= 1;
            if self.config.kernel.nx_recovery_spares_logged && self.is_logged(table) {
                self.forget_nx(table);
            } else {
                self.prepare_in_run(table, run);
            }
            if self.lock_is_wanted() {
                self.flush_or_zap(run, &mut flush);
                if self.cond_resched() {
                    return Step::LockBreak;
                }
            }
        }
        self.flush_or_zap(run, &mut flush);
        Step::Done
    }

    /// Whether the slot of a table's first gfn logs dirty pages.
    fn is_logged(&self, table: PageIdx) -> bool {
        let key = self.arena.key(table);
        self.find_slot(key.role.as_id(), key.gfn).is_some_and(|slot| self.slot_body(slot).dirty.is_some())
    }
}
