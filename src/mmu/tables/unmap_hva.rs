//! A host range leaves both page tables: which slots it touches, and the run that unmaps it there.
//!
//! Models `kvm_mmu_notifier_invalidate_range_start` and `_end` and the walk over slots of `kvm_handle_hva_range`, v5.0 to
//! v7.3. It stands at the door and not in `range`, because a fault may have the host copy a page, which unmaps it. From
//! v6.12 on an unmap may drop the lock between two heads, so that it is a run.

use crate::mmu::tables::Unmapped;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::runs::{Step, UnmapRun};
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::views::SlotSpec;

pub(in crate::mmu) const HOST_PAGE: u64 = 4096;
/// How the frame of a copied page differs from that of the page before.
const COPIED: u64 = 0x40_0000;

/// First and last gfn of a slot's part of a host range.
pub(in crate::mmu) fn gfns_of(spec: &SlotSpec, start: u64, end: u64) -> Option<(Gfn, Gfn)> {
    let from = start.max(spec.hva);
    let to = end.min(spec.hva.saturating_add(spec.npages << 12));
    if from >= to {
        return None;
    }
    let first = Gfn(spec.base).plus((from - spec.hva) / HOST_PAGE);
    let count = (to - spec.hva).div_ceil(HOST_PAGE) - (from - spec.hva) / HOST_PAGE;
    Some((first, first.plus(count - 1)))
}

impl MmuState {
    /// Positions of the slots in the order in which notifiers come to them.
    pub(in crate::mmu) fn slots_in_order(&self, as_id: u8) -> Vec<usize> {
        let space = &self.spaces[usize::from(as_id & 1)];
        if self.config.kernel.notifier_by_hva { space.by_hva() } else { (0..space.specs().len()).collect() }
    }

    /// The slots that a host range touches, the one that notifiers come to first last.
    pub(in crate::mmu) fn slots_of_hva(&self, start: u64, end: u64) -> Vec<(u8, u32)> {
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
        let mut left = self.slots_of_hva(start, end);
        if is_chosen(Mutant::UnmapFirstSpaceOnly) {
            left.retain(|&(as_id, _)| as_id == 0);
        }
        UnmapRun { start, end, may_block, is_begun: false, left, walk: None, flush: false }
    }

    pub(in crate::mmu) fn drive_unmap(&mut self, unmap: &mut UnmapRun) -> Step {
        let has_range = self.config.kernel.is_role_fixed;
        if !std::mem::replace(&mut unmap.is_begun, true) {
            self.tell_host_takes(unmap.start, unmap.end);
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
            let Some((first, mut last)) = gfns_of(self.slot_spec(at), unmap.start, unmap.end) else { continue };
            if is_chosen(Mutant::UnmapRoundsDown) && last != first {
                last = Gfn(last.0 - 1);
            }
            if has_range && self.config.kernel.retry_before_pin {
                self.invalidation.add(first.0, last.0.saturating_add(1));
            }
            let (may_block, flush) = (unmap.may_block, unmap.flush);
            unmap.walk = Some(self.unmap_slot_walk(&Unmapped { as_id, id, first, last, may_block, flush }));
        }
        // An entry that a sync dropped may still be in a TLB.
        let is_stale = self.tlbs_dirty > 0 && !self.config.kernel.is_role_fixed;
        if (std::mem::take(&mut unmap.flush) || is_stale) && !is_chosen(Mutant::UnmapWithoutFlush) {
            self.flush_remote_tlbs();
        }
        Step::Done
    }

    /// The host has taken the memory: faults of the range go on.
    pub(in crate::mmu) fn finish_unmap(&mut self, start: u64, end: u64) {
        if self.config.kernel.is_role_fixed && !self.slots_of_hva(start, end).is_empty() {
            self.invalidation.finish();
        }
        if self.config.kernel.is_role_fixed {
            self.tell_host_takes(start, end);
        }
    }

    /// The host takes pages, or has taken them: what was mapped of them before is not theirs any more.
    fn tell_host_takes(&mut self, start: u64, end: u64) {
        if let Some(ghost) = &mut self.ghost {
            let first = start / HOST_PAGE;
            ghost.host_takes(first, end.div_ceil(HOST_PAGE).saturating_sub(first));
        }
    }

    /// A host page has another frame now.
    pub(in crate::mmu) fn tell_frame(&mut self, page: Pfn, frame: Pfn) {
        if let Some(ghost) = &mut self.ghost {
            ghost.backing.frames.insert(page.0, frame.0);
        }
    }

    /// The slots' parts of a host range: address space, first gfn, pages.
    pub(in crate::mmu) fn gfns_of_hva(&self, start: u64, end: u64) -> Vec<(u8, u64, u64)> {
        let mut found = Vec::new();
        for (as_id, id) in self.slots_of_hva(start, end) {
            if let Ok(Some(at)) = self.find_slot_id(as_id, id)
                && let Some((first, last)) = gfns_of(self.slot_spec(at), start, end)
            {
                found.push((as_id, first.0, last.0 - first.0 + 1));
            }
        }
        found
    }

    /// Copy-on-write gives a page another frame: its mappings go first, and whoever looked it up must do so again.
    pub(in crate::mmu) fn copy_page(&mut self, page: Pfn) {
        self.unmap_hva(page.hva(), page.hva().saturating_add(HOST_PAGE));
        let frame = Pfn(self.host.frame(page).0 ^ COPIED);
        self.host.move_page(page, frame);
        self.tell_frame(page, frame);
    }
}
