//! The fault that most faults are, in one step: an absent 4 KiB entry of a table that the last walk came to, in an ordinary
//! slot over ordinary host memory.
//!
//! Models v5.0/v5.2 `tdp_page_fault` where every test on its way has the usual answer. Ours; it does what the steps of
//! `page_fault` would do, with the same counts, events and state, and leaves whatever is unusual to them before it changes
//! anything.

use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::pages::walk::{Walked, is_large, is_shadow_present};
use crate::mmu::shadow::reclaim::KVM_MIN_FREE_MMU_PAGES;
use crate::mmu::vm::slots::{MEM_READONLY, MEMSLOT_INVALID};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{ACC_ALL, PFERR_WRITE};
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::{PAGE_TABLE, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::make::{Leaf, make_leaf};
use crate::mmu::words::spte::mmio::is_mmio;

impl MmuState {
    /// Maps the page of an absent entry, for a code without P and RSVD; false, and nothing done, if anything is unusual.
    #[inline(never)]
    pub(in crate::mmu) fn map_quickly(&mut self, vcpu: usize, gpa: u64, error_code: u64) -> bool {
        let gfn = Gfn::of_gpa(gpa);
        let Some(slot) = self.find_slot(self.vcpus[vcpu].as_id(), gfn) else { return false };
        let spec = *self.slot_spec(slot);
        let index = spec.index(gfn, PAGE_TABLE);
        // The head is read before anything waits for tables: its cache miss passes together with theirs.
        let body = self.spaces[usize::from(slot.as_id & 1)].body_mut(slot.at);
        let is_head_empty = body.rmap[0].get_mut(index).is_some_and(|head| head.is_empty());
        let is_logged = body.dirty.is_some();
        let of_vcpu = &self.vcpus[vcpu];
        let Some(page) = self.last_path.get().lower(of_vcpu.root, gpa) else { return false };
        if spec.flags & (MEMSLOT_INVALID | MEM_READONLY) != 0
            || self.masks.accessed == 0
            || of_vcpu.role.ad_disabled()
            || self.config.kernel.is_level_requested
            || !self.host.is_plain()
            || self.available_mmu_pages() < KVM_MIN_FREE_MMU_PAGES
            || self.has_high_pages
            || gfn.0 >> self.root_gfn_bits != 0
            || self.needs_write_protect(Some(slot), gfn)
        {
            return false;
        }
        let pfn = Pfn((spec.hva_of(gfn) & PFN_FIELD) >> 12);
        let leaf = Leaf {
            access: ACC_ALL,
            level: PAGE_TABLE,
            pfn,
            speculative: false,
            host_writable: true,
            ad_disabled: false,
        };
        let spte = make_leaf(&self.masks, &leaf) | WRITABLE | self.masks.mmu_writeable | self.masks.dirty;
        let sptep = page.sptep(table_index(gpa, PAGE_TABLE));
        let is_plain_leaf = is_shadow_present(&self.masks, spte) && !is_large(spte) && !is_mmio(&self.masks, spte);
        if !is_head_empty || self.arena.spte(sptep) != 0 || !is_plain_leaf {
            return false;
        }
        let body = self.spaces[usize::from(slot.as_id & 1)].body_mut(slot.at);
        body.mark_dirty(index);
        if let Some(head) = body.rmap[0].get_mut(index) {
            *head = PteHead::one(sptep);
        }
        self.work.rmap_steps += 1;
        if self.events.is_on() && self.can_be_fast(error_code) {
            let walked = Walked { sptep, spte: 0, level: PAGE_TABLE };
            self.push_fast_pf(vcpu, gpa, error_code, &walked, (0, 0), false);
        }
        self.spte_set(sptep, spte);
        // Nothing is mapped ahead into a slot that logs dirty pages.
        if !is_logged || is_chosen(Mutant::PrefetchIntoLoggedSlot) {
            let backing = Backing::Frame { pfn, host_writable: true };
            let is_write = error_code & PFERR_WRITE != 0;
            let level = PAGE_TABLE;
            let slot = Some(slot);
            let mapping = Mapping { vcpu, slot, gfn, level, access: ACC_ALL, backing, is_write, speculative: false };
            self.direct_pte_prefetch(&mapping, sptep);
        }
        true
    }
}
