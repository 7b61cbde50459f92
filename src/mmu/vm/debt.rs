//! `Debt`: gfns of which TLBs may still hold what their entries no longer say, until somebody flushes them.
//!
//! Stands for the kernel's `flush` that a function returns and its caller must act on. Owned by the state; verbs that
//! leave a flush to their caller add to it, flushes alone pay. Invariant: a flush that does not reach all of it pays
//! nothing, so that a debt is never too small.

use serde::{Deserialize, Serialize};

use crate::mmu::words::addr::Gfn;

/// A flush that is owed: the gfns it must reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Debt {
    first: Gfn,
    /// The gfn behind the last; that of `first`: nothing is owed.
    end: Gfn,
}

impl Debt {
    /// Nothing is owed.
    pub const NONE: Self = Self { first: Gfn(0), end: Gfn(0) };
    /// Everything must be flushed.
    pub const EVERYTHING: Self = Self { first: Gfn(0), end: Gfn(u64::MAX) };

    /// So many gfns must be flushed.
    pub const fn of(first: Gfn, npages: u64) -> Self {
        Self { first, end: Gfn(first.0.saturating_add(npages)) }
    }

    /// Whether nothing is owed.
    pub const fn is_none(self) -> bool {
        self.first.0 >= self.end.0
    }

    /// Both: all from the first gfn of either to the last.
    pub fn join(self, other: Self) -> Self {
        match (self.is_none(), other.is_none()) {
            (true, _) => other,
            (_, true) => self,
            _ => Self { first: self.first.min(other.first), end: self.end.max(other.end) },
        }
    }

    /// What is still owed after a flush of so many gfns.
    pub fn after_flush(self, first: Gfn, npages: u64) -> Self {
        let flushed = Self::of(first, npages);
        if flushed.first <= self.first && self.end <= flushed.end { Self::NONE } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flush_of_all_of_it_pays() {
        let debt = Debt::of(Gfn(8), 8);
        assert_eq!(debt.after_flush(Gfn(8), 8), Debt::NONE);
        assert_eq!(debt.after_flush(Gfn(0), 512), Debt::NONE);
        assert_eq!(debt.after_flush(Gfn(9), 512), debt);
        assert_eq!(debt.after_flush(Gfn(0), 15), debt);
        assert_eq!(Debt::EVERYTHING.after_flush(Gfn(0), 1 << 40), Debt::EVERYTHING);
        assert_eq!(Debt::EVERYTHING.after_flush(Gfn(0), u64::MAX), Debt::NONE);
    }

    #[test]
    fn debts_are_joined() {
        let (low, high) = (Debt::of(Gfn(0), 4), Debt::of(Gfn(64), 4));
        assert_eq!(low.join(high), Debt::of(Gfn(0), 68));
        assert_eq!(low.join(Debt::NONE), low);
        assert_eq!(Debt::NONE.join(high), high);
        assert!(Debt::NONE.is_none() && Debt::of(Gfn(5), 0).is_none() && !low.is_none());
    }
}
