//! What backs each gfn: the slots as published, those that were there when the last update returned, and when the host took
//! a page. A mapping remembers when its backing was looked up; the log says whether that still holds.

use std::collections::BTreeMap;

use super::told::Leaf;

/// A slot as published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GhostSlot {
    /// Address space.
    pub as_id: u8,
    /// Slot id.
    pub id: u32,
    /// First gfn.
    pub base: u64,
    /// Pages.
    pub npages: u64,
    /// First host page.
    pub host_page: u64,
    /// When it was created or moved here.
    pub since: u64,
}

impl GhostSlot {
    /// Whether it holds so many gfns from one on.
    #[must_use]
    pub const fn holds(&self, as_id: u8, gfn: u64, pages: u64) -> bool {
        self.as_id == as_id
            && self.base <= gfn
            && gfn - self.base < self.npages
            && self.npages - (gfn - self.base) >= pages
    }
}

/// Slots and host pages.
#[derive(Clone, Debug, Default)]
pub struct BackingLog {
    /// What is published; a slot that is marked for removal is not.
    pub slots: Vec<GhostSlot>,
    /// What was there when the last update returned.
    pub settled: Vec<GhostSlot>,
    /// When the host last took a page.
    pub taken: BTreeMap<u64, u64>,
    /// Frames of pages that are not their own.
    pub frames: BTreeMap<u64, u64>,
    /// Frames were told to the MMU and not to the model of host memory: they are not compared any more.
    pub are_frames_unknown: bool,
}

impl BackingLog {
    /// A slot is published, or none of that id: `slot` is what is visible.
    pub fn published(&mut self, as_id: u8, id: u32, slot: Option<GhostSlot>, now: u64) {
        let at = self.slots.iter().position(|other| (other.as_id, other.id) == (as_id, id));
        let old = at.map(|at| self.slots.swap_remove(at));
        if let Some(slot) = slot {
            let is_same =
                |old: &GhostSlot| (old.base, old.npages, old.host_page) == (slot.base, slot.npages, slot.host_page);
            let since = old.filter(is_same).map_or(now, |old| old.since);
            self.slots.push(GhostSlot { since, ..slot });
        }
    }

    /// The update has returned.
    pub fn settle(&mut self) {
        self.settled.clone_from(&self.slots);
    }

    /// The host takes pages.
    pub fn taken(&mut self, first: u64, pages: u64, now: u64) {
        for page in first..first.saturating_add(pages.min(1 << 20)) {
            self.taken.insert(page, now);
        }
    }

    /// Whether a gfn may be without memory for an operation that runs now.
    #[must_use]
    pub fn may_be_absent(&self, as_id: u8, gfn: u64) -> bool {
        let is_absent = |slots: &[GhostSlot]| !slots.iter().any(|slot| slot.holds(as_id, gfn, 1));
        is_absent(&self.slots) || is_absent(&self.settled)
    }

    /// Why a mapping is not one of memory that is there, if it is not.
    #[must_use]
    pub fn is_stale(&self, leaf: &Leaf, made_at: u64) -> Option<&'static str> {
        let pages = leaf.pages();
        let mut why = "mmio_as_ram";
        for slot in self.slots.iter().chain(&self.settled) {
            if !slot.holds(leaf.as_id, leaf.gfn, pages) {
                if slot.holds(leaf.as_id, leaf.gfn, 1) {
                    why = "stale_ram";
                }
                continue;
            }
            if slot.since > made_at {
                why = "stale_ram";
                continue;
            }
            let page = slot.host_page.wrapping_add(leaf.gfn - slot.base);
            let is_taken = self.taken.range(page..page.saturating_add(pages)).any(|(_, &at)| at > made_at);
            let frame = self.frames.get(&page).copied().unwrap_or(page);
            if is_taken || frame != leaf.frame && !self.are_frames_unknown {
                why = "host_taken";
                continue;
            }
            return None;
        }
        Some(why)
    }
}
