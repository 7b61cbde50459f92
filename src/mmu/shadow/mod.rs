//! Shadow pages: their hash, lists and reverse maps, and what is done to one page.

pub(in crate::mmu) mod active_pages;
pub(in crate::mmu) mod get_page;
pub(in crate::mmu) mod guest_walk;
pub(in crate::mmu) mod head_walk;
pub(in crate::mmu) mod invalid_list;
pub(in crate::mmu) mod link;
pub(in crate::mmu) mod mmio_pages;
pub(in crate::mmu) mod nx_marks;
pub(in crate::mmu) mod page_hash;
pub(in crate::mmu) mod reclaim;
pub(in crate::mmu) mod rmap;
pub(in crate::mmu) mod roots;
pub(in crate::mmu) mod zap;
