//! `Invalidation`: what a fault that looked up a host page must know of the host's notifiers: whether one is under way
//! for its page, and whether one ended since.
//!
//! Models `mmu_invalidate_seq`, `mmu_invalidate_in_progress` and the range, v6.1 and later. The range is of host
//! addresses up to v6.1 and of gfns later; which of them is the caller's.

use serde::{Deserialize, Serialize};

/// Invalidations under way and past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidation {
    /// How many ended.
    pub seq: u64,
    /// How many are under way.
    pub in_progress: u64,
    /// All of what they cover; kept until the last one ends.
    range: Option<(u64, u64)>,
}

impl Invalidation {
    /// One more begins.
    pub const fn begin(&mut self) {
        self.in_progress += 1;
        if self.in_progress == 1 {
            self.range = None;
        }
    }

    /// It covers this range (the end excluded) too.
    pub fn add(&mut self, start: u64, end: u64) {
        self.range = Some(self.range.map_or((start, end), |(from, to)| (from.min(start), to.max(end))));
    }

    /// One ends.
    pub const fn finish(&mut self) {
        self.seq = self.seq.wrapping_add(1);
        self.in_progress = self.in_progress.saturating_sub(1);
    }

    /// What those under way cover.
    #[must_use]
    pub const fn range(&self) -> Option<(u64, u64)> {
        self.range
    }

    /// Whether a fault that began at `seq` and is about `at` must be taken again.
    #[must_use]
    pub fn must_retry(&self, seq: u64, at: u64) -> bool {
        self.seq != seq || self.in_progress > 0 && self.range.is_some_and(|(from, to)| (from..to).contains(&at))
    }
}
