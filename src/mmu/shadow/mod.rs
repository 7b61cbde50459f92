//! Shadow pages: their hash, lists and reverse maps, and what is done to one page.

pub(in crate::mmu) mod account;
pub(in crate::mmu) mod active_pages;
pub(in crate::mmu) mod get_page;
pub(in crate::mmu) mod gpte_prefetch;
pub(in crate::mmu) mod guest_page;
pub(in crate::mmu) mod guest_roots;
pub(in crate::mmu) mod guest_walk;
pub(in crate::mmu) mod head_walk;
pub(in crate::mmu) mod invalid_list;
pub(in crate::mmu) mod invlpg;
pub(in crate::mmu) mod link;
pub(in crate::mmu) mod mmio_pages;
pub(in crate::mmu) mod nx_marks;
pub(in crate::mmu) mod page_hash;
pub(in crate::mmu) mod reclaim;
pub(in crate::mmu) mod requested_leaf;
pub(in crate::mmu) mod rmap;
pub(in crate::mmu) mod root_cache;
pub(in crate::mmu) mod roots;
pub(in crate::mmu) mod sync;
pub(in crate::mmu) mod unsync;
pub(in crate::mmu) mod write_flood;
pub(in crate::mmu) mod zap;
