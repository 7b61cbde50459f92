//! Keeping the number of shadow pages under its limit: reclaim in a fault, resize, shrinker.
//!
//! Models v5.0/v5.2 `make_mmu_pages_available`, `kvm_mmu_change_mmu_pages`, `mmu_shrink_scan`. A root in use at the tail
//! ends every such loop, as in the kernel.

use super::invalid_list::InvalidList;
use super::mutants::{Mutant, is_chosen};
use super::page_arena::PageIdx;
use super::state::MmuState;

const KVM_MIN_FREE_MMU_PAGES: u64 = 5;
const KVM_REFILL_PAGES: u64 = 25;

/// No page could be made available.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoSpace;

impl MmuState {
    pub(super) const fn available_mmu_pages(&self) -> u64 {
        self.max.saturating_sub(self.used)
    }

    /// Zaps the oldest page; whether it (and not only its contents) went.
    fn prepare_zap_oldest(&mut self, invalid: &mut InvalidList) -> bool {
        let tail = if is_chosen(Mutant::NewestReclaimed) { self.active.head() } else { self.active.tail() };
        tail != PageIdx::NONE && self.prepare_zap_page(tail, invalid).nr_zapped != 0
    }

    #[inline]
    pub(super) fn make_mmu_pages_available(&mut self) -> Result<(), NoSpace> {
        if self.available_mmu_pages() >= KVM_MIN_FREE_MMU_PAGES { Ok(()) } else { self.reclaim() }
    }

    #[cold]
    fn reclaim(&mut self) -> Result<(), NoSpace> {
        let mut invalid = InvalidList::default();
        while self.available_mmu_pages() < KVM_REFILL_PAGES && self.prepare_zap_oldest(&mut invalid) {
            self.stats.recycled += 1;
        }
        self.commit_zap_page(&mut invalid);
        if self.available_mmu_pages() == 0 { Err(NoSpace) } else { Ok(()) }
    }

    pub(super) fn change_mmu_pages(&mut self, goal: u64) {
        let mut goal = goal;
        if self.used > goal {
            let mut invalid = InvalidList::default();
            while self.used > goal && self.prepare_zap_oldest(&mut invalid) {}
            self.commit_zap_page(&mut invalid);
            goal = self.used;
        }
        self.max = goal;
    }

    /// Pages freed by a scan of at most so many VMs, of which this is one.
    pub(super) fn shrink(&mut self, nr_to_scan: u64) -> u64 {
        if nr_to_scan == 0 || self.used == 0 && self.zapped_obsolete.is_empty() {
            return 0;
        }
        if !self.zapped_obsolete.is_empty() && !is_chosen(Mutant::ObsoleteListForgotten) {
            self.commit_zapped_obsolete();
            return 0;
        }
        let mut invalid = InvalidList::default();
        let freed = u64::from(self.prepare_zap_oldest(&mut invalid));
        self.commit_zap_page(&mut invalid);
        freed
    }

    /// Commits the pages that the fast invalidate left on the VM's list.
    pub(super) fn commit_zapped_obsolete(&mut self) {
        let mut invalid = std::mem::take(&mut self.zapped_obsolete);
        self.commit_zap_page(&mut invalid);
    }
}
