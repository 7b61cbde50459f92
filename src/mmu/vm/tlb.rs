//! `Tlb`: the translations a vCPU's processor may still hold. It observes and never answers: a guest access is always the
//! full hardware walk. It is here so that a missing flush leaves something behind that the audit can name.

use serde::{Deserialize, Serialize};

use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::pages_per;
use crate::mmu::words::spte::layout::WRITABLE;

const WAYS: usize = 64;

/// A small direct-mapped TLB, made on the first use.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tlb {
    lines: Vec<Option<Translation>>,
}

/// A translation: the leaf, and the level it stood at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// The gfn asked for.
    pub gfn: Gfn,
    /// The leaf's word.
    pub leaf: u64,
    /// Its level.
    pub level: u8,
}

impl Tlb {
    /// Returns true if it has its size, or none yet, and every translation has a level that leaves can have.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        (self.lines.is_empty() || self.lines.len() == WAYS) && self.iter().all(|line| (1..=3).contains(&line.level))
    }

    /// Remembers the leaf a walk ended on.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the index is below 64")]
    pub fn fill(&mut self, translation: Translation) {
        if self.lines.is_empty() {
            self.lines = vec![None; WAYS];
        }
        self.lines[(translation.gfn.0 % WAYS as u64) as usize] = Some(translation);
    }

    /// Forgets everything.
    #[inline]
    pub fn flush(&mut self) {
        self.lines.clear();
    }

    /// Forgets a range of gfns; a large translation goes whole, wherever the range touches it.
    pub fn flush_range(&mut self, start: Gfn, npages: u64) {
        let last = start.0.saturating_add(npages.saturating_sub(1));
        for line in &mut self.lines {
            let is_touched = line.is_some_and(|line| {
                let first = line.gfn.align_down(line.level).0;
                first <= last && start.0 <= first.saturating_add(pages_per(line.level) - 1)
            });
            if is_touched {
                *line = None;
            }
        }
    }

    /// An entry of this level was aged, and nobody has to flush for that: what is held may go on to allow writes.
    pub fn tolerate_writes(&mut self, gfn: Gfn, level: u8) {
        let first = gfn.align_down(level);
        for line in self.lines.iter_mut().flatten() {
            if line.gfn.align_down(level) == first {
                line.leaf &= !WRITABLE;
            }
        }
    }

    /// What it holds.
    pub fn iter(&self) -> impl Iterator<Item = Translation> + '_ {
        self.lines.iter().flatten().copied()
    }
}
