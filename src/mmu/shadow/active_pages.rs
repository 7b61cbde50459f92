//! `ActivePages`: the active list, newest page at the head, with what a list walk asks first beside the links.
//!
//! Models `active_mmu_pages`. The links are an array of their own, so that a walk that looks at every page touches 12
//! bytes of each.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::vm::shared_array::SharedArray;

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Link {
    prev: PageIdx,
    next: PageIdx,
    is_mmio_cached: bool,
}

/// The active list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ActivePages {
    links: SharedArray<Link, 64>,
    head: PageIdx,
    tail: PageIdx,
    len: usize,
}

impl ActivePages {
    /// Whether every link is an index below `pages`, and the list ends.
    #[must_use]
    pub fn is_well_formed(&self, pages: usize) -> bool {
        let within = |page: PageIdx| page.at() < pages && (page.some().is_none() || page.at() < self.links.len());
        let mut seen = vec![false; pages];
        within(self.head)
            && within(self.tail)
            && self.links.iter().all(|link| within(link.prev) && within(link.next))
            && self.iter().all(|page| !std::mem::replace(&mut seen[page.at()], true))
    }

    /// The newest page.
    #[must_use]
    pub const fn head(&self) -> PageIdx {
        self.head
    }

    /// The oldest page.
    #[must_use]
    pub const fn tail(&self) -> PageIdx {
        self.tail
    }

    /// Pages on it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The page after this one, towards the oldest.
    #[must_use]
    #[inline]
    pub fn next(&self, page: PageIdx) -> PageIdx {
        self.links.at(page.at()).next
    }

    /// The page before this one, towards the newest.
    #[must_use]
    #[inline]
    pub fn prev(&self, page: PageIdx) -> PageIdx {
        self.links.at(page.at()).prev
    }

    /// Whether the page was ever given an MMIO SPTE.
    #[must_use]
    #[inline]
    pub fn is_mmio_cached(&self, page: PageIdx) -> bool {
        self.links.get(page.at()).is_some_and(|link| link.is_mmio_cached)
    }

    /// Notes that it was.
    pub fn set_mmio_cached(&mut self, page: PageIdx) {
        self.links.at_mut(page.at()).is_mmio_cached = true;
    }

    /// Goes on from a page of the list, itself included, until one was ever given an MMIO SPTE, at most so far: how many
    /// were looked at; the page found, if one was; the next to look at, if none was and the list goes on.
    #[must_use]
    pub fn scan_mmio_cached(&self, from: PageIdx, is_backward: bool, most: u64) -> (u64, PageIdx, PageIdx) {
        let mut page = from;
        let mut seen = 0;
        while page != PageIdx::NONE && seen < most {
            let link = self.links.at(page.at());
            seen += 1;
            if link.is_mmio_cached {
                return (seen, page, PageIdx::NONE);
            }
            page = if is_backward { link.prev } else { link.next };
        }
        (seen, PageIdx::NONE, page)
    }

    /// Puts a new page at the head.
    pub fn push_head(&mut self, page: PageIdx) {
        while self.links.len() <= page.at() {
            self.links.reserve((self.links.len() / 4).max(64));
            self.links.push(Link::default());
        }
        self.links.at_mut(page.at()).is_mmio_cached = false;
        self.link_head(page);
    }

    fn link_head(&mut self, page: PageIdx) {
        let next = self.head;
        let link = self.links.at_mut(page.at());
        link.prev = PageIdx::NONE;
        link.next = next;
        if next == PageIdx::NONE {
            self.tail = page;
        } else {
            self.links.at_mut(next.at()).prev = page;
        }
        self.head = page;
        self.len += 1;
    }

    /// Takes a page off the list.
    pub fn remove(&mut self, page: PageIdx) {
        let link = *self.links.at(page.at());
        if link.prev == PageIdx::NONE {
            self.head = link.next;
        } else {
            self.links.at_mut(link.prev.at()).next = link.next;
        }
        if link.next == PageIdx::NONE {
            self.tail = link.prev;
        } else {
            self.links.at_mut(link.next.at()).prev = link.prev;
        }
        self.links.at_mut(page.at()).prev = PageIdx::NONE;
        self.links.at_mut(page.at()).next = PageIdx::NONE;
        self.len = self.len.saturating_sub(1);
    }

    /// Moves a page on the list to its head.
    pub fn move_to_head(&mut self, page: PageIdx) {
        self.remove(page);
        self.link_head(page);
    }

    /// Moves a page on the list to its tail. For a mutant.
    #[cfg(feature = "mutants")]
    pub fn move_to_tail(&mut self, page: PageIdx) {
        self.remove(page);
        let prev = self.tail;
        self.links.at_mut(page.at()).prev = prev;
        if prev == PageIdx::NONE {
            self.head = page;
        } else {
            self.links.at_mut(prev.at()).next = page;
        }
        self.tail = page;
        self.len += 1;
    }

    /// Forgets that a page was given an MMIO SPTE. For a mutant.
    #[cfg(feature = "mutants")]
    pub fn clear_mmio_cached(&mut self, page: PageIdx) {
        self.links.at_mut(page.at()).is_mmio_cached = false;
    }

    /// The pages from the newest to the oldest.
    pub fn iter(&self) -> impl Iterator<Item = PageIdx> + '_ {
        std::iter::successors(self.head.some(), |&page| self.next(page).some())
    }

    /// Says another length than the list has.
    #[cfg(test)]
    pub const fn set_len_for_test(&mut self, len: usize) {
        self.len = len;
    }

    /// Which pages' links may differ from what they were; nothing if that is not known.
    #[must_use]
    pub fn changed_since(&self, known: &Self) -> Option<Vec<usize>> {
        self.links.changed_since(&known.links)
    }

    /// Makes the links a vector again, if nobody else has them any more.
    pub fn settle(&mut self) {
        self.links.settle();
    }

    /// Makes the links common, so that a clone does not copy them.
    pub fn lend(&mut self) {
        self.links.lend();
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.links.size_bytes()
    }
}
