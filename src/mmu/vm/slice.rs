//! `Slice`: how much of a run is done at a stretch before its caller gets a word in, with the lock still held. A signal
//! can be looked at there; nothing else may happen to the VM.
//!
//! Invariant: where a slice ends changes no count, no event and no state.

/// Steps between two such places, and how many are left.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::mmu) struct Slice {
    /// 0: a run is never cut.
    every: u64,
    left: u64,
}

impl Slice {
    /// Sets the length.
    pub const fn set(&mut self, every: u64) {
        self.every = every;
    }

    /// A stretch begins.
    pub const fn begin(&mut self) {
        self.left = if self.every == 0 { u64::MAX } else { self.every };
    }

    /// A stretch without an end begins.
    pub const fn set_endless(&mut self) {
        self.left = u64::MAX;
    }

    /// Steps until the next place.
    #[inline]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Counts steps.
    #[inline]
    pub const fn spend(&mut self, steps: u64) {
        self.left = self.left.saturating_sub(steps);
    }

    /// Whether the caller has the word.
    #[inline]
    pub const fn is_over(&self) -> bool {
        self.left == 0
    }
}
