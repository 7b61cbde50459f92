//! Page faults: from an address and an error code to a mapping, an emulation or a retry.

pub(in crate::mmu) mod direct_map;
pub(in crate::mmu) mod direct_page_fault;
pub(in crate::mmu) mod fast_page_fault;
pub(in crate::mmu) mod guest_access;
pub(in crate::mmu) mod guest_fault;
pub(in crate::mmu) mod guest_fetch;
pub(in crate::mmu) mod hardware_walk;
pub(in crate::mmu) mod mmio_fault;
pub(in crate::mmu) mod page_fault;
pub(in crate::mmu) mod prefault;
pub(in crate::mmu) mod quick_map;
pub(in crate::mmu) mod steps;
pub(in crate::mmu) mod usual_run;
