//! INVLPG: the guest says that it changed the entry of an address.
//!
//! Models `kvm_mmu_invlpg`, `invlpg`, `kvm_mmu_invalidate_addr`, v5.0 to v6.12: the entry is zapped and filled again from
//! the guest's, or synced with it, on every level that may be out of sync, below the roots in use and the cached ones.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::shadow::sync::SyncedEntry;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::PrevRoot;
use crate::mmu::words::guest_mode::Paging;
use crate::mmu::words::level::{PAGE_TABLE, pages_per, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};

/// Bits of an address that a guest of four levels has.
const CANONICAL_BITS: u32 = 48;
const PAGE_MASK: u64 = !0xfff;

impl MmuState {
    /// The guest invalidates an address: below its roots and the cached ones.
    pub(in crate::mmu) fn invlpg(&mut self, vcpu: usize, gva: u64) {
        self.invalidate_addr(vcpu, gva, true);
    }

    /// The same, where the cached roots may be left out: those of a page fault that the guest gets.
    pub(in crate::mmu) fn invalidate_addr(&mut self, vcpu: usize, gva: u64, with_cached: bool) {
        let paging = self.vcpus[vcpu].mode.paging;
        let unused = 64 - if paging == Paging::Long5 { CANONICAL_BITS + 9 } else { CANONICAL_BITS };
        let is_canonical = gva.wrapping_shl(unused).cast_signed().wrapping_shr(unused).cast_unsigned() == gva;
        if !is_canonical || paging == Paging::None {
            return;
        }
        let root = self.root_for(vcpu, gva);
        self.invalidate_below(vcpu, root, gva, self.vcpus[vcpu].has_roots());
        let cached = if with_cached && !is_chosen(Mutant::InvlpgSparesCached) {
            self.vcpus[vcpu].prev_roots
        } else {
            [PrevRoot::default(); 3]
        };
        for prev in cached {
            if prev.root != PageIdx::NONE {
                self.invalidate_below(vcpu, prev.root, gva, true);
            }
        }
    }

    fn invalidate_below(&mut self, vcpu: usize, root: PageIdx, gva: u64, is_loaded: bool) {
        let mmio = &mut self.vcpus[vcpu].mmio;
        if mmio.gva == gva & PAGE_MASK {
            mmio.gva = 0;
        }
        self.vcpus[vcpu].tlb.flush();
        let line = self.config.kernel.invlpg_warn_line;
        if !is_loaded && line != 0 {
            self.stats.warn += 1;
            self.events.push(|| Event::Warn { line });
        }
        let mut page = root;
        while page != PageIdx::NONE {
            let level = self.arena.key(page).role.level();
            let sptep = page.sptep(table_index(gva, level));
            let spte = self.arena.spte(sptep);
            let is_present = is_shadow_present(&self.masks, spte);
            // An empty entry of a page table is where a leaf would be.
            let is_leaf = level == PAGE_TABLE || is_present && is_last(spte, level);
            let header = self.arena.page(page);
            let (is_unsync, has_unsync) = (header.unsync, header.unsync_children != 0);
            if self.config.kernel.invlpg_syncs {
                if is_unsync && spte != 0 {
                    self.sync_or_zap_entry(vcpu, page, table_index(gva, level));
                }
            } else if is_leaf && is_unsync {
                self.zap_and_fill(vcpu, page, table_index(gva, level));
            }
            if let Some(ghost) = &mut self.ghost {
                ghost.entry_flushed(vcpu, sptep.0);
            }
            let is_below = !is_leaf && is_present && has_unsync;
            page = if is_below { child_of(spte) } else { PageIdx::NONE };
        }
    }

    fn zap_and_fill(&mut self, vcpu: usize, page: PageIdx, index: u16) {
        let sptep = page.sptep(index);
        let level = self.arena.key(page).role.level();
        if self.zap_entry(sptep) {
            let gfn = self.arena.key(page).gfn;
            self.flush_remote_tlbs_with_address(gfn, pages_per(level));
        }
        if let Some(gpte) = self.read_gpte(vcpu, page, index) {
            self.prefetch_gpte(vcpu, sptep, gpte, false);
        }
    }

    fn sync_or_zap_entry(&mut self, vcpu: usize, page: PageIdx, index: u16) {
        let sptep = page.sptep(index);
        let gfn = self.arena.key(page).gfn;
        match self.sync_spte(vcpu, sptep) {
            SyncedEntry::Unreadable => {
                self.zap_entry(sptep);
            }
            SyncedEntry::Dropped | SyncedEntry::Changed => self.flush_remote_tlbs_with_address(gfn, 1),
            SyncedEntry::MmioDropped | SyncedEntry::Same => {}
        }
    }
}
