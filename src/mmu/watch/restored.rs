//! A state put together from what was read of a real VM: pages, entries, lists, arrays of slots, vCPUs.
//!
//! Owns nothing; stands above all verbs, and uses their writers. What comes is not trusted: indices are checked before
//! anything follows them, and the audit must be clean. Invariant: a page's number is its place in the order given, and
//! the active list has the order that was read. Ours; no kernel has it.

use crate::mmu::pages::page_arena::{PageIdx, Place, Sptep};
use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::pages::walk::{is_last, is_shadow_present};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::{MmioInfo, PrevRoot};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::role::Role;
use crate::mmu::words::spte::mmio::is_mmio;

const ENTRIES: u16 = 512;
const ADDRESS: u64 = (1 << 52) - (1 << 12);

/// Where a page was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundOn {
    /// The active list.
    Active,
    /// No list: a root that was zapped in use.
    ZappedRoot,
    /// A root of the TDP MMU.
    TdpRoot,
    /// Below one.
    TdpTable,
}

/// A page: those of the active list oldest first, then others.
#[derive(Clone, Copy, Debug)]
pub struct FoundPage {
    /// First gfn, or that of the table it shadows.
    pub gfn: u64,
    /// The role word.
    pub role: u32,
    /// Valid generation.
    pub valid_gen: u64,
    /// Holders, or references of a TDP root.
    pub root_count: u32,
    /// Where it was found.
    pub place: FoundOn,
    /// The guest may have changed the table that it shadows.
    pub unsync: bool,
}

/// An entry: the page's number from 1, its index, the word, the gfn, and the number of the table it links to (0: none).
#[derive(Clone, Copy, Debug)]
pub struct FoundEntry {
    /// Number of its page.
    pub page: u32,
    /// Its index there.
    pub index: u16,
    /// The word.
    pub raw: u64,
    /// The gfn that it is of.
    pub gfn: u64,
    /// Number of the table that it leads to; 0 for none.
    pub child: u32,
}

/// One value of an array of a slot: of `what` the meaning of `level`, `index` and `value` follows.
#[derive(Clone, Copy, Debug)]
pub struct FoundInSlot {
    /// Address space.
    pub as_id: u8,
    /// The slot's id.
    pub slot: u32,
    /// Level; 0 for tracking, 4 for words of the dirty log.
    pub level: u8,
    /// Index in the array.
    pub index: u64,
    /// The count or word.
    pub value: u64,
}

/// An SPTE under a head: of a slot's array (`as_id`, `slot`, `level`, `index`), in the order of the chain.
#[derive(Clone, Copy, Debug)]
pub struct FoundMapping {
    /// Where the head is; `value` is not used.
    pub head: FoundInSlot,
    /// Number of the page.
    pub page: u32,
    /// The entry's index there.
    pub entry: u16,
}

/// A vCPU: numbers of its roots (0: none), role, mode, CR3, requests, the MMIO access it remembers.
#[derive(Clone, Copy, Debug)]
pub struct FoundVcpu {
    /// Root, and the other three of a PAE root.
    pub roots: [u32; 4],
    /// Numbers of roots that it used before.
    pub prev_roots: [u32; 3],
    /// Role of its root.
    pub role: u32,
    /// Whether it is in system management mode.
    pub smm: bool,
    /// CR3.
    pub cr3: u64,
    /// Pending requests.
    pub requests: u64,
    /// Address, gfn, access, generation.
    pub mmio: (u64, u64, u32, u64),
}

/// Everything that was read; slots are installed before.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Pages.
    pub pages: Vec<FoundPage>,
    /// Entries.
    pub entries: Vec<FoundEntry>,
    /// Parents: child's number, page's number, index.
    pub parents: Vec<(u32, u32, u16)>,
    /// Marks of unsync children: page's number, index.
    pub marks: Vec<(u32, u16)>,
    /// Reverse maps.
    pub rmaps: Vec<FoundMapping>,
    /// Vetoes, tracking, dirty logs.
    pub arrays: Vec<FoundInSlot>,
    /// vCPUs.
    pub vcpus: Vec<FoundVcpu>,
    /// Valid generation, pages used, allowed, requested.
    pub numbers: [u64; 4],
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Saved(why.into()))
}

impl MmuState {
    /// Fills a new state, whose slots are installed, with what was read.
    pub(in crate::mmu) fn restore(&mut self, found: &Found) -> Result<()> {
        if self.arena.nr_indices() > 1 || !self.is_idle() {
            return refuse("a VM that has pages cannot be filled with those of another");
        }
        self.restore_pages(&found.pages)?;
        self.restore_entries(&found.entries)?;
        for &(child, page, index) in &found.parents {
            let (child, sptep) = (self.numbered(child)?, self.placed(page, index)?);
            let mut parents = self.arena.page(child).parents;
            self.pte_lists.add(&mut parents, sptep);
            self.arena.page_mut(child).parents = parents;
        }
        for &(page, index) in &found.marks {
            let sptep = self.placed(page, index)?;
            let is_new = self.arena.indirect_mut(sptep.page()).is_some_and(|of| of.mark_unsync_child(sptep.index()));
            self.arena.page_mut(sptep.page()).unsync_children += u32::from(is_new);
        }
        self.restore_slots(found)?;
        self.restore_vcpus(&found.vcpus)?;
        [self.valid_gen, self.used, self.max, self.requested] = found.numbers;
        let is_high = |page| self.arena.key(page).gfn.0 >> self.root_gfn_bits != 0;
        self.has_high_pages = self.arena.live().any(is_high);
        self.check_saved()?;
        match self.audit().first() {
            Some(broken) => refuse(format!("what was read is broken: {}: {}", broken.invariant, broken.detail)),
            None => Ok(()),
        }
    }

    fn numbered(&self, number: u32) -> Result<PageIdx> {
        match self.arena.find_id(number) {
            Some(page) => Ok(page),
            None => refuse(format!("page {number}: expected 1 to {}", self.arena.nr_indices() - 1)),
        }
    }

    fn placed(&self, number: u32, index: u16) -> Result<Sptep> {
        let page = self.numbered(number)?;
        if index < ENTRIES {
            Ok(page.sptep(index))
        } else {
            refuse(format!("page {number}: entry {index} of {ENTRIES}"))
        }
    }

    fn restore_pages(&mut self, pages: &[FoundPage]) -> Result<()> {
        let mut roots = Vec::new();
        for (at, page) in pages.iter().enumerate() {
            let role = Role::from_bits(page.role);
            if !(1..=5).contains(&role.level()) || page.gfn >> 52 != 0 {
                return refuse(format!("page {}: level {}, gfn {:#x}", at + 1, role.level(), page.gfn));
            }
            let Some(index) = self.arena.alloc(Gfn(page.gfn), role, page.valid_gen) else {
                return refuse("more pages than a VM can have");
            };
            let is_tdp = matches!(page.place, FoundOn::TdpRoot | FoundOn::TdpTable);
            let header = self.arena.page_mut(index);
            header.place = match page.place {
                FoundOn::Active => Place::Active,
                FoundOn::ZappedRoot => Place::Root,
                FoundOn::TdpRoot | FoundOn::TdpTable => Place::Tdp,
            };
            header.root_count = if is_tdp { 0 } else { page.root_count };
            header.unsync = page.unsync;
            self.nr_indirect += u64::from(!role.direct() && !role.invalid());
            self.work.get_page_created += 1;
            match page.place {
                FoundOn::Active => {
                    self.hash.insert(&mut self.arena, index);
                    self.active.push_head(index);
                }
                FoundOn::ZappedRoot => {
                    self.hash.insert(&mut self.arena, index);
                    // It was on the list, as every page that the list can be asked about.
                    self.active.push_head(index);
                    self.active.remove(index);
                }
                FoundOn::TdpRoot => roots.push((index, page.root_count)),
                FoundOn::TdpTable => self.tdp.nr_tables += 1,
            }
        }
        for &(page, refs) in roots.iter().rev() {
            self.tdp.roots.push_head(page);
            if let Some(root) = self.tdp.roots.iter_mut().next() {
                root.refs = refs;
            }
        }
        Ok(())
    }

    fn restore_entries(&mut self, entries: &[FoundEntry]) -> Result<()> {
        for entry in entries {
            let sptep = self.placed(entry.page, entry.index)?;
            let page = sptep.page();
            let key = *self.arena.key(page);
            let word = if entry.child == 0 {
                entry.raw
            } else {
                entry.raw & !ADDRESS | u64::from(self.numbered(entry.child)?.0) << 12
            };
            self.spte_set(sptep, word);
            let is_shadow = self.arena.page(page).place != Place::Tdp;
            if is_mmio(&self.masks, word) {
                if is_shadow && !self.active.is_mmio_cached(page) {
                    self.active.set_mmio_cached(page);
                    self.mmio_pages.push_head(&mut self.arena, page);
                }
            } else if is_shadow_present(&self.masks, word) && is_last(word, key.role.level()) {
                self.stats.lpages += i64::from(key.role.level() > 1);
                if let Some(indirect) = self.arena.indirect_mut(page) {
                    indirect.set_shadowed(entry.index, Gfn(entry.gfn), key.role.access());
                } else if is_shadow && key.gfn_of(entry.index).0 != entry.gfn {
                    self.aliased.insert(sptep, Gfn(entry.gfn));
                }
            }
        }
        Ok(())
    }

    fn restore_slots(&mut self, found: &Found) -> Result<()> {
        for mapping in &found.rmaps {
            let sptep = self.placed(mapping.page, mapping.entry)?;
            let place = mapping.head;
            let Some(slot) = self.find_slot_id(place.as_id, place.slot)? else {
                return refuse(format!("slot {} of address space {}: there is none", place.slot, place.as_id));
            };
            let body = self.spaces[usize::from(slot.as_id & 1)].body_mut(slot.at);
            let heads = body.rmap.get_mut(usize::from(place.level).wrapping_sub(1));
            let Some(head) = heads.and_then(|heads| heads.get_mut(place.index)) else {
                return refuse(format!("slot {}: no reverse map {} of level {}", place.slot, place.index, place.level));
            };
            if head.is_empty() {
                *head = PteHead::one(sptep);
            } else {
                self.pte_lists.add(head, sptep);
            }
        }
        for place in &found.arrays {
            let Some(slot) = self.find_slot_id(place.as_id, place.slot)? else {
                return refuse(format!("slot {} of address space {}: there is none", place.slot, place.as_id));
            };
            let body = self.slot_body_mut(slot);
            let is_set = match place.level {
                0 => {
                    body.track.insert(place.index, u32::try_from(place.value).unwrap_or(u32::MAX));
                    true
                }
                2 | 3 => {
                    let counts = &mut body.disallow[usize::from(place.level) - 2];
                    let value = i32::try_from(place.value).unwrap_or(i32::MAX);
                    counts.get_mut(place.index).map(|count| *count = value).is_some()
                }
                _ => {
                    let words = body.dirty.as_mut();
                    words.and_then(|words| words.get_mut(place.index)).map(|word| *word = place.value).is_some()
                }
            };
            if !is_set {
                return refuse(format!("slot {}: nothing at {} of level {}", place.slot, place.index, place.level));
            }
        }
        Ok(())
    }

    fn restore_vcpus(&mut self, vcpus: &[FoundVcpu]) -> Result<()> {
        if vcpus.len() != self.vcpus.len() {
            return refuse(format!("{} vCPUs, expected {}", vcpus.len(), self.vcpus.len()));
        }
        for (at, found) in vcpus.iter().enumerate() {
            let mut roots = [PageIdx::NONE; 4];
            for (root, &number) in roots.iter_mut().zip(&found.roots) {
                if number != 0 {
                    *root = self.numbered(number)?;
                }
            }
            let mut prev_roots = [PrevRoot::default(); 3];
            for (prev, &number) in prev_roots.iter_mut().zip(&found.prev_roots) {
                if number != 0 {
                    prev.root = self.numbered(number)?;
                }
            }
            let vcpu = &mut self.vcpus[at];
            vcpu.prev_roots = prev_roots;
            vcpu.root_cr3 = if roots[0].some().is_some() { found.cr3 } else { 0 };
            vcpu.has_four_roots = roots[1..].iter().any(|root| root.some().is_some());
            vcpu.root = roots[0];
            vcpu.pae_roots = [roots[1], roots[2], roots[3]];
            vcpu.role = Role::from_bits(found.role).with_invalid(false);
            vcpu.smm = found.smm;
            vcpu.cr3 = found.cr3;
            vcpu.requests = found.requests;
            let (gva, gfn, access, slots_gen) = found.mmio;
            vcpu.mmio = MmioInfo { gva, gfn: Gfn(gfn), access, slots_gen };
        }
        Ok(())
    }
}
