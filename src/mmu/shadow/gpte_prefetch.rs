//! Mapping an entry of a guest's page table that nobody asked for: a neighbour of one that was, or one that was written.
//!
//! Models `prefetch_gpte`, `update_pte`, v5.0 to v6.12. An entry that leads nowhere empties the one that shadows it, also an
//! MMIO SPTE; none is ever made here.

use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::Sptep;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::ACC_WRITE;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::PFN_FIELD;

impl MmuState {
    /// Maps what a guest's entry leads to; false if there is nothing to map, or nothing at hand. `spares_log`: not writable
    /// into a slot whose dirty pages are logged.
    pub(in crate::mmu) fn prefetch_gpte(&mut self, vcpu: usize, sptep: Sptep, gpte: u64, spares_log: bool) -> bool {
        self.prefetch_gpte_with(vcpu, sptep, gpte, (spares_log, None))
    }

    /// The same, where the caller may say which gfns are at hand, in the order of the entries that lead to them.
    pub(in crate::mmu) fn prefetch_gpte_with(
        &mut self,
        vcpu: usize,
        sptep: Sptep,
        gpte: u64,
        (spares_log, neighbours): (bool, Option<&[u64]>),
    ) -> bool {
        if self.is_gpte_unusable(vcpu, gpte) {
            self.drop_spte(sptep);
            return false;
        }
        let (gfn, access) = self.gpte_target(vcpu, sptep.page(), gpte);
        let spares_log = spares_log && access & ACC_WRITE != 0 && !is_chosen(Mutant::GptePrefetchIntoLog);
        let Some((slot, pfn)) = self.find_at_hand(vcpu, gfn, spares_log, neighbours) else { return false };
        let backing = Backing::Frame { pfn, host_writable: true };
        let (level, slot) = (PAGE_TABLE, Some(slot));
        let (is_write, speculative, can_unsync) = (false, true, true);
        let mapping = Mapping { vcpu, slot, gfn, level, access, backing, is_write, speculative, can_unsync };
        if self.config.kernel.is_role_fixed {
            self.set_leaf(sptep, &mapping, None);
            if self.config.is_stepped() {
                self.push_accessed(pfn);
            }
        } else {
            self.mmu_set_spte(sptep, &mapping);
        }
        true
    }

    /// The frame of a gfn that can be had without waiting, for writing.
    fn find_at_hand(
        &self,
        vcpu: usize,
        gfn: Gfn,
        spares_log: bool,
        neighbours: Option<&[u64]>,
    ) -> Option<(SlotAt, Pfn)> {
        let slot = self.find_visible_slot(self.vcpus[vcpu].as_id(), gfn)?;
        let spec = self.slot_spec(slot);
        if spec.is_readonly() || spares_log && self.slot_body(slot).dirty.is_some() {
            return None;
        }
        let page = Pfn::of_hva(spec.hva_of(gfn));
        let frame = self.host.frame(page);
        let is_at_hand = match neighbours {
            Some(found) => found.contains(&gfn.0),
            None => self.host.pin_atomic(page),
        };
        is_at_hand.then_some((slot, Pfn((frame.hva() & PFN_FIELD) >> 12)))
    }
}
