//! Plans of zaps: a list walk follows a [`ZapPlan`]; the kernels' own ways to zap are runs of named plans, nothing else.
//!
//! Models v5.0 `kvm_mmu_invalidate_zap_all_pages` and v5.2 `__kvm_mmu_zap_all`. What waits is in `runs`, who goes on with
//! it in `driver`.

use std::collections::BTreeSet;

use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::tdp::tdp_walk::{Lock, Roots, TdpWalk};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::runs::{Handler, HeadWalk, Kind, ListRun, Noted, Phase, Run, SlotFlush, Step, TdpOwes, TdpRun};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::plan::{
    BeforeDrop, ListPlan, Offer, Only, PlanLock, ReloadRoots, RootPages, RootPlan, Skip, SlotPlan, Stop, Walk, ZapPlan,
};
use crate::mmu::words::views::{Prepared, RunOutcome, SlotSpec};

/// Steps of a slice that a prepare counts, beside the entries it clears.
const PREPARE_STEPS: u64 = 8;

impl MmuState {
    /// Of one bit of a generation only the next step is safe: a page left behind now would look valid after it.
    pub(in crate::mmu) fn zap_what_is_obsolete(&mut self, run: &mut Run) {
        let pages: Vec<PageIdx> = self.active.iter().filter(|&page| self.is_obsolete(page)).collect();
        for page in pages {
            let is_invalid = self.arena.key(page).role.invalid();
            if self.arena.page(page).place == Place::Active && !is_invalid {
                self.prepare_in_run(page, run);
            }
        }
    }

    fn prepared_of<'a>(&'a self, run: &'a Run) -> &'a InvalidList {
        if run.is_list_shared { &self.zapped_obsolete } else { &run.invalid }
    }

    pub(in crate::mmu) fn commit_run(&mut self, run: &mut Run) {
        if run.is_list_shared {
            self.commit_zapped_obsolete();
        } else {
            self.commit_zap_page(&mut run.invalid);
        }
    }

    /// Commits if the run prepared anything, else flushes if something was dropped.
    pub(in crate::mmu) fn flush_or_zap(&mut self, run: &mut Run, flush: &mut bool) {
        if !self.prepared_of(run).is_empty() {
            self.commit_run(run);
        } else if *flush {
            self.flush_remote_tlbs();
        }
        *flush = false;
    }

    pub(in crate::mmu) fn prepare_in_run(&mut self, page: PageIdx, run: &mut Run) -> Prepared {
        let prepared = if run.is_list_shared {
            let mut shared = std::mem::take(&mut self.zapped_obsolete);
            let prepared = self.prepare_zap_page(page, &mut shared);
            self.zapped_obsolete = shared;
            prepared
        } else {
            self.prepare_zap_page(page, &mut run.invalid)
        };
        run.account.nr_zapped += u64::from(prepared.nr_zapped);
        prepared
    }

    pub(in crate::mmu) fn plan_run(
        &self,
        plan: ZapPlan,
        slot: Option<(u8, u32)>,
        range: Option<(u64, u64)>,
    ) -> Result<Kind> {
        let found = match slot {
            Some((as_id, id)) => Some(
                self.find_slot_id(as_id, id)?
                    .map(|at| (as_id, *self.slot_spec(at)))
                    .ok_or(Error::NoSlot { as_id, id })?,
            ),
            None => None,
        };
        match plan {
            ZapPlan::List(plan) => Self::list_run(plan, found.map(|(_, spec)| spec), range),
            ZapPlan::Roots(_) => Err(Error::PlanNeeds("the TDP MMU (tdp_mmu=1): shadow pages hang on no root list")),
            ZapPlan::Slot(plan) => {
                let (as_id, spec) = found.ok_or(Error::PlanNeeds("a slot"))?;
                Ok(Kind::SlotFlush(self.slot_flush_run(plan, as_id, &spec)))
            }
        }
    }

    fn list_run(plan: ListPlan, slot: Option<SlotSpec>, range: Option<(u64, u64)>) -> Result<Kind> {
        let span = match plan.only {
            Only::Slot => {
                let spec = slot.ok_or(Error::PlanNeeds("a slot"))?;
                (Gfn(spec.base), spec.npages)
            }
            Only::GfnRange => {
                let (start, end) = range.ok_or(Error::PlanNeeds("a gfn range"))?;
                (Gfn(start), end.saturating_sub(start))
            }
            _ => (Gfn(0), 0),
        };
        Ok(Kind::List(ListRun::new(plan, span)))
    }

    fn slot_flush_run(&self, plan: SlotPlan, as_id: u8, spec: &SlotSpec) -> SlotFlush {
        let base = Gfn(spec.base);
        let walk = HeadWalk {
            as_id,
            id: spec.id,
            handler: Handler::Zap,
            is_flush_inside: self.config.kernel.unmap_offers_lock,
            is_flush_at_end: false,
            is_polled: plan.is_offered,
            start: base,
            end: base.plus(spec.npages - 1),
            level: PAGE_TABLE,
            last_level: MAX_LEAF,
            done: 0,
            flush: false,
        };
        SlotFlush { plan, walk, is_begun: false, is_walked: false, base, npages: spec.npages, done: 0 }
    }

    /// What a plan means to the TDP MMU, whose roots are on no list of pages.
    pub(in crate::mmu) fn tdp_plan_run(
        &self,
        plan: ZapPlan,
        slot: Option<(u8, u32)>,
        range: Option<(u64, u64)>,
    ) -> Result<Kind> {
        let list = match plan {
            ZapPlan::Roots(plan) => return self.root_run(plan, slot),
            ZapPlan::Slot(plan) => return self.tdp_plan_of_slot(slot, plan.is_offered),
            ZapPlan::List(plan) => plan,
        };
        match list.only {
            Only::Slot => return self.tdp_plan_of_slot(slot, list.offer != Offer::Never),
            Only::GfnRange => {
                let (start, end) = range.ok_or(Error::PlanNeeds("a gfn range"))?;
                return Ok(Kind::Range(self.range_run(Gfn(start), Gfn(end))));
            }
            Only::All | Only::MmioCached | Only::Obsolete | Only::Indirect => {}
        }
        let walk = if list.bump_valid_gen { self.zap_invalid_roots_walk() } else { self.zap_all_roots_walk() };
        // What shadow pages are flagged with, no table here is.
        let is_over = !list.bump_valid_gen && list.only != Only::All;
        // Invalid roots are left at the next entry; of the others nobody asks, and the kernel zaps them only at the end.
        let owes = if list.bump_valid_gen { TdpOwes::Nothing } else { TdpOwes::Caller };
        Ok(Kind::Tdp(TdpRun { walk: TdpWalk { is_over, ..walk }, owes }))
    }

    fn root_run(&self, plan: RootPlan, slot: Option<(u8, u32)>) -> Result<Kind> {
        let lock = if plan.lock == PlanLock::Shared { Lock::Shared } else { Lock::Exclusive };
        let (walk, owes) = match plan.pages {
            RootPages::Slot => {
                let mut kind = self.tdp_plan_of_slot(slot, plan.is_offered)?;
                if let Kind::Tdp(run) = &mut kind {
                    run.walk.is_flush_inside = plan.before_drop == BeforeDrop::Commit;
                }
                return Ok(kind);
            }
            RootPages::Obsolete => (self.zap_invalid_roots_walk(), TdpOwes::Nothing),
            RootPages::All => (self.zap_all_roots_walk(), TdpOwes::Caller),
        };
        Ok(Kind::Tdp(TdpRun { walk: TdpWalk { lock, is_polled: plan.is_offered, ..walk }, owes }))
    }

    fn tdp_plan_of_slot(&self, slot: Option<(u8, u32)>, is_polled: bool) -> Result<Kind> {
        let (as_id, id) = slot.ok_or(Error::PlanNeeds("a slot"))?;
        let at = self.find_slot_id(as_id, id)?.ok_or(Error::NoSlot { as_id, id })?;
        let spec = self.slot_spec(at);
        let roots = Roots { as_id: Some(as_id), only_valid: false };
        let walk = self.unmap_walk(roots, Gfn(spec.base), Gfn(spec.base + spec.npages), is_polled);
        Ok(Kind::Tdp(TdpRun { walk, owes: TdpOwes::Flush }))
    }

    pub(in crate::mmu) fn begin_plan(&mut self, plan: ZapPlan) {
        if plan.bump_valid_gen() {
            if self.config.kernel.has_invalidate_event {
                let (valid_gen, used) = (self.valid_gen, self.used);
                self.events.push(|| Event::InvalidateZapAll { valid_gen, used });
            }
            if self.config.probes {
                self.events.push(|| Event::ZapAllFastEnter);
            }
            if self.config.kernel.has_zap_all_fast_event {
                let (valid_gen, used) = (self.valid_gen, self.used);
                self.events.push(|| Event::ZapAllFast { valid_gen, used });
            }
            let next = self.valid_gen.wrapping_add(1);
            self.valid_gen = if self.config.kernel.valid_gen_toggles && !is_chosen(Mutant::ValidGenCounts) {
                next & 1
            } else {
                next
            };
        }
        if plan.reload_roots() == ReloadRoots::Before && !is_chosen(Mutant::ReloadForgotten) {
            self.reload_remote_mmus();
        }
    }

    // ---- list walks ----

    fn note(&self, page: PageIdx) -> Option<Noted> {
        page.some().map(|page| Noted { page, id: self.arena.key(page).id })
    }

    fn first_of(&self, walk: Walk) -> Option<Noted> {
        self.note(match walk {
            Walk::Tail => self.active.tail(),
            Walk::Index => self.mmio_pages.head(),
            Walk::Head => self.active.head(),
        })
    }

    fn next_of(&self, walk: Walk, page: PageIdx) -> Option<Noted> {
        self.note(match walk {
            Walk::Tail => self.active.prev(page),
            Walk::Index => self.arena.page(page).mmio_next,
            Walk::Head => self.active.next(page),
        })
    }

    /// The index has no neighbour to lose: after a drop of the lock it is its first page not passed over. Pages marked
    /// meanwhile stand before it and are taken too.
    fn first_not_passed(&self, passed: &BTreeSet<u32>) -> Option<Noted> {
        let next = |&page: &PageIdx| self.arena.page(page).mmio_next.some();
        std::iter::successors(self.mmio_pages.head().some(), next)
            .find(|&page| !passed.contains(&self.arena.key(page).id))
            .and_then(|page| self.note(page))
    }

    /// Whether a noted page is still on the list the plan walks.
    fn is_listed(&self, walk: Walk, noted: Noted) -> bool {
        self.arena.key(noted.page).id == noted.id
            && self.arena.page(noted.page).place == Place::Active
            && (walk != Walk::Index
                || self.active.is_mmio_cached(noted.page) && !self.arena.key(noted.page).role.invalid())
    }

    pub(in crate::mmu) fn is_wanted(&self, list: &ListRun, page: PageIdx) -> bool {
        let plan = &list.plan;
        let is_chosen = match plan.only {
            Only::All => true,
            Only::MmioCached => self.active.is_mmio_cached(page),
            Only::Obsolete => self.is_obsolete(page),
            Only::Indirect => !self.arena.key(page).role.direct(),
            Only::Slot | Only::GfnRange => self.arena.key(page).gfn.0.wrapping_sub(list.span.0.0) < list.span.1,
        };
        is_chosen
            && match plan.skip {
                Skip::None => true,
                Skip::Invalid => !self.arena.key(page).role.invalid(),
                Skip::InvalidInUse => !(self.arena.key(page).role.invalid() && self.arena.page(page).root_count > 0),
            }
    }

    /// Visits the page and, where the plan wants only flagged ones, those after it up to the first that has the flag:
    /// between two prepares no page leaves the list. The page to look at, if there is one before the list or the slice ends.
    fn visit(&mut self, list: &mut ListRun, noted: Noted) -> Option<Noted> {
        let walk = list.plan.walk;
        let is_scan = list.plan.only == Only::MmioCached && walk != Walk::Index && list.plan.stop == Stop::None;
        let (visited, found, after) = if is_scan {
            self.active.scan_mmio_cached(noted.page, walk == Walk::Tail, self.slice.left())
        } else {
            (1, noted.page, PageIdx::NONE)
        };
        list.step += visited;
        self.stats.walk_visited = self.stats.walk_visited.wrapping_add_unsigned(visited);
        self.work.walk_visited += visited;
        self.slice.spend(visited);
        if found == PageIdx::NONE {
            list.next = self.note(after);
            return None;
        }
        list.next = self.next_of(walk, found);
        if found == noted.page { Some(noted) } else { self.note(found) }
    }

    fn restart_phase(&mut self, is_restart: bool) -> Phase {
        if is_restart {
            self.work.restarts += 1;
            Phase::Restart
        } else {
            Phase::Visit
        }
    }

    pub(in crate::mmu) fn drive_list(&mut self, list: &mut ListRun, run: &mut Run) -> Step {
        loop {
            match list.phase {
                Phase::End => break,
                Phase::Start | Phase::Restart => {
                    self.stats.walk_starts += 1;
                    self.work.walk_starts += 1;
                    list.next = self.first_of(list.plan.walk);
                    list.passed.clear();
                    list.is_interrupted = false;
                    list.phase = Phase::Visit;
                }
                Phase::Visit => {
                    if self.slice.is_over() {
                        return Step::Slice;
                    }
                    if std::mem::take(&mut list.is_interrupted) && list.plan.walk == Walk::Index {
                        list.next = self.first_not_passed(&list.passed);
                    }
                    let Some(noted) = list.next else { break };
                    if !self.is_listed(list.plan.walk, noted) {
                        list.step += 1;
                        run.account.outcome = RunOutcome::StaleNext { page: noted.id, step: list.step };
                        break;
                    }
                    let Some(noted) = self.visit(list, noted) else { continue };
                    if list.plan.stop == Stop::FirstNotObsolete && !self.is_obsolete(noted.page) {
                        break;
                    }
                    if !self.is_wanted(list, noted.page) {
                        if list.plan.walk == Walk::Index {
                            list.passed.insert(noted.id);
                        }
                        continue;
                    }
                    if self.offer_before(list, noted, run) {
                        return Step::LockBreak;
                    }
                    if self.prepare_noted(list, noted, run) {
                        return Step::LockBreak;
                    }
                }
                Phase::Prepare(noted) => {
                    if !self.is_listed(list.plan.walk, noted) {
                        if list.plan.walk == Walk::Index {
                            list.phase = Phase::Visit;
                            continue;
                        }
                        run.account.outcome = RunOutcome::StaleNext { page: noted.id, step: list.step };
                        break;
                    }
                    if self.prepare_noted(list, noted, run) {
                        return Step::LockBreak;
                    }
                }
            }
        }
        self.commit_run(run);
        if list.plan.reload_roots == ReloadRoots::After {
            self.reload_remote_mmus();
        }
        Step::Done
    }

    /// The offers made before a prepare; whether the lock is dropped.
    fn offer_before(&mut self, list: &mut ListRun, noted: Noted, run: &mut Run) -> bool {
        let is_offered = match list.plan.offer {
            Offer::Batch(least) => list.batch >= u64::from(least),
            Offer::WhenWanted => self.need_resched(),
            Offer::Never | Offer::EachPage => false,
        };
        if !is_offered {
            return false;
        }
        if list.plan.before_drop == BeforeDrop::Commit {
            self.commit_run(run);
        }
        if !self.cond_resched() {
            if is_chosen(Mutant::BatchResetWithoutDrop) {
                list.batch = 0;
            }
            return false;
        }
        list.batch = 0;
        list.is_interrupted = true;
        list.phase = if list.plan.restart.on_lock_drop { self.restart_phase(true) } else { Phase::Prepare(noted) };
        true
    }

    /// Prepares a page and decides how the walk goes on; whether the lock is dropped.
    fn prepare_noted(&mut self, list: &mut ListRun, noted: Noted, run: &mut Run) -> bool {
        let before = self.work.sptes_cleared;
        let prepared = self.prepare_in_run(noted.page, run);
        self.slice.spend(PREPARE_STEPS.saturating_add(self.work.sptes_cleared.wrapping_sub(before)));
        if prepared.is_list_unstable || !self.config.kernel.batch_counts_unstable || is_chosen(Mutant::BatchCountsAll) {
            list.batch += u64::from(prepared.nr_zapped);
        }
        list.idle = if prepared.nr_zapped == 0 { list.idle + 1 } else { 0 };
        if list.is_livelocked(self.used) {
            run.account.outcome = RunOutcome::Livelock;
            list.phase = Phase::End;
            return false;
        }
        let rules = list.plan.restart;
        if prepared.is_list_unstable && rules.on_unstable && !is_chosen(Mutant::NeverRestart) {
            list.phase = self.restart_phase(true);
            return false;
        }
        let nr_counted =
            if is_chosen(Mutant::RestartOnChildrenOnly) { prepared.nr_children } else { prepared.nr_zapped };
        let is_restart = rules.on_nonzero && nr_counted != 0 && !is_chosen(Mutant::NeverRestart);
        if list.plan.offer == Offer::EachPage {
            if list.plan.before_drop == BeforeDrop::Commit {
                self.commit_run(run);
            }
            if self.cond_resched() {
                list.is_interrupted = true;
                list.phase = self.restart_phase(is_restart || rules.on_lock_drop);
                return true;
            }
        }
        list.phase = self.restart_phase(is_restart);
        false
    }
}
