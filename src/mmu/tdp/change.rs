//! What a change of an entry of the TDP MMU brings with it: its report, the marks of the host page, and the removal of the
//! table it linked to, with everything below.
//!
//! Models `handle_changed_spte`, `handle_removed_pt`, `tdp_mmu_zap_spte_atomic`, v6.1 to v7.3. Invariant: whoever stores a
//! word in a linked table says so here, except the lock-free fault and the processor.

use crate::kernels::TdpAtomicZap;
use crate::mmu::pages::leaves_gone::LeavesGone;
use crate::mmu::pages::page_arena::{PageIdx, Place, Sptep};
use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::pages::spte_table::SpteTable;
use crate::mmu::pages::walk::{child_of, is_accessed, is_dirty, is_last, is_shadow_present, pfn_of};
use crate::mmu::tdp::tdp_walk::{Entry, Lock};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::level::{ENTRIES, PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;
use crate::mmu::words::spte::layout::PFN_FIELD;
use crate::mmu::words::spte::make::make_link;

impl MmuState {
    /// Stores a word in an entry and reports the change, if it is one.
    pub(in crate::mmu) fn tdp_set_spte(&mut self, sptep: Sptep, gfn: Gfn, new: u64, lock: Lock) {
        let old = self.arena.spte(sptep);
        self.spte_set(sptep, new);
        let role = self.arena.key(sptep.page()).role;
        self.tdp_changed(Entry { as_id: role.as_id(), gfn, level: role.level() }, old, new, lock);
    }

    /// What follows from the change of an entry, which is stored already.
    pub(in crate::mmu) fn tdp_changed(&mut self, entry: Entry, old: u64, new: u64, lock: Lock) {
        if old == new {
            return;
        }
        let was_present = is_shadow_present(&self.masks, old);
        let was_leaf = was_present && is_last(old, entry.level);
        let is_present = is_shadow_present(&self.masks, new);
        let is_leaf = is_present && is_last(new, entry.level);
        let is_table_gone = was_present && !was_leaf && (!is_present || is_leaf);
        let old_child = if was_present && !was_leaf { self.arena.key(child_of(old)).id } else { 0 };
        let is_reported_late = is_table_gone && self.config.kernel.tdp_subtree_first;
        if !is_reported_late {
            self.push_tdp_change(entry, old, new, old_child, 1);
        }
        if !was_present && !is_present {
            return;
        }
        let is_moved = !is_leaf || pfn_of(old) != pfn_of(new);
        let copies = self.config.kernel.copies_ad_on_zap && !is_chosen(Mutant::TdpDirtyLost);
        if copies && was_leaf && is_dirty(&self.masks, old) && (is_moved || !is_dirty(&self.masks, new)) {
            self.push_dirty(pfn_of(old));
        }
        if is_table_gone {
            self.tdp_remove_table(child_of(old), lock);
        }
        if is_reported_late {
            self.push_tdp_change(entry, old, new, old_child, 1);
        }
        if copies && was_leaf && is_accessed(&self.masks, old) && (is_moved || !is_accessed(&self.masks, new)) {
            self.push_accessed(pfn_of(old));
        }
    }

    /// Reports `n` equal changes of neighbouring entries; links are told by the table and not by its place.
    pub(in crate::mmu) fn push_tdp_change(&mut self, entry: Entry, old: u64, new: u64, old_child: u32, n: u32) {
        self.stats.spte_changed += i64::from(n);
        self.work.sptes_changed += u64::from(n);
        if !self.events.is_on() {
            return;
        }
        let is_link = |spte: u64| is_shadow_present(&self.masks, spte) && !is_last(spte, entry.level);
        let new_child = if is_link(new) { self.arena.key(child_of(new)).id } else { 0 };
        let shown = |spte: u64| match spte {
            0 => self.masks.nonpresent,
            _ if is_link(spte) => spte & !PFN_FIELD,
            _ => spte,
        };
        let Entry { as_id, gfn, level } = entry;
        let (old, new) = (shown(old), shown(new));
        self.events.push_run(Event::Spte { as_id, gfn: gfn.0, level, old, new, old_child, new_child, n });
    }

    /// Takes a table that is not linked any more apart, with all below it, and frees it.
    pub(in crate::mmu) fn tdp_remove_table(&mut self, table: PageIdx, lock: Lock) {
        let facts = self.page_facts(table);
        let is_late = is_chosen(Mutant::TdpTableAfterEntries);
        if !is_late {
            self.events.push(|| Event::PrepareZap { page: facts });
        }
        self.stats.zapped += 1;
        self.work.pages_zapped += 1;
        self.forget_last_path();
        if !is_chosen(Mutant::TdpNxMarkKept) {
            self.tdp_unlist_nx(table, true);
        }
        let (gfn, role) = (self.arena.key(table).gfn, self.arena.key(table).role);
        let (as_id, level) = (role.as_id(), role.level());
        let words = self.take_table(table);
        if level == PAGE_TABLE && !self.events.is_on() {
            self.account_leaves_frozen(&words, lock);
            self.tdp.nr_tables = self.tdp.nr_tables.saturating_sub(1);
            self.free_page(table);
            return;
        }
        let frozen = self.masks.frozen;
        let at = |index: usize| Entry { as_id, gfn: gfn.plus(index as u64 * pages_per(level)), level };
        let mut done = 0;
        let is_exclusive = lock == Lock::Exclusive || is_chosen(Mutant::TdpEmptyNotFrozen);
        for (index, spte) in words.iter() {
            let index = usize::from(index);
            if !is_exclusive {
                self.push_empty_run(at(done), index - done);
            }
            done = index + 1;
            if !is_exclusive || is_shadow_present(&self.masks, spte) {
                self.work.sptes_cleared += 1;
                self.tdp_changed(at(index), spte, frozen, lock);
            }
        }
        if !is_exclusive {
            self.push_empty_run(at(done), ENTRIES - done);
        }
        if is_late {
            self.events.push(|| Event::PrepareZap { page: facts });
        }
        self.tdp.nr_tables = self.tdp.nr_tables.saturating_sub(1);
        self.free_page(table);
    }

    /// Counts the changes of a page table that goes, where nobody listens.
    fn account_leaves_frozen(&mut self, words: &SpteTable, lock: Lock) {
        let mut gone = LeavesGone::default();
        match words.full() {
            Some(words) => gone.add_all(&self.masks, words),
            None => words.iter().for_each(|(_, spte)| gone.add(&self.masks, spte)),
        }
        let leaves = gone.leaves;
        let is_shared = lock == Lock::Shared && !is_chosen(Mutant::TdpEmptyNotFrozen);
        let changed = if is_shared { ENTRIES as u64 } else { leaves };
        self.stats.spte_changed = self.stats.spte_changed.wrapping_add_unsigned(changed);
        self.work.sptes_changed += changed;
        self.work.sptes_cleared += if is_shared { gone.cleared } else { leaves };
        self.account_leaves_gone(gone);
    }

    /// Empty entries of a table that goes become frozen.
    fn push_empty_run(&mut self, first: Entry, len: usize) {
        if len > 0 {
            self.push_tdp_change(first, 0, self.masks.frozen, 0, u32::try_from(len).unwrap_or(u32::MAX));
        }
    }

    /// Zaps one entry while faults may go on beside: its range is flushed before anybody can use the place again.
    pub(in crate::mmu) fn tdp_zap_atomic(&mut self, sptep: Sptep, gfn: Gfn) {
        let role = self.arena.key(sptep.page()).role;
        let entry = Entry { as_id: role.as_id(), gfn, level: role.level() };
        let old = self.arena.spte(sptep);
        let pages = if is_chosen(Mutant::TdpRangeFlushShort) { 1 } else { pages_per(entry.level) };
        self.spte_set(sptep, if is_chosen(Mutant::TdpFrozenLeft) { self.masks.frozen } else { 0 });
        match self.config.kernel.tdp_atomic_zap {
            TdpAtomicZap::ReportFirst => {
                self.tdp_changed(entry, old, self.masks.frozen, Lock::Shared);
                self.flush_remote_tlbs_with_address(gfn.align_down(entry.level), pages);
            }
            TdpAtomicZap::FlushFirst => {
                self.flush_remote_tlbs_with_address(gfn.align_down(entry.level), pages);
                self.tdp_changed(entry, old, 0, Lock::Shared);
            }
        }
    }

    /// Makes a table that nothing links to yet.
    pub(in crate::mmu) fn tdp_make_table(&mut self, gfn: Gfn, role: Role) -> Result<PageIdx> {
        let table = self.arena.alloc(gfn, role, 0).ok_or(Error::TooManyPages)?;
        self.arena.page_mut(table).place = Place::Tdp;
        if let Some(ghost) = &mut self.ghost {
            ghost.made(table.0);
        }
        self.stats.created += 1;
        self.work.get_page_created += 1;
        let facts = self.page_facts(table);
        self.events.push(|| Event::GetPage { page: facts, created: true });
        Ok(table)
    }

    /// Links a table where an empty entry, an MMIO SPTE or a large leaf stood.
    pub(in crate::mmu) fn tdp_link(&mut self, sptep: Sptep, gfn: Gfn, table: PageIdx, lock: Lock) {
        let link = make_link(&self.masks, table.0, self.arena.key(table).role.ad_disabled());
        self.arena.page_mut(table).parents = PteHead::one(sptep);
        self.tdp.nr_tables += 1;
        self.tdp_set_spte(sptep, gfn, link, lock);
    }
}
