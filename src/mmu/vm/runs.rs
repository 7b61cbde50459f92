//! `Runs`: work that the lock may interrupt, as it waits: how far each walk has come, what it has prepared and counted,
//! and the batches that a caller has begun. Data only; the walks are in `zap_plan`, `slot_walk` and `head_walk`.
//!
//! Invariant: what a run has prepared is on its own list or on the VM's, so that nothing is lost whatever the caller does.

use std::collections::{BTreeMap, BTreeSet};

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::tdp::tdp_walk::{Lock, TdpWalk};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Error;
use crate::mmu::words::plan::{ListPlan, SlotPlan};
use crate::mmu::words::views::{AccessResult, GuestWork, RunOutcome, RunReport};
use crate::mmu::words::work::Work;

/// Runs that wait at a lock break or the end of a slice, and batches begun by the caller.
#[derive(Clone, Debug, Default)]
pub(in crate::mmu) struct Runs {
    pub waiting: BTreeMap<u32, Run>,
    pub batches: BTreeMap<u32, Batch>,
    pub next: u32,
}

#[derive(Clone, Debug)]
pub(in crate::mmu) struct Batch {
    pub invalid: InvalidList,
    pub account: Account,
}

/// What a run did, without what others did inside its lock breaks.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct Account {
    pub work: Work,
    pub segment: Work,
    pub longest_hold: u64,
    pub shared_units: u64,
    pub longest_shared_hold: u64,
    pub lock_breaks: u64,
    pub nr_zapped: u64,
    pub ret: i64,
    pub outcome: RunOutcome,
}

impl Account {
    pub(in crate::mmu) fn new(now: &Work) -> Self {
        Self {
            work: Work::default(),
            segment: *now,
            longest_hold: 0,
            shared_units: 0,
            longest_shared_hold: 0,
            lock_breaks: 0,
            nr_zapped: 0,
            ret: 0,
            outcome: RunOutcome::Done,
        }
    }

    /// The lock goes, which was held for writing or for reading.
    pub(in crate::mmu) fn close(&mut self, now: &Work, lock: Lock) {
        let segment = now.since(&self.segment);
        let units = segment.units();
        self.work = self.work.plus(&segment);
        match lock {
            Lock::Exclusive => self.longest_hold = self.longest_hold.max(units),
            Lock::Shared => {
                self.shared_units = self.shared_units.wrapping_add(units);
                self.longest_shared_hold = self.longest_shared_hold.max(units);
            }
        }
        self.segment = *now;
    }

    pub(in crate::mmu) const fn report(&self) -> RunReport {
        RunReport {
            ret: self.ret,
            outcome: self.outcome,
            work: self.work,
            longest_hold: self.longest_hold,
            shared_units: self.shared_units,
            longest_shared_hold: self.longest_shared_hold,
            lock_breaks: self.lock_breaks,
            nr_zapped: self.nr_zapped,
        }
    }
}

/// A run.
#[derive(Clone, Debug)]
pub(in crate::mmu) struct Run {
    pub kind: Kind,
    pub invalid: InvalidList,
    /// Prepared pages go to the VM's own list, where the shrinker finds them.
    pub is_list_shared: bool,
    /// It waits at the end of a slice: the lock is not dropped, and its account stays open.
    pub is_sliced: bool,
    /// vCPUs are asked to load their roots anew when it ends.
    pub is_reload_owed: bool,
    pub account: Account,
}

#[derive(Clone, Debug)]
pub(in crate::mmu) enum Kind {
    /// There is nothing to do.
    Nothing,
    List(ListRun),
    SlotFlush(SlotFlush),
    Slot {
        walk: HeadWalk,
        flush_after: Option<(Gfn, u64)>,
    },
    Range(RangeRun),
    Unmap(UnmapRun),
    Nx(NxRun),
    Tdp(TdpRun),
    DirtyLog(DirtyLogRun),
    Guest(GuestRun),
}

/// A page a walk has noted, by place and number: the place may be given to another page.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct Noted {
    pub page: PageIdx,
    pub id: u32,
}

#[derive(Clone, Debug)]
pub(in crate::mmu) struct ListRun {
    pub plan: ListPlan,
    /// First gfn and number, for plans limited to a slot or a range.
    pub span: (Gfn, u64),
    pub phase: Phase,
    pub next: Option<Noted>,
    /// The index only: pages this pass looked at and did not want, by id.
    pub passed: BTreeSet<u32>,
    /// The index only: the lock was dropped, so what comes next must be looked up anew.
    pub is_interrupted: bool,
    pub batch: u64,
    pub step: u64,
    /// Prepares in a row that freed nothing.
    pub idle: u64,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) enum Phase {
    Start,
    Restart,
    Visit,
    Prepare(Noted),
    End,
}

#[derive(Clone, Debug)]
pub(in crate::mmu) struct SlotFlush {
    pub plan: SlotPlan,
    pub walk: HeadWalk,
    pub is_begun: bool,
    pub is_walked: bool,
    pub base: Gfn,
    pub npages: u64,
    pub done: u64,
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact about the run")]
pub(in crate::mmu) struct RangeRun {
    pub start: Gfn,
    pub end: Gfn,
    pub left: Vec<(u8, u32)>,
    pub walk: Option<RangeWalk>,
    pub flush: bool,
    pub is_deferred: bool,
    /// The flush is carried from slot to slot, and done once at the end.
    pub is_flush_once: bool,
    pub is_begun: bool,
}

/// A recovery of NX huge pages: how many tables are left to zap.
#[derive(Clone, Debug)]
pub(in crate::mmu) struct NxRun {
    pub left: u64,
    /// Something was zapped and not flushed.
    pub flush: bool,
}

/// An unmap of a host range that may drop the lock.
#[derive(Clone, Debug)]
pub(in crate::mmu) struct UnmapRun {
    pub start: u64,
    pub end: u64,
    pub may_block: bool,
    pub is_begun: bool,
    /// Slots left, the next one last.
    pub left: Vec<(u8, u32)>,
    pub walk: Option<RangeWalk>,
    pub flush: bool,
}

/// A walk over a range of gfns, in whichever page table.
#[derive(Clone, Debug)]
pub(in crate::mmu) enum RangeWalk {
    Heads(HeadWalk),
    Tdp(TdpWalk),
}

impl RangeWalk {
    /// Whether something was removed and not flushed.
    pub(in crate::mmu) const fn flush(&self) -> bool {
        match self {
            Self::Heads(walk) => walk.flush,
            Self::Tdp(walk) => walk.flush,
        }
    }
}

/// What a run over the TDP MMU owes when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum TdpOwes {
    /// Nothing: roots that are zapped were left by everybody.
    Nothing,
    /// A full flush, if anything was removed.
    Flush,
    /// The same, left to the caller.
    Caller,
}

/// A walk over the TDP MMU.
#[derive(Clone, Debug)]
pub(in crate::mmu) struct TdpRun {
    pub walk: TdpWalk,
    pub owes: TdpOwes,
}

/// A dirty log that is read or cleared, word by word: a split may drop the lock on the way.
#[derive(Clone, Debug, Default)]
pub(in crate::mmu) struct DirtyLogRun {
    pub as_id: u8,
    pub id: u32,
    /// What the call returns.
    pub ret: i32,
    /// The bitmap is read and cleared.
    pub is_read: bool,
    /// Bits to clear, from word `first` on.
    pub wanted: Option<Vec<u64>>,
    pub first: u64,
    /// Words done, and how many there are.
    pub word: u64,
    pub nr_words: u64,
    /// Offset and mask of the word at hand, and the split before it.
    pub at_hand: Option<(u64, u64)>,
    pub split: Option<TdpWalk>,
    /// The flush is the caller's.
    pub is_flush_left: bool,
    /// There is something to flush for.
    pub any: bool,
}

/// What syncs the tables below a vCPU's roots.
#[derive(Clone, Debug, Default)]
pub(in crate::mmu) struct SyncRun {
    pub vcpu: usize,
    /// Roots left by place and number, the next one last.
    pub roots: Vec<(PageIdx, u32)>,
    /// Something changed and was not flushed.
    pub flush: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum GuestStage {
    /// Requests are to be answered.
    Enter,
    /// A root is to be loaded if there is none.
    Load,
    /// The vCPU runs.
    Run,
    /// No root could be loaded.
    Failed,
}

/// A vCPU that is entered: its roots may be synced, and then the lock may be dropped.
#[derive(Clone, Debug)]
pub(in crate::mmu) struct GuestRun {
    pub vcpu: usize,
    pub work: GuestWork,
    pub stage: GuestStage,
    pub sync: SyncRun,
    pub result: AccessResult,
    /// The model has come to an end of its own.
    pub error: Option<Error>,
}

impl ListRun {
    pub(in crate::mmu) const fn new(plan: ListPlan, span: (Gfn, u64)) -> Self {
        Self {
            plan,
            span,
            phase: Phase::Start,
            next: None,
            passed: BTreeSet::new(),
            is_interrupted: false,
            batch: 0,
            step: 0,
            idle: 0,
        }
    }

    /// Only roots in use are prepared, more often than any of the kernels' plans could: each is moved to the head, where
    /// a walk from the tail, or one that starts again, finds it and does not skip it.
    pub(in crate::mmu) const fn is_livelocked(&self, used: u64) -> bool {
        self.idle > used.saturating_mul(2)
    }
}

/// What is done to each head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum Handler {
    WriteProtect,
    ClearDirty,
    SetDirty,
    ZapCollapsible,
    Zap,
}

/// Where a walk stands.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact about the walk")]
pub(in crate::mmu) struct HeadWalk {
    pub as_id: u8,
    pub id: u32,
    pub handler: Handler,
    /// Pending flushes are done at polls.
    pub is_flush_inside: bool,
    /// And at the end.
    pub is_flush_at_end: bool,
    /// The lock is polled.
    pub is_polled: bool,
    pub start: Gfn,
    /// The last gfn, inclusive.
    pub end: Gfn,
    pub level: u8,
    pub last_level: u8,
    /// Heads of this level already handled.
    pub done: u64,
    /// Something was dropped and not yet flushed.
    pub flush: bool,
}

/// Whether a piece of work ended, waits for the lock, or lets its caller look for signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum Step {
    Done,
    LockBreak,
    Slice,
}
