//! `Work`: exact counters that every operation adds to, always on. Deltas of two copies are the cost of what lay between.

use serde::{Deserialize, Serialize};

/// Counts since the VM was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the documentation; the unusual ones are explained at the field")]
pub struct Work {
    /// Walks of the active list (or of the MMIO index) begun by zap loops, restarts included.
    pub walk_starts: u64,
    /// List entries examined by them.
    pub walk_visited: u64,
    pub restarts: u64,
    /// Calls of prepare.
    pub pages_zapped: u64,
    pub pages_freed: u64,
    /// Non-zero entries cleared by zaps of pages.
    pub sptes_cleared: u64,
    /// Reverse-map entries added, removed, or come to by a handler that may change them.
    pub rmap_steps: u64,
    /// Parent entries added or removed.
    pub parent_steps: u64,
    /// Pages compared in hash buckets.
    pub hash_probes: u64,
    /// Full flushes.
    pub flushes: u64,
    pub flushes_ranged: u64,
    pub lock_breaks: u64,
    /// Calls of `cond_resched`.
    pub lock_offers: u64,
    pub lock_polls: u64,
    pub faults: u64,
    pub mmio_faults: u64,
    pub get_page_found: u64,
    pub get_page_created: u64,
    pub heads_visited: u64,
    /// Changes of entries of the TDP MMU that were reported.
    pub sptes_changed: u64,
}

macro_rules! each_counter {
    ($macro:ident) => {
        $macro!(
            walk_starts,
            walk_visited,
            restarts,
            pages_zapped,
            pages_freed,
            sptes_cleared,
            rmap_steps,
            parent_steps,
            hash_probes,
            flushes,
            flushes_ranged,
            lock_breaks,
            lock_offers,
            lock_polls,
            faults,
            mmio_faults,
            get_page_found,
            get_page_created,
            heads_visited,
            sptes_changed
        )
    };
}

impl Work {
    /// Work under the lock as one number: list nodes, entries, reverse-map and parent steps, hash probes and heads count
    /// one each; a zapped page adds 8 (header, lists, table), a freed one 4, a flush 16.
    #[must_use]
    pub const fn units(&self) -> u64 {
        self.walk_visited
            .wrapping_add(self.sptes_cleared)
            .wrapping_add(self.rmap_steps)
            .wrapping_add(self.parent_steps)
            .wrapping_add(self.hash_probes)
            .wrapping_add(self.heads_visited)
            .wrapping_add(self.pages_zapped.wrapping_mul(8))
            .wrapping_add(self.pages_freed.wrapping_mul(4))
            .wrapping_add(self.flushes.wrapping_mul(16))
    }

    /// What was done since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        macro_rules! sub {
            ($($name:ident),*) => { Self { $($name: self.$name.wrapping_sub(earlier.$name)),* } };
        }
        each_counter!(sub)
    }

    /// Both together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        macro_rules! add {
            ($($name:ident),*) => { Self { $($name: self.$name.wrapping_add(other.$name)),* } };
        }
        each_counter!(add)
    }

    /// Every counter with its name, in a fixed order.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        macro_rules! list {
            ($($name:ident),*) => { vec![$((stringify!($name), self.$name)),*] };
        }
        each_counter!(list)
    }
}
