//! Reverse-map and parent lists: one word for the common single entry, descriptors of three beyond it.
//!
//! Models v5.0/v5.2 `pte_list_add`, `__pte_list_remove` and their walk, in the kernel's exact order: holes stay in the
//! middle of a chain, new entries fill the first descriptor whose last slot is free, a descriptor of one entry is never
//! folded back, and `add` returns three too few when it must append a descriptor.

use serde::{Deserialize, Serialize};

use super::page_arena::{PageIdx, Sptep};

/// Entries of a descriptor, v5.0 to v5.3.
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

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct PteListDesc {
    sptes: [u32; PTE_LIST_EXT],
    more: u32,
}

/// The descriptors of all lists of a VM. Descriptor 0 is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PteLists {
    descs: Vec<PteListDesc>,
    free: Vec<u32>,
}

impl PteLists {
    /// Whether every place and descriptor that these heads lead to exists, and none is reached twice.
    pub fn is_well_formed(&self, heads: impl Iterator<Item = PteHead>, within: &impl Fn(PageIdx) -> bool) -> bool {
        let mut seen = vec![false; self.descs.len()];
        let fits = |place: u32| place == 0 || within(Sptep(place).page());
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
                if !self.descs[at].sptes.iter().all(|&place| fits(place)) {
                    return false;
                }
                desc = self.descs[at].more;
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
        Self { descs: vec![PteListDesc::default()], free: Vec::new() }
    }
}

impl PteLists {
    fn desc(&mut self, at: u32) -> &mut PteListDesc {
        &mut self.descs[at as usize]
    }

    fn alloc(&mut self, first: PteListDesc) -> u32 {
        if let Some(at) = self.free.pop() {
            *self.desc(at) = first;
            return at;
        }
        self.descs.push(first);
        // Each descriptor holds a place of 2^31; there are never more descriptors than places.
        u32::try_from(self.descs.len() - 1).unwrap_or(0)
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
                *head = PteHead::many(self.alloc(PteListDesc { sptes: [first.0, sptep.0, 0], more: 0 }));
                1
            }
            Form::Many(first) => self.add_to_chain(first, sptep),
        }
    }

    fn add_to_chain(&mut self, first: u32, sptep: Sptep) -> u32 {
        let mut at = first;
        let mut count = 0;
        loop {
            let desc = self.desc(at);
            if desc.sptes[PTE_LIST_EXT - 1] == 0 {
                break;
            }
            if desc.more == 0 {
                let fresh = self.alloc(PteListDesc::default());
                self.desc(at).more = fresh;
                at = fresh;
                break;
            }
            at = desc.more;
            count += 3;
        }
        let desc = self.desc(at);
        for slot in &mut desc.sptes {
            if *slot == 0 {
                *slot = sptep.0;
                return count;
            }
            count += 1;
        }
        count
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
            let desc = self.desc(at);
            let used = desc.sptes.iter().position(|&slot| slot == 0).unwrap_or(PTE_LIST_EXT);
            if let Some(hole) = desc.sptes[..used].iter().position(|&slot| slot == sptep.0) {
                desc.sptes[hole] = desc.sptes[used - 1];
                desc.sptes[used - 1] = 0;
                if used == 1 {
                    let more = desc.more;
                    if before != 0 {
                        self.desc(before).more = more;
                    } else if more != 0 {
                        *head = PteHead::many(more);
                    } else {
                        *head = PteHead::EMPTY;
                    }
                    self.free.push(at);
                }
                return true;
            }
            before = at;
            at = desc.more;
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
            Form::Many(at) => Some(Sptep(self.descs[at as usize].sptes[0])),
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
                    let desc = &self.descs[cursor.desc as usize];
                    if let Some(&sptep) = desc.sptes.get(cursor.slot)
                        && sptep != 0
                    {
                        cursor.slot += 1;
                        return Some(Sptep(sptep));
                    }
                    cursor.desc = desc.more;
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
                at = self.descs[at as usize].more;
            }
        }
        *head = PteHead::EMPTY;
    }

    /// Descriptors in use.
    #[must_use]
    pub fn used_descs(&self) -> usize {
        self.descs.len() - 1 - self.free.len()
    }

    /// Descriptors a list uses.
    #[must_use]
    pub fn descs_of(&self, head: PteHead) -> usize {
        let mut count = 0;
        if let Form::Many(first) = head.form() {
            let mut at = first;
            while at != 0 && count <= self.descs.len() {
                count += 1;
                at = self.descs[at as usize].more;
            }
        }
        count
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.descs.capacity() * size_of::<PteListDesc>() + self.free.capacity() * 4
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
            let desc = &self.lists.descs[self.desc as usize];
            if let Some(&sptep) = desc.sptes.get(self.slot)
                && sptep != 0
            {
                self.slot += 1;
                return Some(Sptep(sptep));
            }
            self.desc = desc.more;
            self.slot = 0;
        }
        None
    }
}
