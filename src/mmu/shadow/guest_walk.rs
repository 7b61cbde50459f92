//! The walk of the guest's own tables: what an address is for the guest, or the page fault that it gets.
//!
//! [`GuestWalk`] is a value that fills up: [`GuestWalk::start`] knows where the first entry lies, [`GuestWalk::take`] is
//! given one entry after the other, [`GuestWalk::finish`] judges the rights, and [`GuestWalk::marked`] says which entries
//! get their accessed and dirty bits. These are pure. [`GuestWalk::run`] does all of it over a [`WalkedMemory`], which
//! says where a table's page lies and reads and writes it; the walk knows no memslots and no shadow pages.
//!
//! For a vCPU: [`MmuState::walk_guest`] walks as a page fault does (accessed and dirty bits are written to guest memory
//! and the table's page is marked dirty in the slot of the vCPU), [`MmuState::read_guest`], [`MmuState::poke_guest`] and
//! [`MmuState::write_guest`] reach guest memory through the slots that the vCPU sees. A slot that is being removed counts as
//! none.
//!
//! What a finished walk says:
//! * `error_code` is the guest's page fault, `None` where the access is allowed; a fault writes nothing to guest memory;
//! * `top_level` to `level` were walked (`level` is the leaf's, or where the walk stopped), `entry(level)` is what was
//!   read there: the table's gfn, the entry's address, its value after the accessed and dirty bits, whether the guest may
//!   write the table, and the access that the entries above give (`access_above`: from v6.1 on that of the table's page);
//! * `pt_access` is the access of the entries above the leaf (up to v5.4 that of all table pages), `pte_access` that of
//!   all, without write where the access is no write and the leaf is clean;
//! * `gfn` is what the address leads to.
//!
//! Without paging there is nothing to walk: `top_level` is 0 and the gfn is that of the address.
//!
//! Models `walk_addr_generic`, `update_accessed_dirty_bits` and `protect_clean_gpte`, v5.0 to v7.3.

use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{ACC_ALL, PFERR_PRESENT, PFERR_RSVD};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::guest_mode::{
    GPTE_ACCESSED, GPTE_DIRTY, GPTE_PRESENT, GuestMode, Paging, Registers, gpte_access, protect_clean_gpte,
};
use crate::mmu::words::guest_permission::Wanted;
use crate::mmu::words::mutants::{Mutant, is_chosen};

/// Levels a walk can have.
const MAX_LEVELS: usize = 5;
/// How often a walk may begin anew: an entry can only differ from what was read where this walk itself marked it.
const MAX_WALKS: usize = MAX_LEVELS + 1;
const EFAULT: i32 = 14;

/// One entry that a walk read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkedEntry {
    /// The table's gfn.
    pub table: Gfn,
    /// Guest-physical address of the entry.
    pub gpa: u64,
    /// What it holds.
    pub value: u64,
    /// What the entries above it allow.
    pub access_above: u8,
    /// The guest may write to the table.
    pub is_writable: bool,
}

/// A walk of the guest's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestWalk {
    /// The address walked.
    pub gva: u64,
    /// What was wanted.
    pub wanted: Wanted,
    /// The highest level whose entry was read from memory; 0 without paging.
    pub top_level: u8,
    /// The leaf's level, or where the walk stopped.
    pub level: u8,
    /// Access of the entries above the leaf.
    pub pt_access: u8,
    /// Access of all of them.
    pub pte_access: u8,
    /// What the address leads to.
    pub gfn: Gfn,
    /// The error code of the guest's page fault.
    pub error_code: Option<u64>,
    entries: [WalkedEntry; MAX_LEVELS],
}

/// What a walk needs of whoever sits above it.
pub trait WalkedMemory {
    /// Whether the page of a table is in a slot, and if so whether the guest may write to it.
    fn is_writable(&self, table: Gfn) -> Option<bool>;
    /// An entry at a guest-physical address; `None` without a slot.
    fn read(&self, gpa: u64, size: u8) -> Option<u64>;
    /// Stores an entry and marks the table's page dirty.
    fn write(&mut self, gpa: u64, value: u64, size: u8);
    /// Is told of a step.
    fn note(&mut self, step: WalkStep);
}

/// What happens in a walk, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkStep {
    /// An entry was read; for `pae` the first is the PDPTE that the processor keeps.
    Entry {
        /// Its value.
        value: u64,
        /// Its level.
        level: u8,
    },
    /// The walk ends with this error code.
    Error {
        /// As the guest gets it.
        code: u64,
    },
    /// The accessed bit of the entry at this address is set.
    SetAccessed {
        /// Of the entry.
        gpa: u64,
    },
    /// The dirty bit of the leaf at this address is set.
    SetDirty {
        /// Of the entry.
        gpa: u64,
    },
}

impl GuestWalk {
    /// A walk before its first entry. `pdpte` is the one that the processor keeps for the address; only `pae` reads it.
    #[must_use]
    pub fn start(mode: &GuestMode, cr3: u64, pdpte: u64, gva: u64, wanted: Wanted) -> Self {
        let top_level = mode.paging.top_level();
        let mut walk = Self {
            gva,
            wanted,
            top_level,
            level: top_level.max(1),
            pt_access: ACC_ALL,
            pte_access: ACC_ALL,
            gfn: Gfn::of_gpa(gva),
            error_code: None,
            entries: [WalkedEntry::default(); MAX_LEVELS],
        };
        if matches!(mode.paging, Paging::None) {
            return walk;
        }
        let is_pae = matches!(mode.paging, Paging::Pae);
        if is_pae && pdpte & GPTE_PRESENT == 0 {
            walk.refuse(mode, 0);
        } else {
            walk.lead_to(mode, if is_pae { pdpte } else { cr3 }, top_level);
        }
        walk
    }

    /// Where the entry of this level was read.
    #[inline]
    #[must_use]
    pub const fn entry(&self, level: u8) -> &WalkedEntry {
        // Levels are 1 to 5; anything else is answered as level 5.
        let at = (level as usize).wrapping_sub(1);
        &self.entries[if at < MAX_LEVELS { at } else { MAX_LEVELS - 1 }]
    }

    fn entry_mut(&mut self, level: u8) -> &mut WalkedEntry {
        let at = usize::from(level).wrapping_sub(1).min(MAX_LEVELS - 1);
        &mut self.entries[at]
    }

    /// Ends the walk with the guest's fault.
    fn refuse(&mut self, mode: &GuestMode, reason: u64) {
        self.error_code = Some(mode.error_code(reason, self.wanted));
    }

    /// The next entry to read is that of this level in the table at this address.
    fn lead_to(&mut self, mode: &GuestMode, address: u64, level: u8) {
        self.level = level;
        let table = address & mode.paging.address_mask();
        let gpa = table + mode.paging.index(self.gva, level) * u64::from(mode.paging.entry_size());
        let access_above = self.pte_access;
        *self.entry_mut(level) = WalkedEntry { table: Gfn::of_gpa(table), gpa, access_above, ..WalkedEntry::default() };
    }

    /// Takes the entry of the present level, `None` where there is no memory; true if another one follows.
    #[inline]
    pub fn take(&mut self, mode: &GuestMode, entry: Option<u64>, is_writable: bool) -> bool {
        let level = self.level;
        let value = match entry {
            Some(value) if value & GPTE_PRESENT != 0 => value,
            _ => {
                self.refuse(mode, 0);
                return false;
            }
        };
        if mode.is_reserved(value, level) {
            self.refuse(mode, PFERR_PRESENT | PFERR_RSVD);
            return false;
        }
        let walked = self.entry_mut(level);
        walked.value = value;
        walked.is_writable = is_writable;
        self.pt_access = self.pte_access;
        self.pte_access &= gpte_access(value);
        if mode.is_leaf(value, level) {
            self.gfn = Gfn(mode.leaf_gfn(value, level, self.gva));
            return false;
        }
        self.lead_to(mode, value, level - 1);
        true
    }

    /// Judges the rights of a walk that came to its leaf.
    pub fn finish(&mut self, mode: &GuestMode, pkru: u32, ac: bool) {
        if self.error_code.is_some() || self.top_level == 0 {
            return;
        }
        let leaf = self.entry(self.level).value;
        let reason = mode.refusal(self.pte_access, mode.key_of(leaf), self.wanted, pkru, ac);
        if reason != 0 {
            self.refuse(mode, reason);
        } else if !self.wanted.is_write && !is_chosen(Mutant::CleanLeafWritable) {
            self.pte_access = protect_clean_gpte(self.pte_access, leaf);
        }
    }

    /// The entry of this level with the accessed bit, and in the leaf of a write the dirty bit.
    #[must_use]
    pub const fn marked(&self, level: u8) -> u64 {
        let dirty = if self.wanted.is_write && level == self.level { GPTE_DIRTY } else { 0 };
        self.entry(level).value | GPTE_ACCESSED | dirty
    }

    /// Walks entries that lie nowhere: `entries` holds one a level, the last is that of level 1; missing ones are absent.
    /// `pae` has a PDPTE that is present.
    #[must_use]
    pub fn over(mode: &GuestMode, registers: &Registers, gva: u64, wanted: Wanted, entries: &[u64]) -> Self {
        let mut walk = Self::start(mode, registers.cr3, GPTE_PRESENT, gva, wanted);
        if walk.top_level > 0 {
            let at = |level: u8| entries.len().checked_sub(level.into()).and_then(|at| entries.get(at)).copied();
            while walk.take(mode, at(walk.level), true) {}
            walk.finish(mode, registers.pkru, registers.ac);
        }
        walk
    }

    /// Walks memory; the walk with its marks set, or the guest's fault.
    pub fn run(
        mode: &GuestMode,
        registers: &Registers,
        pdptes: &[u64; 4],
        gva: u64,
        wanted: Wanted,
        memory: &mut impl WalkedMemory,
    ) -> Self {
        let pdpte = pdptes[usize::from(gva >> 30 & 1 != 0) + 2 * usize::from(gva >> 31 & 1 != 0)];
        let mut walk = Self::start(mode, registers.cr3, pdpte, gva, wanted);
        for _ in 0..MAX_WALKS {
            walk = Self::start(mode, registers.cr3, pdpte, gva, wanted);
            if matches!(mode.paging, Paging::Pae) {
                memory.note(WalkStep::Entry { value: pdpte, level: mode.paging.root_level() });
            }
            walk.read_entries(mode, memory);
            walk.finish(mode, registers.pkru, registers.ac);
            if let Some(code) = walk.error_code {
                memory.note(WalkStep::Error { code });
                break;
            }
            if walk.set_marks(mode, memory) {
                break;
            }
        }
        walk
    }

    fn read_entries(&mut self, mode: &GuestMode, memory: &mut impl WalkedMemory) {
        if self.top_level == 0 || self.error_code.is_some() {
            return;
        }
        loop {
            let level = self.level;
            let WalkedEntry { table, gpa, .. } = *self.entry(level);
            let is_writable = memory.is_writable(table);
            let entry = is_writable.and_then(|_| memory.read(gpa, mode.paging.entry_size()));
            if let Some(value) = entry {
                memory.note(WalkStep::Entry { value, level });
            }
            if !self.take(mode, entry, is_writable.unwrap_or(false)) {
                return;
            }
        }
    }

    /// Sets accessed and dirty bits, top level first; false if an entry is not any more what was read.
    fn set_marks(&mut self, mode: &GuestMode, memory: &mut impl WalkedMemory) -> bool {
        let size = mode.paging.entry_size();
        for level in (self.level..=self.top_level).rev() {
            let WalkedEntry { gpa, value: old, is_writable, .. } = *self.entry(level);
            let new = self.marked(level);
            if (new ^ old) & GPTE_ACCESSED != 0 {
                memory.note(WalkStep::SetAccessed { gpa });
            }
            if (new ^ old) & GPTE_DIRTY != 0 {
                memory.note(WalkStep::SetDirty { gpa });
            }
            if new == old || !is_writable {
                continue;
            }
            if memory.read(gpa, size) != Some(old) {
                return false;
            }
            memory.write(gpa, new, size);
            self.entry_mut(level).value = new;
        }
        true
    }
}

/// Guest memory as a vCPU sees it.
struct VcpuMemory<'a> {
    state: &'a mut MmuState,
    as_id: u8,
}

impl WalkedMemory for VcpuMemory<'_> {
    fn is_writable(&self, table: Gfn) -> Option<bool> {
        let slot = self.state.find_visible_slot(self.as_id, table)?;
        Some(!self.state.slot_spec(slot).is_readonly())
    }

    fn read(&self, gpa: u64, size: u8) -> Option<u64> {
        self.state.read_guest(self.as_id, gpa, size)
    }

    fn write(&mut self, gpa: u64, value: u64, size: u8) {
        if is_chosen(Mutant::WalkedTableNotDirty) {
            self.state.poke_guest(self.as_id, gpa, value, size);
            return;
        }
        self.state.write_guest(self.as_id, gpa, value, size);
    }

    fn note(&mut self, step: WalkStep) {
        self.state.events.push(|| match step {
            WalkStep::Entry { value, level } => Event::GuestWalkEntry { value, level },
            WalkStep::Error { code } => Event::GuestWalkError { code },
            WalkStep::SetAccessed { gpa } => Event::SetAccessed { gpa },
            WalkStep::SetDirty { gpa } => Event::SetDirty { gpa },
        });
    }
}

impl MmuState {
    /// The slot of a gfn in an address space; one that is being removed counts as none.
    pub(in crate::mmu) fn find_visible_slot(&self, as_id: u8, gfn: Gfn) -> Option<SlotAt> {
        self.find_slot(as_id, gfn).filter(|&slot| !self.slot_spec(slot).is_invalid())
    }

    /// The host address of a guest-physical one.
    fn find_hva(&self, as_id: u8, gpa: u64) -> Option<u64> {
        let gfn = Gfn::of_gpa(gpa);
        let slot = self.find_visible_slot(as_id, gfn)?;
        Some(self.slot_spec(slot).hva_of(gfn).wrapping_add(gpa & 0xfff))
    }

    /// What an address space has at a guest-physical address; `None` without a slot.
    pub(in crate::mmu) fn read_guest(&self, as_id: u8, gpa: u64, size: u8) -> Option<u64> {
        Some(self.guest_memory.read(self.find_hva(as_id, gpa)?, size))
    }

    /// Where the guest's own tables lead an address, whatever its rights; nothing is marked. `None` where they do not.
    pub(in crate::mmu) fn find_gpa(&self, vcpu: usize, gva: u64) -> Option<u64> {
        let of_vcpu = &self.vcpus[vcpu];
        let (mode, as_id) = (&of_vcpu.mode, of_vcpu.as_id());
        let pdpte = of_vcpu.pdptes[usize::from(gva >> 30 & 1 != 0) + 2 * usize::from(gva >> 31 & 1 != 0)];
        let mut walk = GuestWalk::start(mode, of_vcpu.cr3, pdpte, gva, Wanted::default());
        while walk.error_code.is_none() && walk.top_level > 0 {
            let entry = self.read_guest(as_id, walk.entry(walk.level).gpa, mode.paging.entry_size());
            if !walk.take(mode, entry, true) {
                break;
            }
        }
        walk.error_code.is_none().then(|| walk.gfn.gpa() | gva & 0xfff)
    }

    /// Stores without telling anybody: 0, or -EFAULT without a slot.
    pub(in crate::mmu) fn poke_guest(&mut self, as_id: u8, gpa: u64, value: u64, size: u8) -> i32 {
        let Some(hva) = self.find_hva(as_id, gpa) else { return -EFAULT };
        self.guest_memory.write(hva, value, size);
        0
    }

    /// Stores and marks the page dirty: 0, or -EFAULT without a slot.
    pub(in crate::mmu) fn write_guest(&mut self, as_id: u8, gpa: u64, value: u64, size: u8) -> i32 {
        let ret = self.poke_guest(as_id, gpa, value, size);
        if ret == 0 {
            let gfn = Gfn::of_gpa(gpa);
            self.mark_page_dirty(self.find_visible_slot(as_id, gfn), gfn);
        }
        ret
    }

    /// Walks the tables of a vCPU's guest for what an error code wants.
    pub(in crate::mmu) fn walk_guest(&mut self, vcpu: usize, gva: u64, error_code: u64) -> GuestWalk {
        self.events.push(|| Event::GuestWalk { addr: gva, error_code });
        let cpu = &self.vcpus[vcpu];
        let (mode, registers, pdptes, as_id) = (cpu.mode, cpu.registers(), cpu.pdptes, cpu.as_id());
        let wanted = Wanted::of_error_code(error_code);
        GuestWalk::run(&mode, &registers, &pdptes, gva, wanted, &mut VcpuMemory { state: self, as_id })
    }
}
