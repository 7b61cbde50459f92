//! Resumable walks over slots: the plan that zaps one slot, the walks of memslot flags and dirty logging, and a range of
//! gfns over all slots.
//!
//! Models v5.2 `kvm_mmu_invalidate_zap_pages_in_memslot`, `kvm_mmu_slot_*` and `kvm_zap_gfn_range`. Between two heads or
//! gfns the lock may be dropped; a walk keeps its place by slot id and offset.

use crate::kernels::{Collapse, LogOnFlush, ZapRangeBlocks, ZapRangeFlush};
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{is_large, is_shadow_present};
use crate::mmu::tables::Tables;
use crate::mmu::tdp::tdp_walk::{Body, Lock, Roots, TdpWalk};
use crate::mmu::vm::debt::Debt;
use crate::mmu::vm::runs::{Handler, HeadWalk, Kind, RangeRun, RangeWalk, Run, SlotFlush, Step, TdpOwes, TdpRun};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE};
use crate::mmu::words::plan::{BeforeDrop, ReloadRoots, SlotPages, SlotPlan};
use crate::mmu::words::views::{SlotSpec, SlotWalk};

impl MmuState {
    pub(in crate::mmu) fn drive_slot_flush(&mut self, flush: &mut SlotFlush, run: &mut Run) -> Step {
        if !flush.is_begun {
            flush.is_begun = true;
            if self.active.is_empty() && !self.config.kernel.unmap_offers_lock {
                if flush.plan.reload_roots == ReloadRoots::After {
                    self.reload_remote_mmus();
                }
                return Step::Done;
            }
        }
        if !flush.is_walked {
            let step = self.walk_heads(&mut flush.walk);
            if step != Step::Done {
                return step;
            }
            flush.is_walked = true;
        }
        if self.active.is_empty() {
            flush.done = flush.npages;
        }
        let candidates = self.pages_between(flush);
        let mut next = 0;
        while flush.done < flush.npages {
            if self.slice.is_over() {
                return Step::Slice;
            }
            self.slice.spend(1);
            let gap = match &candidates {
                Some(gfns) => gfns.get(next).map_or(flush.npages, |&at| at) - flush.done,
                None => 0,
            };
            let wanted = if gap > 0 {
                let (made, wanted) = if flush.walk.is_polled { self.lock_is_wanted_many(gap) } else { (gap, false) };
                flush.done += made;
                self.work.heads_visited += made;
                wanted
            } else {
                next += 1;
                self.work.heads_visited += 1;
                self.zap_pages_of(flush.base.plus(flush.done), flush.plan, run);
                flush.done += 1;
                flush.walk.is_polled && self.lock_is_wanted()
            };
            if wanted {
                if flush.plan.before_drop == BeforeDrop::Commit {
                    self.flush_or_zap(run, &mut flush.walk.flush);
                }
                if self.cond_resched() {
                    return Step::LockBreak;
                }
            }
        }
        self.flush_or_zap(run, &mut flush.walk.flush);
        if flush.plan.reload_roots == ReloadRoots::After {
            self.reload_remote_mmus();
        }
        Step::Done
    }

    /// Offsets of the slot's gfns that have pages, ascending, when that is shorter than asking for each gfn.
    fn pages_between(&self, flush: &SlotFlush) -> Option<Vec<u64>> {
        let left = flush.npages - flush.done;
        if left <= self.active.len() as u64 {
            return None;
        }
        let mut gfns: Vec<u64> = self
            .active
            .iter()
            .map(|page| self.arena.key(page).gfn.0.wrapping_sub(flush.base.0))
            .filter(|&at| at >= flush.done && at < flush.npages)
            .collect();
        gfns.sort_unstable();
        gfns.dedup();
        Some(gfns)
    }

    fn zap_pages_of(&mut self, gfn: Gfn, plan: SlotPlan, run: &mut Run) {
        let mut page = self.hash.first(gfn);
        while page != PageIdx::NONE {
            let key = self.arena.key(page);
            let next = key.hash_next;
            let is_wanted = plan.pages == SlotPages::All || !key.role.direct();
            if key.gfn == gfn && !key.role.invalid() && is_wanted {
                self.prepare_in_run(page, run);
            }
            page = next;
        }
    }

    /// A table of 2 MiB entries that maps a large leaf of the slot and begins before the slot's first 2 MiB, where the
    /// kernel does not look at that.
    fn table_before_slot(&self, as_id: u8, spec: &SlotSpec) -> Option<Gfn> {
        if self.config.kernel.collapse != Collapse::ByTable {
            return None;
        }
        let is_leaf_of =
            |gfn: Gfn, spte: u64| is_shadow_present(&self.masks, spte) && is_large(spte) && spec.holds(gfn);
        let mut tables = self.active.iter().map(|page| (page, self.arena.key(page)));
        let found = tables.find(|(page, key)| {
            key.role.level() == 2
                && key.role.direct()
                && key.role.as_id() == as_id
                && key.gfn.align_down(2).0 < Gfn(spec.base).align_down(2).0
                && self.arena.table(*page).iter().any(|(index, spte)| is_leaf_of(key.gfn_of(index), spte))
        });
        found.map(|(_, key)| key.gfn)
    }

    pub(in crate::mmu) fn slot_walk_run(&self, as_id: u8, id: u32, what: SlotWalk) -> Result<Kind> {
        let at = self.find_slot_id(as_id, id)?.ok_or(Error::NoSlot { as_id, id })?;
        let spec = *self.slot_spec(at);
        if self.tables() == Tables::Tdp {
            return Ok(Kind::Tdp(Self::tdp_slot_run(as_id, &spec, what)));
        }
        let (handler, level, last_level) = match what {
            SlotWalk::RemoveWriteAccess => (Handler::WriteProtect, PAGE_TABLE, MAX_LEAF),
            SlotWalk::LeafClearDirty => (Handler::ClearDirty, PAGE_TABLE, PAGE_TABLE),
            SlotWalk::LargepageRemoveWriteAccess => (Handler::WriteProtect, 2, MAX_LEAF),
            SlotWalk::SetDirty => (Handler::SetDirty, PAGE_TABLE, MAX_LEAF),
            // Only the TDP MMU splits ahead of a fault.
            SlotWalk::Split { .. } => return Ok(Kind::Nothing),
            SlotWalk::ZapCollapsible => {
                let is_by_leaf = self.config.kernel.collapse == Collapse::ByLeaf;
                (Handler::ZapCollapsible, PAGE_TABLE, if is_by_leaf { PAGE_TABLE } else { MAX_LEAF - 1 })
            }
        };
        let is_flush_inside = handler == Handler::ZapCollapsible;
        if is_flush_inside && let Some(gfn) = self.table_before_slot(as_id, &spec) {
            return Err(Error::OutsideSlot { kernel: self.config.kernel.name, as_id, id, gfn: gfn.0 });
        }
        let start = Gfn(spec.base);
        let walk = HeadWalk {
            as_id,
            id,
            handler,
            is_flush_inside,
            is_flush_at_end: is_flush_inside,
            is_polled: true,
            start,
            end: start.plus(spec.npages - 1),
            level,
            last_level,
            done: 0,
            flush: false,
        };
        let is_flushed_after = !is_flush_inside && self.config.kernel.log_on_flush == LogOnFlush::IfChanged;
        Ok(Kind::Slot { walk, flush_after: is_flushed_after.then_some((start, spec.npages)) })
    }

    /// A walk over what the roots of the TDP MMU map of a slot.
    fn tdp_slot_run(as_id: u8, spec: &SlotSpec, what: SlotWalk) -> TdpRun {
        let (start, end) = (Gfn(spec.base), Gfn(spec.base + spec.npages));
        let roots = Roots { as_id: Some(as_id), only_valid: true };
        let protect = |body| TdpWalk::new(roots, (start, end), body, Lock::Shared);
        let (walk, owes) = match what {
            SlotWalk::RemoveWriteAccess => (protect(Body::WriteProtect), TdpOwes::Caller),
            SlotWalk::LargepageRemoveWriteAccess => {
                (TdpWalk { least: 2, ..protect(Body::WriteProtect) }, TdpOwes::Caller)
            }
            SlotWalk::LeafClearDirty => (protect(Body::ClearDirty), TdpOwes::Caller),
            // Nothing is set dirty in a page table that has no list of what it maps.
            SlotWalk::SetDirty => (TdpWalk { is_over: true, ..protect(Body::ClearDirty) }, TdpOwes::Nothing),
            SlotWalk::ZapCollapsible => (TdpWalk::collapse(as_id, spec.id, (start, end)), TdpOwes::Nothing),
            SlotWalk::Split { to } => (TdpWalk::split(as_id, (start, end), to, Lock::Shared), TdpOwes::Nothing),
        };
        TdpRun { walk, owes }
    }

    /// Goes on with a walk over the TDP MMU, and pays at its end what it owes.
    pub(in crate::mmu) fn drive_tdp(&mut self, tdp: &mut TdpRun) -> Step {
        let step = self.drive_tdp_walk(&mut tdp.walk);
        if step == Step::Done && tdp.walk.flush {
            match tdp.owes {
                TdpOwes::Nothing => {}
                TdpOwes::Flush => self.flush_remote_tlbs(),
                TdpOwes::Caller => self.owe(Debt::EVERYTHING),
            }
            tdp.walk.flush = false;
        }
        step
    }

    pub(in crate::mmu) fn drive_slot_walk(
        &mut self,
        walk: &mut HeadWalk,
        flush_after: Option<(Gfn, u64)>,
        run: &mut Run,
    ) -> Step {
        let step = self.walk_heads(walk);
        if step != Step::Done {
            return step;
        }
        if walk.flush
            && let Some((gfn, pages)) = flush_after
        {
            self.flush_remote_tlbs_with_address(gfn, pages);
            walk.flush = false;
            run.account.ret = 1;
        }
        if walk.flush {
            self.owe(Debt::of(walk.start, walk.end.0.wrapping_sub(walk.start.0).wrapping_add(1)));
        }
        Step::Done
    }

    pub(in crate::mmu) fn range_run(&self, start: Gfn, end: Gfn) -> RangeRun {
        let is_flush_once = self.config.kernel.zap_range_flush == ZapRangeFlush::Once;
        let mut left: Vec<(u8, u32)> = Vec::new();
        // The slot that comes next is the last: descending by base, or ascending where the flush is done once.
        for (as_id, space) in [(1, &self.spaces[1]), (0, &self.spaces[0])] {
            let ids = space.specs().iter().map(|spec| (as_id, spec.id));
            if is_flush_once {
                left.extend(ids);
            } else {
                left.extend(ids.rev());
            }
        }
        let is_deferred = self.config.kernel.zap_range_defers && self.config.flush_range;
        let mut walk = None;
        if self.tables() == Tables::Tdp {
            left.clear();
            let only_valid = !self.config.kernel.tdp_walks_invalid_roots;
            walk = Some(RangeWalk::Tdp(self.unmap_walk(Roots { as_id: None, only_valid }, start, end, true)));
        }
        RangeRun { start, end, left, walk, flush: false, is_deferred, is_flush_once, is_begun: false }
    }

    pub(in crate::mmu) fn drive_range(&mut self, range: &mut RangeRun) -> Step {
        let blocks = self.config.kernel.zap_range_blocks;
        if !std::mem::replace(&mut range.is_begun, true) {
            self.begin_blocking(blocks, range);
        }
        loop {
            if let Some(walk) = &mut range.walk {
                let step = self.walk_range(walk);
                if step != Step::Done {
                    return step;
                }
                range.flush |= walk.flush();
                if range.is_flush_once {
                    range.flush = walk.flush();
                }
                range.walk = None;
            }
            let Some((as_id, id)) = range.left.pop() else { break };
            let Ok(Some(at)) = self.find_slot_id(as_id, id) else { continue };
            let spec = self.slot_spec(at);
            let start = range.start.max(Gfn(spec.base));
            let end = range.end.min(Gfn(spec.base + spec.npages));
            if start < end {
                range.walk = Some(RangeWalk::Heads(HeadWalk {
                    as_id,
                    id,
                    handler: Handler::Zap,
                    is_flush_inside: !range.is_deferred,
                    is_flush_at_end: !range.is_deferred && !range.is_flush_once,
                    is_polled: true,
                    start,
                    end: Gfn(end.0 - 1),
                    level: PAGE_TABLE,
                    last_level: MAX_LEAF,
                    done: 0,
                    flush: range.is_flush_once && range.flush,
                }));
            }
        }
        if range.flush && range.is_flush_once {
            self.flush_remote_tlbs_with_address(range.start, range.end.0.wrapping_sub(range.start.0));
        } else if range.flush && range.is_deferred {
            let pages = range.end.0.wrapping_sub(range.start.0).wrapping_add(1);
            self.flush_remote_tlbs_with_address(range.start, pages);
        }
        if blocks != ZapRangeBlocks::Nothing {
            self.invalidation.finish();
        }
        Step::Done
    }

    /// Faults of the range, or all, are taken again until its zap ends.
    fn begin_blocking(&mut self, blocks: ZapRangeBlocks, range: &RangeRun) {
        let (start, end) = match blocks {
            ZapRangeBlocks::Nothing => return,
            ZapRangeBlocks::Everything => (0, u64::MAX),
            ZapRangeBlocks::Range => (range.start.0, range.end.0),
        };
        self.invalidation.begin();
        self.invalidation.add(start, end);
    }
}
