//! Zap plans: long runs over pages that return at every lock break.

pub(in crate::mmu) mod nx_recovery;
pub(in crate::mmu) mod slot_walk;
pub(in crate::mmu) mod zap_batch;
pub(in crate::mmu) mod zap_plan;
