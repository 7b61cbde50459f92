//! What host memory management asks of the MMU: drop, age, or change the mappings of a host range.
//!
//! Models `kvm_handle_hva_range` and its handlers, v5.0 to v6.12. Aging never owes a flush to anybody but its own caller.
//! From v6.12 on an unmap may drop the lock between two heads, so that it is a run.

use crate::mmu::shadow::page_arena::Sptep;
use crate::mmu::shadow::pte_list::PteCursor;
use crate::mmu::shadow::walk::{is_accessed, is_ad_disabled, pfn_of};
use crate::mmu::tables::{Tables, Unmapped};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::runs::{Handler, Step, UnmapRun};
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::make::make_access_track;
use crate::mmu::words::views::{HostState, SlotSpec};

const HOST_PAGE: u64 = 4096;
/// How the frame of a copied page differs from that of the page before.
const COPIED: u64 = 0x40_0000;

/// First and last gfn of a slot's part of a host range.
fn gfns_of(spec: &SlotSpec, start: u64, end: u64) -> Option<(Gfn, Gfn)> {
    let from = start.max(spec.hva);
    let to = end.min(spec.hva.saturating_add(spec.npages << 12));
    if from >= to {
        return None;
    }
    let first = Gfn(spec.base).plus((from - spec.hva) / HOST_PAGE);
    let count = (to - spec.hva).div_ceil(HOST_PAGE) - (from - spec.hva) / HOST_PAGE;
    Some((first, first.plus(count - 1)))
}

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
            for at in self.slots_in_order(as_id) {
                let slot = SlotAt { as_id, at };
                let spec = *self.slot_spec(slot);
                let Some((first, last)) = gfns_of(&spec, start, end) else { continue };
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

    /// Positions of the slots in the order in which notifiers come to them.
    fn slots_in_order(&self, as_id: u8) -> Vec<usize> {
        let space = &self.spaces[usize::from(as_id & 1)];
        if self.config.kernel.notifier_by_hva { space.by_hva() } else { (0..space.specs().len()).collect() }
    }

    /// The slots that a host range touches, the one that notifiers come to first last.
    fn slots_of_hva(&self, start: u64, end: u64) -> Vec<(u8, u32)> {
        let mut found = Vec::new();
        for as_id in 0..2_u8 {
            for at in self.slots_in_order(as_id) {
                let spec = self.slot_spec(SlotAt { as_id, at });
                if gfns_of(spec, start, end).is_some() {
                    found.push((as_id, spec.id));
                }
            }
        }
        found.reverse();
        found
    }

    /// The host takes memory back: every mapping of the range goes. The lock is not dropped.
    pub(in crate::mmu) fn unmap_hva(&mut self, start: u64, end: u64) {
        let mut unmap = self.unmap_run(start, end, true);
        // What the poll finds cannot be served here.
        loop {
            self.slice.begin();
            if self.drive_unmap(&mut unmap) == Step::Done {
                break;
            }
        }
        self.finish_unmap(start, end);
    }

    pub(in crate::mmu) fn unmap_run(&self, start: u64, end: u64, may_block: bool) -> UnmapRun {
        let left = self.slots_of_hva(start, end);
        UnmapRun { start, end, may_block, is_begun: false, left, walk: None, flush: false }
    }

    pub(in crate::mmu) fn drive_unmap(&mut self, unmap: &mut UnmapRun) -> Step {
        let has_range = self.config.kernel.is_role_fixed;
        if !std::mem::replace(&mut unmap.is_begun, true) {
            if self.config.is_stepped() {
                let (start, end) = (unmap.start, unmap.end);
                self.events.push(|| Event::UnmapHva { start, end });
            }
            if has_range && !unmap.left.is_empty() {
                self.invalidation.begin();
                if !self.config.kernel.retry_before_pin {
                    self.invalidation.add(unmap.start, unmap.end);
                }
            }
        }
        loop {
            if let Some(walk) = &mut unmap.walk {
                let step = self.walk_range(walk);
                if step != Step::Done {
                    return step;
                }
                unmap.flush = walk.flush();
                unmap.walk = None;
            }
            let Some((as_id, id)) = unmap.left.pop() else { break };
            let Ok(Some(at)) = self.find_slot_id(as_id, id) else { continue };
            let Some((first, last)) = gfns_of(self.slot_spec(at), unmap.start, unmap.end) else { continue };
            if has_range && self.config.kernel.retry_before_pin {
                self.invalidation.add(first.0, last.0.saturating_add(1));
            }
            let (may_block, flush) = (unmap.may_block, unmap.flush);
            unmap.walk = Some(self.unmap_slot_walk(&Unmapped { as_id, id, first, last, may_block, flush }));
        }
        if std::mem::take(&mut unmap.flush) && !is_chosen(Mutant::UnmapWithoutFlush) {
            self.flush_remote_tlbs();
        }
        Step::Done
    }

    /// The host has taken the memory: faults of the range go on.
    pub(in crate::mmu) fn finish_unmap(&mut self, start: u64, end: u64) {
        if self.config.kernel.is_role_fixed && !self.slots_of_hva(start, end).is_empty() {
            self.invalidation.finish();
        }
    }

    /// Copy-on-write gives a page another frame: its mappings go first, and whoever looked it up must do so again.
    pub(in crate::mmu) fn copy_page(&mut self, page: Pfn) {
        self.unmap_hva(page.hva(), page.hva().saturating_add(HOST_PAGE));
        let frame = Pfn(self.host.frame(page).0 ^ COPIED);
        self.host.move_page(page, frame);
    }

    /// Whether any mapping of the range was accessed; forgets that it was.
    pub(in crate::mmu) fn age_hva(&mut self, start: u64, end: u64, flush: bool) -> bool {
        if self.config.is_stepped() {
            self.events.push(|| Event::AgeHva { start, end });
        }
        let mut any = false;
        if self.tables() == Tables::Tdp {
            any = self.age_hva_in_roots(start, end, false);
        } else {
            self.age_hva_heads(start, end, &mut any);
        }
        if flush && any && !self.config.kernel.aging_is_lockless {
            self.flush_remote_tlbs();
        }
        any
    }

    /// Ages the slots' parts of a host range in the roots of the TDP MMU, or only looks.
    fn age_hva_in_roots(&mut self, start: u64, end: u64, is_test: bool) -> bool {
        let mut any = false;
        for (as_id, id) in self.slots_of_hva(start, end).into_iter().rev() {
            if let Ok(Some(at)) = self.find_slot_id(as_id, id)
                && let Some((first, last)) = gfns_of(self.slot_spec(at), start, end)
            {
                any |= self.tdp_age(as_id, first, last.plus(1), is_test);
            }
        }
        any
    }

    fn age_hva_heads(&mut self, start: u64, end: u64, any: &mut bool) {
        self.for_each_hva_head(start, end, |state, at| {
            let head = state.slot_body(at.slot).rmap[usize::from(at.level) - 1].get(at.index);
            if state.for_each_spte(head, Self::spte_age) {
                *any = true;
                state.events.push(|| Event::Age { gfn: at.gfn.0, level: at.level });
            }
        });
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
    pub(in crate::mmu) fn test_age_hva(&mut self, hva: u64) -> bool {
        if self.config.is_stepped() {
            self.events.push(|| Event::TestAgeHva { hva });
        }
        if self.tables() == Tables::Tdp {
            return self.age_hva_in_roots(hva, hva.saturating_add(1), true);
        }
        let mut any = false;
        self.for_each_hva_head(hva, hva.saturating_add(1), |state, at| {
            let head = state.slot_body(at.slot).rmap[usize::from(at.level) - 1].get(at.index);
            any = any || state.pte_lists.iter(head).any(|sptep| is_accessed(&state.masks, state.arena.spte(sptep)));
        });
        any
    }

    /// The host maps another frame at the address: read-only mappings follow it, writable ones are dropped.
    pub(in crate::mmu) fn change_pte(&mut self, hva: u64, pfn: Pfn, is_write: bool) {
        if self.config.kernel.is_role_fixed {
            // The host invalidates the page first, so that nothing is left to be changed.
            let page = Pfn::of_hva(hva);
            self.unmap_hva(page.hva(), page.hva().saturating_add(HOST_PAGE));
            if self.config.is_stepped() {
                self.events.push(|| Event::SetSpteHva { hva });
            }
            if self.tables() == Tables::Tdp {
                self.age_hva_in_roots(hva, hva.saturating_add(1), true);
            }
            self.host.move_page(page, pfn);
            self.host.set_state(page, 1, if is_write { HostState::Rw } else { HostState::Cow });
            return;
        }
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
