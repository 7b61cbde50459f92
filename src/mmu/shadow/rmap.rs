//! Reverse maps: which SPTEs map a gfn at a level.
//!
//! Models v5.0/v5.2 `rmap_add`, `rmap_remove`, `gfn_to_rmap`, `kvm_mmu_page_get_gfn`. Invariant: every shadow-present leaf
//! stands in exactly one list, that of its gfn in the slot of its page's address space.

use crate::mmu::pages::page_arena::Sptep;
use crate::mmu::pages::pte_list::{PteHead, PteLists};
use crate::mmu::pages::walk::{is_last, is_shadow_present};
use crate::mmu::vm::slots::{AddressSpace, SlotAt};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::{PAGE_TABLE, level_shift};
use crate::mmu::words::mutants::{Mutant, is_chosen};

impl MmuState {
    /// The gfn an entry maps.
    #[inline]
    pub(in crate::mmu) fn gfn_of(&self, sptep: Sptep) -> Gfn {
        if !self.aliased.is_empty()
            && let Some(&gfn) = self.aliased.get(&sptep)
        {
            return gfn;
        }
        if let Some(indirect) = self.arena.indirect(sptep.page()) {
            return indirect.gfn(sptep.index());
        }
        let key = self.arena.key(sptep.page());
        key.gfn.plus(u64::from(sptep.index()) << level_shift(key.role.level()))
    }

    /// The list of a gfn at a level, and the store of lists.
    #[inline]
    pub(in crate::mmu) fn rmap_head_mut(
        &mut self,
        as_id: u8,
        gfn: Gfn,
        level: u8,
    ) -> Option<(&mut PteHead, &mut PteLists)> {
        let space: &mut AddressSpace = &mut self.spaces[usize::from(as_id & 1)];
        let at = space.find(gfn)?;
        let index = space.specs()[at].index(gfn, level);
        let head = space.body_mut(at).rmap.get_mut(usize::from(level).wrapping_sub(1))?.get_mut(index)?;
        Some((head, &mut self.pte_lists))
    }

    /// Reads the head of a gfn that is about to be mapped. Nothing waits for it: its cache miss passes while tables are
    /// walked, whose misses do not depend on it.
    #[inline]
    pub(in crate::mmu) fn touch_rmap_head(&self, slot: Option<SlotAt>, gfn: Gfn) {
        if let Some(slot) = slot {
            let space = &self.spaces[usize::from(slot.as_id & 1)];
            let index = space.specs()[slot.at].index(gfn, PAGE_TABLE);
            std::hint::black_box(space.body(slot.at).rmap[0].get(index));
        }
    }

    /// Adds a leaf to its gfn's list; the kernel's count of entries before it.
    pub(in crate::mmu) fn rmap_add(&mut self, slot: Option<SlotAt>, sptep: Sptep, gfn: Gfn, level: u8) -> u32 {
        if self.has_high_pages || gfn.0 >> self.root_gfn_bits != 0 || self.config.shadows_guest() {
            self.note_alias(sptep, gfn, level);
        }
        let slot =
            if self.has_dangling { self.find_slot(self.arena.key(sptep.page()).role.as_id(), gfn) } else { slot };
        let Some(slot) = slot else { return 0 };
        self.work.rmap_steps += 1;
        let space = &mut self.spaces[usize::from(slot.as_id & 1)];
        let index = space.specs()[slot.at].index(gfn, level);
        let heads = space.body_mut(slot.at).rmap.get_mut(usize::from(level).wrapping_sub(1));
        match heads.and_then(|heads| heads.get_mut(index)) {
            // Nearly every gfn has one mapping.
            Some(head) if head.is_empty() => {
                *head = PteHead::one(sptep);
                0
            }
            Some(head) => self.pte_lists.add(head, sptep),
            None => 0,
        }
    }

    /// Notes a leaf whose table was made for another gfn.
    #[cold]
    fn note_alias(&mut self, sptep: Sptep, gfn: Gfn, level: u8) {
        let key = self.arena.key(sptep.page());
        if !key.role.direct() {
            return;
        }
        if key.gfn.plus(u64::from(sptep.index()) << level_shift(level)) != gfn {
            self.aliased.insert(sptep, gfn);
        }
    }

    /// Takes a leaf that is gone out of its gfn's list.
    #[inline]
    pub(in crate::mmu) fn rmap_remove(&mut self, sptep: Sptep) {
        if is_chosen(Mutant::RmapEntryKept) {
            return;
        }
        let gfn = self.gfn_of(sptep);
        let role = self.arena.key(sptep.page()).role;
        if let Some((head, lists)) = self.rmap_head_mut(role.as_id(), gfn, role.level()) {
            let is_there = if *head == PteHead::one(sptep) {
                *head = PteHead::EMPTY;
                true
            } else {
                lists.remove(head, sptep)
            };
            self.work.rmap_steps += u64::from(is_there);
        }
        if !self.aliased.is_empty() {
            self.aliased.remove(&sptep);
        }
    }

    /// Clears a leaf and takes it out of its list.
    pub(in crate::mmu) fn drop_spte(&mut self, sptep: Sptep) {
        if self.spte_clear_track_bits(sptep) {
            self.rmap_remove(sptep);
        }
    }

    /// Drops every mapping of a head; whether there was any.
    pub(in crate::mmu) fn zap_rmap(&mut self, slot: SlotAt, index: u64, level: u8) -> bool {
        let at = usize::from(level).wrapping_sub(1);
        let mut head = self.slot_body(slot).rmap[at].get(index);
        if self.config.kernel.zap_list_in_order && self.pte_lists.descs_of(head) > 0 {
            return self.zap_rmap_in_order(slot, index, level);
        }
        let any = !head.is_empty();
        while let Some(sptep) = self.pte_lists.first(head) {
            self.spte_clear_track_bits(sptep);
            self.work.rmap_steps += 1;
            if !self.aliased.is_empty() {
                self.aliased.remove(&sptep);
            }
            self.pte_lists.remove(&mut head, sptep);
            if let Some(stored) = self.slot_body_mut(slot).rmap[at].get_mut(index) {
                *stored = head;
            }
        }
        any
    }

    /// Whether a place that a reverse map names holds a leaf. What an old kernel left behind need not.
    #[inline]
    pub(in crate::mmu) fn is_mapped(&self, sptep: Sptep) -> bool {
        let spte = self.arena.spte(sptep);
        !self.has_dangling
            || is_shadow_present(&self.masks, spte) && is_last(spte, self.arena.key(sptep.page()).role.level())
    }

    fn zap_rmap_in_order(&mut self, slot: SlotAt, index: u64, level: u8) -> bool {
        let at = usize::from(level).wrapping_sub(1);
        let mut head = self.slot_body(slot).rmap[at].get(index);
        let sptes: Vec<Sptep> = self.pte_lists.iter(head).collect();
        for sptep in sptes {
            self.spte_clear_track_bits(sptep);
            self.work.rmap_steps += 1;
            self.aliased.remove(&sptep);
        }
        self.pte_lists.clear(&mut head);
        if let Some(stored) = self.slot_body_mut(slot).rmap[at].get_mut(index) {
            *stored = head;
        }
        true
    }
}

impl crate::mmu::Mmu {
    /// Takes each leaf of a level-1 page out of its gfn's list and puts it back; how many. The pair that the speed table
    /// times; nothing else needs it.
    pub fn rmap_remove_and_add(&mut self, page: u32) -> u64 {
        let state = &mut self.state;
        let Some(page) = state.arena.find_id(page).filter(|&page| state.arena.key(page).role.level() == 1) else {
            return 0;
        };
        let as_id = state.arena.key(page).role.as_id();
        let mut leaves = 0;
        for index in 0..512 {
            let sptep = page.sptep(index);
            if is_shadow_present(&state.masks, state.arena.spte(sptep)) {
                let gfn = state.gfn_of(sptep);
                state.rmap_remove(sptep);
                let slot = state.find_slot(as_id, gfn);
                state.rmap_add(slot, sptep, gfn, 1);
                leaves += 1;
            }
        }
        leaves
    }
}
