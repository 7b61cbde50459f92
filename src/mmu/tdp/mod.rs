//! The TDP MMU: page tables without reverse maps, walked from their roots, for guests under two-dimensional paging.
//!
//! Nouns `root_list tdp_walk`, verbs `iter drive tdp_roots change map zap_roots age protect split collapse recovery`. Tables live in
//! the arena of shadow pages, with the mark [`Place::Tdp`](super::pages::page_arena::Place) and on none of its lists.

pub(in crate::mmu) mod age;
pub(in crate::mmu) mod change;
pub(in crate::mmu) mod collapse;
pub(in crate::mmu) mod drive;
pub(in crate::mmu) mod iter;
pub(in crate::mmu) mod map;
pub(in crate::mmu) mod protect;
pub(in crate::mmu) mod recovery;
pub(in crate::mmu) mod root_list;
pub(in crate::mmu) mod split;
pub(in crate::mmu) mod tdp_roots;
pub(in crate::mmu) mod tdp_walk;
pub(in crate::mmu) mod zap_roots;
