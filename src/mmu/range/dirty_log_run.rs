//! A dirty log of the TDP MMU, read or cleared word by word: before a word's pages are protected large leaves over them may
//! be split, and a split may drop the lock.
//!
//! Models v6.1 to v7.3 `kvm_get_dirty_log_protect`, `kvm_clear_dirty_log_protect`,
//! `kvm_arch_mmu_enable_log_dirty_pt_masked`. Shadow pages, which never drop the lock here, do all of it at once.

use crate::mmu::range::dirty_log::{EINVAL, ENOENT, WORD};
use crate::mmu::tables::Tables;
use crate::mmu::tdp::tdp_walk::{Lock, TdpWalk};
use crate::mmu::vm::runs::{DirtyLogRun, Run, Step};
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::level::{PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::views::{DirtyLog, DirtyLogTask};

impl MmuState {
    /// The work of a dirty log; what shadow pages need of it is done when it is begun.
    pub(in crate::mmu) fn dirty_log_run(&mut self, as_id: u8, id: u32, what: DirtyLogTask) -> Result<DirtyLogRun> {
        let mut log = DirtyLogRun { as_id, id, ..DirtyLogRun::default() };
        if self.tables() == Tables::Shadow {
            match what {
                DirtyLogTask::Get { manual } => self.log_read = self.get_dirty_log(as_id, id, manual)?,
                DirtyLogTask::Clear { first, num, mask } => {
                    log.ret = self.clear_dirty_log(as_id, id, first, num, &mask)?;
                }
                DirtyLogTask::Masked { offset, mask } => log.ret = self.dirty_masked(as_id, id, offset, mask)?,
            }
            return Ok(log);
        }
        match what {
            DirtyLogTask::Get { manual } => {
                self.log_read = self.copy_dirty_log(as_id, id)?;
                if !manual && self.log_read.ret == 0 {
                    log.nr_words = self.log_read.nr_words;
                    log.is_read = true;
                    if let Some(ghost) = &mut self.ghost {
                        ghost.harvested(as_id, id, &self.log_read.spans, true);
                    }
                    self.log_read.spans.clear();
                }
            }
            DirtyLogTask::Clear { first, num, mask } => {
                let (slot, ret) = self.check_clear(as_id, id, first, num)?;
                log.ret = ret;
                if slot.is_some() {
                    log.first = first / WORD;
                    log.nr_words = num.div_ceil(WORD).min(mask.len() as u64);
                    log.wanted = Some(mask);
                }
            }
            DirtyLogTask::Masked { offset, mask } => {
                let slot = self.find_slot_id(as_id, id)?.ok_or(Error::NoSlot { as_id, id })?;
                log.at_hand = Some((offset, mask));
                log.is_flush_left = true;
                log.split = self.split_before(slot, offset, mask);
            }
        }
        Ok(log)
    }

    /// Goes on with a dirty log until it is done or the lock is dropped.
    pub(in crate::mmu) fn drive_dirty_log(&mut self, log: &mut DirtyLogRun, run: &mut Run) -> Step {
        run.account.ret = log.ret.into();
        loop {
            if let Some(split) = &mut log.split {
                let step = self.drive_tdp_walk(split);
                if step != Step::Done {
                    return step;
                }
                log.split = None;
            }
            let Ok(Some(slot)) = self.find_slot_id(log.as_id, log.id) else { break };
            if let Some((offset, mask)) = log.at_hand.take() {
                log.any |= self.protect_logged(slot, offset, mask) || !log.is_flush_left;
                continue;
            }
            let Some((word, mask)) = self.next_logged(log, slot) else { break };
            let offset = word * WORD;
            log.at_hand = Some((offset, mask));
            log.split = self.split_before(slot, offset, mask);
        }
        if log.is_flush_left {
            if log.any
                && let Ok(Some(slot)) = self.find_slot_id(log.as_id, log.id)
            {
                self.owe_slot(slot);
            }
        } else if log.any
            && !is_chosen(Mutant::DirtyLogWithoutFlush)
            && let Ok(Some(slot)) = self.find_slot_id(log.as_id, log.id)
        {
            self.flush_logged(slot);
        }
        log.any = false;
        Step::Done
    }

    /// Ends a dirty log that is given up: what was read of it is dirty again, for nobody will know.
    pub(in crate::mmu) fn abandon_dirty_log(&mut self, log: &mut DirtyLogRun) {
        if let Some(split) = &mut log.split {
            self.drop_tdp_walk(split);
        }
        if log.any {
            self.flush_remote_tlbs();
        }
        let read = std::mem::take(&mut self.log_read).spans;
        if log.is_read
            && let Ok(Some(slot)) = self.find_slot_id(log.as_id, log.id)
            && let Some(dirty) = &mut self.slot_body_mut(slot).dirty
        {
            for word in
                read.into_iter().flat_map(|(first, count, mask)| (first..first + count).map(move |at| (at, mask)))
            {
                dirty.set(word.0, dirty.get(word.0) | word.1);
            }
        }
    }

    /// The next word with bits that are to be protected, taken out of the bitmap.
    fn next_logged(&mut self, log: &mut DirtyLogRun, slot: SlotAt) -> Option<(u64, u64)> {
        if !log.is_read && log.wanted.is_none() {
            return None;
        }
        while log.word < log.nr_words {
            let word = log.first + log.word;
            let at = usize::try_from(log.word).ok()?;
            let wanted = log.wanted.as_ref().map_or(u64::MAX, |mask| mask.get(at).copied().unwrap_or(0));
            let dirty = self.slot_body_mut(slot).dirty.as_mut()?;
            let absent = dirty.absent_from(word);
            if absent > 0 && dirty.get(word) == 0 {
                log.word += absent;
                continue;
            }
            log.word += 1;
            let found = wanted & dirty.get(word);
            if found == 0 {
                continue;
            }
            dirty.set(word, dirty.get(word) & !found);
            if let Some(ghost) = &mut self.ghost {
                ghost.harvested(log.as_id, log.id, &[(word, 1, found)], false);
            }
            if log.is_read {
                match self.log_read.spans.last_mut() {
                    Some((start, count, last)) if *start + *count == word && *last == found => *count += 1,
                    _ => self.log_read.spans.push((word, 1, found)),
                }
            }
            return Some((word, found));
        }
        None
    }

    /// With bitmaps that start full large leaves may still be there: they are split first, if the parameter says so.
    fn split_before(&mut self, slot: SlotAt, offset: u64, mask: u64) -> Option<TdpWalk> {
        let is_eager = self.tdp.is_eager_split && self.config.kernel.has_eager_split;
        if !self.is_log_initially_set || !is_eager || mask == 0 {
            return None;
        }
        let [first, last] = self.ends_of(slot, offset, mask);
        let end = if self.config.kernel.tdp_split_whole_mask { last.plus(1) } else { last };
        Some(TdpWalk::split(slot.as_id, (first, end), PAGE_TABLE, Lock::Exclusive))
    }

    /// The first and the last gfn of a mask.
    fn ends_of(&self, slot: SlotAt, offset: u64, mask: u64) -> [Gfn; 2] {
        let base = Gfn(self.slot_spec(slot).base);
        [mask.trailing_zeros(), mask.checked_ilog2().unwrap_or(0)].map(|at| base.plus(offset).plus(at.into()))
    }

    /// Protects the pages of a mask; whether TLBs must be flushed.
    fn protect_logged(&mut self, slot: SlotAt, offset: u64, mask: u64) -> bool {
        if mask == 0 {
            return false;
        }
        let mut flush = false;
        if self.is_log_initially_set && !is_chosen(Mutant::LargeLeafKeptByClear) {
            let ends = self.ends_of(slot, offset, mask);
            // The kernel rounds up: an end that begins a large page counts with the one before it.
            let rounded = ends.map(|gfn| gfn.plus(pages_per(2) - 1).align_down(2));
            let nr_ends = if rounded[0] == rounded[1] { 1 } else { 2 };
            for gfn in ends.into_iter().take(nr_ends) {
                flush |= self.tdp_write_protect_gfn(slot.as_id, gfn, 2);
            }
        }
        let first = Gfn(self.slot_spec(slot).base).plus(offset);
        self.tdp_protect_masked(slot.as_id, first, mask, !self.config.pml) || flush
    }

    /// The words of the bitmap as they are.
    fn copy_dirty_log(&self, as_id: u8, id: u32) -> Result<DirtyLog> {
        let is_stepped = self.config.is_stepped();
        let refused =
            |nr_words| DirtyLog { ret: -ENOENT, nr_words: if is_stepped { 0 } else { nr_words }, spans: Vec::new() };
        let Some(slot) = self.find_slot_id(as_id, id)? else { return Ok(refused(1)) };
        let nr_words = self.slot_spec(slot).npages.div_ceil(WORD);
        let Some(dirty) = &self.slot_body(slot).dirty else { return Ok(refused(nr_words)) };
        let spans = dirty.spans().filter(|span| span.value != 0).map(|span| (span.first, span.count, span.value));
        Ok(DirtyLog { ret: 0, nr_words, spans: spans.collect() })
    }

    /// Whether a range of a slot's log can be cleared: the slot, or a negative errno.
    pub(in crate::mmu) fn check_clear(
        &self,
        as_id: u8,
        id: u32,
        first: u64,
        num: u64,
    ) -> Result<(Option<SlotAt>, i32)> {
        let found = self.find_slot_id(as_id, id)?;
        let must_be_whole = self.config.kernel.clear_log_whole_words;
        if !first.is_multiple_of(WORD) || must_be_whole && !num.is_multiple_of(WORD) {
            return Ok((None, -EINVAL));
        }
        let Some(slot) = found.filter(|&slot| self.slot_body(slot).dirty.is_some()) else { return Ok((None, -ENOENT)) };
        let npages = self.slot_spec(slot).npages;
        if first > npages || num > npages - first {
            return Ok((None, -EINVAL));
        }
        if !must_be_whole && !num.is_multiple_of(WORD) && first + num != npages {
            return Ok((None, -EINVAL));
        }
        Ok((Some(slot), 0))
    }
}
