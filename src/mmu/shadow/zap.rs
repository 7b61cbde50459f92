//! Zapping one shadow page: prepare takes it apart and onto an invalid list, commit flushes and frees. The one file that
//! frees shadow pages.
//!
//! Models v5.0 to v6.12 `kvm_mmu_prepare_zap_page` and `kvm_mmu_commit_zap_page`. Invariant: a page is freed only after every
//! TLB was asked to flush since it left the active list.

use crate::mmu::pages::leaves_gone::{LeavesGone, one_of_alike};
use crate::mmu::pages::page_arena::{PageIdx, Place, Sptep};
use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::pages::spte_table::SpteTable;
use crate::mmu::pages::walk::{child_of, is_large, is_last, is_shadow_present};
use crate::mmu::shadow::invalid_list::{Flushed, InvalidList};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::{REQ_MMU_RELOAD, VcpuMmu};
use crate::mmu::words::level::{ENTRIES, PAGE_TABLE};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::PFN_FIELD;
use crate::mmu::words::views::Prepared;

impl MmuState {
    /// Takes a page apart. A root in use stays, emptied and invalid, at the head of the active list.
    pub(in crate::mmu) fn prepare_zap_page(&mut self, page: PageIdx, invalid: &mut InvalidList) -> Prepared {
        let facts = self.page_facts(page);
        self.events.push(|| Event::PrepareZap { page: facts });
        self.stats.zapped += 1;
        self.work.pages_zapped += 1;
        let mut prepared = Prepared::default();
        self.forget_last_path();
        if self.arena.page(page).unsync_children != 0 && !is_chosen(Mutant::UnsyncChildrenSpared) {
            prepared.nr_children = self.zap_unsync_children(page, invalid);
            prepared.nr_zapped = prepared.nr_children;
        }
        self.unlink_children(page);
        self.unlink_parents(page);
        let role = self.arena.key(page).role;
        let was_invalid = role.invalid();
        if !role.direct() {
            self.end_shadowing(page, was_invalid);
        }
        self.forget_nx(page);
        if !was_invalid && self.active.is_mmio_cached(page) {
            self.mmio_pages.remove(&mut self.arena, page);
        }
        if facts.root_count == 0 || is_chosen(Mutant::InUseRootFreed) {
            prepared.nr_zapped += 1;
            if self.arena.page(page).place == Place::Active {
                self.active.remove(page);
            }
            self.arena.page_mut(page).place = Place::Invalid;
            invalid.push(page);
            self.used = self.used.saturating_sub(1);
        } else {
            if self.config.kernel.zapped_root_leaves && !is_chosen(Mutant::DeadRootStaysListed) {
                if self.arena.page(page).place == Place::Active {
                    self.active.remove(page);
                }
                self.arena.page_mut(page).place = Place::Root;
            } else {
                self.active.move_to_head(page);
            }
            if !was_invalid && !self.is_reload_skipped(page) {
                self.reload_remote_mmus();
            }
        }
        let key = self.arena.key_mut(page);
        key.role = key.role.with_invalid(true);
        prepared.is_list_unstable = prepared.nr_children > 0;
        prepared
    }

    /// Zaps the unsync pages below a page, whose tables the guest may have changed; how many.
    #[cold]
    fn zap_unsync_children(&mut self, page: PageIdx, invalid: &mut InvalidList) -> u32 {
        let mut nr_zapped = 0;
        while let Some(found) = self.walk_unsync(page) {
            for path in self.unsync_paths(&found) {
                self.prepare_zap_page(path.page, invalid);
                self.clear_unsync_parents(&path);
                nr_zapped += 1;
            }
        }
        nr_zapped
    }

    /// The guest may write the table again that a page shadowed.
    #[cold]
    fn end_shadowing(&mut self, page: PageIdx, was_invalid: bool) {
        if !was_invalid {
            self.unaccount_shadowed(page);
        }
        if self.arena.page(page).unsync {
            self.unlink_unsync_page(page);
        }
    }

    /// v5.0 leaves an obsolete root to the request made when the generation stepped. A plan that steps it without a
    /// request (v5.3's) relies on the one made here instead.
    fn is_reload_skipped(&self, root: PageIdx) -> bool {
        let is_asked = |vcpu: &VcpuMmu| vcpu.roots().all(|held| held != root) || vcpu.requests & REQ_MMU_RELOAD != 0;
        self.config.kernel.reload_skips_obsolete && self.is_obsolete(root) && self.vcpus.iter().all(is_asked)
    }

    fn unlink_children(&mut self, page: PageIdx) {
        let table = self.take_table(page);
        let role = self.arena.key(page).role;
        let level = role.level();
        match table {
            SpteTable::Empty => {}
            SpteTable::One { index, value } => self.unlink_child(page, index, value, level),
            SpteTable::Few(_) => {
                for (index, spte) in table.iter() {
                    self.unlink_child(page, index, spte, level);
                }
            }
            SpteTable::Full(words)
                if level == PAGE_TABLE
                    && role.direct()
                    && self.aliased.is_empty()
                    && !self.has_dangling
                    && !(self.config.probes && self.events.is_on()) =>
            {
                self.unlink_leaves(page, &words);
            }
            SpteTable::Full(words) => {
                for (index, &spte) in (0_u16..).zip(words.iter()) {
                    if spte != 0 {
                        self.unlink_child(page, index, spte, level);
                    }
                }
            }
        }
    }

    #[inline]
    fn unlink_child(&mut self, page: PageIdx, index: u16, spte: u64, level: u8) {
        self.work.sptes_cleared += 1;
        if self.config.probes {
            self.push_page_zap_pte(page.sptep(index), spte, level);
        }
        if !is_shadow_present(&self.masks, spte) {
            return;
        }
        let sptep = page.sptep(index);
        if is_last(spte, level) {
            self.account_leaf_gone(spte);
            self.rmap_remove(sptep);
            if is_large(spte) {
                self.stats.lpages -= 1;
            }
        } else {
            self.remove_parent(child_of(spte), sptep);
        }
    }

    /// A full page table: neighbours are looked up together, as many as stand in one chunk of their slot's heads.
    fn unlink_leaves(&mut self, page: PageIdx, words: &[u64; ENTRIES]) {
        let key = self.arena.key(page);
        let (base, as_id) = (key.gfn, key.role.as_id());
        if self.events.is_on() {
            for &spte in words {
                if is_shadow_present(&self.masks, spte) {
                    self.account_leaf_gone(spte);
                }
            }
        }
        let mut gone = LeavesGone::default();
        let mut first = 0_u16;
        while let Some(rest) = words.get(usize::from(first)..).filter(|rest| !rest.is_empty()) {
            let empty = rest.iter().position(|&spte| spte != 0).unwrap_or(rest.len());
            if empty > 0 {
                first += u16::try_from(empty).unwrap_or(1);
                continue;
            }
            let space = &mut self.spaces[usize::from(as_id & 1)];
            let gfn = base.plus(first.into());
            // Without a slot or a chunk there is no list that an entry could stand in.
            let heads = space.find(gfn).and_then(|at| {
                let spec = space.specs()[at];
                let left = usize::try_from(spec.npages - spec.index(gfn, PAGE_TABLE)).unwrap_or(usize::MAX);
                let heads = space.body_mut(at).rmap[0].rest_of_chunk_mut(spec.index(gfn, PAGE_TABLE))?;
                let count = heads.len().min(left).min(rest.len());
                Some(&mut heads[..count])
            });
            let count = heads.as_ref().map_or(1, |heads| heads.len());
            let words = &rest[..count];
            let heads = heads.unwrap_or_default();
            if let Some(spte) = one_of_alike(&self.masks, words)
                && PteHead::are_one_each(heads, page.sptep(first))
            {
                heads.fill(PteHead::EMPTY);
                gone.add_alike(&self.masks, spte, words);
                first += u16::try_from(count).unwrap_or(1);
                continue;
            }
            let mut heads = heads.iter_mut();
            for (index, &spte) in (first..).zip(words) {
                let head = heads.next();
                gone.add(&self.masks, spte);
                if !is_shadow_present(&self.masks, spte) {
                    continue;
                }
                match head {
                    Some(head) if *head == PteHead::one(page.sptep(index)) => *head = PteHead::EMPTY,
                    Some(head) => {
                        self.pte_lists.remove(head, page.sptep(index));
                    }
                    None => {}
                }
            }
            first += u16::try_from(count).unwrap_or(1);
        }
        self.work.sptes_cleared += gone.cleared;
        self.work.rmap_steps += gone.leaves;
        self.stats.lpages -= gone.large;
        let copies = self.config.kernel.copies_ad_on_zap && !is_chosen(Mutant::AccessedDirtyLost);
        if !self.events.is_on() && copies {
            self.stats.pfn_accessed += gone.accessed;
            self.stats.pfn_dirty += gone.dirty;
        }
    }

    pub(in crate::mmu) fn unlink_parents(&mut self, page: PageIdx) {
        let mut parents = self.arena.page(page).parents;
        while let Some(sptep) = self.pte_lists.first(parents) {
            self.work.parent_steps += 1;
            self.pte_lists.remove(&mut parents, sptep);
            if !is_chosen(Mutant::ParentEntryKept) {
                self.spte_set(sptep, 0);
            }
        }
        self.arena.page_mut(page).parents = parents;
    }

    /// Logs `mmu_page_zap_pte`; the address of a link is not shown.
    pub(in crate::mmu) fn push_page_zap_pte(&mut self, sptep: Sptep, spte: u64, level: u8) {
        let is_link = is_shadow_present(&self.masks, spte) && !is_last(spte, level);
        let shown = if is_link { spte & !PFN_FIELD } else { spte };
        let page = self.arena.key(sptep.page()).id;
        self.events.push(|| Event::PageZapPte { page, index: sptep.index(), spte: shown });
    }

    /// Flushes every TLB and frees the pages; nothing if there are none.
    pub(in crate::mmu) fn commit_zap_page(&mut self, invalid: &mut InvalidList) {
        if invalid.is_empty() {
            return;
        }
        if self.config.probes {
            self.events.push(|| Event::CommitZap);
        }
        let flushed = invalid.flushed(|| {
            if !is_chosen(Mutant::FlushSkipped) {
                self.flush_remote_tlbs();
            }
        });
        self.free_shadow_pages(flushed);
    }

    fn free_shadow_pages(&mut self, flushed: Flushed) {
        for page in flushed.into_pages() {
            self.hash.remove(&mut self.arena, page);
            self.free_page(page);
        }
    }
}
