//! Write tracking of single gfns: a tracked gfn is mapped read-only and never large.
//!
//! Models v5.0/v5.2 `kvm_slot_page_track_add_page`, `kvm_slot_page_track_remove_page`, `kvm_mmu_slot_gfn_write_protect`.
//! Differs: taking a count below zero, which the kernel warns of, changes nothing.

use crate::mmu::tables::Tables;
use crate::mmu::vm::debt::Debt;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};

impl MmuState {
    fn slot_of(&self, as_id: u8, gfn: Gfn) -> Result<Option<SlotAt>> {
        Ok(self.space(as_id)?.find(gfn).map(|at| SlotAt { as_id, at }))
    }

    /// Takes write permission from a gfn at every level, also against the lock-free path; whether TLBs hold it.
    pub(in crate::mmu) fn slot_gfn_write_protect(&mut self, as_id: u8, gfn: Gfn, least: u8) -> Result<bool> {
        let Some(slot) = self.slot_of(as_id, gfn)? else { return Ok(false) };
        if self.tables() == Tables::Tdp {
            return Ok(self.tdp_write_protect_gfn(as_id, gfn, least));
        }
        Ok(self.write_protect_gfn(slot, gfn, least))
    }

    /// The same, with the flush left to the caller.
    pub(in crate::mmu) fn gfn_write_protect(&mut self, as_id: u8, gfn: Gfn, least: u8) -> Result<i32> {
        let any = self.slot_gfn_write_protect(as_id, gfn, least.max(PAGE_TABLE))?;
        if any {
            self.owe(Debt::EVERYTHING);
        }
        Ok(i32::from(any))
    }

    /// Adds or removes a tracked gfn.
    pub(in crate::mmu) fn track(&mut self, as_id: u8, gfn: Gfn, on: bool) -> Result<i32> {
        let Some(slot) = self.slot_of(as_id, gfn)? else { return Ok(0) };
        if !self.add_track(slot, gfn, on) {
            return Ok(0);
        }
        if let Some(ghost) = &mut self.ghost {
            ghost.tracked(as_id, gfn.0, on);
        }
        if !is_chosen(Mutant::TrackWithoutVeto) {
            self.add_large_veto(slot, gfn, if on { 1 } else { -1 });
        }
        if on
            && !is_chosen(Mutant::TrackedStaysWritable)
            && self.slot_gfn_write_protect(as_id, gfn, PAGE_TABLE)?
            && !is_chosen(Mutant::TrackWithoutFlush)
        {
            self.flush_remote_tlbs();
        }
        Ok(0)
    }
}
