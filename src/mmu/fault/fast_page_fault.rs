//! The lock-free path: a fault that only needs bits put back in an existing entry.
//!
//! Models v5.0/v5.2 `fast_page_fault`, `page_fault_can_be_fast`.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{
    Walked, can_be_made_writable, is_access_allowed, is_access_track, is_last, is_shadow_present,
};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_WRITE};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::make::restore_access_track;

impl MmuState {
    pub(in crate::mmu) const fn can_be_fast(&self, error_code: u64) -> bool {
        if error_code & PFERR_RSVD != 0 {
            return false;
        }
        let fetch_present = PFERR_FETCH | PFERR_PRESENT;
        if error_code & fetch_present == fetch_present {
            return false;
        }
        let write_present = PFERR_WRITE | PFERR_PRESENT;
        self.masks.acc_track != 0 || error_code & write_present == write_present
    }

    /// Tries the lock-free path; whether it answered the fault, and where its walk ended.
    #[inline]
    pub(in crate::mmu) fn fast_page_fault(
        &mut self,
        vcpu: usize,
        slot: Option<SlotAt>,
        gpa: u64,
        level: u8,
        error_code: u64,
    ) -> (bool, Option<Walked>) {
        let root = self.root_for(vcpu, gpa);
        if root == PageIdx::NONE || !self.can_be_fast(error_code) {
            return (false, None);
        }
        let walked = self.walk_down(root, gpa, level);
        let old = walked.spte;
        let mut new = old;
        let is_leaf = is_last(old, walked.level);
        let handled = is_leaf
            && (is_access_allowed(&self.masks, error_code, old) || {
                new = self.fixed_spte(old, error_code);
                let may_fix = new & !old & WRITABLE == 0 || walked.level == PAGE_TABLE;
                let handled = may_fix && new != old && is_access_allowed(&self.masks, error_code, new);
                if handled {
                    self.spte_set(walked.sptep, new);
                    if new & !old & WRITABLE != 0 && !is_chosen(Mutant::FastFaultNotLogged) {
                        self.mark_page_dirty(slot, Gfn::of_gpa(gpa).align_down(walked.level));
                    }
                } else {
                    new = old;
                }
                handled
            });
        if self.events.is_on() {
            self.push_fast_pf(vcpu, gpa, error_code, &walked, (old, new), handled);
        }
        (handled, Some(walked))
    }

    pub(in crate::mmu) fn fixed_spte(&self, old: u64, error_code: u64) -> u64 {
        let mut new = if is_access_track(&self.masks, old) { restore_access_track(&self.masks, old) } else { old };
        if error_code & PFERR_WRITE != 0 && can_be_made_writable(&self.masks, old) {
            new |= WRITABLE;
        }
        new
    }

    #[cold]
    pub(in crate::mmu) fn push_fast_pf(
        &mut self,
        vcpu: usize,
        addr: u64,
        error_code: u64,
        walked: &Walked,
        (old, new): (u64, u64),
        handled: bool,
    ) {
        let sptep = walked.sptep;
        let is_link = is_shadow_present(&self.masks, old) && !is_last(old, walked.level);
        let hide = if is_link { !PFN_FIELD } else { u64::MAX };
        let page = self.arena.key(sptep.page()).id;
        self.events.push(|| Event::FastPf {
            vcpu: u16::try_from(vcpu).unwrap_or(u16::MAX),
            addr,
            error_code: error_code & 0xffff_ffff,
            page,
            index: sptep.index(),
            old: old & hide,
            new: new & hide,
            handled: u8::from(handled),
        });
    }
}
