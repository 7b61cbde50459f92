//! Walks over the reverse-map heads of a slot, level by level, with one poll of the lock after every head; from v6.1 on
//! after the first of a level and those that are not empty.
//!
//! Models v5.0/v5.2 `slot_handle_level_range` and its users' handlers. A walk keeps its place by slot id, so that it
//! survives whatever happens while the lock is dropped.

use crate::kernels::Collapse;
use crate::mmu::pages::page_arena::Sptep;
use crate::mmu::pages::pte_list::{PteCursor, PteHead};
use crate::mmu::pages::walk::{can_be_made_writable, is_ad_disabled, is_shadow_present, pfn_of};
use crate::mmu::vm::debt::Debt;
use crate::mmu::vm::runs::{Handler, HeadWalk, Step};
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::pages_per;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::WRITABLE;

impl MmuState {
    /// Goes on until the walk ends or the lock is dropped.
    pub(in crate::mmu) fn walk_heads(&mut self, walk: &mut HeadWalk) -> Step {
        let Ok(Some(slot)) = self.find_slot_id(walk.as_id, walk.id) else { return Step::Done };
        while walk.level <= walk.last_level {
            let spec = *self.slot_spec(slot);
            let first = spec.index(walk.start, walk.level);
            let len = spec.index(walk.end, walk.level).wrapping_sub(first).wrapping_add(1);
            while walk.done < len {
                if self.slice.is_over() {
                    return Step::Slice;
                }
                self.slice.spend(1);
                let index = first.wrapping_add(walk.done);
                let heads = &self.slot_body(slot).rmap[usize::from(walk.level) - 1];
                let absent = heads.absent_from(index).min(len - walk.done);
                let is_skipped = self.config.kernel.walk_skips_empty_heads && (walk.done > 0 || !walk.is_polled);
                let wanted = if is_skipped && heads.get(index).is_empty() {
                    walk.done += absent.max(1);
                    false
                } else if absent > 0 && !self.config.kernel.walk_skips_empty_heads {
                    let (made, wanted) = if walk.is_polled { self.need_resched_many(absent) } else { (absent, false) };
                    self.work.heads_visited += made;
                    walk.done += made;
                    wanted
                } else if let Some(held) = self.heads_at_once(slot, walk, index) {
                    let most = held.min(len - walk.done);
                    let (made, wanted) = if walk.is_polled { self.need_resched_many(most) } else { (most, false) };
                    self.work.heads_visited += made;
                    self.slice.spend(made.saturating_sub(1));
                    walk.flush |= self.handle_heads(slot, walk.handler, walk.level, index, made);
                    walk.done += made;
                    wanted
                } else {
                    self.work.heads_visited += 1;
                    walk.flush |= self.handle_head(slot, walk.handler, index, walk.level);
                    walk.done += 1;
                    walk.is_polled && self.lock_is_wanted()
                };
                if wanted {
                    if walk.is_flush_inside && walk.flush {
                        let at = walk.start.plus((walk.done - 1).wrapping_mul(pages_per(walk.level)));
                        self.flush_inside(walk.start, at);
                        walk.flush = false;
                    }
                    if self.cond_resched() {
                        walk.flush &= !is_chosen(Mutant::WalkForgetsFlush);
                        return Step::LockBreak;
                    }
                }
            }
            walk.level += 1;
            walk.done = 0;
        }
        if walk.is_flush_at_end && walk.flush {
            self.flush_inside(walk.start, walk.end);
            walk.flush = false;
        }
        Step::Done
    }

    /// How many heads follow in a chunk, where they are polled one like the other and their handler leaves them as they are.
    fn heads_at_once(&self, slot: SlotAt, walk: &HeadWalk, index: u64) -> Option<u64> {
        let is_kept = matches!(walk.handler, Handler::WriteProtect | Handler::ClearDirty | Handler::SetDirty);
        if !is_kept || self.config.kernel.walk_skips_empty_heads {
            return None;
        }
        self.slot_body(slot).rmap[usize::from(walk.level) - 1].rest_of_chunk(index).map(|heads| heads.len() as u64)
    }

    /// Handles so many heads of a chunk; whether TLBs must be flushed.
    fn handle_heads(&mut self, slot: SlotAt, handler: Handler, level: u8, index: u64, count: u64) -> bool {
        let mut flush = false;
        let mut done = 0;
        while done < count {
            if handler == Handler::WriteProtect {
                let (plain, any) = self.write_protect_plain(slot, level, index + done, count - done);
                flush |= any;
                done += plain;
            }
            if done < count {
                flush |= self.handle_head(slot, handler, index + done, level);
                done += 1;
            }
        }
        flush
    }

    fn flush_inside(&mut self, first: Gfn, last: Gfn) {
        if self.config.kernel.walk_flush_ranged {
            self.flush_remote_tlbs_with_address(first, last.0.wrapping_sub(first.0).wrapping_add(1));
        } else {
            self.flush_remote_tlbs();
        }
    }

    /// Handles one head; whether TLBs must be flushed.
    pub(in crate::mmu) fn handle_head(&mut self, slot: SlotAt, handler: Handler, index: u64, level: u8) -> bool {
        let head = self.slot_body(slot).rmap[usize::from(level) - 1].get(index);
        if head.is_empty() {
            return false;
        }
        match handler {
            Handler::WriteProtect => self.write_protect_head(head, false),
            Handler::ClearDirty => self.for_each_spte(head, Self::spte_clear_dirty),
            Handler::SetDirty => self.for_each_spte(head, Self::spte_set_dirty),
            Handler::Zap => self.zap_rmap(slot, index, level),
            Handler::ZapCollapsible => self.zap_collapsible(slot, index, level),
        }
    }

    /// Write-protects a list; for page tracking also against the lock-free path.
    pub(in crate::mmu) fn write_protect_head(&mut self, head: PteHead, pt_protect: bool) -> bool {
        if pt_protect {
            self.for_each_spte(head, |state, sptep| state.spte_write_protect(sptep, true))
        } else {
            self.for_each_spte(head, |state, sptep| state.spte_write_protect(sptep, false))
        }
    }

    /// Calls `handle` for each place of a list that it leaves as it is; whether any call said so.
    #[inline]
    pub(in crate::mmu) fn for_each_spte(&mut self, head: PteHead, handle: impl Fn(&mut Self, Sptep) -> bool) -> bool {
        let mut cursor = PteCursor::default();
        let mut any = false;
        while let Some(sptep) = self.pte_lists.at(head, &mut cursor) {
            self.work.rmap_steps += 1;
            any |= self.is_mapped(sptep) && handle(self, sptep);
        }
        any
    }

    #[inline]
    fn spte_write_protect(&mut self, sptep: Sptep, pt_protect: bool) -> bool {
        let spte = self.arena.spte(sptep);
        if spte & WRITABLE == 0 && !(pt_protect && can_be_made_writable(&self.masks, spte)) {
            return false;
        }
        if !pt_protect && is_chosen(Mutant::LogKeepsWritable) {
            return false;
        }
        let keep = if pt_protect { !(WRITABLE | self.masks.mmu_writeable) } else { !WRITABLE };
        let flush = self.spte_update_from(sptep, spte, spte & keep);
        if !flush && is_shadow_present(&self.masks, spte) {
            // Where a lost W alone asks for no flush, whoever protects for a log flushes all the same.
            let key = self.arena.key(sptep.page());
            self.owe(Debt::of(key.gfn_of(sptep.index()), pages_per(key.role.level())));
        }
        flush
    }

    pub(in crate::mmu) fn spte_clear_dirty(&mut self, sptep: Sptep) -> bool {
        let spte = self.arena.spte(sptep);
        if self.masks.dirty != 0 && !is_ad_disabled(&self.masks, spte) {
            return self.spte_update_from(sptep, spte, spte & !self.masks.dirty);
        }
        if spte & WRITABLE == 0 {
            return false;
        }
        self.spte_set(sptep, spte & !WRITABLE);
        self.push_dirty(pfn_of(spte));
        true
    }

    fn spte_set_dirty(&mut self, sptep: Sptep) -> bool {
        let spte = self.arena.spte(sptep);
        self.masks.dirty != 0
            && !is_ad_disabled(&self.masks, spte)
            && self.spte_update_from(sptep, spte, spte | self.masks.dirty)
    }

    /// Drops the leaves that a larger one could replace; the list is scanned anew after each.
    fn zap_collapsible(&mut self, slot: SlotAt, index: u64, level: u8) -> bool {
        let mut flush = false;
        'scan: loop {
            let head = self.slot_body(slot).rmap[usize::from(level) - 1].get(index);
            let mut cursor = PteCursor::default();
            while let Some(sptep) = self.pte_lists.at(head, &mut cursor) {
                self.work.rmap_steps += 1;
                if self.is_mapped(sptep) && self.is_collapsible(slot, sptep) {
                    self.spte_clear_track_bits(sptep);
                    self.remove_from_head(slot, index, level, sptep);
                    if self.config.flush_range {
                        self.flush_place(sptep, self.arena.key(sptep.page()).gfn_of(sptep.index()));
                    } else {
                        flush = true;
                    }
                    continue 'scan;
                }
            }
            return flush;
        }
    }

    /// Whether a leaf could be part of a larger one now; one that shadows an entry of the guest is as large as that.
    fn is_collapsible(&self, slot: SlotAt, sptep: Sptep) -> bool {
        let key = self.arena.key(sptep.page());
        if !key.role.direct() {
            return false;
        }
        match self.config.kernel.collapse {
            Collapse::ByLeaf => {
                self.host.is_compound(pfn_of(self.arena.spte(sptep)))
                    // From v5.10 on the slot's own lists are asked with the gfn of the table.
                    && (!self.config.kernel.is_level_requested || self.slot_spec(slot).holds(key.gfn))
            }
            Collapse::ByTable | Collapse::ByTableInSlot => {
                self.slot_spec(slot).holds(key.gfn) && key.role.level() < self.slot_level(slot, key.gfn)
            }
        }
    }

    /// Takes a place out of a list of the slot.
    fn remove_from_head(&mut self, slot: SlotAt, index: u64, level: u8, sptep: Sptep) {
        self.work.rmap_steps += 1;
        self.aliased.remove(&sptep);
        let body = self.spaces[usize::from(slot.as_id & 1)].body_mut(slot.at);
        if let Some(head) = body.rmap[usize::from(level) - 1].get_mut(index) {
            self.pte_lists.remove(head, sptep);
        }
    }
}
