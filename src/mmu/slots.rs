//! Memslots: the published array of an address space, and each slot's arrays (reverse-map heads, large-page vetoes, write
//! tracking, dirty bitmap).
//!
//! Models `struct kvm_memory_slot` and its arch part, v5.0/v5.2. Invariant: the array is sorted by descending base and no
//! two slots have one id. Differs: arrays grow when a slot is moved to a base that needs one index more; the kernel then
//! reads past their end.

use serde::{Deserialize, Serialize};

use std::cell::Cell;
use std::collections::BTreeMap;

use super::addr::Gfn;
use super::level::{MAX_LEAF, PAGE_TABLE, level_shift};
use super::pte_list::PteHead;
use super::views::SlotSpec;

/// The slot is marked for removal.
pub const MEMSLOT_INVALID: u32 = 1 << 16;
/// Dirty pages are logged.
pub const MEM_LOG_DIRTY_PAGES: u32 = 1;
/// The guest may not write.
pub const MEM_READONLY: u32 = 2;
/// Most pages of a slot.
pub const MAX_SLOT_PAGES: u64 = (1 << 31) - 1;

const CHUNK: usize = 64;

/// Reverse-map heads of one level, in chunks that appear when first used.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "SavedHeads", into = "SavedHeads")]
pub struct RmapHeads {
    chunks: Vec<Option<Box<[PteHead; CHUNK]>>>,
    len: u64,
}

/// The heads as they are saved: how many there are, and those that are not empty.
#[derive(Serialize, Deserialize)]
struct SavedHeads {
    len: u64,
    used: Vec<(u64, PteHead)>,
}

impl From<RmapHeads> for SavedHeads {
    fn from(heads: RmapHeads) -> Self {
        Self { len: heads.len, used: heads.iter().collect() }
    }
}

impl From<SavedHeads> for RmapHeads {
    fn from(saved: SavedHeads) -> Self {
        let mut heads = Self::new(saved.len.min(MAX_SLOT_PAGES));
        for (index, head) in saved.used {
            if let Some(place) = heads.get_mut(index) {
                *place = head;
            }
        }
        heads
    }
}

fn place(index: u64) -> (usize, usize) {
    // An index is below 2^31, a chunk's number below 2^22.
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    (index / CHUNK, index % CHUNK)
}

impl RmapHeads {
    fn new(len: u64) -> Self {
        let mut heads = Self::default();
        heads.grow(len);
        heads
    }

    fn grow(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            let chunks = place(len.saturating_sub(1)).0 + 1;
            if self.chunks.is_empty() {
                self.chunks = vec![None; chunks];
            } else {
                self.chunks.resize(chunks, None);
            }
        }
    }

    /// The head at an index, empty beyond the end.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u64) -> PteHead {
        let (chunk, at) = place(index);
        match self.chunks.get(chunk) {
            Some(Some(heads)) => heads[at],
            _ => PteHead::EMPTY,
        }
    }

    /// The head at an index, to change; none beyond the end.
    #[inline]
    pub fn get_mut(&mut self, index: u64) -> Option<&mut PteHead> {
        if index >= self.len {
            return None;
        }
        let (chunk, at) = place(index);
        let heads = self.chunks.get_mut(chunk)?;
        Some(&mut heads.get_or_insert_with(|| Box::new([PteHead::EMPTY; CHUNK]))[at])
    }

    /// How many heads from this index on are certainly empty because their chunk does not exist.
    #[must_use]
    #[inline]
    pub fn absent_from(&self, index: u64) -> u64 {
        let (chunk, _) = place(index);
        if matches!(self.chunks.get(chunk), Some(Some(_))) { 0 } else { self.absent_after(index) }
    }

    fn absent_after(&self, index: u64) -> u64 {
        let (chunk, _) = place(index);
        let absent =
            self.chunks[chunk.min(self.chunks.len())..].iter().take_while(|heads| heads.is_none()).count() as u64;
        if absent == 0 { 0 } else { (index / CHUNK as u64 + absent) * CHUNK as u64 - index }
    }

    /// Index and head of every list that is not empty.
    pub fn iter(&self) -> impl Iterator<Item = (u64, PteHead)> + '_ {
        self.chunks.iter().enumerate().filter_map(|(chunk, heads)| Some((chunk as u64, heads.as_ref()?))).flat_map(
            |(chunk, heads)| {
                (0_u64..)
                    .zip(heads.iter())
                    .filter(|(_, head)| !head.is_empty())
                    .map(move |(at, head)| (chunk * CHUNK as u64 + at, *head))
            },
        )
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.chunks.capacity() * 8 + self.chunks.iter().flatten().count() * size_of::<[PteHead; CHUNK]>()
    }
}

/// A slot's arrays; they stay with it when its flags or its place change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SlotBody {
    /// Reverse-map heads of levels 1 to 3.
    pub rmap: [RmapHeads; MAX_LEAF as usize],
    /// Large-page vetoes of levels 2 and 3.
    pub disallow: [Vec<i32>; 2],
    /// Write-tracked pages by index, zero counts left out.
    pub track: BTreeMap<u64, u32>,
    /// One bit a page, while dirty pages are logged.
    pub dirty: Option<Vec<u64>>,
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
        let mut body = Self { rmap: [1, 2, 3].map(|level| RmapHeads::new(spec.level_len(level))), ..Self::default() };
        for level in 2..=MAX_LEAF {
            body.disallow[usize::from(level) - 2] = Self::first_disallow(spec, level);
        }
        body.set_logging(spec);
        body
    }

    /// Large pages that would reach over the slot's edge, or that the host's alignment forbids.
    fn first_disallow(spec: &SlotSpec, level: u8) -> Vec<i32> {
        let len = usize::try_from(spec.level_len(level)).unwrap_or(0);
        let in_page = (1 << level_shift(level)) - 1;
        if (spec.base ^ spec.hva >> 12) & in_page != 0 {
            return vec![1; len];
        }
        let mut counts = vec![0; len];
        if spec.base & in_page != 0
            && let Some(first) = counts.first_mut()
        {
            *first = 1;
        }
        if (spec.base + spec.npages) & in_page != 0
            && let Some(last) = counts.last_mut()
        {
            *last = 1;
        }
        counts
    }

    fn set_logging(&mut self, spec: &SlotSpec) {
        if spec.flags & MEM_LOG_DIRTY_PAGES == 0 {
            self.dirty = None;
        } else if self.dirty.is_none() {
            self.dirty = Some(vec![0; usize::try_from(spec.npages.div_ceil(64)).unwrap_or(0)]);
        }
    }

    /// Follows a change of flags or place.
    fn change(&mut self, spec: &SlotSpec) {
        for level in PAGE_TABLE..=MAX_LEAF {
            self.rmap[usize::from(level) - 1].grow(spec.level_len(level));
            if level > PAGE_TABLE {
                let counts = &mut self.disallow[usize::from(level) - 2];
                let len = usize::try_from(spec.level_len(level)).unwrap_or(0);
                if counts.len() < len {
                    // The page the move made reachable at the end reaches over the slot's edge.
                    counts.resize(len, 1);
                }
            }
        }
        // A copy marked for removal keeps what it has.
        if !spec.is_invalid() {
            self.set_logging(spec);
        }
    }

    /// The veto count of a large page.
    #[inline]
    #[must_use]
    pub fn disallowed(&self, index: u64, level: u8) -> i32 {
        let counts = self.disallow.get(usize::from(level).wrapping_sub(2));
        counts.and_then(|counts| counts.get(usize::try_from(index).ok()?)).copied().unwrap_or(1)
    }

    /// Marks every page dirty, where there is a log.
    pub fn fill_dirty(&mut self, npages: u64) {
        if let Some(words) = &mut self.dirty {
            words.fill(u64::MAX);
            if let Some(last) = words.last_mut()
                && !npages.is_multiple_of(64)
            {
                *last = (1 << (npages % 64)) - 1;
            }
        }
    }

    /// Marks a page dirty.
    #[inline]
    pub fn mark_dirty(&mut self, index: u64) {
        if let Some(words) = &mut self.dirty
            && let Some(word) = words.get_mut(usize::try_from(index / 64).unwrap_or(usize::MAX))
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
    /// Whether the slots are slots, in order, each with arrays of its size.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        let fits = |spec: &SlotSpec, body: &SlotBody| {
            let is_slot = (1..=MAX_SLOT_PAGES).contains(&spec.npages) && spec.base <= (1 << 52) - spec.npages;
            is_slot
                && (1..=MAX_LEAF).all(|level| body.rmap[usize::from(level) - 1].len >= spec.level_len(level))
                && (2..=MAX_LEAF)
                    .all(|level| body.disallow[usize::from(level) - 2].len() as u64 >= spec.level_len(level))
                && body.dirty.as_ref().is_none_or(|words| words.len() as u64 == spec.npages.div_ceil(64))
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
                + body.disallow.iter().map(|counts| counts.capacity() * 4).sum::<usize>()
                + body.track.len() * 16
                + body.dirty.as_ref().map_or(0, |words| words.capacity() * 8);
            rmap += body.rmap.iter().map(RmapHeads::size_bytes).sum::<usize>();
        }
        (slots, rmap)
    }
}
