//! An array of a memslot: as long as the slot has pages of a level, and mostly of one value.
//!
//! Owns its elements, in chunks that appear when first written to; a slot of a TiB costs what is used of it, also when it
//! is cloned, dumped or walked. Models the arrays that the kernel allocates whole.
//!
//! Chunks stand one after the other in the order of their first use, and are named by number. So a lookup of an element
//! waits for one number and then for the element. A copy of the VM shares the arrays until one of both writes to them.

use serde::{Deserialize, Serialize};

use crate::mmu::vm::shared_array::SharedArray;

const CHUNK: usize = 64;
const NODE: usize = 512;
/// Chunks that a copy takes over together.
const BLOCK: usize = 16;
/// No array is longer; a slot has less than half as many pages.
const LONGEST: u64 = 1 << 32;
/// No table or no chunk: no array has so many elements, so a lookup with it ends there.
const NONE: u32 = u32::MAX;

/// An array whose elements are `rest` where nothing else was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "SavedArray<T>", into = "SavedArray<T>")]
#[serde(bound(serialize = "T: Copy + PartialEq + Serialize", deserialize = "T: Copy + PartialEq + Deserialize<'de>"))]
pub struct SlotArray<T: Copy + PartialEq> {
    /// Where the table of each 512 chunks begins among the numbers.
    nodes: Vec<u32>,
    /// Tables of numbers of chunks, 512 each; the table of a lone node is as long as the array needs.
    numbers: SharedArray<u32, NODE>,
    chunks: SharedArray<[T; CHUNK], BLOCK>,
    len: u64,
    rest: T,
    /// The chunk written to last, counted from the array's beginning, and its number.
    last: (u64, u32),
}

/// An array as it is saved: how long it is, and what differs from the rest.
#[derive(Serialize, Deserialize)]
struct SavedArray<T> {
    len: u64,
    rest: T,
    used: Vec<(u64, T)>,
}

impl<T: Copy + PartialEq> From<SlotArray<T>> for SavedArray<T> {
    fn from(array: SlotArray<T>) -> Self {
        Self { len: array.len, rest: array.rest, used: array.iter().collect() }
    }
}

impl<T: Copy + PartialEq> From<SavedArray<T>> for SlotArray<T> {
    fn from(saved: SavedArray<T>) -> Self {
        let mut array = Self::new(saved.len.min(LONGEST), saved.rest);
        for (index, value) in saved.used {
            array.set(index, value);
        }
        array
    }
}

/// So many elements from `first` on that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<T> {
    /// Index of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// What each is.
    pub value: T,
}

/// Node, chunk and place of an index.
#[inline]
fn place(index: u64) -> (usize, usize, usize) {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    (index / (CHUNK * NODE), index / CHUNK % NODE, index % CHUNK)
}

impl<T: Copy + PartialEq> SlotArray<T> {
    /// An array of one value.
    #[must_use]
    pub fn new(len: u64, rest: T) -> Self {
        let mut array = Self {
            nodes: Vec::new(),
            numbers: SharedArray::default(),
            chunks: SharedArray::default(),
            len: 0,
            rest,
            last: (0, NONE),
        };
        array.grow(len);
        array
    }

    /// Makes it longer, with elements like the rest.
    pub fn grow(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            self.nodes.resize(place(len - 1).0 + 1, NONE);
            // A lone table follows the array.
            if !self.numbers.is_empty() && self.numbers.len() < NODE {
                self.add_numbers(self.table_len());
            }
        }
    }

    /// Chunks of the whole array.
    fn nr_chunks(&self) -> usize {
        usize::try_from(self.len.div_ceil(CHUNK as u64)).unwrap_or(usize::MAX)
    }

    /// Length of a table.
    fn table_len(&self) -> usize {
        self.nr_chunks().min(NODE)
    }

    /// Makes every element the value.
    pub fn fill(&mut self, value: T) {
        self.nodes.fill(NONE);
        self.numbers = SharedArray::default();
        self.chunks = SharedArray::default();
        self.last = (0, NONE);
        self.rest = value;
    }

    /// How many elements there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Makes all of it common, so that a clone copies little of it.
    pub fn lend(&mut self) {
        self.numbers.lend();
        self.chunks.lend();
    }

    /// Makes room for numbers up to a length.
    fn add_numbers(&mut self, len: usize) {
        while self.numbers.len() < len {
            self.numbers.push(NONE);
        }
    }

    /// The numbers of a node's chunks, from one of them on; none where no chunk is used.
    fn numbers_from(&self, node: usize, chunk: usize) -> Option<impl Iterator<Item = u32>> {
        let start = *self.nodes.get(node)?;
        (start != NONE).then(|| {
            let start = start as usize;
            (start + chunk..start + self.table_len()).map(|at| self.numbers.get(at).copied().unwrap_or(NONE))
        })
    }

    /// The chunk that holds an index, where something was written to it.
    #[inline]
    fn chunk(&self, node: usize, chunk: usize) -> Option<&[T; CHUNK]> {
        let start = *self.nodes.get(node)? as usize;
        let number = *self.numbers.get(start + chunk)? as usize;
        self.chunks.get(number)
    }

    /// The element at an index, the rest's value beyond the end.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u64) -> T {
        let (node, chunk, at) = place(index);
        self.chunk(node, chunk).map_or(self.rest, |values| values[at])
    }

    /// The elements from an index to the end of its chunk; none where nothing was written.
    #[inline]
    #[must_use]
    pub fn rest_of_chunk(&self, index: u64) -> Option<&[T]> {
        let (node, chunk, at) = place(index);
        Some(&self.chunk(node, chunk)?[at..])
    }

    /// The element at an index, to change; none beyond the end.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "three times in a fault; what is seldom is out of line")]
    pub fn get_mut(&mut self, index: u64) -> Option<&mut T> {
        // Neighbours are written one after the other.
        let number = if index / CHUNK as u64 == self.last.0 { self.last.1 as usize } else { self.find_number(index) };
        if index < self.len && number < self.chunks.len() {
            return Some(&mut self.chunks.at_mut(number)[place(index).2]);
        }
        self.add_chunk(index)
    }

    /// The elements from an index to the end of its chunk, to change; none where nothing was written, or beyond the end.
    pub fn rest_of_chunk_mut(&mut self, index: u64) -> Option<&mut [T]> {
        let number = if index < self.len { self.number_of(index) } else { NONE };
        let is_used = (number as usize) < self.chunks.len();
        is_used.then(|| &mut self.chunks.at_mut(number as usize)[place(index).2..])
    }

    /// Looks the number of an index's chunk up, and remembers it.
    #[inline]
    fn number_of(&mut self, index: u64) -> u32 {
        let (node, chunk, _) = place(index);
        let start = self.nodes.get(node).map_or(NONE, |&start| start) as usize;
        let number = self.numbers.get(start + chunk).map_or(NONE, |&number| number);
        self.last = (index / CHUNK as u64, number);
        number
    }

    /// The same out of line.
    #[inline(never)]
    fn find_number(&mut self, index: u64) -> usize {
        self.number_of(index) as usize
    }

    /// Makes a chunk where there was none; the element at an index.
    #[cold]
    #[inline(never)]
    fn add_chunk(&mut self, index: u64) -> Option<&mut T> {
        if index >= self.len {
            return None;
        }
        let (node, chunk, at) = place(index);
        let (nr_chunks, table_len) = (self.nr_chunks(), self.table_len());
        let mut start = *self.nodes.get(node)?;
        if start == NONE {
            start = u32::try_from(self.numbers.len()).ok()?;
            *self.nodes.get_mut(node)? = start;
            self.numbers.reserve((self.numbers.len() / 8 / table_len * table_len).max(table_len));
            self.add_numbers(self.numbers.len() + table_len);
        }
        let number = u32::try_from(self.chunks.len()).ok()?;
        let place = start as usize + chunk;
        if place >= self.numbers.len() {
            return None;
        }
        *self.numbers.at_mut(place) = number;
        // For an eighth of what there is, but for no more than there can be.
        let used = self.chunks.len();
        self.chunks.reserve((used / 8).max(4).min(nr_chunks.saturating_sub(used)).max(1));
        self.chunks.push([self.rest; CHUNK]);
        self.last = (index / CHUNK as u64, number);
        Some(&mut self.chunks.at_mut(number as usize)[at])
    }

    /// Writes an element, where there is one.
    pub fn set(&mut self, index: u64, value: T) {
        if let Some(element) = self.get_mut(index) {
            *element = value;
        }
    }

    /// How many elements from this index on are certainly like the rest, because nothing was written there.
    #[inline]
    #[must_use]
    pub fn absent_from(&self, index: u64) -> u64 {
        let (node, chunk, _) = place(index);
        if node >= self.nodes.len() || self.chunk(node, chunk).is_some() { 0 } else { self.absent_after(index) }
    }

    fn absent_after(&self, index: u64) -> u64 {
        let (first, mut chunk, at) = place(index);
        let mut absent = 0;
        for node in first..self.nodes.len() {
            let left = NODE - chunk;
            let empty = match self.numbers_from(node, chunk) {
                None => left,
                Some(mut numbers) => match numbers.position(|number| number != NONE) {
                    Some(empty) => empty,
                    None => left,
                },
            };
            absent += empty;
            if empty < left {
                break;
            }
            chunk = 0;
        }
        (absent * CHUNK) as u64 - at as u64
    }

    /// Index and value of every element that differs from the rest.
    pub fn iter(&self) -> impl Iterator<Item = (u64, T)> + '_ {
        let tables = (0..self.nodes.len()).filter_map(|node| Some((node, self.numbers_from(node, 0)?)));
        let chunks = tables.flat_map(|(node, numbers)| (node * NODE..).zip(numbers));
        chunks
            .filter_map(|(chunk, number)| Some((chunk, self.chunks.get(number as usize)?)))
            .flat_map(|(chunk, values)| ((chunk * CHUNK) as u64..).zip(values.iter().copied()))
            .filter(|&(_, value)| value != self.rest)
    }

    /// All elements in order, neighbours that nothing was written to together.
    pub fn spans(&self) -> impl Iterator<Item = Span<T>> + '_ {
        let mut first = 0;
        std::iter::from_fn(move || {
            (first < self.len).then(|| {
                let absent = self.absent_from(first).min(self.len - first);
                let span = Span { first, count: absent.max(1), value: self.get(first) };
                first += span.count;
                span
            })
        })
    }

    /// All elements in order, equal neighbours together.
    #[must_use]
    pub fn runs(&self) -> Vec<Span<T>> {
        let mut runs: Vec<Span<T>> = Vec::new();
        for span in self.spans() {
            match runs.last_mut() {
                Some(last) if last.value == span.value => last.count += span.count,
                _ => runs.push(span),
            }
        }
        runs
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<u32>() + self.numbers.size_bytes() + self.chunks.size_bytes()
    }
}
