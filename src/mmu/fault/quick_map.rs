//! The fault that most faults are, in one step: an absent 4 KiB entry of a table that the last walk came to, in an ordinary
//! slot over ordinary host memory.
//!
//! Models `tdp_page_fault` of v5.0/v5.2 and `direct_page_fault` of v5.10 to v7.3, on shadow pages and in the TDP MMU, where
//! every test on their way has the usual answer. Ours; it does what the steps of `page_fault`, `direct_page_fault` and
//! `tdp_map` would do, with the same counts, events and state, and leaves whatever is unusual to them before it changes
//! anything.

use crate::mmu::fault::page_fault::Handled;
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::pages::walk::{Walked, is_large, is_shadow_present};
use crate::mmu::shadow::reclaim::KVM_MIN_FREE_MMU_PAGES;
use crate::mmu::tables::Tables;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::{MEM_READONLY, MEMSLOT_INVALID, SlotAt};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{ACC_ALL, PFERR_WRITE};
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::{PAGE_TABLE, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::make::{Leaf, make_leaf};
use crate::mmu::words::spte::mmio::is_mmio;
use crate::mmu::words::views::HostLookup;

/// An absent entry with nothing unusual about it, and the leaf that it becomes.
#[derive(Clone, Copy)]
pub(super) struct Usual {
    pub slot: SlotAt,
    pub gfn: Gfn,
    /// The gfn's place in its slot.
    pub index: u64,
    pub is_logged: bool,
    pub pfn: Pfn,
    pub sptep: Sptep,
    pub spte: u64,
}

impl MmuState {
    /// Maps the page of an absent entry, for a code without P and RSVD; nothing, and nothing done, if anything is unusual.
    #[inline]
    pub(in crate::mmu) fn map_quickly(
        &mut self,
        vcpu: usize,
        gpa: u64,
        error_code: u64,
        host: &HostLookup,
    ) -> Option<Handled> {
        if self.config.kernel.is_level_requested {
            return self.map_quickly_requested(vcpu, gpa, error_code, host);
        }
        let usual = self.usual_leaf(vcpu, gpa, self.vcpus[vcpu].root, true)?;
        let sptep = usual.sptep;
        self.add_usual_head(&usual);
        if self.events.is_on() && self.can_be_fast(error_code) {
            let walked = Walked { sptep, spte: 0, level: PAGE_TABLE };
            self.push_fast_pf(vcpu, gpa, error_code, &walked, (0, 0), false);
        }
        self.spte_set(sptep, usual.spte);
        if self.config.kernel.has_set_spte_event && self.events.is_on() {
            self.push_set_spte(sptep, &usual.mapping(vcpu, error_code), usual.spte);
        }
        // Nothing is mapped ahead into a slot that logs dirty pages.
        if !usual.is_logged || is_chosen(Mutant::PrefetchIntoLoggedSlot) {
            self.direct_pte_prefetch(&usual.mapping(vcpu, error_code), sptep);
        }
        Some(Handled::Retry)
    }

    /// The same from v5.10 on, where the level is settled first.
    #[inline(never)]
    fn map_quickly_requested(&mut self, vcpu: usize, gpa: u64, error_code: u64, host: &HostLookup) -> Option<Handled> {
        let root = self.root_for(vcpu, gpa);
        let is_shadow = self.tables() == Tables::Shadow;
        if !matches!(host, HostLookup::Ask) || !self.is_root_usual(root) {
            return None;
        }
        let usual = self.usual_leaf(vcpu, gpa, root, is_shadow)?;
        let Usual { gfn, pfn, sptep, spte, .. } = usual;
        self.vcpus[vcpu].faults.taken += 1;
        self.vcpus[vcpu].faults.fixed += 1;
        if self.config.is_stepped() {
            self.events.push(|| Event::Requested { gfn: gfn.0, pfn: pfn.0, level: PAGE_TABLE });
        }
        self.push_try_unsync(gfn, false, false);
        let mapping = usual.mapping(vcpu, error_code);
        if is_shadow {
            self.add_usual_head(&usual);
            self.spte_set(sptep, spte);
        } else {
            self.mark_page_dirty(Some(usual.slot), gfn);
            self.tdp_set_first_leaf(root, sptep, gfn, spte);
        }
        if self.events.is_on() {
            self.push_set_spte(sptep, &mapping, spte);
        }
        if is_shadow && !usual.is_logged {
            self.prefetch_group(&mapping, sptep, host);
        }
        if self.config.is_stepped() {
            self.push_accessed(pfn);
        }
        Some(Handled::Fixed)
    }

    /// Whether faults below a root map at once: from v5.10 on a stale root, or host memory that goes, makes them retry.
    #[inline]
    pub(super) fn is_root_usual(&self, root: PageIdx) -> bool {
        !self.config.kernel.is_level_requested
            || self.invalidation.in_progress == 0
                && root != PageIdx::NONE
                && !self.arena.key(root).role.invalid()
                && !self.is_obsolete(root)
    }

    /// What a fault would map, if everything about it is as usual. On shadow pages the gfn must have no mapping yet, and a
    /// new page must not need room.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "what it returns stays in registers: a quarter of the fault")]
    pub(super) fn usual_leaf(&mut self, vcpu: usize, gpa: u64, root: PageIdx, is_shadow: bool) -> Option<Usual> {
        let gfn = Gfn::of_gpa(gpa);
        let slot = self.find_slot(self.vcpus[vcpu].as_id(), gfn)?;
        let spec = *self.slot_spec(slot);
        let index = spec.index(gfn, PAGE_TABLE);
        // The head is read before anything waits for tables: its cache miss passes together with theirs.
        let body = self.spaces[usize::from(slot.as_id & 1)].body_mut(slot.at);
        let is_head_empty = !is_shadow || body.rmap[0].get_mut(index).is_some_and(|head| head.is_empty());
        let is_logged = body.dirty.is_some();
        let page = self.last_path.get().lower(root, gpa)?;
        if spec.flags & (MEMSLOT_INVALID | MEM_READONLY) != 0
            || self.masks.accessed == 0
            || self.vcpus[vcpu].role.ad_disabled()
            || !self.host.is_plain()
            || is_shadow && self.available_mmu_pages() < KVM_MIN_FREE_MMU_PAGES
            || self.nr_indirect != 0
            || self.has_high_pages
            || self.has_dangling
            || gfn.0 >> self.root_gfn_bits != 0
            || self.needs_write_protect(Some(slot), gfn)
        {
            return None;
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
            return None;
        }
        Some(Usual { slot, gfn, index, is_logged, pfn, sptep, spte })
    }

    /// The gfn gets its first mapping, and its page is dirty.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as above")]
    fn add_usual_head(&mut self, usual: &Usual) {
        let body = self.spaces[usize::from(usual.slot.as_id & 1)].body_mut(usual.slot.at);
        body.mark_dirty(usual.index);
        if let Some(head) = body.rmap[0].get_mut(usual.index) {
            *head = PteHead::one(usual.sptep);
        }
        self.work.rmap_steps += 1;
    }
}

impl MmuState {
    /// So many neighbours from an index of a slot on get their first mappings, from a place on.
    pub(super) fn add_usual_heads(&mut self, slot: SlotAt, index: u64, first: Sptep, count: usize) {
        let body = self.spaces[usize::from(slot.as_id & 1)].body_mut(slot.at);
        if let Some(heads) = body.rmap[0].rest_of_chunk_mut(index) {
            PteHead::fill_one_each(&mut heads[..count], first);
        }
        self.work.rmap_steps += count as u64;
    }
}

impl Usual {
    #[inline]
    fn mapping(&self, vcpu: usize, error_code: u64) -> Mapping {
        let backing = Backing::Frame { pfn: self.pfn, host_writable: true };
        let is_write = error_code & PFERR_WRITE != 0;
        let (slot, gfn) = (Some(self.slot), self.gfn);
        Mapping {
            vcpu,
            slot,
            gfn,
            level: PAGE_TABLE,
            access: ACC_ALL,
            backing,
            is_write,
            speculative: false,
            can_unsync: true,
        }
    }
}
