//! What a page that shadows a guest's table costs the gfn of that table: no large page over it, and no write to it that
//! the MMU does not see.
//!
//! Models `account_shadowed`, `unaccount_shadowed`, v5.0 to v6.12, and the write protection that page tracking shares with
//! it. Invariant: what is added when a page is made is taken back when it is zapped the first time.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE};
use crate::mmu::words::mutants::{Mutant, is_chosen};

impl MmuState {
    /// Accounts a new page that shadows a table.
    pub(in crate::mmu) fn account_shadowed(&mut self, page: PageIdx) {
        self.nr_indirect += 1;
        let key = *self.arena.key(page);
        let Some(slot) = self.find_slot(key.role.as_id(), key.gfn) else { return };
        self.add_large_veto(slot, key.gfn, 1);
        if key.role.level() > PAGE_TABLE {
            self.add_track(slot, key.gfn, true);
            if self.write_protect_gfn(slot, key.gfn, PAGE_TABLE) {
                self.flush_remote_tlbs();
            }
        } else if self.config.kernel.is_role_fixed && self.write_protect_gfn(slot, key.gfn, PAGE_TABLE) {
            self.flush_remote_tlbs_with_address(key.gfn, 1);
        }
    }

    /// Takes back what was accounted; the page is being zapped.
    pub(in crate::mmu) fn unaccount_shadowed(&mut self, page: PageIdx) {
        self.nr_indirect = self.nr_indirect.saturating_sub(1);
        let key = *self.arena.key(page);
        let Some(slot) = self.find_slot(key.role.as_id(), key.gfn) else { return };
        if is_chosen(Mutant::TableVetoKept) {
            return;
        }
        // Somebody else may have taken the tracking away, which the kernel would warn of.
        if key.role.level() == PAGE_TABLE || self.add_track(slot, key.gfn, false) {
            self.add_large_veto(slot, key.gfn, -1);
        }
    }

    /// One veto of large pages over a gfn more or less.
    pub(in crate::mmu) fn add_large_veto(&mut self, slot: SlotAt, gfn: Gfn, by: i32) {
        let spec = *self.slot_spec(slot);
        for level in 2..=MAX_LEAF {
            let at = spec.index(gfn, level);
            if let Some(veto) = self.slot_body_mut(slot).disallow[usize::from(level) - 2].get_mut(at) {
                *veto = veto.wrapping_add(by);
            }
        }
    }

    /// One reason more or less to keep a gfn from being written; false if there is none to take away.
    pub(in crate::mmu) fn add_track(&mut self, slot: SlotAt, gfn: Gfn, on: bool) -> bool {
        let index = self.slot_spec(slot).index(gfn, PAGE_TABLE);
        let body = self.slot_body_mut(slot);
        let count = body.track.get(&index).copied().unwrap_or(0);
        let next = if on { count.checked_add(1) } else { count.checked_sub(1) };
        match next {
            None => return false,
            Some(0) => body.track.remove(&index),
            Some(next) => body.track.insert(index, next),
        };
        true
    }

    /// Takes write permission from a gfn at every level from this one up, also against the lock-free path; whether TLBs
    /// may hold it.
    pub(in crate::mmu) fn write_protect_gfn(&mut self, slot: SlotAt, gfn: Gfn, least: u8) -> bool {
        let spec = *self.slot_spec(slot);
        let mut any = false;
        for level in least..=MAX_LEAF {
            let head = self.slot_body(slot).rmap[usize::from(level) - 1].get(spec.index(gfn, level));
            any |= self.write_protect_head(head, true);
        }
        any
    }

    /// The same in the slot that a vCPU sees.
    pub(in crate::mmu) fn vcpu_write_protect_gfn(&mut self, vcpu: usize, gfn: Gfn) -> bool {
        let Some(slot) = self.find_slot(self.vcpus[vcpu].as_id(), gfn) else { return false };
        self.write_protect_gfn(slot, gfn, PAGE_TABLE)
    }
}
