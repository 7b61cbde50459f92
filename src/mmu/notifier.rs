//! What host memory management asks of the MMU: drop, age, or change the mappings of a host range.
//!
//! Models v5.0/v5.2 `kvm_handle_hva_range` and its handlers. Aging never owes a flush to anybody but its own caller.

use super::addr::{Gfn, Pfn};
use super::events::Event;
use super::level::{MAX_LEAF, PAGE_TABLE, pages_per};
use super::mutants::{Mutant, is_chosen};
use super::page_arena::Sptep;
use super::pte_list::PteCursor;
use super::runs::Handler;
use super::slots::SlotAt;
use super::spte::layout::{PFN_FIELD, WRITABLE};
use super::spte::make::make_access_track;
use super::state::MmuState;
use super::walk::{is_accessed, is_ad_disabled, pfn_of};

const HOST_PAGE: u64 = 4096;

/// A slot's part of a host range, at one head.
#[derive(Clone, Copy)]
struct HeadAt {
    slot: SlotAt,
    index: u64,
    /// First gfn of the range plus whole mappings; not aligned at levels 2 and 3.
    gfn: Gfn,
    level: u8,
}

impl MmuState {
    /// Calls `handle` for every head that is not empty and whose gfns the host range touches.
    fn for_each_hva_head(&mut self, start: u64, end: u64, mut handle: impl FnMut(&mut Self, HeadAt)) {
        for as_id in 0..2_u8 {
            for at in 0..self.spaces[usize::from(as_id)].specs().len() {
                let slot = SlotAt { as_id, at };
                let spec = *self.slot_spec(slot);
                let hva_end = spec.hva.saturating_add(spec.npages << 12);
                let from = start.max(spec.hva);
                let to = end.min(hva_end);
                if from >= to {
                    continue;
                }
                let first = Gfn(spec.base).plus((from - spec.hva) / HOST_PAGE);
                let count = (to - spec.hva).div_ceil(HOST_PAGE) - (from - spec.hva) / HOST_PAGE;
                let last = first.plus(count - 1);
                for level in PAGE_TABLE..=MAX_LEAF {
                    let low = spec.index(first, level);
                    let high = spec.index(last, level);
                    let mut index = low;
                    while index <= high {
                        let absent = self.slot_body(slot).rmap[usize::from(level) - 1].absent_from(index);
                        if absent > 0 {
                            index += absent;
                            continue;
                        }
                        if !self.slot_body(slot).rmap[usize::from(level) - 1].get(index).is_empty() {
                            self.work.heads_visited += 1;
                            let gfn = first.plus((index - low) * pages_per(level));
                            handle(self, HeadAt { slot, index, gfn, level });
                        }
                        index += 1;
                    }
                }
            }
        }
    }

    /// The host takes memory back: every mapping of the range goes.
    pub(super) fn unmap_hva(&mut self, start: u64, end: u64) {
        let mut flush = false;
        self.for_each_hva_head(start, end, |state, at| {
            flush |= state.handle_head(at.slot, Handler::Zap, at.index, at.level);
        });
        if flush && !is_chosen(Mutant::UnmapWithoutFlush) {
            self.flush_remote_tlbs();
        }
    }

    /// Whether any mapping of the range was accessed; forgets that it was.
    pub(super) fn age_hva(&mut self, start: u64, end: u64, flush: bool) -> bool {
        let mut any = false;
        self.for_each_hva_head(start, end, |state, at| {
            let head = state.slot_body(at.slot).rmap[usize::from(at.level) - 1].get(at.index);
            if state.for_each_spte(head, Self::spte_age) {
                any = true;
                state.events.push(|| Event::Age { gfn: at.gfn.0, level: at.level });
            }
        });
        if flush && any {
            self.flush_remote_tlbs();
        }
        any
    }

    fn spte_age(&mut self, sptep: Sptep) -> bool {
        let spte = self.arena.spte(sptep);
        if !is_accessed(&self.masks, spte) {
            return false;
        }
        if self.masks.accessed != 0 && !is_ad_disabled(&self.masks, spte) {
            if !is_chosen(Mutant::AgeKeepsAccessed) {
                self.spte_set(sptep, spte & !self.masks.accessed);
            }
        } else {
            if spte & WRITABLE != 0 {
                self.push_dirty(pfn_of(spte));
            }
            self.spte_set(sptep, make_access_track(&self.masks, spte));
            let (gfn, level) = (self.gfn_of(sptep), self.arena.key(sptep.page()).role.level());
            for vcpu in &mut self.vcpus {
                vcpu.tlb.tolerate_writes(gfn, level);
            }
        }
        true
    }

    /// Whether any mapping of the page was accessed.
    pub(super) fn test_age_hva(&mut self, hva: u64) -> bool {
        let mut any = false;
        self.for_each_hva_head(hva, hva.saturating_add(1), |state, at| {
            let head = state.slot_body(at.slot).rmap[usize::from(at.level) - 1].get(at.index);
            any = any || state.pte_lists.iter(head).any(|sptep| is_accessed(&state.masks, state.arena.spte(sptep)));
        });
        any
    }

    /// The host maps another frame at the address: read-only mappings follow it, writable ones are dropped.
    pub(super) fn change_pte(&mut self, hva: u64, pfn: Pfn, is_write: bool) {
        let mut flush = false;
        self.for_each_hva_head(hva, hva.saturating_add(1), |state, at| {
            let changed = if is_write {
                state.handle_head(at.slot, Handler::Zap, at.index, at.level)
            } else {
                state.change_head(at, pfn)
            };
            if changed && state.config.flush_range {
                state.flush_remote_tlbs_with_address(at.gfn, 1);
            } else {
                flush |= changed;
            }
        });
        if flush {
            self.flush_remote_tlbs();
        }
    }

    fn change_head(&mut self, at: HeadAt, pfn: Pfn) -> bool {
        let head = self.slot_body(at.slot).rmap[usize::from(at.level) - 1].get(at.index);
        let mut cursor = PteCursor::default();
        let mut any = false;
        while let Some(sptep) = self.pte_lists.at(head, &mut cursor) {
            self.work.rmap_steps += 1;
            any = true;
            let old = self.arena.spte(sptep);
            let lost = if is_chosen(Mutant::ChangedPteWritable) { 0 } else { WRITABLE | self.masks.host_writeable };
            let moved = old & !PFN_FIELD & !lost | pfn.hva() & PFN_FIELD;
            let new = make_access_track(&self.masks, moved);
            self.spte_clear_track_bits(sptep);
            self.spte_set(sptep, new);
        }
        any
    }
}
