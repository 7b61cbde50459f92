//! Keeping the number of shadow pages under its limit: reclaim in a fault, resize, shrinker.
//!
//! Models v5.0/v5.2 `make_mmu_pages_available`, `kvm_mmu_change_mmu_pages`, `mmu_shrink_scan`, where a root in use at the
//! tail ends every such loop, and v6.1/v6.12 `kvm_mmu_zap_oldest_mmu_pages`, which passes over roots in use.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::mutants::{Mutant, is_chosen};

pub(in crate::mmu) const KVM_MIN_FREE_MMU_PAGES: u64 = 5;
const KVM_REFILL_PAGES: u64 = 25;

/// No page could be made available.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct NoSpace;

impl MmuState {
    /// Zaps the oldest page; whether it (and not only its contents) went.
    fn prepare_zap_oldest(&mut self, invalid: &mut InvalidList) -> bool {
        let tail = if is_chosen(Mutant::NewestReclaimed) { self.active.head() } else { self.active.tail() };
        tail != PageIdx::NONE && self.prepare_zap_page(tail, invalid).nr_zapped != 0
    }

    #[inline]
    pub(in crate::mmu) fn make_mmu_pages_available(&mut self) -> Result<(), NoSpace> {
        if self.available_mmu_pages() >= KVM_MIN_FREE_MMU_PAGES { Ok(()) } else { self.reclaim() }
    }

    #[cold]
    fn reclaim(&mut self) -> Result<(), NoSpace> {
        if self.config.kernel.reclaim_skips_roots {
            let zapped = self.zap_oldest_mmu_pages(KVM_REFILL_PAGES - self.available_mmu_pages());
            if !self.config.is_stepped() {
                self.stats.recycled = self.stats.recycled.wrapping_add_unsigned(zapped);
            }
            return if self.available_mmu_pages() == 0 { Err(NoSpace) } else { Ok(()) };
        }
        let mut invalid = InvalidList::default();
        while self.available_mmu_pages() < KVM_REFILL_PAGES && self.prepare_zap_oldest(&mut invalid) {
            self.stats.recycled += 1;
        }
        self.commit_zap_page(&mut invalid);
        if self.available_mmu_pages() == 0 { Err(NoSpace) } else { Ok(()) }
    }

    /// Zaps the oldest pages, roots in use passed over, until so many are counted; how many were.
    pub(in crate::mmu) fn zap_oldest_mmu_pages(&mut self, nr_to_zap: u64) -> u64 {
        let mut invalid = InvalidList::default();
        let mut nr_zapped = 0;
        let mut page = self.active.tail();
        while page != PageIdx::NONE && nr_zapped < nr_to_zap {
            let before = self.active.prev(page);
            if self.arena.page(page).root_count == 0 || is_chosen(Mutant::RootReclaimed) {
                let prepared = self.prepare_zap_page(page, &mut invalid);
                nr_zapped += u64::from(prepared.nr_zapped);
                if prepared.is_list_unstable {
                    // The page before may be one of those that went.
                    page = self.active.tail();
                    continue;
                }
            }
            page = before;
        }
        self.commit_zap_page(&mut invalid);
        if self.config.is_stepped() {
            // The kernel counts every page that goes this way, not only those of a fault.
            self.stats.recycled = self.stats.recycled.wrapping_add_unsigned(nr_zapped);
        }
        if self.config.probes {
            self.events.push(|| Event::ZapOldestRet { nr_zapped });
        }
        nr_zapped
    }

    pub(in crate::mmu) fn change_mmu_pages(&mut self, goal: u64) {
        let mut goal = goal;
        if self.config.probes {
            self.events.push(|| Event::ChangeMmuPages { goal });
        }
        if self.used > goal && self.config.kernel.reclaim_skips_roots {
            self.zap_oldest_mmu_pages(self.used - goal);
            goal = self.used;
        } else if self.used > goal {
            let mut invalid = InvalidList::default();
            while self.used > goal && self.prepare_zap_oldest(&mut invalid) {}
            self.commit_zap_page(&mut invalid);
            goal = self.used;
        }
        self.max = goal;
    }

    /// Pages freed by a scan of at most so many VMs, of which this is one.
    pub(in crate::mmu) fn shrink(&mut self, nr_to_scan: u64) -> u64 {
        if !self.config.kernel.has_shrinker || nr_to_scan == 0 {
            return 0;
        }
        if self.used == 0 && self.zapped_obsolete.is_empty() {
            return 0;
        }
        if !self.zapped_obsolete.is_empty() && !is_chosen(Mutant::ObsoleteListForgotten) {
            self.commit_zapped_obsolete();
            return 0;
        }
        if self.config.kernel.reclaim_skips_roots {
            return self.zap_oldest_mmu_pages(nr_to_scan);
        }
        let mut invalid = InvalidList::default();
        let freed = u64::from(self.prepare_zap_oldest(&mut invalid));
        self.commit_zap_page(&mut invalid);
        freed
    }

    /// Commits the pages that the fast invalidate left on the VM's list.
    pub(in crate::mmu) fn commit_zapped_obsolete(&mut self) {
        let mut invalid = std::mem::take(&mut self.zapped_obsolete);
        self.commit_zap_page(&mut invalid);
    }
}
