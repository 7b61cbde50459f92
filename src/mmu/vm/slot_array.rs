//! An array of a memslot: as long as the slot has pages of a level, and mostly of one value.
//!
//! Owns its elements, in chunks that appear when first written to; a slot of a TiB costs what is used of it, also when it
//! is cloned, dumped or walked. Models the arrays that the kernel allocates whole.

use serde::{Deserialize, Serialize};

const CHUNK: usize = 64;
const NODE: usize = 512;
/// No array is longer; a slot has less than half as many pages.
const LONGEST: u64 = 1 << 32;

type Chunk<T> = Box<[T; CHUNK]>;
type Node<T> = Box<[Option<Chunk<T>>; NODE]>;

/// An array whose elements are `rest` where nothing else was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "SavedArray<T>", into = "SavedArray<T>")]
#[serde(bound(serialize = "T: Copy + PartialEq + Serialize", deserialize = "T: Copy + PartialEq + Deserialize<'de>"))]
pub struct SlotArray<T: Copy + PartialEq> {
    nodes: Vec<Option<Node<T>>>,
    len: u64,
    rest: T,
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
        let mut array = Self { nodes: Vec::new(), len: 0, rest };
        array.grow(len);
        array
    }

    /// Makes it longer, with elements like the rest.
    pub fn grow(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            self.nodes.resize(place(len - 1).0 + 1, None);
        }
    }

    /// Makes every element the value.
    pub fn fill(&mut self, value: T) {
        self.nodes.fill(None);
        self.rest = value;
    }

    /// How many elements there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// The element at an index, the rest's value beyond the end.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u64) -> T {
        let (node, chunk, at) = place(index);
        match self.nodes.get(node) {
            Some(Some(chunks)) => chunks[chunk].as_ref().map_or(self.rest, |values| values[at]),
            _ => self.rest,
        }
    }

    /// The elements from an index to the end of its chunk, copied, and how many they are; none where nothing was written.
    #[inline]
    #[must_use]
    pub fn rest_of_chunk(&self, index: u64) -> Option<([T; CHUNK], usize)> {
        let (node, chunk, at) = place(index);
        let values = self.nodes.get(node)?.as_ref()?[chunk].as_ref()?;
        let mut copied = **values;
        copied.rotate_left(at);
        Some((copied, CHUNK - at))
    }

    /// The element at an index, to change; none beyond the end.
    #[inline]
    pub fn get_mut(&mut self, index: u64) -> Option<&mut T> {
        if index >= self.len {
            return None;
        }
        let rest = self.rest;
        let (node, chunk, at) = place(index);
        let chunks = self.nodes.get_mut(node)?.get_or_insert_with(|| Box::new([const { None }; NODE]));
        Some(&mut chunks[chunk].get_or_insert_with(|| Box::new([rest; CHUNK]))[at])
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
        match self.nodes.get(node) {
            None => 0,
            Some(Some(chunks)) if chunks[chunk].is_some() => 0,
            Some(_) => self.absent_after(index),
        }
    }

    fn absent_after(&self, index: u64) -> u64 {
        let (node, mut chunk, at) = place(index);
        let mut absent = 0;
        for chunks in self.nodes.iter().skip(node) {
            let left = NODE - chunk;
            let empty = match chunks {
                None => left,
                Some(chunks) => chunks[chunk..].iter().take_while(|values| values.is_none()).count(),
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
        let nodes = self.nodes.iter().enumerate().filter_map(|(node, chunks)| Some((node, chunks.as_ref()?)));
        let chunks = nodes.flat_map(|(node, chunks)| {
            (node * NODE..).zip(chunks.iter()).filter_map(|(chunk, values)| Some((chunk, values.as_ref()?)))
        });
        chunks
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
        let nodes = self.nodes.iter().flatten();
        let chunks: usize = nodes.clone().map(|chunks| chunks.iter().flatten().count()).sum();
        self.nodes.capacity() * size_of::<Option<Node<T>>>()
            + nodes.count() * size_of::<[Option<Chunk<T>>; NODE]>()
            + chunks * size_of::<[T; CHUNK]>()
    }
}
