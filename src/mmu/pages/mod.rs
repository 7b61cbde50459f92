//! Tables of either page table: where they live, how they are walked and written, and what a mapping is.

pub mod indirect_page;
pub(in crate::mmu) mod last_path;
pub(in crate::mmu) mod leaves_gone;
pub(in crate::mmu) mod mapping;
pub mod page_arena;
pub(in crate::mmu) mod page_count;
pub mod pte_list;
pub(in crate::mmu) mod spte_table;
pub(in crate::mmu) mod spte_write;
pub(in crate::mmu) mod tell;
pub(in crate::mmu) mod walk;
