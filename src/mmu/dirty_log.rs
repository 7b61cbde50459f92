//! The dirty log: reading and clearing a slot's bitmap, protecting what was reported.
//!
//! Models v5.0/v5.2 `kvm_get_dirty_log_protect`, `kvm_clear_dirty_log_protect`, `kvm_mmu_write_protect_pt_masked`,
//! `kvm_mmu_clear_dirty_pt_masked`.

use super::addr::Gfn;
use super::error::{Error, Result};
use super::level::{MAX_LEAF, PAGE_TABLE, pages_per};
use super::mutants::{Mutant, is_chosen};
use super::runs::Handler;
use super::slots::SlotAt;
use super::state::MmuState;
use super::views::PtMasked;
use crate::kernels::DirtyLogFlush;

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const WORD: u64 = 64;

impl MmuState {
    /// Return value and words of the bitmap. Manual mode only copies.
    pub(super) fn get_dirty_log(&mut self, as_id: u8, id: u32, manual: bool) -> Result<(i32, Vec<u64>)> {
        let Some(slot) = self.find_slot_id(as_id, id)? else {
            return Ok((-ENOENT, if self.config.is_stepped() { Vec::new() } else { vec![0] }));
        };
        let Some(dirty) = &mut self.slot_body_mut(slot).dirty else {
            if self.config.is_stepped() {
                return Ok((-ENOENT, Vec::new()));
            }
            let words = self.slot_spec(slot).npages.div_ceil(WORD);
            return Ok((-ENOENT, vec![0; usize::try_from(words).unwrap_or(0)]));
        };
        if manual {
            return Ok((0, dirty.clone()));
        }
        let words = dirty.clone();
        dirty.fill(0);
        let mut flush = false;
        for (at, &mask) in (0_u64..).zip(&words) {
            if mask != 0 {
                flush = true;
                self.enable_log_dirty_pt_masked(slot, at * WORD, mask);
            }
        }
        if flush && !is_chosen(Mutant::DirtyLogWithoutFlush) {
            self.flush_logged(slot);
        }
        Ok((0, words))
    }

    /// Clears the bits of `mask`, which is read from its own start, and protects those pages.
    pub(super) fn clear_dirty_log(&mut self, as_id: u8, id: u32, first: u64, num: u64, mask: &[u64]) -> Result<i32> {
        let found = self.find_slot_id(as_id, id)?;
        let must_be_whole = self.config.kernel.clear_log_whole_words;
        if !first.is_multiple_of(WORD) || must_be_whole && !num.is_multiple_of(WORD) {
            return Ok(-EINVAL);
        }
        let Some(slot) = found.filter(|&slot| self.slot_body(slot).dirty.is_some()) else { return Ok(-ENOENT) };
        let npages = self.slot_spec(slot).npages;
        if first > npages || num > npages - first {
            return Ok(-EINVAL);
        }
        if !must_be_whole && !num.is_multiple_of(WORD) && first + num != npages {
            return Ok(-EINVAL);
        }
        let mut flush = false;
        let words = num.div_ceil(WORD);
        for (at, &wanted) in (0..words).zip(mask) {
            let word = usize::try_from(first / WORD + at).unwrap_or(usize::MAX);
            let dirty = self.slot_body_mut(slot).dirty.as_mut().and_then(|dirty| dirty.get_mut(word));
            let Some(dirty) = dirty else { break };
            let cleared = wanted & *dirty;
            *dirty &= !cleared;
            if cleared != 0 {
                flush = true;
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
    fn flush_logged(&mut self, slot: SlotAt) {
        match self.config.kernel.dirty_log_flush {
            DirtyLogFlush::All => self.flush_remote_tlbs(),
            DirtyLogFlush::Slot => self.flush_slot(slot),
        }
    }

    /// Flushes the gfns of a slot.
    pub(super) fn flush_slot(&mut self, slot: SlotAt) {
        let (base, npages) = (self.slot_spec(slot).base, self.slot_spec(slot).npages);
        self.flush_remote_tlbs_with_address(Gfn(base), npages);
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
    pub(super) fn dirty_masked(&mut self, as_id: u8, id: u32, offset: u64, mask: u64) -> Result<i32> {
        let Some(slot) = self.find_slot_id(as_id, id)? else { return Err(Error::NoSlot { as_id, id }) };
        let flush = self.protect_masked(slot, offset, mask);
        self.is_flush_owed |= flush;
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
    pub(super) fn pt_masked(&mut self, as_id: u8, id: u32, offset: u64, mask: u64, what: PtMasked) -> Result<i32> {
        let Some(slot) = self.find_slot_id(as_id, id)? else { return Err(Error::NoSlot { as_id, id }) };
        let handler = match what {
            PtMasked::WriteProtect => Handler::WriteProtect,
            PtMasked::ClearDirty => Handler::ClearDirty,
            PtMasked::EnableLogDirty => return self.dirty_masked(as_id, id, offset, mask),
        };
        let flush = self.handle_masked(slot, offset, mask, handler);
        self.is_flush_owed |= flush;
        Ok(0)
    }
}
