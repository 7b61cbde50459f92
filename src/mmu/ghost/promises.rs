//! What was written and must be in the next harvest of a dirty log, and which gfns are tracked since when.

use std::collections::BTreeSet;

/// A reason to keep a gfn read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Address space in which it was tracked.
    pub as_id: u8,
    /// The gfn.
    pub gfn: u64,
    /// How often.
    pub count: u32,
    /// Since when.
    pub since: u64,
}

/// Writes and tracking.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    /// Address space, slot id and page of writes that no harvest has returned.
    pub written: BTreeSet<(u8, u32, u64)>,
    /// Slots with a log.
    logged: BTreeSet<(u8, u32)>,
    /// Those whose log was started by an update that has not returned: what is written meanwhile may be lost.
    starting: BTreeSet<(u8, u32)>,
    /// Tracked gfns.
    pub tracked: Vec<Tracked>,
}

impl Promises {
    /// A gfn is tracked once more, or once less.
    pub fn track(&mut self, as_id: u8, gfn: u64, on: bool, now: u64) {
        let at = self.tracked.iter().position(|other| (other.as_id, other.gfn) == (as_id, gfn));
        match (at, on) {
            (Some(at), true) => self.tracked[at].count += 1,
            (None, true) => self.tracked.push(Tracked { as_id, gfn, count: 1, since: now }),
            (Some(at), false) => {
                self.tracked[at].count -= 1;
                if self.tracked[at].count == 0 {
                    self.tracked.swap_remove(at);
                }
            }
            (None, false) => {}
        }
    }

    /// Since when a gfn is tracked for mappings of an address space made at a time: in which space, if any that counts.
    pub fn tracked_at(&self, gfn: u64, pages: u64) -> impl Iterator<Item = &Tracked> {
        self.tracked.iter().filter(move |tracked| tracked.gfn.wrapping_sub(gfn) < pages)
    }

    /// A slot is visible, with a log or without.
    pub fn published(&mut self, as_id: u8, id: u32, is_logged: bool) {
        if !is_logged {
            self.logged.remove(&(as_id, id));
            self.forget_log(as_id, id);
        } else if self.logged.insert((as_id, id)) {
            self.starting.insert((as_id, id));
        }
    }

    /// The update has returned.
    pub fn settle(&mut self) {
        self.starting.clear();
    }

    /// A page of a slot with a log was written.
    pub fn wrote(&mut self, as_id: u8, id: u32, page: u64) {
        if !self.starting.contains(&(as_id, id)) {
            self.written.insert((as_id, id, page));
        }
    }

    /// A slot goes: nobody asks for its log any more, and its tracking goes with it.
    pub fn forget_slot(&mut self, as_id: u8, id: u32, base: u64, npages: u64) {
        self.written.retain(|&(space, slot, _)| (space, slot) != (as_id, id));
        self.tracked.retain(|tracked| tracked.as_id != as_id || tracked.gfn.wrapping_sub(base) >= npages);
    }

    /// The log of a slot is over.
    fn forget_log(&mut self, as_id: u8, id: u32) {
        self.written.retain(|&(space, slot, _)| (space, slot) != (as_id, id));
    }
}
