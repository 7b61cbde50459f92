//! `kvm_mmu`: the data structures and the zap/invalidate machinery of KVM's x86 shadow MMU, in userspace.
//!
//! [`mmu`] is the model, [`ftrace`] reads and writes the text of its tracepoints, `py` (feature `python`) is the border
//! to Python, [`replay`] drives the model with the events of a trace. Nothing else lives here.

pub mod check;
pub mod ftrace;
pub mod kernels;
pub mod mmu;
#[cfg(feature = "python")]
mod py;
pub mod replay;
