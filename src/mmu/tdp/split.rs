//! Splitting large leaves of the TDP MMU: a table of leaves of the level below takes the place of one leaf.
//!
//! Models `tdp_mmu_split_huge_page`, `make_huge_page_split_spte`, v6.1 to v7.3.

use crate::mmu::pages::page_arena::Sptep;
use crate::mmu::pages::walk::is_access_track;
use crate::mmu::tdp::tdp_walk::{Lock, TdpIter};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::level::{ENTRIES, PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::LARGE;
use crate::mmu::words::spte::make::{make_access_track, restore_access_track};

const ENOMEM: i32 = 12;

impl MmuState {
    /// Splits the large leaf at a place.
    pub(in crate::mmu) fn tdp_split(&mut self, sptep: Sptep, gfn: Gfn, lock: Lock) -> Result<()> {
        let old = self.arena.spte(sptep);
        let role = self.arena.key(sptep.page()).role;
        let level = role.level();
        let table = self.tdp_make_table(gfn.align_down(level), role.with_level(level - 1))?;
        let small = self.split_spte(old, level);
        let step = pages_per(level - 1) << 12;
        let words: Box<[u64; ENTRIES]> = Box::new(std::array::from_fn(|index| small + index as u64 * step));
        self.fill_table(table, words);
        self.tdp_link(sptep, gfn.align_down(level), table, lock);
        let spte = old;
        self.events.push(|| Event::Split { gfn: gfn.align_down(level).0, spte, level, errno: 0 });
        Ok(())
    }

    /// There is no room for a table: the rest of the range stays as it is.
    pub(in crate::mmu) fn push_split_failed(&mut self, iter: &TdpIter) {
        let (gfn, spte, level) = (iter.gfn.0, self.tdp_spte(iter), iter.level);
        self.events.push(|| Event::Split { gfn, spte, level, errno: -ENOMEM });
    }

    /// The first leaf below a large one.
    fn split_spte(&self, large: u64, level: u8) -> u64 {
        if level - 1 > PAGE_TABLE {
            return large;
        }
        let small = large & !LARGE;
        if !self.config.nx_huge_pages || is_chosen(Mutant::TdpSplitNotExecutable) {
            return small;
        }
        let is_tracked = is_access_track(&self.masks, small);
        let open = if is_tracked { restore_access_track(&self.masks, small) } else { small };
        let open = open & !self.masks.nx | self.masks.x;
        if is_tracked { make_access_track(&self.masks, open) } else { open }
    }
}
