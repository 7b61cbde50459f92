//! The dirty log: reading and clearing a slot's bitmap, protecting what was reported.
//!
//! Models v5.0/v5.2 `kvm_get_dirty_log_protect`, `kvm_clear_dirty_log_protect`, `kvm_mmu_write_protect_pt_masked`,
//! `kvm_mmu_clear_dirty_pt_masked`.

use crate::kernels::DirtyLogFlush;
use crate::mmu::tables::Tables;
use crate::mmu::vm::runs::Handler;
use crate::mmu::vm::slot_array::Span;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE, level_shift, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::views::{DirtyLog, PtMasked};

pub(in crate::mmu) const ENOENT: i32 = 2;
pub(in crate::mmu) const EINVAL: i32 = 22;
/// Pages of a word of the bitmap.
pub(in crate::mmu) const WORD: u64 = 64;

impl MmuState {
    /// What the ioctl returns and the words of the bitmap. Manual mode only copies.
    pub(in crate::mmu) fn get_dirty_log(&mut self, as_id: u8, id: u32, manual: bool) -> Result<DirtyLog> {
        let is_stepped = self.config.is_stepped();
        let refused =
            |nr_words| DirtyLog { ret: -ENOENT, nr_words: if is_stepped { 0 } else { nr_words }, spans: Vec::new() };
        let Some(slot) = self.find_slot_id(as_id, id)? else { return Ok(refused(1)) };
        let nr_words = self.slot_spec(slot).npages.div_ceil(WORD);
        let Some(dirty) = &mut self.slot_body_mut(slot).dirty else { return Ok(refused(nr_words)) };
        let mut spans: Vec<(u64, u64, u64)> = Vec::new();
        for Span { first, count, value } in dirty.spans().filter(|span| span.value != 0) {
            match spans.last_mut() {
                Some((start, before, last)) if *start + *before == first && *last == value => *before += count,
                _ => spans.push((first, count, value)),
            }
        }
        if !manual {
            dirty.fill(0);
            if let Some(ghost) = &mut self.ghost {
                ghost.harvested(as_id, id, &spans, true);
            }
            let is_flushed_first = is_chosen(Mutant::DirtyLogFlushFirst);
            if is_flushed_first {
                self.flush_logged(slot);
            }
            for &(first, count, mask) in &spans {
                self.protect_span(slot, first, count, mask);
            }
            if !spans.is_empty() && !is_flushed_first && !is_chosen(Mutant::DirtyLogWithoutFlush) {
                self.flush_logged(slot);
            }
        }
        Ok(DirtyLog { ret: 0, nr_words, spans })
    }

    /// Protects what the same word names, `count` times from word `first` on; what nothing maps is passed over.
    fn protect_span(&mut self, slot: SlotAt, first: u64, count: u64, mask: u64) {
        let end = first + count;
        let mut word = first;
        while word < end {
            let unmapped = self.unmapped_from(slot, word * WORD) / WORD;
            if unmapped == 0 {
                self.enable_log_dirty_pt_masked(slot, word * WORD, mask);
            }
            word += unmapped.max(1);
        }
    }

    /// How many pages from an offset on have certainly no head that `protect_masked` looks at.
    fn unmapped_from(&self, slot: SlotAt, offset: u64) -> u64 {
        let spec = self.slot_spec(slot);
        let last_level = if self.is_log_initially_set { MAX_LEAF } else { PAGE_TABLE };
        let unmapped = (PAGE_TABLE..=last_level).map(|level| {
            let index = spec.index(Gfn(spec.base).plus(offset), level);
            let absent = self.slot_body(slot).rmap[usize::from(level) - 1].absent_from(index);
            let end = ((spec.base >> level_shift(level)) + index + absent) << level_shift(level);
            if absent == 0 { 0 } else { end - spec.base - offset }
        });
        unmapped.min().unwrap_or(0)
    }

    /// Clears the bits of `mask`, which is read from its own start, and protects those pages.
    pub(in crate::mmu) fn clear_dirty_log(
        &mut self,
        as_id: u8,
        id: u32,
        first: u64,
        num: u64,
        mask: &[u64],
    ) -> Result<i32> {
        let (found, ret) = self.check_clear(as_id, id, first, num)?;
        let Some(slot) = found else { return Ok(ret) };
        let mut flush = false;
        let words = num.div_ceil(WORD);
        for (at, &wanted) in (0..words).zip(mask) {
            let Some(dirty) = &mut self.slot_body_mut(slot).dirty else { break };
            let word = first / WORD + at;
            let cleared = wanted & dirty.get(word);
            if cleared != 0 {
                flush = true;
                dirty.set(word, dirty.get(word) & !cleared);
                if let Some(ghost) = &mut self.ghost {
                    ghost.harvested(as_id, id, &[(word, 1, cleared)], false);
                }
                let from = if is_chosen(Mutant::ClearLogFromStart) { 0 } else { first };
                self.enable_log_dirty_pt_masked(slot, from + at * WORD, cleared);
            }
        }
        if flush {
            self.flush_logged(slot);
        }
        Ok(0)
    }

    /// The flush after a log was read or cleared.
    pub(in crate::mmu) fn flush_logged(&mut self, slot: SlotAt) {
        match self.config.kernel.dirty_log_flush {
            DirtyLogFlush::All => self.flush_remote_tlbs(),
            DirtyLogFlush::Slot => self.flush_slot(slot),
        }
    }

    /// Flushes the gfns of a slot.
    pub(in crate::mmu) fn flush_slot(&mut self, slot: SlotAt) {
        let (base, npages) = (self.slot_spec(slot).base, self.slot_spec(slot).npages);
        self.flush_range(Gfn(base), npages);
    }

    fn enable_log_dirty_pt_masked(&mut self, slot: SlotAt, offset: u64, mask: u64) {
        self.protect_masked(slot, offset, mask);
    }

    /// Protects what the mask names; whether TLBs must be flushed. With bitmaps that start full large leaves are still
    /// writable: those over the first and the last page are protected first, also against the lock-free path.
    fn protect_masked(&mut self, slot: SlotAt, offset: u64, mask: u64) -> bool {
        let handler = if self.config.pml { Handler::ClearDirty } else { Handler::WriteProtect };
        let mut flush = false;
        if self.is_log_initially_set && mask != 0 && !is_chosen(Mutant::LargeLeafKeptByClear) {
            let spec = *self.slot_spec(slot);
            let ends =
                [mask.trailing_zeros(), mask.ilog2()].map(|at| Gfn(spec.base).plus(offset.saturating_add(at.into())));
            // The kernel rounds up: an end that begins a large page counts with the one before it.
            let rounded = ends.map(|gfn| gfn.plus(pages_per(2) - 1).align_down(2));
            let nr_ends = if rounded[0] == rounded[1] { 1 } else { 2 };
            for gfn in ends.into_iter().take(nr_ends).filter(|&gfn| spec.holds(gfn)) {
                for level in 2..=MAX_LEAF {
                    let head = self.slot_body(slot).rmap[usize::from(level) - 1].get(spec.index(gfn, level));
                    flush |= self.write_protect_head(head, true);
                }
            }
        }
        self.handle_masked(slot, offset, mask, handler) || flush
    }

    /// What reading or clearing the log does to 64 pages; the caller owes the flush.
    pub(in crate::mmu) fn dirty_masked(&mut self, as_id: u8, id: u32, offset: u64, mask: u64) -> Result<i32> {
        let Some(slot) = self.find_slot_id(as_id, id)? else { return Err(Error::NoSlot { as_id, id }) };
        if self.protect_masked(slot, offset, mask) {
            self.owe_slot(slot);
        }
        Ok(0)
    }

    /// Handles the level-1 heads of the mask; whether TLBs must be flushed.
    fn handle_masked(&mut self, slot: SlotAt, offset: u64, mask: u64, handler: Handler) -> bool {
        let spec = *self.slot_spec(slot);
        let mut left = mask;
        let mut flush = false;
        while left != 0 {
            let at = offset.saturating_add(u64::from(left.trailing_zeros()));
            left &= left - 1;
            if at < spec.npages {
                let gfn = Gfn(spec.base).plus(at);
                flush |= self.handle_head(slot, handler, spec.index(gfn, PAGE_TABLE), PAGE_TABLE);
            }
        }
        flush
    }

    /// The masked operations alone; the caller owes the flush.
    pub(in crate::mmu) fn pt_masked(
        &mut self,
        as_id: u8,
        id: u32,
        offset: u64,
        mask: u64,
        what: PtMasked,
    ) -> Result<i32> {
        let Some(slot) = self.find_slot_id(as_id, id)? else { return Err(Error::NoSlot { as_id, id }) };
        let handler = match what {
            PtMasked::WriteProtect => Handler::WriteProtect,
            PtMasked::ClearDirty => Handler::ClearDirty,
            PtMasked::EnableLogDirty => return self.dirty_masked(as_id, id, offset, mask),
        };
        if self.tables() == Tables::Tdp {
            let first = Gfn(self.slot_spec(slot).base).plus(offset);
            if self.tdp_protect_masked(as_id, first, mask, what == PtMasked::WriteProtect) {
                self.owe_slot(slot);
            }
            return Ok(0);
        }
        if self.handle_masked(slot, offset, mask, handler) {
            self.owe_slot(slot);
        }
        Ok(0)
    }
}
