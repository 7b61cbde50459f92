//! How many tables a VM may have, and the one place where a table goes back to the arena.
//!
//! Models v5.0 to v7.3 `kvm_mmu_available_pages`, `kvm_mmu_free_shadow_page` and `tdp_mmu_free_sp`. Invariant: no entry
//! links to a table that is freed, and no TLB can come to it: the caller has flushed.

use crate::mmu::pages::page_arena::{PageIdx, Place, Sptep};
use crate::mmu::vm::state::MmuState;

/// No room for a root.
pub(in crate::mmu) const ENOSPC: i32 = 28;

impl MmuState {
    /// How many more pages the limit allows.
    pub(in crate::mmu) const fn available_mmu_pages(&self) -> u64 {
        self.max.saturating_sub(self.used)
    }

    /// Frees a table or a root.
    pub(in crate::mmu) fn free_page(&mut self, page: PageIdx) {
        self.work.pages_freed += 1;
        self.stats.freed += 1;
        if let Some(ghost) = &mut self.ghost {
            ghost.freed(page.0, self.arena.page(page).place == Place::Tdp);
        }
        self.forget_last_path();
        if self.has_dangling {
            self.forget_dangling(page);
        }
        self.arena.release(page);
    }

    /// Takes what an old kernel left behind of a table out of every list: the table is freed, and its place used anew. The
    /// kernel keeps it; what it reads there from then on nobody can say.
    #[cold]
    fn forget_dangling(&mut self, page: PageIdx) {
        for space in &mut self.spaces {
            for at in 0..space.specs().len() {
                for heads in &mut space.body_mut(at).rmap {
                    let found: Vec<(u64, Sptep)> = heads
                        .iter()
                        .flat_map(|(index, head)| self.pte_lists.iter(head).map(move |sptep| (index, sptep)))
                        .filter(|&(_, sptep)| sptep.page() == page)
                        .collect();
                    for (index, sptep) in found {
                        if let Some(head) = heads.get_mut(index) {
                            self.pte_lists.remove(head, sptep);
                        }
                    }
                }
            }
        }
    }
}
