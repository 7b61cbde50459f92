//! `TdpIter` and `TdpWalk`: where a walk over the entries of one root stands, and a piece of work over many roots that may
//! give the lock away. Data only; what a step does is in `iter`, how a walk goes on in `drive`.
//!
//! Models `struct tdp_iter`, v6.1 to v7.3. Neither holds a borrow: what waits at a lock break is a value, and goes on from
//! the root at the gfn it had reached. Invariant: the root a walk stands on is held by it.

use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::{PAGE_TABLE, pages_per, table_index};

/// How `mmu_lock` is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum Lock {
    /// For writing: nobody else is there.
    Exclusive,
    /// For reading: faults go on beside, so that entries of a removed table are frozen, empty ones too.
    Shared,
}

/// An entry by what it maps.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct Entry {
    pub as_id: u8,
    pub gfn: Gfn,
    pub level: u8,
}

/// Which roots a walk comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) struct Roots {
    /// Those of one address space; none: of both.
    pub as_id: Option<u8>,
    /// Invalid ones are passed over.
    pub only_valid: bool,
}

const LAST_INDEX: u16 = 511;

/// Where a walk stands.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct TdpIter {
    pub root: PageIdx,
    root_level: u8,
    /// The lowest level it comes to.
    least: u8,
    end: Gfn,
    /// The gfn it is on its way to: the walk's first, later that of the last step sideways.
    next: Gfn,
    /// The gfn it had reached when it gave the lock away.
    yielded: Gfn,
    /// It gave the lock away: its next step begins at the root.
    pub is_yielded: bool,
    is_over: bool,
    /// First gfn of the entry.
    pub gfn: Gfn,
    /// Level of the entry.
    pub level: u8,
    /// The table at each level from the root's down to the entry's.
    path: [PageIdx; 6],
}

impl TdpIter {
    /// A walk on the first entry of a root over `start..end`.
    pub const fn new(root: PageIdx, root_level: u8, start: Gfn, end: Gfn, least: u8) -> Self {
        let mut iter = Self {
            root,
            root_level,
            least,
            end,
            next: start,
            yielded: start,
            is_yielded: false,
            is_over: false,
            gfn: start,
            level: root_level,
            path: [PageIdx::NONE; 6],
        };
        iter.restart();
        iter
    }

    /// The place of the entry.
    #[inline]
    pub const fn sptep(&self) -> Sptep {
        self.path[self.level as usize].sptep(table_index(self.gfn.gpa(), self.level))
    }

    /// Whether the entry lies before the walk's end.
    #[inline]
    pub const fn is_valid(&self) -> bool {
        !self.is_over && self.gfn.0 < self.end.0
    }

    /// Whether it has come on since it last gave the lock away, so that it may do so again.
    #[inline]
    pub const fn has_advanced(&self) -> bool {
        self.next.0 != self.yielded.0
    }

    /// The lowest level it comes to.
    #[inline]
    pub const fn least(&self) -> u8 {
        self.least
    }

    /// Begins again at the root, on the way to where it was.
    pub const fn restart(&mut self) {
        self.is_yielded = false;
        self.yielded = self.next;
        self.level = self.root_level;
        self.gfn = self.next.align_down(self.root_level);
        self.path[self.root_level as usize] = self.root;
    }

    /// Comes to the entry below a link, of this table.
    #[inline]
    pub const fn step_down(&mut self, table: PageIdx) {
        self.level -= 1;
        self.gfn = self.next.align_down(self.level);
        self.path[self.level as usize] = table;
    }

    /// Comes to the next entry, up at a table's end; over at the root's.
    #[inline]
    pub const fn step_on(&mut self) {
        while !self.step_side() {
            if !self.step_up() {
                self.is_over = true;
                return;
            }
        }
    }

    const fn step_side(&mut self) -> bool {
        if table_index(self.gfn.gpa(), self.level) == LAST_INDEX {
            return false;
        }
        self.gfn = self.gfn.plus(pages_per(self.level));
        self.next = self.gfn;
        true
    }

    const fn step_up(&mut self) -> bool {
        if self.level == self.root_level {
            return false;
        }
        self.level += 1;
        self.gfn = self.gfn.align_down(self.level);
        true
    }

    /// Passes over entries of the same table, the one it stands on first, that are known to need no work.
    pub fn pass_over(&mut self, entries: u16) {
        self.gfn = self.gfn.plus(u64::from(entries) * pages_per(self.level));
        self.next = self.gfn;
    }

    /// How many entries from this one on lie in the same table and before the walk's end.
    pub fn left_in_table(&self) -> u16 {
        let in_table = LAST_INDEX - table_index(self.gfn.gpa(), self.level) + 1;
        let in_range = (self.end.0 - self.gfn.0).div_ceil(pages_per(self.level));
        u16::try_from(in_range).map_or(in_table, |most| most.min(in_table))
    }
}

/// What is done at each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum Body {
    /// Leaves become empty.
    Unmap,
    /// Leaves lose W.
    WriteProtect,
    /// Leaves lose D, or W where they have no D.
    ClearDirty,
    /// Large leaves become tables of leaves of this level at least; `has_table` is one allocated with the lock dropped.
    Split { to: u8, has_table: bool },
    /// Links of a slot that could be large leaves are cut off, or become them.
    Collapse { id: u32 },
    /// Everything of roots goes: those made invalid and not zapped yet, or all.
    ZapRoot { only_scheduled: bool },
}

/// A walk over roots.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact about the walk")]
pub(in crate::mmu) struct TdpWalk {
    pub roots: Roots,
    pub start: Gfn,
    pub end: Gfn,
    /// The lowest level the walk comes to.
    pub least: u8,
    pub body: Body,
    pub lock: Lock,
    /// The lock may be given away.
    pub is_polled: bool,
    /// What was removed is flushed before the lock goes.
    pub is_flush_inside: bool,
    /// Something was removed, or lost a bit, and no flush came since.
    pub flush: bool,
    pub root: PageIdx,
    pub iter: Option<TdpIter>,
    /// Which pass over the root is the next: a zap of a root makes several.
    pub pass: u8,
    /// The last root is done.
    pub is_over: bool,
}

impl TdpWalk {
    pub(in crate::mmu) const fn new(roots: Roots, span: (Gfn, Gfn), body: Body, lock: Lock) -> Self {
        Self {
            roots,
            start: span.0,
            end: span.1,
            least: PAGE_TABLE,
            body,
            lock,
            is_polled: true,
            is_flush_inside: false,
            flush: false,
            root: PageIdx::NONE,
            iter: None,
            pass: 0,
            is_over: false,
        }
    }

    /// Splits the large leaves over a range down to a level.
    pub(in crate::mmu) const fn split(as_id: u8, span: (Gfn, Gfn), to: u8, lock: Lock) -> Self {
        let roots = Roots { as_id: Some(as_id), only_valid: true };
        let mut walk = Self::new(roots, span, Body::Split { to, has_table: false }, lock);
        walk.least = to + 1;
        walk
    }

    /// Collapses what a slot maps.
    pub(in crate::mmu) const fn collapse(as_id: u8, id: u32, span: (Gfn, Gfn)) -> Self {
        let roots = Roots { as_id: Some(as_id), only_valid: true };
        let mut walk = Self::new(roots, span, Body::Collapse { id }, Lock::Shared);
        walk.least = 2;
        walk.is_flush_inside = true;
        walk
    }
}
