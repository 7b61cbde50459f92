//! The driver of resumable runs: starts work that may drop the lock, goes on with it, and ends what is given up. What each
//! kind of run does is a verb of the room it belongs to.
//!
//! Models no kernel function: there a thread sleeps where here a run waits. A run that would drop the lock returns to the
//! caller; nothing prepared is lost, whatever the caller does then. What waits is in `runs`.

use crate::kernels::ZapRangeBlocks;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::tables::Tables;
use crate::mmu::tdp::tdp_walk::{Body, Lock};
use crate::mmu::vm::runs::{Account, GuestRun, Kind, Run, SlotFlush, Step, TdpOwes, TdpRun};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::plan::{ReloadRoots, ZapPlan};
use crate::mmu::words::views::{Progress, RunId, RunOutcome, RunReport, Task};

impl MmuState {
    /// Starts a task and goes on until it ends or the lock is dropped.
    pub(in crate::mmu) fn start(&mut self, task: Task) -> Result<Progress> {
        let mut is_list_shared = false;
        let mut is_reload_owed = false;
        let account = Account::new(&self.work);
        let kind = match task {
            Task::Zap { plan, slot, range } if self.tables() == Tables::Tdp => {
                let kind = self.tdp_plan_run(plan, slot, range)?;
                is_reload_owed = plan.reload_roots() == ReloadRoots::After;
                self.begin_plan(plan);
                if plan.bump_valid_gen() {
                    self.invalidate_tdp_roots();
                    if plan.reload_roots() == ReloadRoots::No && !matches!(plan, ZapPlan::Roots(_)) {
                        // No root is prepared, which would ask for it; a plan of roots says what it means.
                        self.reload_remote_mmus();
                    }
                }
                kind
            }
            Task::Zap { plan, slot, range } => {
                let kind = self.plan_run(plan, slot, range)?;
                is_list_shared = plan.bump_valid_gen() && self.config.kernel.has_zapped_obsolete;
                self.begin_plan(plan);
                kind
            }
            Task::SlotWalk { as_id, id, what } => self.slot_walk_run(as_id, id, what)?,
            // The kernel warns of an empty range, and nothing is blocked for it.
            Task::ZapGfnRange { start, end }
                if start >= end && self.config.kernel.zap_range_blocks != ZapRangeBlocks::Nothing =>
            {
                Kind::Nothing
            }
            Task::ZapGfnRange { start, end } => Kind::Range(self.range_run(Gfn(start), Gfn(end))),
            Task::NxRecover { ratio } => Kind::Nx(self.nx_run(ratio)),
            Task::UnmapHva { start, end, may_block } => Kind::Unmap(self.unmap_run(start, end, may_block)),
            Task::DirtyLog { as_id, id, what } => Kind::DirtyLog(self.dirty_log_run(as_id, id, what)?),
            Task::Guest { vcpu, work } => {
                if !self.config.shadows_guest() {
                    return Err(Error::NeedsShadow { what: "a guest's own page tables" });
                }
                let vcpu = self.check_vcpu(vcpu)?;
                Kind::Guest(self.guest_run(vcpu, work))
            }
        };
        let run =
            Run { kind, invalid: InvalidList::default(), is_list_shared, is_sliced: false, is_reload_owed, account };
        let id = self.runs.next;
        self.runs.next = id.wrapping_add(1);
        Ok(self.drive(id, run))
    }

    /// Takes the lock again and goes on.
    pub(in crate::mmu) fn resume(&mut self, id: RunId) -> Result<Progress> {
        let run = self.take_waiting(id)?;
        Ok(self.drive(id.0, run))
    }

    /// Takes a waiting run; what others did while the lock was dropped is not its work.
    fn take_waiting(&mut self, id: RunId) -> Result<Run> {
        let mut run = self.runs.waiting.remove(&id.0).ok_or(Error::Run(id.0))?;
        if !std::mem::take(&mut run.is_sliced) {
            run.account.segment = self.work;
        }
        Ok(run)
    }

    /// Ends a waiting run; what it prepared is flushed and freed.
    pub(in crate::mmu) fn abandon(&mut self, id: RunId) -> Result<RunReport> {
        let mut run = self.take_waiting(id)?;
        if matches!(&run.kind, Kind::List(list) if list.plan.bump_valid_gen)
            && self.config.kernel.valid_gen_toggles
            && !is_chosen(Mutant::ObsoleteLeftBehind)
        {
            self.zap_what_is_obsolete(&mut run);
        }
        self.commit_run(&mut run);
        if let Kind::Slot { walk, .. } | Kind::SlotFlush(SlotFlush { walk, .. }) = &run.kind
            && walk.flush
        {
            self.flush_remote_tlbs();
        }
        match &mut run.kind {
            Kind::Range(range) => {
                let owed = self.drop_range_walk(&mut range.walk);
                self.flush_if(owed || range.flush);
                if range.is_begun && self.config.kernel.zap_range_blocks != ZapRangeBlocks::Nothing {
                    self.invalidation.finish();
                }
            }
            Kind::Unmap(unmap) => {
                let owed = self.drop_range_walk(&mut unmap.walk);
                self.flush_if(owed || unmap.flush);
            }
            Kind::Tdp(tdp) => self.abandon_tdp(tdp),
            Kind::Nx(nx) => self.flush_if(nx.flush),
            Kind::DirtyLog(log) => self.abandon_dirty_log(log),
            Kind::Guest(guest) => self.flush_if(guest.sync.flush),
            _ => {}
        }
        run.account.outcome = RunOutcome::Abandoned;
        let lock = self.lock_of(&run.kind);
        run.account.close(&self.work, lock);
        Ok(run.account.report())
    }

    fn drive(&mut self, id: u32, mut run: Run) -> Progress {
        self.slice.begin();
        // The kind is taken out so that the steps can use the rest of the run.
        let mut kind = std::mem::replace(&mut run.kind, Kind::Nothing);
        let step = match &mut kind {
            Kind::Nothing => Step::Done,
            Kind::List(list) => self.drive_list(list, &mut run),
            Kind::SlotFlush(flush) => self.drive_slot_flush(flush, &mut run),
            Kind::Slot { walk, flush_after } => self.drive_slot_walk(walk, *flush_after, &mut run),
            Kind::Range(range) => self.drive_range(range),
            Kind::Unmap(unmap) => self.drive_unmap(unmap),
            Kind::Nx(nx) => self.drive_nx(nx, &mut run),
            Kind::Tdp(tdp) => self.drive_tdp(tdp),
            Kind::DirtyLog(log) => self.drive_dirty_log(log, &mut run),
            Kind::Guest(guest) => self.drive_guest_run(guest, &mut run),
        };
        run.kind = kind;
        if step == Step::Slice {
            run.is_sliced = true;
            self.runs.waiting.insert(id, run);
            return Progress::Slice(RunId(id));
        }
        let lock = self.lock_of(&run.kind);
        run.account.close(&self.work, lock);
        match step {
            Step::Done if std::mem::take(&mut run.is_reload_owed) => {
                self.reload_remote_mmus();
                Progress::Done(run.account.report())
            }
            Step::Done => Progress::Done(run.account.report()),
            Step::LockBreak | Step::Slice => {
                run.account.lock_breaks += 1;
                self.runs.waiting.insert(id, run);
                Progress::LockBreak(RunId(id))
            }
        }
    }

    /// What a vCPU did is kept for whoever asked for it.
    fn drive_guest_run(&mut self, guest: &mut GuestRun, run: &mut Run) -> Step {
        let mut invalid = std::mem::take(&mut run.invalid);
        let step = self.drive_guest(guest, &mut invalid);
        run.invalid = invalid;
        if step == Step::Done {
            run.account.ret = guest.result.ret.into();
            self.guest_result = guest.error.take().map_or(Ok(guest.result), Err);
        }
        step
    }

    /// How the lock is held while a run goes on.
    const fn lock_of(&self, kind: &Kind) -> Lock {
        match kind {
            Kind::Tdp(tdp) => tdp.walk.lock,
            Kind::Nx(_) if self.config.tdp_mmu && self.config.kernel.tdp_nx_recovery_shared => Lock::Shared,
            _ => Lock::Exclusive,
        }
    }

    fn flush_if(&mut self, is_owed: bool) {
        if is_owed {
            self.flush_remote_tlbs();
        }
    }

    /// Ends a walk that is given up. Roots that were made invalid are zapped all the same: nobody would come to them again.
    fn abandon_tdp(&mut self, tdp: &mut TdpRun) {
        if matches!(tdp.walk.body, Body::ZapRoot { .. }) {
            tdp.walk.is_polled = false;
            self.slice.set_endless();
            while self.drive_tdp_walk(&mut tdp.walk) != Step::Done {}
        } else {
            self.drop_tdp_walk(&mut tdp.walk);
        }
        self.flush_if(tdp.walk.flush && tdp.owes != TdpOwes::Nothing);
    }
}
