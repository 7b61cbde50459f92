//! Watchers: they look at everything and change nothing.

pub(in crate::mmu) mod audit;
pub(in crate::mmu) mod canonical;
pub(in crate::mmu) mod fingerprint;
pub(in crate::mmu) mod judge;
pub(in crate::mmu) mod judge_guest;
pub(in crate::mmu) mod judge_pages;
pub(in crate::mmu) mod left_over;
pub(in crate::mmu) mod numbers;
pub(in crate::mmu) mod restored;
pub(in crate::mmu) mod saved;
pub(in crate::mmu) mod snapshot;
pub(in crate::mmu) mod stepped_dump;
