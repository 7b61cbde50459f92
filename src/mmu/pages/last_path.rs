//! `LastPath`: the tables that the last walk came through, so that a walk to a neighbour need not begin at the root.
//!
//! Ours; the kernel walks from the root each time. Invariant: what it names is what a walk from the root would come to;
//! whoever makes or drops a link to a table forgets it, and a build with debug assertions compares at each use.

use crate::mmu::pages::page_arena::PageIdx;

/// The last tables of levels 2 and 1 below a root.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastPath {
    root: PageIdx,
    upper: PageIdx,
    /// The GiB that `upper` maps, by address.
    upper_at: u64,
    lower: PageIdx,
    /// The 2 MiB that `lower` maps, by address.
    lower_at: u64,
}

impl LastPath {
    /// What a walk to an address below a root came through; `upper` is none where it began further down.
    #[inline]
    #[must_use]
    pub const fn new(root: PageIdx, addr: u64, upper: PageIdx, lower: PageIdx) -> Self {
        Self { root, upper, upper_at: addr >> 30, lower, lower_at: addr >> 21 }
    }

    /// The table of level 1 for an address.
    #[inline]
    #[must_use]
    pub fn lower(&self, root: PageIdx, addr: u64) -> Option<PageIdx> {
        if self.lower_at == addr >> 21 && self.root == root { self.lower.some() } else { None }
    }

    /// The table of level 2 for an address.
    #[inline]
    #[must_use]
    pub fn upper(&self, root: PageIdx, addr: u64) -> Option<PageIdx> {
        if self.upper_at == addr >> 30 && self.root == root { self.upper.some() } else { None }
    }
}

/// The table of level 1 that the processor came to last. Every entry on the way to it allows all kinds of access and is
/// marked as accessed, so that a walk to a neighbour need only look at its leaf.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastHardware {
    root: PageIdx,
    /// The 2 MiB that it maps, by address.
    at: u64,
    table: PageIdx,
}

impl LastHardware {
    /// What a walk to an address below a root came to.
    #[inline]
    #[must_use]
    pub const fn new(root: PageIdx, addr: u64, table: PageIdx) -> Self {
        Self { root, at: addr >> 21, table }
    }

    /// The table for an address.
    #[inline]
    #[must_use]
    pub fn table(&self, root: PageIdx, addr: u64) -> Option<PageIdx> {
        if self.at == addr >> 21 && self.root == root { self.table.some() } else { None }
    }
}
