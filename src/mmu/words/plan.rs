//! `ZapPlan`: a policy for zapping many shadow pages, as a value. What a plan does is in `zap_plan`; here is what it says.
//!
//! The named plans are the ways the kernels zapped over the years, and `indexed`, which is ours.

use serde::{Deserialize, Serialize};

use crate::mmu::words::error::{Error, Result};

/// Which list is walked, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Walk {
    /// The active list from the newest page.
    Head,
    /// The active list from the oldest page.
    Tail,
    /// Only the MMIO-caching pages, newest flag first.
    Index,
    /// The slot's reverse maps at levels 1 to 3, then one hash lookup for each gfn.
    Slot,
}

/// Which of the visited pages are zapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Only {
    /// All of them.
    All,
    /// Those whose flag `mmio_cached` is set.
    MmioCached,
    /// Those of an older valid generation.
    Obsolete,
    /// Those whose base gfn lies in the slot.
    Slot,
    /// Those whose base gfn lies in the range.
    GfnRange,
    /// Those that shadow guest page tables; with the slot walk, of the slot. A direct MMU has none.
    Indirect,
}

/// What ends the walk early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// Nothing.
    None,
    /// The first page of the current valid generation.
    FirstNotObsolete,
}

/// Which visited pages are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Skip {
    /// None.
    None,
    /// Pages already marked invalid.
    Invalid,
    /// Pages marked invalid that a vCPU still uses as root.
    InvalidInUse,
}

/// After what the walk starts again from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRules {
    /// After a prepare that freed anything.
    pub on_nonzero: bool,
    /// After a prepare that zapped children.
    pub on_unstable: bool,
    /// After the lock was really dropped.
    pub on_lock_drop: bool,
}

/// When the lock is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Offer {
    /// Never.
    Never,
    /// After each zapped page. For the slot walk: a poll after each head and each gfn, as `WhenWanted`.
    EachPage,
    /// A poll before each prepare, an offer only if it is true. For the slot walk: after each head and each gfn.
    WhenWanted,
    /// Before a prepare, once at least so many pages were zapped since the last real drop.
    Batch(u32),
}

/// What happens to prepared pages before the lock is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BeforeDrop {
    /// They stay on their list.
    Keep,
    /// They are flushed and freed.
    Commit,
}

/// Whether and when all vCPUs are asked to reload their roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReloadRoots {
    /// Not by the plan.
    No,
    /// Before the walk.
    Before,
    /// After the commit.
    After,
}

/// A zap policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZapPlan {
    /// Which list is walked.
    pub walk: Walk,
    /// Which pages are zapped.
    pub only: Only,
    /// What ends the walk early.
    pub stop: Stop,
    /// Which pages are passed over.
    pub skip: Skip,
    /// When the walk starts again.
    pub restart: RestartRules,
    /// When the lock is offered.
    pub offer: Offer,
    /// What happens to prepared pages before a drop.
    pub before_drop: BeforeDrop,
    /// Whether the valid generation is stepped first, which makes every existing page obsolete.
    pub bump_valid_gen: bool,
    /// Whether vCPUs are asked to reload their roots.
    pub reload_roots: ReloadRoots,
}

const NEVER: RestartRules = RestartRules { on_nonzero: false, on_unstable: false, on_lock_drop: false };

impl ZapPlan {
    /// The seed patch: flagged pages from the head, restart after every zap, the lock never offered.
    pub const SEED: Self = Self {
        walk: Walk::Head,
        only: Only::MmioCached,
        stop: Stop::None,
        skip: Skip::None,
        restart: RestartRules { on_nonzero: true, ..NEVER },
        offer: Offer::Never,
        before_drop: BeforeDrop::Keep,
        bump_valid_gen: false,
        reload_roots: ReloadRoots::No,
    };
    /// The same walk as v3.10 had it at slot create and move, with a reload request after it.
    pub const V3_10_MMIO: Self = Self { reload_roots: ReloadRoots::After, ..Self::SEED };
    /// v5.0's fast invalidate.
    pub const V5_0_FAST: Self = Self {
        walk: Walk::Tail,
        only: Only::Obsolete,
        stop: Stop::FirstNotObsolete,
        skip: Skip::Invalid,
        restart: RestartRules { on_nonzero: true, on_lock_drop: true, ..NEVER },
        offer: Offer::Batch(10),
        before_drop: BeforeDrop::Keep,
        bump_valid_gen: true,
        reload_roots: ReloadRoots::Before,
    };
    /// v5.1's and v5.2's wrap: flagged pages from the head, one offer for each zapped page.
    pub const MERGED: Self = Self {
        walk: Walk::Head,
        only: Only::MmioCached,
        stop: Stop::None,
        skip: Skip::InvalidInUse,
        restart: RestartRules { on_unstable: true, on_lock_drop: true, ..NEVER },
        offer: Offer::EachPage,
        before_drop: BeforeDrop::Keep,
        bump_valid_gen: false,
        reload_roots: ReloadRoots::No,
    };
    /// v5.1's and v5.2's teardown: as `MERGED`, all pages.
    pub const ZAP_ALL: Self = Self { only: Only::All, ..Self::MERGED };
    /// v5.1's and v5.2's slot removal.
    pub const V5_2_SLOT: Self = Self {
        walk: Walk::Slot,
        only: Only::All,
        stop: Stop::None,
        skip: Skip::Invalid,
        restart: NEVER,
        offer: Offer::WhenWanted,
        before_drop: BeforeDrop::Commit,
        bump_valid_gen: false,
        reload_roots: ReloadRoots::No,
    };
    /// v5.3's fast invalidate.
    pub const V5_3_FAST: Self = Self {
        walk: Walk::Tail,
        only: Only::Obsolete,
        stop: Stop::FirstNotObsolete,
        skip: Skip::Invalid,
        restart: RestartRules { on_unstable: true, on_lock_drop: true, ..NEVER },
        offer: Offer::WhenWanted,
        before_drop: BeforeDrop::Commit,
        bump_valid_gen: true,
        reload_roots: ReloadRoots::No,
    };
    /// The fast zap of v5.4 to v6.12: batches of ten, one valid bit.
    pub const V5_4_FAST: Self = Self {
        skip: Skip::InvalidInUse,
        offer: Offer::Batch(10),
        before_drop: BeforeDrop::Keep,
        reload_roots: ReloadRoots::Before,
        ..Self::V5_3_FAST
    };
    /// v6.12's slot removal where the quirk is off: the slot's mappings, and of the pages only those with guest entries.
    pub const V6_12_SLOT: Self = Self { only: Only::Indirect, ..Self::V5_2_SLOT };
    /// Ours: only the list of MMIO-caching pages; the same set of pages as `MERGED`.
    pub const INDEXED: Self = Self { walk: Walk::Index, skip: Skip::None, restart: NEVER, ..Self::MERGED };

    /// The named plans.
    pub const NAMED: [(&'static str, Self); 10] = [
        ("seed", Self::SEED),
        ("v3.10-mmio", Self::V3_10_MMIO),
        ("v5.0-fast", Self::V5_0_FAST),
        ("merged", Self::MERGED),
        ("zap-all", Self::ZAP_ALL),
        ("v5.2-slot", Self::V5_2_SLOT),
        ("v5.3-fast", Self::V5_3_FAST),
        ("v5.4-fast", Self::V5_4_FAST),
        ("v6.12-slot", Self::V6_12_SLOT),
        ("indexed", Self::INDEXED),
    ];

    /// The plan of this name.
    pub fn named(name: &str) -> Result<Self> {
        Self::NAMED
            .into_iter()
            .find_map(|(known, plan)| (known == name).then_some(plan))
            .ok_or_else(|| Error::UnknownPlan(name.to_owned()))
    }
}

/// Which plan answers which trigger. Which trigger fires when is the caller's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plans {
    /// The generation wrapped.
    pub wrap: ZapPlan,
    /// A slot is deleted or moved.
    pub slot_removal: ZapPlan,
    /// The VM ends.
    pub teardown: ZapPlan,
    /// Everything is to go.
    pub flush_all: ZapPlan,
}

impl Plans {
    /// One plan for everything.
    #[must_use]
    pub const fn all(plan: ZapPlan) -> Self {
        Self { wrap: plan, slot_removal: plan, teardown: plan, flush_all: plan }
    }

    /// Whether any of them steps the valid generation.
    #[must_use]
    pub const fn bump_valid_gen(&self) -> bool {
        self.wrap.bump_valid_gen
            || self.slot_removal.bump_valid_gen
            || self.teardown.bump_valid_gen
            || self.flush_all.bump_valid_gen
    }
}
