//! Kernels as rows: facts (a named rule each), rows at a patch level, how a text finds its row, and rows of which single
//! facts were changed.
//!
//! Knows the words of `mmu` (layouts, plans) and nothing else of ours. No version test stands anywhere but here.

mod altered;
mod facts;
mod fault_order;
mod fix_levels;
mod layouts;
mod resolve;
mod rows;

pub use facts::{
    AccessBits, ChildReuse, Collapse, CollapseFlush, DirtyLogFlush, FACTS, Fact, FaultReturns, Kernel, Known,
    LargeInWay, LogOnFlush, MmioCacheAccess, MmioCacheSpace, MmioOverLeaf, OldEntryExempts, PteListOrder, SpteFlush,
    StaleTest, TdpAtomicZap, TdpCollapse, TdpFaultFlush, TdpLargeInWay, TdpRootZap, Value, Valued, WalkBound,
    ZapRangeBlocks, ZapRangeFlush,
};
pub use fault_order::{FaultOrder, FaultStep};
pub use fix_levels::{Change, FIX_LEVELS, FixLevel};
pub use layouts::{GenerationKind, RoleLayout, SpteKind};
pub use resolve::{Resolved, difference, resolve};

/// The names of the rows, oldest first, with commas.
#[must_use]
pub fn names() -> String {
    Kernel::ALL.map(|kernel| kernel.name).join(", ")
}
