//! A zap loop of the caller's own: pages prepared one by one, flushed and freed together, counted as a plan's walk is.
//! And what is asked about runs and batches under way.

use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::tdp::tdp_walk::Lock;
use crate::mmu::vm::runs::{Account, Batch};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::views::{BatchId, Prepared, RunReport};

impl MmuState {
    /// Begins a loop of the caller's own.
    pub(in crate::mmu) fn batch_begin(&mut self) -> BatchId {
        let id = self.runs.next;
        self.runs.next = id.wrapping_add(1);
        let batch = Batch { invalid: InvalidList::default(), account: Account::new(&self.work) };
        self.runs.batches.insert(id, batch);
        BatchId(id)
    }

    /// Prepares a page of the active list in it.
    pub(in crate::mmu) fn batch_prepare(&mut self, id: BatchId, page: u32) -> Result<Prepared> {
        let Some(mut batch) = self.runs.batches.remove(&id.0) else { return Err(Error::Batch(id.0)) };
        let prepared = match self.find_active(page) {
            Ok(page) => {
                let prepared = self.prepare_zap_page(page, &mut batch.invalid);
                batch.account.nr_zapped += u64::from(prepared.nr_zapped);
                Ok(prepared)
            }
            Err(error) => Err(error),
        };
        self.runs.batches.insert(id.0, batch);
        prepared
    }

    /// Flushes and frees what the batch prepared.
    pub(in crate::mmu) fn batch_commit(&mut self, id: BatchId) -> Result<RunReport> {
        let Some(mut batch) = self.runs.batches.remove(&id.0) else { return Err(Error::Batch(id.0)) };
        self.commit_zap_page(&mut batch.invalid);
        batch.account.close(&self.work, Lock::Exclusive);
        Ok(batch.account.report())
    }

    /// Counts the start of a walk of the active list.
    pub(in crate::mmu) const fn count_walk_start(&mut self) {
        self.stats.walk_starts += 1;
        self.work.walk_starts += 1;
    }

    /// Counts a visited page and gives its id.
    pub(in crate::mmu) fn count_visit(&mut self, page: PageIdx) -> Option<u32> {
        let page = page.some()?;
        self.stats.walk_visited += 1;
        self.work.walk_visited += 1;
        Some(self.arena.key(page).id)
    }

    /// The page on the active list with this id.
    pub(in crate::mmu) fn find_active(&self, id: u32) -> Result<PageIdx> {
        self.arena.find_id(id).filter(|&page| self.arena.page(page).place == Place::Active).ok_or(Error::Page(id))
    }

    /// Whether no run waits and no batch is open.
    pub(in crate::mmu) fn is_idle(&self) -> bool {
        self.runs.waiting.is_empty() && self.runs.batches.is_empty()
    }

    /// Runs that wait at a lock break.
    pub(in crate::mmu) fn nr_paused_runs(&self) -> usize {
        self.runs.waiting.len()
    }

    /// Whether a run or a batch is under way.
    pub(in crate::mmu) fn has_unfinished_runs(&self) -> bool {
        !self.runs.waiting.is_empty() || !self.runs.batches.is_empty()
    }

    /// Pages that wait on lists of runs and batches.
    pub(in crate::mmu) fn prepared_elsewhere(&self) -> impl Iterator<Item = PageIdx> + '_ {
        let runs = self.runs.waiting.values().flat_map(|run| run.invalid.iter());
        let batches = self.runs.batches.values().flat_map(|batch| batch.invalid.iter());
        runs.chain(batches)
    }
}
