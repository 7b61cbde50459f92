//! `Stats`: the running numbers behind a line's `ctr`, under the names of the vectors. Signed, because resetting the lock
//! polls lets two of them fall.

use serde::{Deserialize, Serialize};

/// Running numbers; a line's `ctr` is the difference of two copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the vectors' own names")]
pub struct Stats {
    pub flush: i64,
    pub reload: i64,
    pub lock_breaks: i64,
    pub cond_resched: i64,
    pub need_resched: i64,
    pub warn: i64,
    pub zapped: i64,
    pub recycled: i64,
    pub cache_miss: i64,
    pub created: i64,
    pub lpages: i64,
    pub max_collisions: i64,
    pub pfn_accessed: i64,
    pub pfn_dirty: i64,
    pub walk_starts: i64,
    pub walk_visited: i64,
    pub flush_range: i64,
    pub needbreak: i64,
    pub freed: i64,
    pub srcu_sync: i64,
    pub spte_changed: i64,
    pub tdp_walks: i64,
    pub tdp_steps: i64,
}

impl Stats {
    /// Every number with its name, in the order of the vectors' description.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, i64); 23] {
        [
            ("flush", self.flush),
            ("reload", self.reload),
            ("lock_breaks", self.lock_breaks),
            ("cond_resched", self.cond_resched),
            ("need_resched", self.need_resched),
            ("warn", self.warn),
            ("zapped", self.zapped),
            ("recycled", self.recycled),
            ("cache_miss", self.cache_miss),
            ("created", self.created),
            ("lpages", self.lpages),
            ("max_collisions", self.max_collisions),
            ("pfn_accessed", self.pfn_accessed),
            ("pfn_dirty", self.pfn_dirty),
            ("walk_starts", self.walk_starts),
            ("walk_visited", self.walk_visited),
            ("flush_range", self.flush_range),
            ("needbreak", self.needbreak),
            ("freed", self.freed),
            ("srcu_sync", self.srcu_sync),
            ("spte_changed", self.spte_changed),
            ("tdp_walks", self.tdp_walks),
            ("tdp_steps", self.tdp_steps),
        ]
    }
}
