//! `RootList`: the roots of the TDP MMU, newest first, each with its references: one for every vCPU that has it loaded,
//! one of every walk that stands on it, and one of the MMU's own until the root is invalid and zapped.
//!
//! Models `kvm->arch.tdp_mmu_roots`, v6.1 to v7.3. Invariant: a root is on the list exactly while it has a reference.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::PageIdx;

/// A root and who holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The table of the root's level.
    pub page: PageIdx,
    /// References.
    pub refs: u32,
    /// It was made invalid and is not zapped yet.
    pub is_scheduled: bool,
}

/// The roots of a VM.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RootList {
    roots: Vec<Root>,
}

impl RootList {
    /// A new root comes to the head; it is held by the MMU and by the vCPU it was made for.
    pub fn push_head(&mut self, page: PageIdx) {
        self.roots.insert(0, Root { page, refs: 2, is_scheduled: false });
    }

    /// The roots, newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter()
    }

    /// The same, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Root> {
        self.roots.iter_mut()
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.roots.len()
    }

    /// The roots after one, or all of them.
    pub fn after(&self, page: PageIdx) -> impl Iterator<Item = &Root> {
        let from = self.roots.iter().position(|root| root.page == page).map_or(0, |at| at + 1);
        self.roots[from..].iter()
    }

    /// Takes a reference.
    pub fn get(&mut self, page: PageIdx) {
        if let Some(root) = self.roots.iter_mut().find(|root| root.page == page) {
            root.refs += 1;
        }
    }

    /// Gives a reference back; true if it was the last, and the root is off the list.
    pub fn put(&mut self, page: PageIdx) -> bool {
        let Some(at) = self.roots.iter().position(|root| root.page == page) else { return false };
        self.roots[at].refs = self.roots[at].refs.saturating_sub(1);
        let is_last = self.roots[at].refs == 0;
        if is_last {
            self.roots.remove(at);
        }
        is_last
    }

    /// Takes the mark that a root is to be zapped; whether it had it.
    pub fn unschedule(&mut self, page: PageIdx) -> bool {
        let root = self.roots.iter_mut().find(|root| root.page == page);
        root.is_some_and(|root| std::mem::take(&mut root.is_scheduled))
    }
}
