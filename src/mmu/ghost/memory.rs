//! `Ghost`: everything the judge remembers of one VM, told by hooks.
//!
//! Holding is speculative: a vCPU that was in the guest may hold everything that was reachable from its root since its last
//! flush. What it holds beyond the tables is exactly what open debts say, so that nothing else is kept.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use super::backing::{BackingLog, GhostSlot};
use super::debts::{Class, Debt, Debts};
use super::holders::Holders;
use super::operations::{OpKind, Operations};
use super::promises::{Promises, Tracked};
use super::told::{Broken, Entry, HeldLeaf, Premises, Told, WRITE, Write, table_of};

/// Everything the judge remembers.
#[derive(Clone, Debug, Default)]
pub struct Ghost {
    /// Grows with each thing told.
    pub now: u64,
    /// What backs each gfn.
    pub backing: BackingLog,
    /// Every entry that leads somewhere.
    pub entries: BTreeMap<u32, Entry>,
    /// Entries that lead to a table.
    pub parents: BTreeMap<u32, SmallVec<[u32; 2]>>,
    /// Which vCPUs hold what.
    pub holders: Holders,
    /// Flushes owed.
    pub debts: Debts,
    /// What is written and tracked.
    pub promises: Promises,
    /// What runs.
    pub ops: Operations,
    /// What was found at the moment it happened.
    pub broken: Vec<Broken>,
    /// How often a property could have been broken.
    pub premises: Premises,
    /// The entry that is about to be made, and the gfn for which.
    making: Option<(u32, u64)>,
    /// What goes now goes because the guest's own entry does not say it any more: until the memory goes, too, the flush is
    /// the guest's to ask for.
    pub is_guests: bool,
    /// Tables in sync whose guest's memory was changed without the MMU being told.
    pub behind: BTreeSet<u32>,
}

impl Ghost {
    /// An entry is about to be made for a gfn.
    pub const fn makes(&mut self, place: u32, gfn: u64) {
        self.making = Some((place, gfn));
    }

    /// The gfn for which the leaf at a place was made, if one is there.
    #[must_use]
    pub fn gfn_at(&self, place: u32) -> Option<u64> {
        match self.entries.get(&place) {
            Some(Entry::Leaf(held)) => Some(held.leaf.gfn),
            _ => None,
        }
    }

    /// The gfn for which a leaf is made at a place, if somebody said so.
    #[must_use]
    pub fn gfn_made(&self, place: u32) -> Option<u64> {
        self.making.filter(|making| making.0 == place).map(|making| making.1)
    }

    /// A moment passes.
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Notes that a property does not hold.
    pub fn breaks(&mut self, property: &'static str, detail: String) {
        let owner = self.ops.current_kind().name();
        self.broken.push(Broken { property, detail, owner });
    }

    /// Which vCPUs may hold a translation that passes through a table: a bit each.
    #[must_use]
    pub fn holders_of(&self, table: u32) -> u64 {
        let mut seen: SmallVec<[u32; 8]> = SmallVec::new();
        let mut todo: SmallVec<[u32; 8]> = SmallVec::from_slice(&[table]);
        let mut held = 0;
        while let Some(table) = todo.pop() {
            if seen.contains(&table) {
                continue;
            }
            seen.push(table);
            held |= self.holders.of_root(table);
            todo.extend(self.parents.get(&table).into_iter().flatten().map(|&place| table_of(place)));
        }
        held
    }

    /// An entry was written.
    pub fn written(&mut self, how: Write, old: Told, new: Told) {
        let now = self.tick();
        let place = how.place;
        let before = self.entries.get(&place).copied();
        let debt = self.debt_of(how, old, new);
        if how.is_mmio && old != Told::Nothing {
            self.breaks("present_dropped_first", format!("an MMIO entry was written over {old:?}"));
        }
        if let Told::Link(link) = old {
            self.unlink(link.table, place);
        }
        match new {
            Told::Nothing => {
                self.entries.remove(&place);
            }
            Told::Link(link) => {
                self.entries.insert(place, Entry::Link(link.table));
                self.parents.entry(link.table).or_default().push(place);
            }
            Told::Leaf(leaf) => {
                self.making = None;
                let kept = match (old, before) {
                    (Told::Leaf(was), Some(Entry::Leaf(held))) if was.frame == leaf.frame => Some(held),
                    _ => None,
                };
                let is_looked_up = self.ops.current_kind() == OpKind::Access;
                let made_at = kept.filter(|_| !is_looked_up).map_or(now, |held| held.made_at);
                let is_exempt = leaf.rights & WRITE != 0 && (how.is_exempt || kept.is_some_and(|held| held.is_exempt));
                self.entries.insert(place, Entry::Leaf(HeldLeaf { leaf, made_at, is_exempt }));
                let is_changed_by_host = self.ops.current_kind() == OpKind::ChangeRead;
                let was_writable = kept.is_some_and(|held| held.leaf.rights & WRITE != 0);
                if leaf.rights & WRITE != 0 && !was_writable && (how.is_readonly || is_changed_by_host) {
                    let detail = format!("a writable leaf of gfn {:#x} over memory that is read-only", leaf.gfn);
                    self.breaks("readonly_write", detail);
                }
            }
        }
        if let Some((class, as_id, gfn, pages, table)) = debt {
            let holders = self.holders_of(table_of(place));
            if let Told::Link(link) = old {
                self.holders.detach(link.table, holders);
            }
            if holders != 0 {
                let (op, owner) = self.ops.owner();
                let is_left = self.ops.current_kind() == OpKind::Inner;
                let debt = Debt { class, as_id, gfn, pages, place, table, holders, op, owner, is_left, is_due: false };
                self.premises.debts += 1;
                self.debts.add(debt);
            }
        }
    }

    /// The debt that a write makes: class, address space, first gfn, pages, the table that goes.
    fn debt_of(&self, how: Write, old: Told, new: Told) -> Option<(Class, u8, u64, u64, u32)> {
        match (old, new) {
            (Told::Nothing, _) => None,
            (Told::Link(link), Told::Link(other)) if link.table == other.table => None,
            (Told::Link(link), _) => Some((Class::Page, link.as_id, link.gfn, link.pages, link.table)),
            (Told::Leaf(old), Told::Link(link)) => {
                // Cut into leaves of the same frames, nothing is lost.
                let is_whole = self.entries.range(link.table << 9..(link.table + 1) << 9).count() == 512;
                (!is_whole).then_some((Class::Split, old.as_id, old.gfn, old.pages(), 0))
            }
            (Told::Leaf(old), Told::Nothing) => {
                let class = if how.is_table_taken {
                    Class::Page
                } else if self.is_guests {
                    Class::Guest
                } else {
                    Class::Taken
                };
                Some((class, old.as_id, old.gfn, old.pages(), 0))
            }
            (Told::Leaf(old), Told::Leaf(new)) if (old.frame, old.level) != (new.frame, new.level) => {
                Some((Class::Taken, old.as_id, old.gfn, old.pages(), 0))
            }
            (Told::Leaf(old), Told::Leaf(new)) => {
                let lost = old.rights & !new.rights;
                let class = if lost == 0 {
                    (how.is_pml && old.is_dirty && !new.is_dirty).then_some(Class::Pml)?
                } else {
                    match self.ops.current_kind() {
                        OpKind::Age => Class::Age,
                        OpKind::Track => Class::Track,
                        _ => Class::Protect,
                    }
                };
                Some((class, old.as_id, old.gfn, old.pages(), 0))
            }
        }
    }

    /// Whether a rule of the kernel exempted the leaf at a place from a test.
    #[must_use]
    pub fn is_exempt(&self, place: u32) -> bool {
        matches!(self.entries.get(&place), Some(Entry::Leaf(held)) if held.is_exempt)
    }

    /// Whether a flush is owed that explains what a vCPU holds of a gfn.
    #[must_use]
    pub fn is_owed_to(&self, vcpu: usize, gfn: u64, pages: u64) -> bool {
        let bit = Holders::bit(vcpu);
        self.debts.iter().any(|debt| {
            let is_over = debt.gfn < gfn.saturating_add(pages) && gfn < debt.gfn.saturating_add(debt.pages);
            debt.holders & bit != 0 && is_over
        })
    }

    fn unlink(&mut self, child: u32, place: u32) {
        if let Some(places) = self.parents.get_mut(&child) {
            places.retain(|other| *other != place);
            if places.is_empty() {
                self.parents.remove(&child);
            }
        }
    }

    /// Every TLB was asked to flush, and every vCPU has left the guest.
    pub fn flushed(&mut self) {
        self.debts.clear();
        self.holders.flushed_all();
    }

    /// TLBs were flushed of a range.
    pub fn range_flushed(&mut self, gfn: u64, pages: u64) {
        for table in self.debts.pay_range(gfn, pages) {
            self.holders.made(table);
        }
    }

    /// A vCPU holds nothing any more of an entry.
    pub fn entry_flushed(&mut self, vcpu: usize, place: u32) {
        self.debts.pay_entry(place, Holders::bit(vcpu));
    }

    /// A vCPU was flushed.
    pub fn vcpu_flushed(&mut self, vcpu: usize) {
        let bit = Holders::bit(vcpu);
        self.debts.pay_vcpu(bit);
        self.holders.flushed(bit);
    }

    /// Every vCPU was asked to load its roots anew, and has left the guest.
    pub const fn kicked(&mut self) {
        self.holders.kick_all();
    }

    /// A vCPU loaded roots.
    pub fn root_loaded(&mut self, vcpu: usize, roots: impl Iterator<Item = u32>) {
        self.holders.load(vcpu, roots);
    }

    /// A vCPU dropped its roots.
    pub fn root_dropped(&mut self, vcpu: usize) {
        self.holders.unload(vcpu);
    }

    /// A vCPU enters the guest: what is due must not be held by it any more.
    pub fn entered(&mut self, vcpu: usize) {
        let bit = Holders::bit(vcpu);
        self.holders.enter(bit);
        self.report_overdue(bit);
    }

    /// The debts that are due and that one of these vCPUs could use.
    fn report_overdue(&mut self, vcpus: u64) {
        for debt in self.debts.take_overdue(vcpus & !self.holders.kicked) {
            let detail = format!("{debt}");
            self.broken.push(Broken { property: "debt_overdue", detail, owner: debt.owner });
        }
    }

    /// A table is freed.
    pub fn freed(&mut self, table: u32, is_flush_deferred: bool) {
        self.premises.freed += 1;
        let in_guest = !self.holders.kicked;
        let is_linked = self.parents.get(&table).is_some_and(|places| !places.is_empty());
        let is_filled = self.entries.range(table << 9..(table + 1) << 9).next().is_some();
        let is_root = self.holders.is_loaded(table);
        if is_linked || is_filled || is_root {
            let why = if is_linked {
                "an entry still leads to it"
            } else if is_root {
                "a vCPU has it as root"
            } else {
                "it still has entries"
            };
            self.breaks("freed_reachable", format!("a table is freed: {why}"));
        }
        if is_flush_deferred {
            self.debts.note_freed(table);
        } else if let Some(debt) = self.debts.of_table(table, in_guest) {
            let (detail, owner) = (format!("a table is freed before its flush: {debt}"), debt.owner);
            self.broken.push(Broken { property: "freed_reachable", detail, owner });
        }
    }

    /// A table is made: its place may have been another's.
    pub fn made(&mut self, table: u32) {
        self.holders.made(table);
        self.behind.remove(&table);
    }

    /// The lock is dropped: tables that were freed with the flush still to come must have had it.
    pub fn lock_dropped(&mut self) {
        self.debts.freed_are_due();
        self.report_overdue(u64::MAX);
    }

    /// A slot is visible, with its first gfn, pages and first host page, or not any more; whether it has a log.
    pub fn published(&mut self, as_id: u8, id: u32, at: Option<(u64, u64, u64)>, is_logged: bool) {
        let now = self.tick();
        let slot = at.map(|(base, npages, host_page)| GhostSlot { as_id, id, base, npages, host_page, since: now });
        if let Some(old) = self.backing.slots.iter().find(|old| (old.as_id, old.id) == (as_id, id)).copied()
            && at.is_none_or(|(base, ..)| base != old.base)
        {
            self.promises.forget_slot(as_id, id, old.base, old.npages);
        }
        self.promises.published(as_id, id, is_logged && at.is_some());
        self.backing.published(as_id, id, slot, now);
    }

    /// The host takes pages, or has taken them.
    pub fn host_takes(&mut self, first: u64, pages: u64) {
        let now = self.tick();
        self.backing.taken(first, pages, now);
    }

    /// A gfn is tracked, or not any more.
    pub fn tracked(&mut self, as_id: u8, gfn: u64, on: bool) {
        let now = self.tick();
        self.promises.track(as_id, gfn, on, now);
    }

    /// The guest's access was taken for MMIO.
    pub fn mmio_answered(&mut self, as_id: u8, gfn: u64, is_by_cache: bool) {
        self.premises.mmio += 1;
        if !self.backing.may_be_absent(as_id, gfn) {
            let by = if is_by_cache { "the vCPU's cache" } else { "an MMIO entry" };
            self.breaks("stale_mmio", format!("gfn {gfn:#x} of space {as_id} is memory, and {by} answered for it"));
        }
    }

    /// The guest's memory under a table was changed without the MMU being told.
    pub fn changed_behind(&mut self, table: u32) {
        self.behind.insert(table);
    }

    /// The guest wrote through a leaf; of the slot: address space, id, page, whether it has a log.
    pub fn guest_wrote(&mut self, gfn: u64, place: u32, slot: Option<(u8, u32, u64, bool)>) {
        self.premises.writes += 1;
        if let Some((as_id, id, page, true)) = slot {
            self.promises.wrote(as_id, id, page);
        }
        if let Some(Entry::Leaf(held)) = self.entries.get(&place)
            && let Some(tracked) = self.tracked_past(held)
            && tracked.gfn == gfn
        {
            self.breaks("tracked_write", format!("gfn {gfn:#x}, tracked in space {}, was written", tracked.as_id));
        }
    }

    /// The tracking that a writable leaf ignores, except what the kernel is known to let pass: a leaf of the other space
    /// that was there before, and one exempted by a rule.
    #[must_use]
    pub fn tracked_past(&self, held: &HeldLeaf) -> Option<Tracked> {
        let leaf = &held.leaf;
        if leaf.rights & WRITE == 0 || held.is_exempt {
            return None;
        }
        let counts = |tracked: &&Tracked| tracked.as_id == leaf.as_id || held.made_at > tracked.since;
        self.promises.tracked_at(leaf.gfn, leaf.pages()).find(counts).copied()
    }

    /// Bits of a dirty log were returned, from a word on, so many words each, and cleared; `is_whole`: all of the log.
    pub fn harvested(&mut self, as_id: u8, id: u32, spans: &[(u64, u64, u64)], is_whole: bool) {
        self.premises.harvests += 1;
        let is_returned = |page: u64| {
            let word = page / 64;
            spans.iter().any(|&(first, count, bits)| word.wrapping_sub(first) < count && bits >> (page % 64) & 1 != 0)
        };
        let mut lost = None;
        self.promises.written.retain(|&(space, slot, page)| {
            if (space, slot) != (as_id, id) {
                return true;
            }
            if is_returned(page) {
                return false;
            }
            lost = lost.or(is_whole.then_some(page));
            !is_whole
        });
        if let Some(page) = lost {
            self.breaks("lost_dirty", format!("page {page} of slot {id} was written, and its bit is not in the log"));
        }
    }

    /// An operation begins; the gfns it takes away.
    pub fn begin(&mut self, kind: OpKind, promise: &[(u8, u64, u64)]) {
        self.ops.begin(kind, promise);
    }

    /// The current operation waits for the lock, under a number.
    pub fn park(&mut self, run: u32) {
        self.ops.park(run);
    }

    /// An operation that waited goes on.
    pub fn unpark(&mut self, run: u32) {
        self.ops.unpark(run);
    }

    /// The current operation returns: what it owes is due.
    pub fn end(&mut self) {
        let Some(op) = self.ops.end() else { return };
        self.debts.are_due(op.id);
        self.report_overdue(u64::MAX);
        for &(as_id, gfn, pages) in &op.promise {
            for debt in self.debts.shared_with(op.id, as_id, gfn, pages, !self.holders.kicked) {
                let detail = format!("{} returns, and relies on a flush that is still owed: {debt}", op.kind.name());
                self.broken.push(Broken { property: "debt_shared", detail, owner: debt.owner });
            }
        }
        if op.kind == OpKind::Update {
            self.backing.settle();
            self.promises.settle();
        }
    }
}
