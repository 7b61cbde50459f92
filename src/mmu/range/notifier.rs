//! What host memory management asks of the MMU: drop, age, or change the mappings of a host range.
//!
//! Models `kvm_handle_hva_range` and its handlers, v5.0 to v6.12. Aging never owes a flush to anybody but its own caller.
//! How a range is unmapped is `tables/unmap_hva`.

use crate::mmu::pages::page_arena::Sptep;
use crate::mmu::pages::pte_list::PteCursor;
use crate::mmu::pages::walk::{is_accessed, is_ad_disabled, pfn_of};
use crate::mmu::tables::Tables;
use crate::mmu::tables::unmap_hva::{HOST_PAGE, gfns_of};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::runs::Handler;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::make::make_access_track;
use crate::mmu::words::views::HostState;

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
            let is_young = |sptep| state.is_mapped(sptep) && is_accessed(&state.masks, state.arena.spte(sptep));
            any = any || state.pte_lists.iter(head).any(is_young);
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
            self.tell_frame(page, pfn);
            self.host.set_state(page, 1, if is_write { HostState::Rw } else { HostState::Cow });
            return;
        }
        if let Some(ghost) = &mut self.ghost {
            ghost.host_takes(hva / HOST_PAGE, 1);
            ghost.backing.are_frames_unknown = true;
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
            if !self.is_mapped(sptep) {
                continue;
            }
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
