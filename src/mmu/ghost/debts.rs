//! Flushes that are owed. A debt is made by a write that takes something away from what a processor may hold, and is paid
//! when nobody holds it any more, by whatever means. Each names the operation that owes it.

use std::fmt;

/// What was taken away, which says when the flush is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A table, or a leaf of a table that was taken apart: before the table is freed, and before the operation returns.
    Page,
    /// A leaf: before the operation returns.
    Taken,
    /// The right to write, for a dirty log: before the operation returns.
    Protect,
    /// The right to write, for tracking: before the operation returns.
    Track,
    /// The dirty bit, where the processor logs: before the operation returns.
    Pml,
    /// A large leaf in the way of a table: before the operation returns.
    Split,
    /// The accessed bit: never.
    Age,
    /// What the guest's own tables do not say any more: its flush is the guest's until the memory itself goes.
    Guest,
}

impl Class {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Taken => "taken",
            Self::Protect => "protect",
            Self::Track => "track",
            Self::Pml => "pml",
            Self::Split => "split",
            Self::Age => "age",
            Self::Guest => "guest",
        }
    }
}

/// A flush that is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debt {
    /// What was taken away.
    pub class: Class,
    /// Address space of the leaf.
    pub as_id: u8,
    /// First gfn of the leaf.
    pub gfn: u64,
    /// Pages of the leaf, or below the link.
    pub pages: u64,
    /// The entry.
    pub place: u32,
    /// The table that the entry led to; 0: none.
    pub table: u32,
    /// vCPUs that may hold it, a bit each.
    pub holders: u64,
    /// Number of the operation that owes it.
    pub op: u32,
    /// Its word.
    pub owner: &'static str,
    /// The flush was left to the caller.
    pub is_left: bool,
    /// It is due.
    pub is_due: bool,
}

impl fmt::Display for Debt {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, owner) = (self.class.name(), self.owner);
        if self.table != 0 {
            write!(
                to,
                "the link at gfn {:#x} of space {} was removed by {owner} ({class}) and no flush came",
                self.gfn, self.as_id
            )?;
        } else {
            write!(
                to,
                "gfn {:#x} of space {}, {} pages, was changed by {owner} ({class}) and no flush came",
                self.gfn, self.as_id, self.pages
            )?;
        }
        let vcpus: Vec<String> = (0..64).filter(|at| self.holders >> at & 1 != 0).map(|at| at.to_string()).collect();
        write!(to, ": vCPU {} may hold what was there", vcpus.join(", "))
    }
}

/// Those that are open.
#[derive(Clone, Debug, Default)]
pub struct Debts {
    open: Vec<Debt>,
    /// Tables that were freed with the flush still to come.
    freed: Vec<u32>,
}

impl Debts {
    /// One more.
    pub fn add(&mut self, debt: Debt) {
        self.open.push(debt);
    }

    /// Those that are open.
    pub fn iter(&self) -> impl Iterator<Item = &Debt> {
        self.open.iter()
    }

    /// Everything is paid.
    pub fn clear(&mut self) {
        self.open.clear();
        self.freed.clear();
    }

    /// What concerns a range of gfns is paid; the tables among it.
    pub fn pay_range(&mut self, gfn: u64, pages: u64) -> Vec<u32> {
        let mut tables = Vec::new();
        self.open.retain(|debt| {
            let is_over = debt.gfn < gfn.saturating_add(pages) && gfn < debt.gfn.saturating_add(debt.pages);
            if is_over && debt.table != 0 {
                tables.push(debt.table);
            }
            !is_over
        });
        tables
    }

    /// A vCPU holds nothing any more.
    pub fn pay_vcpu(&mut self, bit: u64) {
        for debt in &mut self.open {
            debt.holders &= !bit;
        }
        self.open.retain(|debt| debt.holders != 0);
    }

    /// A vCPU holds nothing any more of an entry.
    pub fn pay_entry(&mut self, place: u32, bit: u64) {
        for debt in self.open.iter_mut().filter(|debt| debt.place == place && debt.table == 0) {
            debt.holders &= !bit;
        }
        self.open.retain(|debt| debt.holders != 0);
    }

    /// The operation has returned.
    pub fn are_due(&mut self, op: u32) {
        for debt in &mut self.open {
            debt.is_due |= debt.op == op && !matches!(debt.class, Class::Age | Class::Guest) && !debt.is_left;
        }
    }

    /// A table was freed, and the flush for it is to come before the lock is dropped.
    pub fn note_freed(&mut self, table: u32) {
        if self.open.iter().any(|debt| debt.table == table) {
            self.freed.push(table);
        }
    }

    /// What was freed must have been flushed now.
    pub fn freed_are_due(&mut self) {
        for debt in &mut self.open {
            debt.is_due |= debt.table != 0 && self.freed.contains(&debt.table);
        }
        self.freed.clear();
    }

    /// Takes out those that are due and that one of these vCPUs may hold.
    pub fn take_overdue(&mut self, vcpus: u64) -> Vec<Debt> {
        if self.open.iter().all(|debt| !debt.is_due || debt.holders & vcpus == 0) {
            return Vec::new();
        }
        let (overdue, open) = self.open.iter().partition(|debt| debt.is_due && debt.holders & vcpus != 0);
        self.open = open;
        overdue
    }

    /// A debt for a table, or for a leaf it held, that one of these vCPUs may hold.
    #[must_use]
    pub fn of_table(&self, table: u32, vcpus: u64) -> Option<Debt> {
        let is_of = |debt: &&Debt| {
            (debt.table == table || debt.class == Class::Page && debt.place >> 9 == table) && debt.holders & vcpus != 0
        };
        self.open.iter().find(is_of).copied()
    }

    /// Leaves of these gfns that another operation took and has not flushed.
    #[must_use]
    pub fn shared_with(&self, op: u32, as_id: u8, gfn: u64, pages: u64, vcpus: u64) -> Vec<Debt> {
        let is_shared = |debt: &&Debt| {
            matches!(debt.class, Class::Taken | Class::Guest)
                && debt.op != op
                && debt.as_id == as_id
                && debt.holders & vcpus != 0
                && debt.gfn < gfn.saturating_add(pages)
                && gfn < debt.gfn.saturating_add(debt.pages)
        };
        self.open.iter().filter(is_shared).copied().collect()
    }
}
