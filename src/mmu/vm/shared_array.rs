//! `SharedArray`: an array that a VM and its copies hold together; who writes to it copies the block that it writes to.
//!
//! Ours. An array that one VM alone holds is a vector, behind one test. A copy of the VM makes it common: both then read it
//! where it is, and keep the blocks that they changed beside it. Invariant: what is common is never written to. The array
//! is a vector again as soon as something is written and the others are gone, or a quarter of the blocks was changed.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An array in blocks of so many elements.
#[derive(Clone, Debug)]
pub enum SharedArray<T, const BLOCK: usize> {
    /// Nobody else has it.
    Own(Vec<T>),
    /// A copy of the VM has it, or had it.
    Common(Box<Common<T>>),
}

/// An array that others have, too.
#[derive(Clone, Debug)]
pub struct Common<T> {
    base: Arc<Vec<T>>,
    /// How many elements there are, those behind the end of `base` included.
    len: usize,
    /// The blocks that differ from `base`, whole, by their number.
    changed: FxHashMap<usize, Vec<T>>,
}

impl<T, const BLOCK: usize> Default for SharedArray<T, BLOCK> {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl<T, const BLOCK: usize> From<Vec<T>> for SharedArray<T, BLOCK> {
    fn from(own: Vec<T>) -> Self {
        Self::Own(own)
    }
}

impl<T, const BLOCK: usize> SharedArray<T, BLOCK> {
    /// How many elements there are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Own(own) => own.len(),
            Self::Common(common) => common.len,
        }
    }

    /// Whether there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at an index, if there is one.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a test before a read")]
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&T> {
        match self {
            Self::Own(own) => own.get(at),
            Self::Common(common) => common.get(at, BLOCK),
        }
    }

    /// The element at an index below the length.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a test before a read")]
    #[must_use]
    pub fn at(&self, at: usize) -> &T {
        match self {
            Self::Own(own) => &own[at],
            Self::Common(common) => common.at(at, BLOCK),
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.len()).map(|at| self.at(at))
    }

    /// Makes it common, so that a clone copies no more than what was changed since it became so.
    pub fn lend(&mut self) {
        if let Self::Own(own) = self {
            let (len, base) = (own.len(), Arc::new(std::mem::take(own)));
            *self = Self::Common(Box::new(Common { base, len, changed: FxHashMap::default() }));
        }
    }

    /// In which blocks it may differ from what it was, in order; nothing if that is not known.
    fn blocks_changed_since(&self, known: &Self) -> Option<Vec<usize>> {
        let (Self::Common(now), Self::Common(known)) = (self, known) else { return None };
        if !Arc::ptr_eq(&now.base, &known.base) {
            return None;
        }
        let mut blocks: Vec<usize> = now.changed.keys().chain(known.changed.keys()).copied().collect();
        blocks.sort_unstable();
        blocks.dedup();
        Some(blocks)
    }

    /// Which elements may differ from what they were, in order; nothing if that is not known.
    #[must_use]
    pub fn changed_since(&self, known: &Self) -> Option<Vec<usize>> {
        let blocks = self.blocks_changed_since(known)?;
        let len = self.len().max(known.len());
        Some(blocks.into_iter().flat_map(|block| block * BLOCK..((block + 1) * BLOCK).min(len)).collect())
    }

    /// Bytes held, without what elements hold outside themselves. What is common counts whole.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let elements = match self {
            Self::Own(own) => own.capacity(),
            Self::Common(common) => common.base.capacity() + common.changed.values().map(Vec::capacity).sum::<usize>(),
        };
        elements * size_of::<T>()
    }
}

impl<T: Clone, const BLOCK: usize> SharedArray<T, BLOCK> {
    /// Makes it a vector again, if nobody else has it any more.
    pub fn settle(&mut self) {
        if matches!(self, Self::Common(_)) {
            self.try_own();
        }
    }

    /// The element at an index below the length, to change.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a test before a write")]
    pub fn at_mut(&mut self, at: usize) -> &mut T {
        match self {
            Self::Own(own) => &mut own[at],
            Self::Common(_) => self.common_mut(at),
        }
    }

    /// The same where others have it, too, or had it.
    #[cold]
    #[inline(never)]
    fn common_mut(&mut self, at: usize) -> &mut T {
        self.try_own();
        match self {
            Self::Own(own) => &mut own[at],
            Self::Common(common) => &mut common.block_mut(at, BLOCK)[at % BLOCK],
        }
    }

    /// One more element at the end.
    #[inline]
    pub fn push(&mut self, element: T) {
        if let Self::Common(_) = self {
            self.try_own();
        }
        match self {
            Self::Own(own) => own.push(element),
            Self::Common(common) => {
                let at = common.len;
                common.block_mut(at, BLOCK).push(element);
                common.len += 1;
            }
        }
    }

    /// Room for so many more, where there is none and nobody else has the array.
    #[inline]
    pub fn reserve(&mut self, more: usize) {
        if let Self::Own(own) = self
            && own.len() == own.capacity()
        {
            own.reserve_exact(more);
        }
    }

    /// Makes it a vector again, where nobody else has it any more or much of it was changed.
    #[cold]
    #[inline(never)]
    fn try_own(&mut self) {
        let Self::Common(common) = self else { return };
        let is_alone = Arc::strong_count(&common.base) == 1;
        if is_alone || common.changed.len() > common.base.len() / BLOCK / 4 + 1 {
            let Common { base, changed, .. } = std::mem::take(&mut **common);
            let mut own = Arc::unwrap_or_clone(base);
            let mut blocks: Vec<(usize, Vec<T>)> = changed.into_iter().collect();
            blocks.sort_unstable_by_key(|block| block.0);
            for (number, block) in blocks {
                for (at, element) in (number * BLOCK..).zip(block) {
                    match own.get_mut(at) {
                        Some(place) => *place = element,
                        None => own.push(element),
                    }
                }
            }
            *self = Self::Own(own);
        }
    }
}

impl<T> Default for Common<T> {
    fn default() -> Self {
        Self { base: Arc::default(), len: 0, changed: FxHashMap::default() }
    }
}

impl<T> Common<T> {
    #[cold]
    #[inline(never)]
    fn get(&self, at: usize, block: usize) -> Option<&T> {
        match self.changed.get(&(at / block)) {
            Some(changed) => changed.get(at % block),
            None => self.base.get(at),
        }
    }

    #[cold]
    #[inline(never)]
    fn at(&self, at: usize, block: usize) -> &T {
        match self.changed.get(&(at / block)) {
            Some(changed) => &changed[at % block],
            None => &self.base[at],
        }
    }
}

impl<T: Clone> Common<T> {
    /// The block of an index, which may be the first behind the end; copied where it was not changed yet.
    #[cold]
    #[inline(never)]
    fn block_mut(&mut self, at: usize, block: usize) -> &mut Vec<T> {
        let base = &self.base;
        self.changed.entry(at / block).or_insert_with(|| {
            let first = at / block * block;
            let mut copy = Vec::with_capacity(block);
            copy.extend_from_slice(base.get(first..base.len().min(first + block)).unwrap_or_default());
            copy
        })
    }
}

impl<T: Serialize, const BLOCK: usize> Serialize for SharedArray<T, BLOCK> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'de, T: Deserialize<'de>, const BLOCK: usize> Deserialize<'de> for SharedArray<T, BLOCK> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Vec::deserialize(from).map(Self::Own)
    }
}
