//! What the end of the dirty log does to a link of the TDP MMU whose gfns could be one large leaf.
//!
//! Models `kvm_tdp_mmu_zap_collapsible_sptes` (v6.1, v6.12) and `kvm_tdp_mmu_recover_huge_pages` (v6.18 and later).

use crate::kernels::TdpCollapse;
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present, pfn_of};
use crate::mmu::tdp::tdp_walk::{Lock, TdpIter};
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::level::MAX_LEAF;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{LARGE, PFN_FIELD};

impl MmuState {
    /// Collapses the link a walk stands on, if it may be a large leaf; whether a flush is owed.
    pub(in crate::mmu) fn tdp_collapse(&mut self, as_id: u8, id: u32, iter: &TdpIter) -> bool {
        let Ok(Some(slot)) = self.find_slot_id(as_id, id) else { return false };
        if iter.level > MAX_LEAF || !self.slot_spec(slot).holds(iter.gfn) || !self.may_be_large(slot, iter) {
            return false;
        }
        match self.config.kernel.tdp_collapse {
            TdpCollapse::Zapped => {
                if is_chosen(Mutant::TdpCollapseDirtyLost) {
                    self.forget_dirty_below(child_of(self.tdp_spte(iter)));
                }
                self.tdp_zap_atomic(iter.sptep(), iter.gfn);
                false
            }
            TdpCollapse::InPlace => {
                let Some(leaf) = self.leaf_below(child_of(self.tdp_spte(iter)), iter.level - 1) else { return false };
                let nx = if self.config.nx_huge_pages { self.masks.nx } else { 0 };
                let x = if self.config.nx_huge_pages { self.masks.x } else { 0 };
                let frame = pfn_of(leaf).align_down(iter.level).hva() & PFN_FIELD;
                let large = leaf & !(PFN_FIELD | x) | frame | LARGE | nx;
                self.tdp_set_spte(iter.sptep(), iter.gfn, large, Lock::Shared);
                true
            }
        }
    }

    /// A planted fault.
    fn forget_dirty_below(&mut self, table: PageIdx) {
        for index in 0..512 {
            let sptep = table.sptep(index);
            self.spte_set(sptep, self.arena.spte(sptep) & !self.masks.dirty);
        }
    }

    fn may_be_large(&self, slot: SlotAt, iter: &TdpIter) -> bool {
        self.host.has_huge() && self.slot_level(slot, iter.gfn) >= iter.level
    }

    /// The first leaf below a table, of whatever level.
    fn leaf_below(&self, table: PageIdx, level: u8) -> Option<u64> {
        let mut entries = self.arena.table(table).iter().filter(|&(_, spte)| is_shadow_present(&self.masks, spte));
        entries.find_map(
            |(_, spte)| {
                if is_last(spte, level) { Some(spte) } else { self.leaf_below(child_of(spte), level - 1) }
            },
        )
    }
}
