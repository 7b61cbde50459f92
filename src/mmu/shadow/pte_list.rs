//! Reverse-map and parent lists: one word for the common single entry, descriptors of three (or fourteen) beyond it.
//!
//! Models `pte_list_add`, `pte_list_remove` and their walk, in the kernel's exact order. Up to v6.1 holes stay in the
//! middle of a chain and new entries fill the first descriptor whose last slot is free; from v6.12 on new descriptors go
//! to the front, and only the first may be part full. A descriptor of one entry is never folded back. Up to v5.4 `add`
//! returns three too few when it must append a descriptor.

use serde::{Deserialize, Serialize};

use crate::mmu::shadow::page_arena::{PageIdx, Sptep};

/// Entries of a descriptor, v5.0 to v5.14.
pub const PTE_LIST_EXT: usize = 3;

/// Head of a list: 0 is empty, an even word a single place, an odd word the first descriptor.
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

    const fn many(desc: u32) -> Self {
        Self(desc << 1 | 1)
    }

    /// Whether there is no entry.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    const fn form(self) -> Form {
        if self.0 == 0 {
            Form::Empty
        } else if self.0 & 1 == 0 {
            Form::One(Sptep(self.0 >> 1))
        } else {
            Form::Many(self.0 >> 1)
        }
    }
}

/// The descriptors of all lists of a VM. Descriptor 0 is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PteLists {
    /// Entries of a descriptor.
    ext: usize,
    /// New descriptors go to the front of a chain.
    is_front: bool,
    /// `ext` entries a descriptor, 0 where there is none.
    sptes: Vec<u32>,
    /// The descriptor after each.
    more: Vec<u32>,
    free: Vec<u32>,
}

impl PteLists {
    /// Whether every place and descriptor that these heads lead to exists, and none is reached twice.
    pub fn is_well_formed(&self, heads: impl Iterator<Item = PteHead>, within: &impl Fn(PageIdx) -> bool) -> bool {
        let mut seen = vec![false; self.more.len()];
        let fits = |place: u32| place == 0 || within(Sptep(place).page());
        if self.ext == 0 || self.sptes.len() != self.more.len().saturating_mul(self.ext) {
            return false;
        }
        for head in heads {
            let mut desc = match head.form() {
                Form::Empty => continue,
                Form::One(sptep) if within(sptep.page()) => continue,
                Form::One(_) => return false,
                Form::Many(desc) => desc,
            };
            loop {
                let at = desc as usize;
                if desc == 0 || at >= seen.len() || std::mem::replace(&mut seen[at], true) {
                    return false;
                }
                if !self.places(desc).iter().all(|&place| fits(place)) {
                    return false;
                }
                desc = self.more[at];
                if desc == 0 {
                    break;
                }
            }
        }
        self.free.iter().all(|&desc| (desc as usize) < seen.len() && desc != 0)
    }
}

impl Default for PteLists {
    fn default() -> Self {
        Self::new(PTE_LIST_EXT, false)
    }
}

impl PteLists {
    /// No lists; descriptors hold `ext` entries, and new ones go to the front of a chain or to its end.
    #[must_use]
    pub fn new(ext: usize, is_front: bool) -> Self {
        let ext = ext.max(2);
        Self { ext, is_front, sptes: vec![0; ext], more: vec![0], free: Vec::new() }
    }

    #[inline]
    fn places(&self, at: u32) -> &[u32] {
        let from = at as usize * self.ext;
        &self.sptes[from..from + self.ext]
    }

    #[inline]
    fn places_mut(&mut self, at: u32) -> &mut [u32] {
        let from = at as usize * self.ext;
        &mut self.sptes[from..from + self.ext]
    }

    /// How many places of a descriptor are used; they are its first.
    fn used(&self, at: u32) -> usize {
        let places = self.places(at);
        places.iter().position(|&place| place == 0).unwrap_or(places.len())
    }

    fn alloc(&mut self, first: &[u32], more: u32) -> u32 {
        let at = if let Some(at) = self.free.pop() {
            at
        } else {
            self.sptes.resize(self.sptes.len() + self.ext, 0);
            self.more.push(0);
            // Each descriptor holds a place of 2^31; there are never more descriptors than places.
            u32::try_from(self.more.len() - 1).unwrap_or(0)
        };
        let places = self.places_mut(at);
        places.fill(0);
        places[..first.len()].copy_from_slice(first);
        self.more[at as usize] = more;
        at
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
            Form::Many(first) if self.is_front => self.add_to_front(head, first, sptep),
            Form::Many(first) => self.add_to_chain(first, sptep),
        }
    }

    /// Only the first descriptor may be part full; a full one gets another before it.
    fn add_to_front(&mut self, head: &mut PteHead, first: u32, sptep: Sptep) -> u32 {
        let used = self.used(first);
        let mut count = used;
        let mut at = self.more[first as usize];
        while at != 0 {
            count += self.ext;
            at = self.more[at as usize];
        }
        if used == self.ext {
            *head = PteHead::many(self.alloc(&[sptep.0], first));
        } else {
            self.places_mut(first)[used] = sptep.0;
        }
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn add_to_chain(&mut self, first: u32, sptep: Sptep) -> u32 {
        let mut at = first;
        let mut count = 0;
        loop {
            if self.places(at)[self.ext - 1] == 0 {
                break;
            }
            let next = self.more[at as usize];
            if next == 0 {
                // Descriptors of three are not counted when another is appended; that is the kernel's.
                if self.ext > PTE_LIST_EXT {
                    count += self.ext;
                }
                let fresh = self.alloc(&[], 0);
                self.more[at as usize] = fresh;
                at = fresh;
                break;
            }
            at = next;
            count += self.ext;
        }
        let used = self.used(at);
        if let Some(place) = self.places_mut(at).get_mut(used) {
            *place = sptep.0;
        }
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
            Form::Many(first) => self.remove_from_chain(head, first, sptep),
        }
    }

    fn remove_from_chain(&mut self, head: &mut PteHead, first: u32, sptep: Sptep) -> bool {
        let mut at = first;
        let mut before = 0;
        while at != 0 {
            let used = self.used(at);
            if let Some(hole) = self.places(at)[..used].iter().position(|&place| place == sptep.0) {
                // The last place of this descriptor, or of the first one, fills the hole.
                let from = if self.is_front { first } else { at };
                let last = self.used(from) - 1;
                let filler = self.places(from)[last];
                self.places_mut(at)[hole] = filler;
                self.places_mut(from)[last] = 0;
                if last == 0 {
                    let more = self.more[from as usize];
                    if before != 0 && !self.is_front {
                        self.more[before as usize] = more;
                    } else if more != 0 {
                        *head = PteHead::many(more);
                    } else {
                        *head = PteHead::EMPTY;
                    }
                    self.free.push(from);
                }
                return true;
            }
            before = at;
            at = self.more[at as usize];
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
            Form::Many(at) => Some(Sptep(self.places(at)[0])),
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
                    cursor.desc = self.more[cursor.desc as usize];
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
                at = self.more[at as usize];
            }
        }
        *head = PteHead::EMPTY;
    }

    /// Descriptors in use.
    #[must_use]
    pub fn used_descs(&self) -> usize {
        self.more.len() - 1 - self.free.len()
    }

    /// Descriptors a list uses.
    #[must_use]
    pub fn descs_of(&self, head: PteHead) -> usize {
        let mut count = 0;
        if let Form::Many(first) = head.form() {
            let mut at = first;
            while at != 0 && count <= self.more.len() {
                count += 1;
                at = self.more[at as usize];
            }
        }
        count
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        (self.sptes.capacity() + self.more.capacity() + self.free.capacity()) * 4
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
            self.desc = self.lists.more[self.desc as usize];
            self.slot = 0;
        }
        None
    }
}
