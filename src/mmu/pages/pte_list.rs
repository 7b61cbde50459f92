//! Reverse-map and parent lists: one word for the common single entry, descriptors of three (or fourteen) beyond it.
//!
//! Models `pte_list_add`, `pte_list_remove` and their walk, in the kernel's exact order. Up to v6.1 holes stay in the
//! middle of a chain and new entries fill the first descriptor whose last slot is free; from v6.12 on new descriptors go
//! to the front, and only the first may be part full. A descriptor of one entry is never folded back. Up to v5.4 `add`
//! returns three too few when it must append a descriptor.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::{PageIdx, Sptep};

/// Entries of a descriptor, v5.0 to v5.14.
pub const PTE_LIST_EXT: usize = 3;

/// Head of a list: 0 is empty, an even word a single place, an odd word where the first descriptor begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PteHead(u32);

/// What a head says.
enum Form {
    Empty,
    One(Sptep),
    Many(u32),
}

impl PteHead {
    /// No entry.
    pub const EMPTY: Self = Self(0);

    /// The list of one entry.
    #[inline]
    #[must_use]
    pub const fn one(sptep: Sptep) -> Self {
        Self(sptep.0 << 1)
    }

    /// A descriptor begins at an even word.
    const fn many(desc: u32) -> Self {
        Self(desc | 1)
    }

    /// What is left of a list whose first descriptor went.
    const fn from_more(more: u32) -> Self {
        if more == 0 { Self::EMPTY } else { Self::many(more) }
    }

    /// Whether there is no entry.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The place, where there is exactly one that stands in the head itself.
    #[inline]
    #[must_use]
    pub const fn single(self) -> Option<Sptep> {
        if let Form::One(sptep) = self.form() { Some(sptep) } else { None }
    }

    /// Makes each the list of one entry, of neighbours from a place on.
    pub fn fill_one_each(heads: &mut [Self], first: Sptep) {
        let one = Self::one(first).0;
        for (head, at) in heads.iter_mut().zip(0..u32::MAX) {
            head.0 = one.wrapping_add(at << 1);
        }
    }

    /// Whether each is the list of one entry, of neighbours from a place on.
    #[inline]
    #[must_use]
    pub fn are_one_each(heads: &[Self], first: Sptep) -> bool {
        let one = Self::one(first).0;
        heads.iter().zip(0..u32::MAX).fold(0, |other, (head, at)| other | head.0 ^ one.wrapping_add(at << 1)) == 0
    }

    #[inline]
    const fn form(self) -> Form {
        if self.0 == 0 {
            Form::Empty
        } else if self.0 & 1 == 0 {
            Form::One(Sptep(self.0 >> 1))
        } else {
            Form::Many(self.0 & !1)
        }
    }
}

/// What descriptors look like, and where a new one goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Shape {
    /// Three places, the end of the chain.
    ThreeAtEnd,
    /// Fourteen places, the end of the chain.
    FourteenAtEnd,
    /// Fourteen places, the front of the chain.
    FourteenAtFront,
}

/// The descriptors of all lists of a VM, one after the other in words: the places, 0 where there is none, and in the last
/// word where the descriptor after it begins. The first begins at 0 and is none.
///
/// A walk of a long chain waits for each such word, and for nothing else: no multiplication stands between two of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PteLists {
    shape: Shape,
    words: Vec<u32>,
    free: Vec<u32>,
}

/// Entries of a long descriptor, v5.15 and later.
const LONG_EXT: usize = 14;
/// Words of a descriptor of three.
const STRIDE: usize = 4;
/// Words of a descriptor of fourteen.
const LONG_STRIDE: usize = 16;

/// How many places of a descriptor are used; they are its first.
#[inline]
fn used(places: &[u32]) -> usize {
    places.iter().position(|&place| place == 0).unwrap_or(places.len())
}

impl PteLists {
    /// Whether every place and descriptor that these heads lead to exists, and none is reached twice.
    pub fn is_well_formed(&self, heads: impl Iterator<Item = PteHead>, within: &impl Fn(PageIdx) -> bool) -> bool {
        let stride = self.stride();
        if self.words.is_empty() || !self.words.len().is_multiple_of(stride) {
            return false;
        }
        let mut seen = vec![false; self.words.len() / stride];
        let is_desc = |desc: u32| desc != 0 && (desc as usize).is_multiple_of(stride);
        let fits = |place: u32| place == 0 || within(Sptep(place).page());
        for head in heads {
            let mut desc = match head.form() {
                Form::Empty => continue,
                Form::One(sptep) if within(sptep.page()) => continue,
                Form::One(_) => return false,
                Form::Many(desc) => desc,
            };
            loop {
                let Some(seen) = seen.get_mut(desc as usize / stride).filter(|_| is_desc(desc)) else { return false };
                if std::mem::replace(seen, true) || !self.places(desc).iter().all(|&place| fits(place)) {
                    return false;
                }
                desc = self.more(desc);
                if desc == 0 {
                    break;
                }
            }
        }
        self.free.iter().all(|&desc| is_desc(desc) && (desc as usize) < self.words.len())
    }
}

impl Default for PteLists {
    fn default() -> Self {
        Self::new(PTE_LIST_EXT, false)
    }
}

impl PteLists {
    /// No lists; descriptors hold three entries or, if `ext` is more, fourteen, and of those new ones may go to the front
    /// of a chain.
    #[must_use]
    pub fn new(ext: usize, is_front: bool) -> Self {
        let shape = match (ext <= PTE_LIST_EXT, is_front) {
            (true, _) => Shape::ThreeAtEnd,
            (false, false) => Shape::FourteenAtEnd,
            (false, true) => Shape::FourteenAtFront,
        };
        let mut lists = Self { shape, words: Vec::new(), free: Vec::new() };
        lists.words.resize(lists.stride(), 0);
        lists
    }

    /// Entries of a descriptor.
    const fn ext(&self) -> usize {
        if matches!(self.shape, Shape::ThreeAtEnd) { PTE_LIST_EXT } else { LONG_EXT }
    }

    /// Words of a descriptor.
    const fn stride(&self) -> usize {
        if matches!(self.shape, Shape::ThreeAtEnd) { STRIDE } else { LONG_STRIDE }
    }

    /// Where the descriptor after one begins; 0 is none.
    #[inline]
    fn more(&self, desc: u32) -> u32 {
        self.words[desc as usize + self.stride() - 1]
    }

    #[inline]
    fn places(&self, desc: u32) -> &[u32] {
        &self.words[desc as usize..desc as usize + self.ext()]
    }

    fn alloc(&mut self, first: &[u32], more: u32) -> u32 {
        let stride = self.stride();
        let desc = if let Some(desc) = self.free.pop() {
            desc
        } else {
            // Words of 32 bits name 16 GiB of descriptors; the pages to fill them do not fit the arena.
            let desc = u32::try_from(self.words.len()).unwrap_or(0);
            self.words.resize(self.words.len() + stride, 0);
            desc
        };
        let words = &mut self.words[desc as usize..desc as usize + stride];
        words.fill(0);
        words[..first.len()].copy_from_slice(first);
        words[stride - 1] = more;
        desc
    }

    /// Adds a place; returns the kernel's count of entries before it.
    #[inline]
    pub fn add(&mut self, head: &mut PteHead, sptep: Sptep) -> u32 {
        match head.form() {
            Form::Empty => {
                *head = PteHead::one(sptep);
                0
            }
            Form::One(first) => {
                *head = PteHead::many(self.alloc(&[first.0, sptep.0], 0));
                1
            }
            Form::Many(first) if self.shape == Shape::ThreeAtEnd => {
                self.add_to_chain::<PTE_LIST_EXT, STRIDE>(first, sptep)
            }
            Form::Many(first) => self.add_to_long(head, first, sptep),
        }
    }

    #[inline(never)]
    fn add_to_long(&mut self, head: &mut PteHead, first: u32, sptep: Sptep) -> u32 {
        if self.shape == Shape::FourteenAtFront {
            self.add_to_front(head, first, sptep)
        } else {
            self.add_to_chain::<LONG_EXT, LONG_STRIDE>(first, sptep)
        }
    }

    /// Only the first descriptor may be part full; a full one gets another before it.
    fn add_to_front(&mut self, head: &mut PteHead, first: u32, sptep: Sptep) -> u32 {
        const EXT: usize = LONG_EXT;
        const STRIDE: usize = LONG_STRIDE;
        let words = self.words.as_mut_slice();
        let at = first as usize;
        let used = used(&words[at..at + EXT]);
        let mut count = used;
        let mut next = words[at + (STRIDE - 1)] as usize;
        while next != 0 {
            count += EXT;
            next = words[next + (STRIDE - 1)] as usize;
        }
        if used == EXT {
            *head = PteHead::many(self.alloc(&[sptep.0], first));
        } else {
            words[at + used] = sptep.0;
        }
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The first descriptor whose last place is free takes it; where there is none, a new one at the end.
    #[inline]
    fn add_to_chain<const EXT: usize, const STRIDE: usize>(&mut self, first: u32, sptep: Sptep) -> u32 {
        let words = self.words.as_mut_slice();
        let mut at = first as usize;
        let mut count = 0;
        while words[at + (EXT - 1)] != 0 {
            let next = words[at + (STRIDE - 1)] as usize;
            if next == 0 {
                // Descriptors of three are not counted when another is appended; that is the kernel's.
                if EXT > PTE_LIST_EXT {
                    count += EXT;
                }
                let fresh = self.alloc(&[sptep.0], 0);
                self.words[at + (STRIDE - 1)] = fresh;
                return u32::try_from(count).unwrap_or(u32::MAX);
            }
            at = next;
            count += EXT;
        }
        let used = used(&words[at..at + EXT]);
        words[at + used] = sptep.0;
        u32::try_from(count + used).unwrap_or(u32::MAX)
    }

    /// Removes a place; false if it is not there.
    #[inline]
    pub fn remove(&mut self, head: &mut PteHead, sptep: Sptep) -> bool {
        match head.form() {
            Form::Empty => false,
            Form::One(first) => {
                if first == sptep {
                    *head = PteHead::EMPTY;
                }
                first == sptep
            }
            Form::Many(first) if self.shape == Shape::ThreeAtEnd => {
                self.remove_from_chain::<PTE_LIST_EXT, STRIDE>(head, first, sptep)
            }
            Form::Many(first) => self.remove_from_long(head, first, sptep),
        }
    }

    fn remove_from_chain<const EXT: usize, const STRIDE: usize>(
        &mut self,
        head: &mut PteHead,
        first: u32,
        sptep: Sptep,
    ) -> bool {
        let mut desc = first;
        let mut before = 0;
        while desc != 0
            && let Some(words) = self.words[desc as usize..].first_chunk_mut::<STRIDE>()
        {
            let more = words[STRIDE - 1];
            let places = &mut words[..EXT];
            let used = used(places);
            if let Some(hole) = places[..used].iter().position(|&place| place == sptep.0) {
                // The last place of this descriptor fills the hole.
                places[hole] = places[used - 1];
                places[used - 1] = 0;
                if used == 1 {
                    if before != 0 {
                        self.words[before as usize + (STRIDE - 1)] = more;
                    } else {
                        *head = PteHead::from_more(more);
                    }
                    self.free.push(desc);
                }
                return true;
            }
            before = desc;
            desc = more;
        }
        false
    }

    #[inline(never)]
    fn remove_from_long(&mut self, head: &mut PteHead, first: u32, sptep: Sptep) -> bool {
        if self.shape == Shape::FourteenAtFront {
            self.remove_from_front(head, first, sptep)
        } else {
            self.remove_from_chain::<LONG_EXT, LONG_STRIDE>(head, first, sptep)
        }
    }

    /// The last place of the first descriptor fills the hole.
    fn remove_from_front(&mut self, head: &mut PteHead, first: u32, sptep: Sptep) -> bool {
        let mut desc = first;
        while desc != 0 {
            if let Some(hole) = self.places(desc).iter().position(|&place| place == sptep.0) {
                let last = first as usize + used(self.places(first)) - 1;
                self.words[desc as usize + hole] = self.words[last];
                self.words[last] = 0;
                if last == first as usize {
                    *head = PteHead::from_more(self.more(first));
                    self.free.push(first);
                }
                return true;
            }
            desc = self.more(desc);
        }
        false
    }

    /// The first place.
    #[must_use]
    #[inline]
    pub fn first(&self, head: PteHead) -> Option<Sptep> {
        match head.form() {
            Form::Empty => None,
            Form::One(sptep) => Some(sptep),
            Form::Many(at) => Some(Sptep(self.words[at as usize])),
        }
    }

    /// The places in list order.
    #[must_use]
    #[inline]
    pub fn iter(&self, head: PteHead) -> PteIter<'_> {
        match head.form() {
            Form::Empty => PteIter { lists: self, single: None, desc: 0, slot: 0 },
            Form::One(sptep) => PteIter { lists: self, single: Some(sptep), desc: 0, slot: 0 },
            Form::Many(desc) => PteIter { lists: self, single: None, desc, slot: 0 },
        }
    }

    /// The place after `done` in a walk that leaves the list as it is; start with `PteCursor::default()`.
    #[inline]
    #[must_use]
    pub fn at(&self, head: PteHead, cursor: &mut PteCursor) -> Option<Sptep> {
        match head.form() {
            Form::Empty => None,
            Form::One(sptep) => {
                let first = !cursor.begun;
                cursor.begun = true;
                first.then_some(sptep)
            }
            Form::Many(first) => {
                if !cursor.begun {
                    *cursor = PteCursor { begun: true, desc: first, slot: 0 };
                }
                loop {
                    if cursor.desc == 0 {
                        return None;
                    }
                    if let Some(&sptep) = self.places(cursor.desc).get(cursor.slot)
                        && sptep != 0
                    {
                        cursor.slot += 1;
                        return Some(Sptep(sptep));
                    }
                    cursor.desc = self.more(cursor.desc);
                    cursor.slot = 0;
                }
            }
        }
    }

    /// Forgets a whole list.
    pub fn clear(&mut self, head: &mut PteHead) {
        if let Form::Many(first) = head.form() {
            let mut at = first;
            while at != 0 {
                self.free.push(at);
                at = self.more(at);
            }
        }
        *head = PteHead::EMPTY;
    }

    /// Descriptors in use.
    #[must_use]
    pub fn used_descs(&self) -> usize {
        self.words.len() / self.stride() - 1 - self.free.len()
    }

    /// Descriptors a list uses.
    #[must_use]
    pub fn descs_of(&self, head: PteHead) -> usize {
        let mut count = 0;
        if let Form::Many(first) = head.form() {
            let mut at = first;
            while at != 0 && count <= self.words.len() {
                count += 1;
                at = self.more(at);
            }
        }
        count
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        (self.words.capacity() + self.free.capacity()) * 4
    }
}

/// Where a walk stands that may change entries' words but not the list.
#[derive(Clone, Copy, Debug, Default)]
pub struct PteCursor {
    begun: bool,
    desc: u32,
    slot: usize,
}

/// A walk over one list.
#[derive(Clone, Debug)]
pub struct PteIter<'a> {
    lists: &'a PteLists,
    single: Option<Sptep>,
    desc: u32,
    slot: usize,
}

impl Iterator for PteIter<'_> {
    type Item = Sptep;

    #[inline]
    fn next(&mut self) -> Option<Sptep> {
        if let Some(sptep) = self.single.take() {
            return Some(sptep);
        }
        while self.desc != 0 {
            if let Some(&sptep) = self.lists.places(self.desc).get(self.slot)
                && sptep != 0
            {
                self.slot += 1;
                return Some(Sptep(sptep));
            }
            self.desc = self.lists.more(self.desc);
            self.slot = 0;
        }
        None
    }
}
