//! `InvalidList`: shadow pages taken off the active list, waiting for a flush. Flushing is the only way to the proof that
//! freeing demands, so flush-before-free is a type.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::PageIdx;

/// Prepared pages, in the order they were zapped.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[must_use = "prepared pages must be committed"]
pub struct InvalidList {
    pages: Vec<PageIdx>,
}

/// Pages no vCPU can reach any more: every TLB was flushed after they were taken off.
#[must_use = "flushed pages must be freed"]
#[derive(Debug)]
pub struct Flushed {
    pages: Vec<PageIdx>,
}

impl InvalidList {
    /// Adds a page just zapped.
    pub fn push(&mut self, page: PageIdx) {
        self.pages.push(page);
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The pages, the one zapped last first, as the kernel's list has them.
    pub fn iter(&self) -> impl Iterator<Item = PageIdx> + '_ {
        self.pages.iter().rev().copied()
    }

    /// Empties the list by calling `flush` once, which must flush every TLB.
    pub fn flushed(&mut self, flush: impl FnOnce()) -> Flushed {
        flush();
        Flushed { pages: std::mem::take(&mut self.pages) }
    }
}

impl Flushed {
    /// The pages, the one zapped last first.
    pub fn into_pages(self) -> impl Iterator<Item = PageIdx> {
        self.pages.into_iter().rev()
    }
}
