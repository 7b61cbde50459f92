//! Tables of the guest that it may change unseen: which they are, and the marks above them by which they are found.
//!
//! Models `mmu_need_write_protect` up to v5.10 and `mmu_try_to_unsync_pages` later, `kvm_unsync_page`,
//! `kvm_mmu_mark_parents_unsync`, `mmu_unsync_walk`, `mmu_pages_clear_parents`. Invariant: a page with an unsync page below
//! it is marked in each of its parents; marks go only when a walk finds nothing behind them or what was found is synced.

use crate::mmu::pages::indirect_page::Indirect;
use crate::mmu::pages::page_arena::{PageIdx, Place, Sptep};
use crate::mmu::pages::walk::{child_of, is_large, is_shadow_present};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};

/// Most pages that one walk finds, those between included.
const MAX_PAIRS: usize = 16;
/// Levels of a table, and one more.
const LEVELS: usize = 7;

const EPERM: i32 = 1;
const EEXIST: i32 = 17;

/// What a walk found below a page: pages in the order of the walk, each with its index in the one above.
#[derive(Clone, Debug, Default)]
pub(in crate::mmu) struct UnsyncPages {
    pairs: Vec<(PageIdx, u16)>,
    nr_unsync: u32,
}

/// A walk stops: there is no room for more.
struct Full;

/// Where one of the pages found hangs.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct UnsyncPath {
    pub page: PageIdx,
    parents: [PageIdx; LEVELS],
    index: [u16; LEVELS],
}

impl UnsyncPages {
    /// Adds a page; `Full` if there is no room for another one after it.
    fn add(&mut self, page: PageIdx, index: u16, is_unsync: bool) -> Result<(), Full> {
        if is_unsync && self.pairs.iter().any(|&(other, _)| other == page) {
            return Ok(());
        }
        self.pairs.push((page, index));
        if self.pairs.len() == MAX_PAIRS { Err(Full) } else { Ok(()) }
    }
}

impl MmuState {
    /// Whether a page counts when pages of a gfn are looked for.
    fn is_valid_page(&self, page: PageIdx) -> bool {
        let key = self.arena.key(page);
        !key.role.invalid() && key.valid_gen == self.valid_gen
    }

    /// The valid pages that shadow a gfn as a table, the newest first.
    pub(in crate::mmu) fn indirect_pages_of(&self, gfn: Gfn) -> Vec<PageIdx> {
        let mut found = Vec::new();
        let mut page = self.hash.first(gfn);
        while page != PageIdx::NONE {
            let key = self.arena.key(page);
            if key.gfn == gfn && !key.role.direct() && self.is_valid_page(page) {
                found.push(page);
            }
            page = key.hash_next;
        }
        found
    }

    /// Lets the pages that shadow a gfn fall out of sync so that it can be mapped writable: 0, or the reason why not as a
    /// negative errno.
    #[inline]
    pub(in crate::mmu) fn try_to_unsync_pages(
        &mut self,
        slot: Option<SlotAt>,
        gfn: Gfn,
        can_unsync: bool,
        is_prefetch: bool,
    ) -> i32 {
        if self.needs_write_protect(slot, gfn) {
            return -EPERM;
        }
        if self.nr_indirect == 0 { 0 } else { self.unsync_pages_of(gfn, can_unsync, is_prefetch) }
    }

    #[cold]
    fn unsync_pages_of(&mut self, gfn: Gfn, can_unsync: bool, is_prefetch: bool) -> i32 {
        for page in self.indirect_pages_of(gfn) {
            if !can_unsync && !is_chosen(Mutant::SyncUnsyncs) || !self.config.kernel.has_unsync {
                return -EPERM;
            }
            if self.arena.page(page).unsync {
                continue;
            }
            if is_prefetch && self.config.kernel.is_role_fixed {
                return -EEXIST;
            }
            self.unsync_page(page);
        }
        0
    }

    /// Guest memory is changed without the MMU being told: pages in sync that shadow it do not say any more what it says.
    pub(in crate::mmu) fn tell_behind(&mut self, gfn: Gfn) {
        let is_of = |&page: &PageIdx| {
            let (key, header) = (self.arena.key(page), self.arena.page(page));
            header.place != Place::Free && key.gfn == gfn && !key.role.direct() && !header.unsync
        };
        let changed: Vec<PageIdx> = self.arena.indices().filter(is_of).collect();
        for page in changed {
            if let Some(ghost) = &mut self.ghost {
                ghost.changed_behind(page.0);
            }
        }
    }

    fn unsync_page(&mut self, page: PageIdx) {
        let facts = self.page_facts(page);
        self.events.push(|| Event::Unsync { page: facts });
        self.arena.page_mut(page).unsync = true;
        if !is_chosen(Mutant::UnsyncNotMarked) {
            self.mark_parents_unsync(page);
        }
    }

    fn mark_parents_unsync(&mut self, page: PageIdx) {
        let parents: Vec<Sptep> = self.pte_lists.iter(self.arena.page(page).parents).collect();
        for sptep in parents {
            self.mark_unsync(sptep);
        }
    }

    /// Marks an entry as one with an unsync page below it, and what leads to its table.
    pub(in crate::mmu) fn mark_unsync(&mut self, sptep: Sptep) {
        let page = sptep.page();
        let Some(indirect) = self.arena.indirect_mut(page) else { return };
        if !indirect.mark_unsync_child(sptep.index()) {
            return;
        }
        let header = self.arena.page_mut(page);
        header.unsync_children += 1;
        if header.unsync_children == 1 {
            self.mark_parents_unsync(page);
        }
    }

    fn clear_unsync_child(&mut self, page: PageIdx, index: u16) {
        if self.arena.indirect_mut(page).is_some_and(|indirect| indirect.clear_unsync_child(index)) {
            let header = self.arena.page_mut(page);
            header.unsync_children = header.unsync_children.saturating_sub(1);
        }
    }

    /// The unsync pages below a page, as many as one walk finds; none if it is empty. Marks with nothing behind them go.
    pub(in crate::mmu) fn walk_unsync(&mut self, page: PageIdx) -> Option<UnsyncPages> {
        let mut found = UnsyncPages::default();
        if self.arena.page(page).unsync_children == 0 {
            return None;
        }
        let is_unsync = self.arena.page(page).unsync;
        let is_full = found.add(page, 0, is_unsync).is_err() || self.walk_unsync_below(page, &mut found).is_err();
        (is_full || found.nr_unsync > 0).then_some(found)
    }

    /// How many were found below; stops where there is no room.
    fn walk_unsync_below(&mut self, page: PageIdx, found: &mut UnsyncPages) -> Result<u32, Full> {
        let mut nr_found = 0;
        let marked: Vec<u16> = self.arena.indirect(page).into_iter().flat_map(Indirect::unsync_children).collect();
        for index in marked {
            let spte = self.arena.spte(page.sptep(index));
            if !is_shadow_present(&self.masks, spte) || is_large(spte) {
                self.clear_unsync_child(page, index);
                continue;
            }
            let child = child_of(spte);
            let (has_children, is_unsync) = {
                let header = self.arena.page(child);
                (header.unsync_children != 0, header.unsync)
            };
            if has_children {
                found.add(child, index, is_unsync)?;
                let below = self.walk_unsync_below(child, found)?;
                if below == 0 {
                    self.clear_unsync_child(page, index);
                }
                nr_found += below;
            } else if is_unsync {
                nr_found += 1;
                found.nr_unsync += 1;
                found.add(child, index, true)?;
            } else {
                self.clear_unsync_child(page, index);
            }
        }
        Ok(nr_found)
    }

    /// The unsync pages that a walk found, in order, each with the way that leads to it.
    pub(in crate::mmu) fn unsync_paths(&self, found: &UnsyncPages) -> Vec<UnsyncPath> {
        let mut path = UnsyncPath { page: PageIdx::NONE, parents: [PageIdx::NONE; LEVELS], index: [0; LEVELS] };
        let mut paths = Vec::new();
        for &(page, index) in &found.pairs {
            let level = usize::from(self.arena.key(page).role.level()).min(LEVELS - 1);
            path.index[level] = index;
            if level == usize::from(PAGE_TABLE) {
                paths.push(UnsyncPath { page, ..path });
            } else {
                path.parents[level] = page;
            }
        }
        paths
    }

    /// Takes the marks away that led to a page which is in sync now.
    pub(in crate::mmu) fn clear_unsync_parents(&mut self, path: &UnsyncPath) {
        for level in 2..LEVELS {
            let parent = path.parents[level];
            if parent == PageIdx::NONE {
                return;
            }
            self.clear_unsync_child(parent, path.index[level - 1]);
            if self.arena.page(parent).unsync_children != 0 {
                return;
            }
        }
    }

    /// A page is in sync again, or gone.
    pub(in crate::mmu) fn unlink_unsync_page(&mut self, page: PageIdx) {
        let facts = self.page_facts(page);
        self.events.push(|| Event::Sync { page: facts });
        self.arena.page_mut(page).unsync = false;
    }
}
