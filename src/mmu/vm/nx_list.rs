//! `NxList`: the tables that NX recovery would zap, the oldest first.
//!
//! Models `possible_nx_huge_pages`. The links are an array of their own, as long as the highest page that ever stood on
//! the list, so that a table is found, put and taken in a few steps. Invariant: a page stands on it once.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::{MAX_PAGES, PageIdx};

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    prev: PageIdx,
    next: PageIdx,
    is_listed: bool,
}

/// The list. Saved as its pages in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<PageIdx>", into = "Vec<PageIdx>")]
pub struct NxList {
    links: Vec<Link>,
    head: PageIdx,
    tail: PageIdx,
    len: usize,
}

impl From<NxList> for Vec<PageIdx> {
    fn from(list: NxList) -> Self {
        list.iter().collect()
    }
}

impl From<Vec<PageIdx>> for NxList {
    /// Pages that no arena has, or that come twice, are counted and left out.
    fn from(saved: Vec<PageIdx>) -> Self {
        let mut list = Self::default();
        for &page in &saved {
            list.push_back(page);
        }
        Self { len: saved.len(), ..list }
    }
}

impl NxList {
    /// Whether every page is an index below `pages`, and as many stand on it as were counted.
    #[must_use]
    pub fn is_well_formed(&self, pages: usize) -> bool {
        self.iter().all(|page| page.at() < pages) && self.iter().count() == self.len
    }

    /// How many tables stand on it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// The table that was listed first.
    #[must_use]
    pub fn front(&self) -> Option<PageIdx> {
        self.head.some()
    }

    /// Whether a table stands on it.
    #[must_use]
    pub fn contains(&self, page: PageIdx) -> bool {
        self.links.get(page.at()).is_some_and(|link| link.is_listed)
    }

    /// Puts a table at the end, if it does not stand on the list yet; whether it did not.
    pub fn push_back(&mut self, page: PageIdx) -> bool {
        if page == PageIdx::NONE || page.at() >= MAX_PAGES || self.contains(page) {
            return false;
        }
        if self.links.len() <= page.at() {
            self.links.resize(page.at() + 1, Link::default());
        }
        self.links[page.at()] = Link { prev: self.tail, next: PageIdx::NONE, is_listed: true };
        match self.tail.some() {
            Some(tail) => self.links[tail.at()].next = page,
            None => self.head = page,
        }
        self.tail = page;
        self.len += 1;
        true
    }

    /// Takes a table off; whether it stood on the list.
    pub fn remove(&mut self, page: PageIdx) -> bool {
        let Some(link) = self.links.get_mut(page.at()).map(std::mem::take).filter(|link| link.is_listed) else {
            return false;
        };
        match link.prev.some() {
            Some(prev) => self.links[prev.at()].next = link.next,
            None => self.head = link.next,
        }
        match link.next.some() {
            Some(next) => self.links[next.at()].prev = link.prev,
            None => self.tail = link.prev,
        }
        self.len -= 1;
        true
    }

    /// The tables, the one listed first at first.
    pub fn iter(&self) -> impl Iterator<Item = PageIdx> + '_ {
        std::iter::successors(self.head.some(), |page| self.links[page.at()].next.some())
    }
}
