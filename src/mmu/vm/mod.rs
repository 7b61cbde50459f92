//! The nouns of a VM: memslots, host memory, vCPUs, TLBs, events, lock polls, runs and the state that holds them.

pub(in crate::mmu) mod debt;
pub mod events;
pub(in crate::mmu) mod guest_memory;
pub(in crate::mmu) mod host_memory;
pub(in crate::mmu) mod invalidation;
pub(in crate::mmu) mod lock_polls;
pub(in crate::mmu) mod nx_list;
pub(in crate::mmu) mod runs;
pub(in crate::mmu) mod shared;
pub(in crate::mmu) mod shared_array;
pub(in crate::mmu) mod slice;
pub(in crate::mmu) mod slot_array;
pub(in crate::mmu) mod slots;
pub(in crate::mmu) mod state;
pub(in crate::mmu) mod tlb;
pub(in crate::mmu) mod vcpu_mmu;
