//! `MmioPages`: only the MMIO-caching pages, the one flagged last at the head. Ours; the plan `indexed` walks it.
//!
//! Invariant: a page stands on it exactly from the first MMIO SPTE it was given until it is zapped.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::{PageArena, PageIdx};

/// Head of the list; the links are in the pages.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MmioPages {
    head: PageIdx,
    len: usize,
}

impl MmioPages {
    /// Whether the list stays inside the arena and ends.
    #[must_use]
    pub fn is_well_formed(&self, arena: &PageArena) -> bool {
        let mut seen = vec![false; arena.nr_indices()];
        let mut page = self.head;
        while page.some().is_some() {
            if page.at() >= seen.len() || std::mem::replace(&mut seen[page.at()], true) {
                return false;
            }
            page = arena.page(page).mmio_next;
        }
        true
    }

    /// The page flagged last.
    #[must_use]
    pub const fn head(&self) -> PageIdx {
        self.head
    }

    /// Pages on it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Puts a page at the head.
    pub fn push_head(&mut self, arena: &mut PageArena, page: PageIdx) {
        let next = self.head;
        arena.page_mut(page).mmio_next = next;
        arena.page_mut(page).mmio_prev = PageIdx::NONE;
        if next != PageIdx::NONE {
            arena.page_mut(next).mmio_prev = page;
        }
        self.head = page;
        self.len += 1;
    }

    /// Takes a page off.
    pub fn remove(&mut self, arena: &mut PageArena, page: PageIdx) {
        let (prev, next) = (arena.page(page).mmio_prev, arena.page(page).mmio_next);
        if prev == PageIdx::NONE {
            self.head = next;
        } else {
            arena.page_mut(prev).mmio_next = next;
        }
        if next != PageIdx::NONE {
            arena.page_mut(next).mmio_prev = prev;
        }
        arena.page_mut(page).mmio_next = PageIdx::NONE;
        arena.page_mut(page).mmio_prev = PageIdx::NONE;
        self.len = self.len.saturating_sub(1);
    }
}
