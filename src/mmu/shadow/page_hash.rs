//! `PageHash`: shadow pages by gfn. New pages go to the head of their bucket; pages stay until they are freed.
//!
//! Models v5.0 `mmu_page_hash`: 4,096 buckets of `hash_64`. The wide form is ours: as many buckets as pages, the same
//! order of pages of one gfn.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::{PageArena, PageIdx};
use crate::mmu::vm::shared_array::SharedArray;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::config::GfnHash;

const KERNEL_SHIFT: u32 = 12;
const GOLDEN_RATIO_64: u64 = 0x61C8_8646_80B5_83EB;

/// Heads of the buckets; the links are in the pages' keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PageHash {
    heads: SharedArray<PageIdx, 256>,
    bits: u32,
    is_wide: bool,
    len: usize,
}

impl PageHash {
    /// An empty hash.
    #[must_use]
    pub fn new(kind: GfnHash) -> Self {
        Self {
            heads: vec![PageIdx::NONE; 1 << KERNEL_SHIFT].into(),
            bits: KERNEL_SHIFT,
            is_wide: kind == GfnHash::Wide,
            len: 0,
        }
    }

    /// Whether every head is an index and there are as many as the hash gives.
    #[must_use]
    pub fn is_well_formed(&self, within: &impl Fn(PageIdx) -> bool) -> bool {
        (1..=32).contains(&self.bits)
            && self.heads.len() == 1 << self.bits
            && self.heads.iter().all(|page| within(*page))
    }

    /// Whether collisions mean the kernel's.
    #[must_use]
    pub const fn counts_collisions(&self) -> bool {
        !self.is_wide
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "at most 22 bits are kept")]
    fn bucket(&self, gfn: Gfn) -> usize {
        (gfn.0.wrapping_mul(GOLDEN_RATIO_64) >> (64 - self.bits)) as usize
    }

    /// First page of the gfn's bucket.
    #[must_use]
    #[inline]
    pub fn first(&self, gfn: Gfn) -> PageIdx {
        *self.heads.at(self.bucket(gfn))
    }

    /// Puts a page at the head of its bucket.
    pub fn insert(&mut self, arena: &mut PageArena, page: PageIdx) {
        if self.is_wide && self.len >= self.heads.len() && self.bits < 22 {
            self.grow(arena);
        }
        self.len += 1;
        self.link(arena, page);
    }

    fn link(&mut self, arena: &mut PageArena, page: PageIdx) {
        let bucket = self.bucket(arena.key(page).gfn);
        let next = *self.heads.at(bucket);
        *self.heads.at_mut(bucket) = page;
        let key = arena.key_mut(page);
        key.hash_next = next;
        key.hash_prev = PageIdx::NONE;
        if next != PageIdx::NONE {
            arena.key_mut(next).hash_prev = page;
        }
    }

    /// Takes a page out.
    pub fn remove(&mut self, arena: &mut PageArena, page: PageIdx) {
        let key = *arena.key(page);
        if key.hash_prev == PageIdx::NONE {
            let bucket = self.bucket(key.gfn);
            *self.heads.at_mut(bucket) = key.hash_next;
        } else {
            arena.key_mut(key.hash_prev).hash_next = key.hash_next;
        }
        if key.hash_next != PageIdx::NONE {
            arena.key_mut(key.hash_next).hash_prev = key.hash_prev;
        }
        self.len = self.len.saturating_sub(1);
    }

    fn grow(&mut self, arena: &mut PageArena) {
        let mut order = Vec::with_capacity(self.len);
        for &head in self.heads.iter() {
            let start = order.len();
            let mut page = head;
            while page != PageIdx::NONE {
                order.push(page);
                page = arena.key(page).hash_next;
            }
            // Inserting at the head turns a chain round, so it goes in from its end.
            order[start..].reverse();
        }
        self.bits += 2;
        self.heads = vec![PageIdx::NONE; 1 << self.bits].into();
        for page in order {
            self.link(arena, page);
        }
    }

    /// Pages in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Makes the heads common, so that a clone does not copy them.
    pub fn lend(&mut self) {
        self.heads.lend();
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.heads.size_bytes()
    }

    /// The buckets' heads, for watchers.
    pub fn heads(&self) -> impl Iterator<Item = PageIdx> {
        self.heads.iter().copied()
    }

    /// The bucket of a gfn, for watchers.
    #[must_use]
    pub fn bucket_of(&self, gfn: Gfn) -> usize {
        self.bucket(gfn)
    }
}
