//! `LockPolls`: when the MMU lock would be dropped, made deterministic: the n-th `cond_resched` call, or the one after
//! the n-th `need_resched` poll, or, where that is false, of the poll for a contended lock. A test aid of the scenario language; the kernel asks the scheduler.

use serde::{Deserialize, Serialize};

/// The two running numbers and their periods; 0 is never.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct LockPolls {
    cond_every: u64,
    need_every: u64,
    contend_every: u64,
    alloc_every: u64,
    cond: u64,
    need: u64,
    contend: u64,
    alloc: u64,
    is_armed: bool,
    breaks: u64,
}

impl LockPolls {
    /// Sets the periods and starts counting anew.
    pub fn set(&mut self, cond_every: u64, need_every: u64) {
        *self = Self { cond_every, need_every, ..Self::default() };
    }

    /// Sets the period of the poll for a contended lock.
    pub const fn set_contend(&mut self, every: u64) {
        self.contend_every = every;
    }

    /// Sets the period of the allocations that come to nothing without a break.
    pub const fn set_alloc(&mut self, every: u64) {
        self.alloc_every = every;
    }

    /// Whether others get a word in while a table is allocated with the lock dropped.
    pub fn alloc(&mut self) -> bool {
        self.alloc = self.alloc.wrapping_add(1);
        let taken = self.alloc_every != 0 && self.alloc.is_multiple_of(self.alloc_every);
        if taken {
            self.breaks = self.breaks.wrapping_add(1);
        }
        taken
    }

    /// Breaks since the periods were set.
    #[must_use]
    pub const fn breaks(&self) -> u64 {
        self.breaks
    }

    /// Whether another thread wants the lock; a true answer makes the next offer be taken.
    #[inline]
    pub fn need_resched(&mut self) -> bool {
        self.need = self.need.wrapping_add(1);
        let wanted = self.need_every != 0 && self.need.is_multiple_of(self.need_every);
        self.is_armed |= wanted;
        wanted
    }

    /// Whether no poll is ever true.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.need_every == 0 && self.contend_every == 0
    }

    /// Whether another thread waits for the lock; asked only where the processor is not wanted.
    #[inline]
    pub fn needbreak(&mut self) -> bool {
        self.contend = self.contend.wrapping_add(1);
        let wanted = self.contend_every != 0 && self.contend.is_multiple_of(self.contend_every);
        self.is_armed |= wanted;
        wanted
    }

    /// Polls up to `most` times, until one is true; how many were made, and whether the last was.
    pub fn need_resched_many(&mut self, most: u64) -> (u64, bool) {
        if most == 0 {
            return (0, false);
        }
        let quiet = match self.need.checked_rem(self.need_every) {
            None => most,
            Some(done) => (self.need_every - done - 1).min(most),
        };
        self.need = self.need.wrapping_add(quiet);
        if quiet == most { (most, false) } else { (quiet + 1, self.need_resched()) }
    }

    /// Offers the lock; whether it is really dropped.
    #[inline]
    pub fn cond_resched(&mut self) -> bool {
        self.cond = self.cond.wrapping_add(1);
        let taken = self.is_armed || self.cond_every != 0 && self.cond.is_multiple_of(self.cond_every);
        self.is_armed = false;
        if taken {
            self.breaks = self.breaks.wrapping_add(1);
        }
        taken
    }
}
