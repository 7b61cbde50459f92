//! Memslots: the published array of an address space, and each slot's arrays (reverse-map heads, large-page vetoes, write
//! tracking, dirty bitmap).
//!
//! Models `struct kvm_memory_slot` and its arch part, v5.0/v5.2. Invariant: the array is sorted by descending base and no
//! two slots have one id. Differs: arrays grow when a slot is moved to a base that needs one index more; the kernel then
//! reads past their end.

use serde::{Deserialize, Serialize};

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::vm::slot_array::SlotArray;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE, level_shift};
use crate::mmu::words::views::SlotSpec;

/// The slot is marked for removal.
pub const MEMSLOT_INVALID: u32 = 1 << 16;
/// Dirty pages are logged.
pub const MEM_LOG_DIRTY_PAGES: u32 = 1;
/// The guest may not write.
pub const MEM_READONLY: u32 = 2;
/// Most pages of a slot.
pub const MAX_SLOT_PAGES: u64 = (1 << 31) - 1;

/// A slot's arrays; they stay with it when its flags or its place change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SlotBody {
    /// Reverse-map heads of levels 1 to 3.
    pub rmap: [SlotArray<PteHead>; MAX_LEAF as usize],
    /// Large-page vetoes of levels 2 and 3.
    pub disallow: [SlotArray<i32>; 2],
    /// Write-tracked pages by index, zero counts left out.
    pub track: BTreeMap<u64, u32>,
    /// Words of one bit a page, while dirty pages are logged.
    pub dirty: Option<SlotArray<u64>>,
    /// When it was put into the array: later is greater.
    pub stamp: u64,
}

/// Position in a slot array; good until the next install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotAt {
    /// Address space.
    pub as_id: u8,
    /// Position.
    pub at: usize,
}

impl SlotSpec {
    /// Index of the gfn's mapping of this level, relative to the slot.
    #[inline]
    #[must_use]
    pub const fn index(&self, gfn: Gfn, level: u8) -> u64 {
        (gfn.0 >> level_shift(level)).wrapping_sub(self.base >> level_shift(level))
    }

    /// How many mappings of this level the slot touches.
    #[must_use]
    pub const fn level_len(&self, level: u8) -> u64 {
        if self.npages == 0 { 0 } else { self.index(Gfn(self.base + (self.npages - 1)), level) + 1 }
    }

    /// Whether it holds the gfn.
    #[inline]
    #[must_use]
    pub const fn holds(&self, gfn: Gfn) -> bool {
        gfn.0.wrapping_sub(self.base) < self.npages
    }

    /// Host address of a gfn.
    #[inline]
    #[must_use]
    pub const fn hva_of(&self, gfn: Gfn) -> u64 {
        self.hva.wrapping_add(gfn.0.wrapping_sub(self.base) << 12)
    }

    /// Whether it is marked for removal.
    #[inline]
    #[must_use]
    pub const fn is_invalid(&self) -> bool {
        self.flags & MEMSLOT_INVALID != 0
    }

    /// Whether the guest may not write.
    #[inline]
    #[must_use]
    pub const fn is_readonly(&self) -> bool {
        self.flags & MEM_READONLY != 0
    }
}

impl SlotBody {
    /// Arrays for a new slot.
    #[must_use]
    pub fn new(spec: &SlotSpec) -> Self {
        let mut body = Self {
            rmap: [1, 2, 3].map(|level| SlotArray::new(spec.level_len(level), PteHead::EMPTY)),
            disallow: [2, 3].map(|level| Self::first_disallow(spec, level)),
            track: BTreeMap::new(),
            dirty: None,
            stamp: 0,
        };
        body.set_logging(spec);
        body
    }

    /// Large pages that would reach over the slot's edge, or that the host's alignment forbids.
    fn first_disallow(spec: &SlotSpec, level: u8) -> SlotArray<i32> {
        let len = spec.level_len(level);
        let in_page = (1 << level_shift(level)) - 1;
        if (spec.base ^ spec.hva >> 12) & in_page != 0 {
            return SlotArray::new(len, 1);
        }
        let mut counts = SlotArray::new(len, 0);
        if spec.base & in_page != 0 {
            counts.set(0, 1);
        }
        if (spec.base + spec.npages) & in_page != 0 {
            counts.set(len.saturating_sub(1), 1);
        }
        counts
    }

    fn set_logging(&mut self, spec: &SlotSpec) {
        if spec.flags & MEM_LOG_DIRTY_PAGES == 0 {
            self.dirty = None;
        } else if self.dirty.is_none() {
            self.dirty = Some(SlotArray::new(spec.npages.div_ceil(64), 0));
        }
    }

    /// Follows a change of flags or place.
    fn change(&mut self, spec: &SlotSpec) {
        for level in PAGE_TABLE..=MAX_LEAF {
            self.rmap[usize::from(level) - 1].grow(spec.level_len(level));
            if level > PAGE_TABLE {
                let counts = &mut self.disallow[usize::from(level) - 2];
                let (before, len) = (counts.len(), spec.level_len(level));
                counts.grow(len);
                // The page the move made reachable at the end reaches over the slot's edge.
                for index in before..len {
                    counts.set(index, 1);
                }
            }
        }
        // A copy marked for removal keeps what it has.
        if !spec.is_invalid() {
            self.set_logging(spec);
        }
    }

    /// Makes its arrays common, so that a clone copies none of them.
    fn lend(&mut self) {
        self.rmap.iter_mut().for_each(SlotArray::lend);
        self.disallow.iter_mut().for_each(SlotArray::lend);
        self.dirty.iter_mut().for_each(SlotArray::lend);
    }

    /// The veto count of a large page.
    #[inline]
    #[must_use]
    pub fn disallowed(&self, index: u64, level: u8) -> i32 {
        let counts = self.disallow.get(usize::from(level).wrapping_sub(2));
        counts.filter(|counts| index < counts.len()).map_or(1, |counts| counts.get(index))
    }

    /// Marks every page dirty, where there is a log.
    pub fn fill_dirty(&mut self, npages: u64) {
        if let Some(words) = &mut self.dirty {
            words.fill(u64::MAX);
            if !npages.is_multiple_of(64) {
                words.set(npages / 64, (1 << (npages % 64)) - 1);
            }
        }
    }

    /// Marks a page dirty.
    #[inline]
    pub fn mark_dirty(&mut self, index: u64) {
        if let Some(words) = &mut self.dirty
            && let Some(word) = words.get_mut(index / 64)
        {
            *word |= 1 << (index % 64);
        }
    }
}

/// One address space: the generation and the published array.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AddressSpace {
    /// The memslot generation, as the caller set it.
    pub slots_gen: u64,
    specs: Vec<SlotSpec>,
    bodies: Vec<SlotBody>,
    stamp: u64,
    #[serde(skip)]
    last: Cell<usize>,
}

impl AddressSpace {
    /// Makes the slots' arrays common, so that a clone copies none of them.
    pub fn lend(&mut self) {
        self.bodies.iter_mut().for_each(SlotBody::lend);
    }

    /// Whether the slots are slots, in order, each with arrays of its size.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        let fits = |spec: &SlotSpec, body: &SlotBody| {
            let is_slot = (1..=MAX_SLOT_PAGES).contains(&spec.npages) && spec.base <= (1 << 52) - spec.npages;
            is_slot
                && (1..=MAX_LEAF).all(|level| body.rmap[usize::from(level) - 1].len() >= spec.level_len(level))
                && (2..=MAX_LEAF).all(|level| body.disallow[usize::from(level) - 2].len() >= spec.level_len(level))
                && body.dirty.as_ref().is_none_or(|words| words.len() == spec.npages.div_ceil(64))
        };
        self.specs.len() == self.bodies.len()
            && self.specs.is_sorted_by(|a, b| a.base >= b.base)
            && self.specs.iter().zip(&self.bodies).all(|(spec, body)| fits(spec, body))
    }

    /// Every reverse-map head that is not empty.
    pub fn heads(&self) -> impl Iterator<Item = PteHead> + '_ {
        self.bodies.iter().flat_map(|body| &body.rmap).flat_map(|heads| heads.iter().map(|(_, head)| head))
    }

    /// The slots, descending by base.
    #[must_use]
    pub fn specs(&self) -> &[SlotSpec] {
        &self.specs
    }

    /// A slot's arrays.
    #[inline]
    #[must_use]
    pub fn body(&self, at: usize) -> &SlotBody {
        &self.bodies[at]
    }

    /// The same, to change.
    #[inline]
    pub fn body_mut(&mut self, at: usize) -> &mut SlotBody {
        &mut self.bodies[at]
    }

    /// Where the slot of a gfn stands.
    #[inline]
    #[must_use]
    pub fn find(&self, gfn: Gfn) -> Option<usize> {
        let last = self.last.get();
        if let Some(spec) = self.specs.get(last)
            && spec.holds(gfn)
        {
            return Some(last);
        }
        let at = self.specs.partition_point(|spec| spec.base > gfn.0);
        if self.specs.get(at)?.holds(gfn) {
            self.last.set(at);
            return Some(at);
        }
        None
    }

    /// Where the slot with an id stands.
    #[must_use]
    pub fn find_id(&self, id: u32) -> Option<usize> {
        self.specs.iter().position(|spec| spec.id == id)
    }

    /// Positions of the slots in the order of their host addresses; of equal ones the one put last comes last.
    #[must_use]
    pub fn by_hva(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.specs.len()).collect();
        order.sort_by_key(|&at| (self.specs[at].hva, self.bodies[at].stamp));
        order
    }

    /// Creates a slot, or changes its flags or its place; its arrays stay with it.
    #[cfg(test)]
    pub fn put(&mut self, spec: SlotSpec) {
        self.put_anew(spec, false);
    }

    /// The same, where a moved slot may get new arrays; the old ones then.
    pub fn put_anew(&mut self, spec: SlotSpec, is_renewed_by_move: bool) -> Option<SlotBody> {
        let mut old = None;
        self.last.set(0);
        self.stamp = self.stamp.wrapping_add(1);
        let stamp = self.stamp;
        let body = match self.find_id(spec.id) {
            Some(at) if self.specs[at].base == spec.base => {
                self.specs[at] = spec;
                self.bodies[at].change(&spec);
                self.bodies[at].stamp = stamp;
                return None;
            }
            Some(at) => {
                self.specs.remove(at);
                let mut body = self.bodies.remove(at);
                if is_renewed_by_move {
                    let mut fresh = SlotBody::new(&spec);
                    fresh.dirty = body.dirty.take();
                    fresh.set_logging(&spec);
                    old = Some(std::mem::replace(&mut body, fresh));
                } else {
                    body.change(&spec);
                }
                body
            }
            None => SlotBody::new(&spec),
        };
        let body = SlotBody { stamp, ..body };
        let at = self.specs.partition_point(|other| other.base > spec.base);
        self.specs.insert(at, spec);
        self.bodies.insert(at, body);
        old
    }

    /// Takes a slot away and hands its arrays over.
    pub fn remove(&mut self, id: u32) -> Option<SlotBody> {
        let at = self.find_id(id)?;
        self.last.set(0);
        self.specs.remove(at);
        Some(self.bodies.remove(at))
    }

    /// Bytes held by arrays other than reverse-map heads, and by those.
    #[must_use]
    pub fn size_bytes(&self) -> (usize, usize) {
        let mut slots = self.specs.capacity() * size_of::<SlotSpec>();
        let mut rmap = 0;
        for body in &self.bodies {
            slots += size_of::<SlotBody>()
                + body.disallow.iter().map(SlotArray::size_bytes).sum::<usize>()
                + body.track.len() * 16
                + body.dirty.as_ref().map_or(0, SlotArray::size_bytes);
            rmap += body.rmap.iter().map(SlotArray::size_bytes).sum::<usize>();
        }
        (slots, rmap)
    }
}
