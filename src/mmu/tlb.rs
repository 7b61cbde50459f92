//! `Tlb`: the translations a vCPU's processor may still hold. It observes and never answers: a guest access is always the
//! full hardware walk. It is here so that a missing flush leaves something behind that the audit can name.

use super::addr::Gfn;

const WAYS: usize = 64;

/// A small direct-mapped TLB, made on the first use.
#[derive(Clone, Debug, Default)]
pub struct Tlb {
    lines: Vec<Option<Translation>>,
}

/// A translation: the leaf, and the level it stood at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The gfn asked for.
    pub gfn: Gfn,
    /// The leaf's word.
    pub leaf: u64,
    /// Its level.
    pub level: u8,
}

impl Tlb {
    /// Remembers the leaf a walk ended on.
    #[inline]
    pub fn fill(&mut self, translation: Translation) {
        if self.lines.is_empty() {
            self.lines = vec![None; WAYS];
        }
        // The index is below 64.
        self.lines[(translation.gfn.0 % WAYS as u64) as usize] = Some(translation);
    }

    /// Forgets everything.
    #[inline]
    pub fn flush(&mut self) {
        self.lines.clear();
    }

    /// Forgets a range of gfns.
    pub fn flush_range(&mut self, start: Gfn, npages: u64) {
        for line in &mut self.lines {
            if line.is_some_and(|line| line.gfn.0.wrapping_sub(start.0) < npages) {
                *line = None;
            }
        }
    }

    /// What it holds.
    pub fn iter(&self) -> impl Iterator<Item = Translation> + '_ {
        self.lines.iter().flatten().copied()
    }
}
