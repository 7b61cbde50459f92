//! What happens to a range of gfns: dirty log, notifiers, write tracking, walks of a slot.

pub(in crate::mmu) mod dirty_log;
pub(in crate::mmu) mod dirty_log_run;
pub(in crate::mmu) mod install_slot;
pub(in crate::mmu) mod notifier;
pub(in crate::mmu) mod write_track;
