//! Counts what an event needs gone and is still there: MMIO SPTEs after a wrap, mappings after a slot's removal.
//!
//! Read from the entries themselves, not from lists or marks, so that what a zap forgot is seen: active pages, and tables
//! of the TDP MMU. Only pages up to a creation number are asked: those made while a zap ran are younger than the event.
//! Changes nothing and counts as no work.

use std::cmp::Reverse;

use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::pages::walk::{is_last, is_shadow_present};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::level::pages_per;
use crate::mmu::words::spte::mmio::is_mmio;

impl MmuState {
    fn tables_of_tdp(&self) -> impl Iterator<Item = PageIdx> + '_ {
        // Where there are none, the arena is not searched for them.
        let is_searched = self.config.tdp_mmu;
        self.arena.live().filter(move |&page| is_searched && self.arena.page(page).place == Place::Tdp)
    }

    fn mapping_up_to(&self, last_page: u32) -> impl Iterator<Item = PageIdx> + '_ {
        self.active.iter().chain(self.tables_of_tdp()).filter(move |&page| self.arena.key(page).id <= last_page)
    }

    fn mmio_sptes_on(&self, page: PageIdx) -> u64 {
        self.arena.table(page).iter().filter(|&(_, spte)| is_mmio(&self.masks, spte)).count() as u64
    }

    /// MMIO SPTEs on pages up to a creation number, of whatever generation.
    pub(in crate::mmu) fn count_mmio_sptes(&self, last_page: u32) -> u64 {
        self.mapping_up_to(last_page).map(|page| self.mmio_sptes_on(page)).sum()
    }

    /// Leaves of any level on pages up to a creation number that map a gfn of a slot; none of a slot that is not there.
    pub(in crate::mmu) fn count_mappings(&self, as_id: u8, id: u32, last_page: u32) -> Result<u64> {
        let Some(slot) = self.find_slot_id(as_id, id)? else {
            return Ok(0);
        };
        let spec = self.slot_spec(slot);
        let (first, end) = (spec.base, spec.base + spec.npages);
        let mut found = 0;
        for page in self.mapping_up_to(last_page) {
            let role = self.arena.key(page).role;
            if role.as_id() != as_id {
                continue;
            }
            for (index, spte) in self.arena.table(page).iter() {
                if is_shadow_present(&self.masks, spte) && is_last(spte, role.level()) {
                    let Gfn(gfn) = self.gfn_of(page.sptep(index));
                    found += u64::from(gfn < end && gfn.saturating_add(pages_per(role.level())) > first);
                }
            }
        }
        Ok(found)
    }

    /// The tables of the TDP MMU, roots first, newest first otherwise: creation number, level, whether one holds an MMIO
    /// SPTE.
    pub(in crate::mmu) fn tdp_table_facts(&self) -> Vec<(u32, u8, bool)> {
        let about = |page| {
            let key = self.arena.key(page);
            (key.id, key.role.level(), self.mmio_sptes_on(page) > 0)
        };
        let mut found: Vec<(u32, u8, bool)> = self.tables_of_tdp().map(about).collect();
        let root_level = self.config.tdp_level;
        found.sort_unstable_by_key(|&(id, level, _)| (level < root_level, Reverse(id)));
        found
    }
}
