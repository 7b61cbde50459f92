//! Which vCPUs may hold translations through which tables: their roots, whether they were in the guest since their last
//! flush, and tables that were unlinked since. vCPUs from the 64th on share a bit, which only a full flush clears.

use std::collections::BTreeMap;

use smallvec::SmallVec;

/// Roots and what may be held.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    roots: Vec<SmallVec<[u32; 4]>>,
    /// Was in the guest since its last flush.
    pub filled: u64,
    /// Has left the guest: it flushes or loads a root before it is there again.
    pub kicked: u64,
    /// Tables that are not linked any more, or not loaded, and who may still hold something of them.
    detached: BTreeMap<u32, u64>,
}

impl Holders {
    /// The bit of a vCPU.
    #[must_use]
    pub const fn bit(vcpu: usize) -> u64 {
        if vcpu < 63 { 1 << vcpu } else { 1 << 63 }
    }

    /// Who may hold something through a table because of the table itself: it is a root, or was unlinked.
    #[must_use]
    pub fn of_root(&self, table: u32) -> u64 {
        let loaded = self.roots.iter().enumerate().filter(|(_, roots)| roots.contains(&table));
        let loaded = loaded.fold(0, |held, (vcpu, _)| held | Self::bit(vcpu)) & self.filled;
        loaded | self.detached.get(&table).copied().unwrap_or(0)
    }

    /// Whether a vCPU has the table as root.
    #[must_use]
    pub fn is_loaded(&self, table: u32) -> bool {
        self.roots.iter().any(|roots| roots.contains(&table))
    }

    /// A table is not linked any more.
    pub fn detach(&mut self, table: u32, holders: u64) {
        if holders != 0 {
            *self.detached.entry(table).or_default() |= holders;
        }
    }

    /// A table is made, or nobody holds anything of it any more.
    pub fn made(&mut self, table: u32) {
        self.detached.remove(&table);
    }

    /// Nobody holds anything, and everybody has left the guest.
    pub fn flushed_all(&mut self) {
        self.filled = 0;
        self.kicked = u64::MAX;
        self.detached.clear();
    }

    /// A vCPU holds nothing.
    pub fn flushed(&mut self, bit: u64) {
        self.filled &= !bit;
        for held in self.detached.values_mut() {
            *held &= !bit;
        }
        self.detached.retain(|_, held| *held != 0);
    }

    /// Everybody has left the guest.
    pub const fn kick_all(&mut self) {
        self.kicked = u64::MAX;
    }

    /// A vCPU has these roots.
    pub fn load(&mut self, vcpu: usize, roots: impl Iterator<Item = u32>) {
        if self.roots.len() <= vcpu {
            self.roots.resize(vcpu + 1, SmallVec::new());
        }
        self.roots[vcpu] = roots.collect();
    }

    /// A vCPU has no root, and is not in the guest until it has one.
    pub fn unload(&mut self, vcpu: usize) {
        let bit = Self::bit(vcpu);
        if let Some(roots) = self.roots.get_mut(vcpu) {
            for root in std::mem::take(roots) {
                self.detach(root, bit & self.filled);
            }
        }
        self.kicked |= bit;
    }

    /// Tables that are not linked any more, and who may hold something of them.
    pub fn detached(&self) -> impl Iterator<Item = (u32, u64)> {
        self.detached.iter().map(|(&table, &held)| (table, held))
    }

    /// A vCPU is in the guest.
    pub const fn enter(&mut self, bit: u64) {
        self.filled |= bit;
        self.kicked &= !bit;
    }
}
