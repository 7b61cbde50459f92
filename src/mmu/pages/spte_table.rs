//! `SpteTable`: the 512 entries of a shadow page, as small as their number allows: none, one, up to fourteen sorted, or
//! the full array. Most tables of an MMIO region or of a sparse guest hold one entry; a table that fills up costs its
//! 4 KiB and no more.
//!
//! A table never shrinks before its page is zapped: what once was busy is likely to be again.

use serde::{Deserialize, Serialize};

use crate::mmu::words::level::ENTRIES;

const FEW: usize = 14;

/// Up to fourteen entries, ascending by index.
#[derive(Clone, Debug)]
pub struct FewSptes {
    len: u16,
    index: [u16; FEW],
    value: [u64; FEW],
}

/// The entries of one shadow page. Saved as those that are not zero; what comes back may take another form.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(u16, u64)>", into = "Vec<(u16, u64)>")]
pub enum SpteTable {
    /// All zero.
    #[default]
    Empty,
    /// One entry is not zero.
    One {
        /// Which.
        index: u16,
        /// Its word.
        value: u64,
    },
    /// A few are not zero.
    Few(Box<FewSptes>),
    /// Every entry has its place.
    Full(Box<[u64; ENTRIES]>),
}

impl From<SpteTable> for Vec<(u16, u64)> {
    fn from(table: SpteTable) -> Self {
        table.iter().collect()
    }
}

impl From<Vec<(u16, u64)>> for SpteTable {
    fn from(saved: Vec<(u16, u64)>) -> Self {
        let mut table = Self::Empty;
        for (index, word) in saved {
            table.set(index & 0x1ff, word);
        }
        table
    }
}

impl SpteTable {
    /// The word at an index.
    #[must_use]
    #[inline]
    pub fn get(&self, at: u16) -> u64 {
        // Not one match: a jump table would be mispredicted on every other level of a walk.
        if let Self::Full(words) = self { words[usize::from(at) % ENTRIES] } else { self.get_small(at) }
    }

    #[inline(never)]
    fn get_small(&self, at: u16) -> u64 {
        if let Self::One { index, value } = self {
            return if *index == at { *value } else { 0 };
        }
        if let Self::Few(few) = self { few.get(at) } else { 0 }
    }

    /// All words, if every entry has its place.
    #[must_use]
    #[inline]
    pub fn full(&self) -> Option<&[u64; ENTRIES]> {
        if let Self::Full(words) = self { Some(words) } else { None }
    }

    /// Which words of the aligned group of eight that holds an index are so, a bit each.
    #[must_use]
    #[inline]
    pub fn which_of_eight(&self, at: u16, is_so: impl Fn(u64) -> bool) -> u8 {
        let first = at & 0x1f8;
        if let Self::Full(words) = self
            && let Some(group) = words[usize::from(first)..].first_chunk::<8>()
        {
            return group.iter().rev().fold(0, |bits, &word| bits << 1 | u8::from(is_so(word)));
        }
        (first..first + 8).rev().fold(0, |bits, place| bits << 1 | u8::from(is_so(self.get(place))))
    }

    /// Stores a word; only `spte_write` calls this.
    #[inline]
    pub fn set(&mut self, at: u16, word: u64) {
        match self {
            Self::Full(words) => words[usize::from(at) % ENTRIES] = word,
            _ => self.set_small(at, word),
        }
    }

    fn set_small(&mut self, at: u16, word: u64) {
        match self {
            Self::Full(words) => words[usize::from(at) % ENTRIES] = word,
            Self::Empty => {
                if word != 0 {
                    *self = Self::One { index: at, value: word };
                }
            }
            Self::One { index, value } if *index == at => {
                if word == 0 {
                    *self = Self::Empty;
                } else {
                    *value = word;
                }
            }
            Self::One { index, value } => {
                if word != 0 {
                    let mut few = FewSptes { len: 1, index: [0; FEW], value: [0; FEW] };
                    few.index[0] = *index;
                    few.value[0] = *value;
                    few.set(at, word);
                    *self = Self::Few(Box::new(few));
                }
            }
            Self::Few(few) => {
                if !few.set(at, word) {
                    let mut words = Box::new([0; ENTRIES]);
                    for (index, value) in few.iter() {
                        words[usize::from(index)] = value;
                    }
                    words[usize::from(at) % ENTRIES] = word;
                    *self = Self::Full(words);
                }
            }
        }
    }

    /// Index and word of every entry that is not zero, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let (one, few, full) = match self {
            Self::Empty => (None, None, None),
            Self::One { index, value } => (Some((*index, *value)), None, None),
            Self::Few(few) => (None, Some(few.iter()), None),
            Self::Full(words) => (None, None, Some(words)),
        };
        let full =
            full.into_iter().flat_map(|words| (0_u16..).zip(words.iter().copied()).filter(|&(_, word)| word != 0));
        one.into_iter().chain(few.into_iter().flatten()).chain(full)
    }

    /// How many entries from an index on are zero, up to `most`.
    #[must_use]
    pub fn empty_from(&self, from: u16, most: u16) -> u16 {
        let next = match self {
            Self::Empty => return most,
            Self::Full(words) => {
                let words = &words[usize::from(from).min(ENTRIES)..];
                let empty = words.iter().take(usize::from(most)).position(|&word| word != 0);
                return empty.and_then(|empty| u16::try_from(empty).ok()).unwrap_or(most);
            }
            Self::One { index, .. } => (*index >= from).then_some(*index),
            Self::Few(few) => few.iter().map(|(index, _)| index).find(|&index| index >= from),
        };
        next.map_or(most, |index| (index - from).min(most))
    }

    /// Whether every entry is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Bytes held outside the enum itself.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Empty | Self::One { .. } => 0,
            Self::Few(_) => size_of::<FewSptes>(),
            Self::Full(_) => ENTRIES * 8,
        }
    }
}

impl FewSptes {
    fn len(&self) -> usize {
        usize::from(self.len)
    }

    #[inline]
    fn get(&self, at: u16) -> u64 {
        let len = self.len();
        self.index[..len].iter().position(|&index| index == at).map_or(0, |place| self.value[place])
    }

    /// Stores a word; false if there is no room for it.
    fn set(&mut self, at: u16, word: u64) -> bool {
        let len = self.len();
        let place = self.index[..len].partition_point(|&index| index < at);
        if place < len && self.index[place] == at {
            if word == 0 {
                self.index.copy_within(place + 1..len, place);
                self.value.copy_within(place + 1..len, place);
                self.len -= 1;
            } else {
                self.value[place] = word;
            }
            return true;
        }
        if word == 0 {
            return true;
        }
        if len == FEW {
            return false;
        }
        self.index.copy_within(place..len, place + 1);
        self.value.copy_within(place..len, place + 1);
        self.index[place] = at;
        self.value[place] = word;
        self.len += 1;
        true
    }

    fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let len = self.len();
        self.index[..len].iter().copied().zip(self.value[..len].iter().copied())
    }
}
