//! Bringing shadow pages back in step with the tables that the guest changed unseen: one entry, one page, all below a page,
//! all below a vCPU's roots.
//!
//! Models `sync_page`/`sync_spte`, `kvm_sync_page`, `mmu_sync_children`, `kvm_mmu_sync_roots`, v5.0 to v6.12. Syncing what
//! is below a vCPU's roots may drop the lock, so it is a run that keeps its place.

use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::pfn_of;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::vm::runs::{Step, SyncRun};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::{REQ_MMU_SYNC, REQ_TLB_FLUSH};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::guest_mode::{GPTE_ACCESSED, GPTE_PRESENT, Paging, gpte_access, protect_clean_gpte};
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;
use crate::mmu::words::spte::mmio::{is_mmio, mmio_gfn};

/// What became of an entry that was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum SyncedEntry {
    /// There is no memory where the guest's entry should be.
    Unreadable,
    /// It was dropped: the guest's entry leads nowhere, or elsewhere.
    Dropped,
    /// It was an MMIO SPTE of another gfn, and is empty now; no TLB held it.
    MmioDropped,
    /// It is in step; TLBs hold nothing else.
    Same,
    /// It is in step, and TLBs may hold what it was.
    Changed,
}

/// What became of a page that was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum SyncedPage {
    /// It cannot stay.
    Unusable,
    /// It is in step, and every flush that this needs is done.
    Same,
    /// It is in step, and a flush is owed.
    Changed,
}

impl MmuState {
    /// Where the guest has the entry that an entry of a page shadows.
    pub(in crate::mmu) fn gpte_address(&self, vcpu: usize, page: PageIdx, index: u16) -> u64 {
        let key = self.arena.key(page);
        let table = key.gfn.gpa();
        if self.vcpus[vcpu].mode.paging == Paging::P32 {
            table + (u64::from(key.role.quadrant()) << 11) + u64::from(index) * 4
        } else {
            table + u64::from(index) * 8
        }
    }

    /// The guest's entry that an entry of a page shadows; `None` where there is no memory.
    pub(in crate::mmu) fn read_gpte(&self, vcpu: usize, page: PageIdx, index: u16) -> Option<u64> {
        let size = self.vcpus[vcpu].mode.paging.entry_size();
        self.read_guest(self.vcpus[vcpu].as_id(), self.gpte_address(vcpu, page, index), size)
    }

    /// Whether an entry of a page table leads nowhere, or the guest has not used it.
    pub(in crate::mmu) fn is_gpte_unusable(&self, vcpu: usize, gpte: u64) -> bool {
        gpte & (GPTE_PRESENT | GPTE_ACCESSED) != GPTE_PRESENT | GPTE_ACCESSED
            || self.vcpus[vcpu].mode.is_reserved(gpte, PAGE_TABLE)
    }

    /// The gfn and the access that an entry of a page table gives below a page.
    pub(in crate::mmu) fn gpte_target(&self, vcpu: usize, page: PageIdx, gpte: u64) -> (Gfn, u8) {
        let access = self.arena.key(page).role.access() & gpte_access(gpte);
        let gfn = Gfn::of_gpa(gpte & self.vcpus[vcpu].mode.paging.address_mask());
        (gfn, protect_clean_gpte(access, gpte))
    }

    /// Syncs one entry that is not empty with the guest's. The page's own flag stays.
    pub(in crate::mmu) fn sync_spte(&mut self, vcpu: usize, sptep: Sptep) -> SyncedEntry {
        let (page, spte) = (sptep.page(), self.arena.spte(sptep));
        let Some(gpte) = self.read_gpte(vcpu, page, sptep.index()) else { return SyncedEntry::Unreadable };
        if self.is_gpte_unusable(vcpu, gpte) {
            return self.drop_unsynced(sptep);
        }
        let (gfn, access) = self.gpte_target(vcpu, page, gpte);
        if is_mmio(&self.masks, spte) {
            if Gfn(mmio_gfn(&self.masks, spte)) != gfn {
                self.spte_set(sptep, 0);
                return SyncedEntry::MmioDropped;
            }
            let slots_gen = self.spaces[usize::from(self.vcpus[vcpu].as_id())].slots_gen;
            self.mark_mmio_spte(sptep, gfn, access, slots_gen);
            return SyncedEntry::Same;
        }
        let Some(indirect) = self.arena.indirect(page) else { return SyncedEntry::Same };
        let (old_gfn, old_access) = (indirect.gfn(sptep.index()), indirect.access(sptep.index()));
        if old_gfn != gfn && !is_chosen(Mutant::SyncKeepsGfn) {
            return self.drop_unsynced(sptep);
        }
        if self.config.kernel.sync_keeps_same_access && old_access == access {
            return SyncedEntry::Same;
        }
        let slot = self.find_visible_slot(self.vcpus[vcpu].as_id(), gfn);
        let host_writable = spte & self.masks.host_writeable != 0;
        let backing = Backing::Frame { pfn: pfn_of(spte), host_writable };
        let level = PAGE_TABLE;
        let (is_write, speculative, can_unsync) = (false, true, false);
        let mapping = Mapping { vcpu, slot, gfn, level, access, backing, is_write, speculative, can_unsync };
        if self.remake_leaf(sptep, &mapping) { SyncedEntry::Changed } else { SyncedEntry::Same }
    }

    /// The flush that this needs may come late up to v5.10: the unmap notifier asks whether one is still to come.
    fn drop_unsynced(&mut self, sptep: Sptep) -> SyncedEntry {
        self.tell_guests(!self.config.kernel.is_role_fixed);
        self.drop_spte(sptep);
        self.tell_guests(false);
        self.tlbs_dirty += 1;
        SyncedEntry::Dropped
    }

    /// Whether a page shadows another kind of table than the vCPU's guest has now.
    fn is_alien(&self, vcpu: usize, page: PageIdx) -> bool {
        let role = self.arena.key(page).role;
        let of_vcpu = &self.vcpus[vcpu];
        if self.config.kernel.is_role_fixed {
            let alike = |role: Role| role.with_level(0).with_access(0).with_quadrant(0);
            return alike(role) != alike(of_vcpu.role);
        }
        role.gpte_is_8_bytes() != of_vcpu.has_pae() || of_vcpu.mode.paging == Paging::None
    }

    /// Syncs every entry of a page in place: neither its flag nor the marks above it change. Up to v5.10 a page that no
    /// entry is left of cannot stay.
    pub(in crate::mmu) fn sync_page_in_place(&mut self, vcpu: usize, page: PageIdx) -> SyncedPage {
        if self.is_alien(vcpu, page) {
            return SyncedPage::Unusable;
        }
        let entries: Vec<u16> = self.arena.table(page).iter().map(|(index, _)| index).collect();
        let is_newer = self.config.kernel.is_role_fixed;
        let (mut nr_present, mut flush) = (0, false);
        for index in entries {
            match self.sync_spte(vcpu, page.sptep(index)) {
                SyncedEntry::Unreadable => return SyncedPage::Unusable,
                SyncedEntry::Dropped => flush |= is_newer,
                SyncedEntry::MmioDropped => {}
                SyncedEntry::Same => nr_present += 1,
                SyncedEntry::Changed => {
                    nr_present += 1;
                    flush = true;
                }
            }
        }
        flush &= !is_chosen(Mutant::SyncWithoutFlush);
        if is_newer {
            return if flush { SyncedPage::Changed } else { SyncedPage::Same };
        }
        if flush {
            self.flush_remote_tlbs();
        }
        if nr_present == 0 { SyncedPage::Unusable } else { SyncedPage::Same }
    }

    /// The same; a page that cannot stay is zapped onto the list.
    pub(in crate::mmu) fn sync_page_or_zap(
        &mut self,
        vcpu: usize,
        page: PageIdx,
        invalid: &mut InvalidList,
    ) -> SyncedPage {
        let synced = self.sync_page_in_place(vcpu, page);
        if synced == SyncedPage::Unusable {
            self.prepare_zap_page(page, invalid);
        }
        synced
    }

    /// Syncs an unsync page, which is none any more; whether TLBs may hold what it was (up to v5.10 those of this vCPU).
    pub(in crate::mmu) fn sync_unsync_page(&mut self, vcpu: usize, page: PageIdx, invalid: &mut InvalidList) -> bool {
        self.unlink_unsync_page(page);
        match self.sync_page_or_zap(vcpu, page, invalid) {
            SyncedPage::Unusable => false,
            SyncedPage::Same => !self.config.kernel.is_role_fixed,
            SyncedPage::Changed => true,
        }
    }

    /// Commits what waits, or pays the flush that is owed: by every vCPU, or up to v5.10 by this one alone.
    pub(in crate::mmu) fn flush_or_zap_local(&mut self, vcpu: usize, invalid: &mut InvalidList, is_owed: bool) {
        if !invalid.is_empty() {
            self.commit_zap_page(invalid);
        } else if is_owed && self.config.kernel.is_role_fixed {
            self.flush_remote_tlbs();
        } else if is_owed {
            self.vcpus[vcpu].requests |= REQ_TLB_FLUSH;
        }
    }

    /// One round of syncing what is below a page; false if nothing was left to do.
    fn sync_children_round(&mut self, vcpu: usize, page: PageIdx, invalid: &mut InvalidList, flush: &mut bool) -> bool {
        let Some(found) = self.walk_unsync(page) else { return false };
        let paths = self.unsync_paths(&found);
        let mut is_protected = false;
        for path in &paths {
            let gfn = self.arena.key(path.page).gfn;
            is_protected |= self.vcpu_write_protect_gfn(vcpu, gfn);
        }
        if is_protected {
            if self.config.kernel.is_role_fixed && !invalid.is_empty() {
                self.commit_zap_page(invalid);
            } else {
                self.flush_remote_tlbs();
            }
            *flush = false;
        }
        for path in &paths {
            *flush |= self.sync_unsync_page(vcpu, path.page, invalid);
            self.clear_unsync_parents(path);
        }
        true
    }

    /// Syncs what is below a page while a fault holds the lock; false if somebody wants the lock: then the fault is to be
    /// taken again, and the roots are synced first.
    pub(in crate::mmu) fn sync_children_at_once(&mut self, vcpu: usize, page: PageIdx) -> bool {
        let mut invalid = InvalidList::default();
        let mut flush = false;
        while self.sync_children_round(vcpu, page, &mut invalid, &mut flush) {
            if self.lock_is_wanted() {
                self.flush_or_zap_local(vcpu, &mut invalid, flush);
                self.vcpus[vcpu].requests |= REQ_MMU_SYNC;
                return false;
            }
        }
        self.flush_or_zap_local(vcpu, &mut invalid, flush);
        true
    }

    /// The run that syncs what is below a vCPU's roots; nothing where no root is loaded or the guest does not page.
    pub(in crate::mmu) fn sync_roots_run(&mut self, vcpu: usize) -> SyncRun {
        let of_vcpu = &mut self.vcpus[vcpu];
        let mut run = SyncRun { vcpu, ..SyncRun::default() };
        if of_vcpu.mode.paging == Paging::None || !of_vcpu.has_roots() || is_chosen(Mutant::RootsNotSynced) {
            return run;
        }
        of_vcpu.mmio.gva = 0;
        let has_four = of_vcpu.has_four_roots;
        let roots: Vec<PageIdx> = of_vcpu.roots().collect();
        for root in roots.into_iter().rev() {
            let header = self.arena.page(root);
            if has_four || header.unsync || header.unsync_children != 0 {
                run.roots.push((root, self.arena.key(root).id));
            }
        }
        run
    }

    /// Goes on with it.
    pub(in crate::mmu) fn drive_sync(&mut self, run: &mut SyncRun, invalid: &mut InvalidList) -> Step {
        let vcpu = run.vcpu;
        while let Some(&(root, id)) = run.roots.last() {
            // Whoever had the lock meanwhile may have dropped the root.
            let is_there = self.arena.find_id(id) == Some(root);
            if is_there && self.sync_children_round(vcpu, root, invalid, &mut run.flush) {
                if self.lock_is_wanted() {
                    self.flush_or_zap_local(vcpu, invalid, run.flush);
                    run.flush = false;
                    if self.cond_resched() {
                        return Step::LockBreak;
                    }
                }
                continue;
            }
            self.flush_or_zap_local(vcpu, invalid, run.flush);
            run.flush = false;
            run.roots.pop();
        }
        Step::Done
    }
}
