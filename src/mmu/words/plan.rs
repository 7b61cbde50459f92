//! `ZapPlan`: a policy for zapping many shadow pages, as a value. What a plan does is in `zap_plan`; here is what it says,
//! and `plan_text` reads and writes it. A walk has only the fields that decide something in it.
//!
//! The named plans are the ways the kernels zapped over the years, and `indexed`, which is ours.

use serde::{Deserialize, Serialize};

use crate::mmu::words::error::{Error, Result};

macro_rules! plan_words {
    ($($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $what:literal])* $variant:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[doc = $what])* $variant),+ }

        impl $name {
            /// The words of a plan's text, the default first.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// Its word.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            pub(super) fn of(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    )+};
}

plan_words! {
    /// Which list is walked, and from where.
    Walk {
        /// The active list from the newest page.
        Head = "head",
        /// The active list from the oldest page.
        Tail = "tail",
        /// Only the MMIO-caching pages, newest flag first.
        Index = "index",
    }
    /// Which of the visited pages are zapped.
    Only {
        /// All of them.
        All = "all",
        /// Those whose flag `mmio_cached` is set.
        MmioCached = "mmio_cached",
        /// Those of an older valid generation.
        Obsolete = "obsolete",
        /// Those whose base gfn lies in the slot.
        Slot = "slot",
        /// Those whose base gfn lies in the range.
        GfnRange = "gfn_range",
        /// Those that shadow guest page tables. A direct MMU has none.
        Indirect = "indirect",
    }
    /// Which pages of a slot are zapped, beside its mappings.
    SlotPages {
        /// All of them.
        All = "slot",
        /// Those that shadow guest page tables. A direct MMU has none.
        Indirect = "indirect",
    }
    /// What of the TDP MMU's roots is zapped.
    RootPages {
        /// Roots that were made invalid, with all below them.
        Obsolete = "obsolete",
        /// Every root, with all below it.
        All = "all",
        /// The leaves of a slot; tables stay.
        Slot = "slot",
    }
    /// How `mmu_lock` is held meanwhile.
    PlanLock {
        /// For writing: no fault goes on.
        Exclusive = "exclusive",
        /// For reading: faults go on beside it.
        Shared = "shared",
    }
    /// What ends the walk early.
    Stop {
        /// Nothing.
        None = "none",
        /// The first page of the current valid generation.
        FirstNotObsolete = "first_not_obsolete",
    }
    /// Which visited pages are passed over.
    Skip {
        /// None.
        None = "none",
        /// Pages already marked invalid.
        Invalid = "invalid",
        /// Pages marked invalid that a vCPU still uses as root.
        InvalidInUse = "invalid_in_use",
    }
    /// What happens to prepared pages before the lock is dropped.
    BeforeDrop {
        /// They stay on their list.
        Keep = "keep",
        /// They are flushed and freed.
        Commit = "commit",
    }
    /// Whether and when all vCPUs are asked to reload their roots.
    ReloadRoots {
        /// Not by the plan.
        No = "no",
        /// Before the walk.
        Before = "before",
        /// After the commit.
        After = "after",
    }
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

/// When a walk over a list offers the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Offer {
    /// Never.
    Never,
    /// After each zapped page.
    EachPage,
    /// A poll before each prepare, an offer only if it is true.
    WhenWanted,
    /// Before a prepare, once at least so many pages were zapped since the last real drop.
    Batch(u32),
}

/// A walk over a list of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPlan {
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

/// A walk over one slot: its reverse maps at levels 1 to 3, then one hash lookup for each gfn. There is nothing to stop
/// at, no place to start again from, and a page marked invalid is never looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPlan {
    /// Which pages are zapped.
    pub pages: SlotPages,
    /// Whether the lock is offered, by a poll after each head and each gfn.
    pub is_offered: bool,
    /// What happens to prepared pages before a drop.
    pub before_drop: BeforeDrop,
    /// As in a walk over a list.
    pub bump_valid_gen: bool,
    /// As in a walk over a list.
    pub reload_roots: ReloadRoots,
}

/// A walk over the roots of the TDP MMU, newest first: a zapped root is walked in passes, and emptied. There is no list to
/// stop in or to start again, and no table is marked for what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlan {
    /// What is zapped.
    pub pages: RootPages,
    /// How the lock is held.
    pub lock: PlanLock,
    /// Whether the lock is offered: a poll at each entry since the last offer that was taken.
    pub is_offered: bool,
    /// Whether what a slot lost is flushed before the lock is dropped; zapped roots owe no flush there.
    pub before_drop: BeforeDrop,
    /// Whether every root is made invalid first.
    pub bump_valid_gen: bool,
    /// As in a walk over a list.
    pub reload_roots: ReloadRoots,
}

/// A zap policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZapPlan {
    /// A walk over a list of pages.
    List(ListPlan),
    /// A walk over one slot.
    Slot(SlotPlan),
    /// A walk over the roots of the TDP MMU.
    Roots(RootPlan),
}

/// A field of a plan's text and the words it takes, the default first; `batch:N` stands for any N.
pub type PlanField = (&'static str, &'static [&'static str]);

/// The fields of a plan's text, in its order.
pub const PLAN_FIELDS: [PlanField; 10] = [
    ("walk", &["head", "tail", "index", "slot", "roots"]),
    ("only", Only::WORDS),
    ("stop", Stop::WORDS),
    ("skip", Skip::WORDS),
    ("restart", &["never", "on_nonzero", "on_unstable", "on_lock_drop"]),
    ("offer", &["never", "each_page", "when_wanted", "batch:N"]),
    ("before_drop", BeforeDrop::WORDS),
    ("bump_valid_gen", &["no", "yes"]),
    ("reload_roots", ReloadRoots::WORDS),
    ("lock", PlanLock::WORDS),
];

const NEVER: RestartRules = RestartRules { on_nonzero: false, on_unstable: false, on_lock_drop: false };

impl ListPlan {
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
    /// Ours: only the list of MMIO-caching pages; the same set of pages as `MERGED`.
    pub const INDEXED: Self = Self { walk: Walk::Index, skip: Skip::None, restart: NEVER, ..Self::MERGED };
}

impl SlotPlan {
    /// v5.1's and v5.2's slot removal.
    pub const V5_2: Self = Self {
        pages: SlotPages::All,
        is_offered: true,
        before_drop: BeforeDrop::Commit,
        bump_valid_gen: false,
        reload_roots: ReloadRoots::No,
    };
    /// v6.12's slot removal where the quirk is off: the slot's mappings, and of the pages only those with guest entries.
    pub const V6_12: Self = Self { pages: SlotPages::Indirect, ..Self::V5_2 };
}

impl RootPlan {
    /// The fast zap of v6.1 to v7.3: every root is made invalid, and zapped beside faults on new ones.
    pub const FAST: Self = Self {
        pages: RootPages::Obsolete,
        lock: PlanLock::Shared,
        is_offered: true,
        before_drop: BeforeDrop::Keep,
        bump_valid_gen: true,
        reload_roots: ReloadRoots::Before,
    };
    /// The end of a VM.
    pub const ALL: Self = Self {
        pages: RootPages::All,
        lock: PlanLock::Exclusive,
        bump_valid_gen: false,
        reload_roots: ReloadRoots::No,
        ..Self::FAST
    };
    /// Slot removal of v6.12 and later where the quirk is off.
    pub const SLOT: Self = Self { pages: RootPages::Slot, before_drop: BeforeDrop::Commit, ..Self::ALL };
}

impl ZapPlan {
    /// [`ListPlan::SEED`].
    pub const SEED: Self = Self::List(ListPlan::SEED);
    /// [`ListPlan::V5_0_FAST`].
    pub const V5_0_FAST: Self = Self::List(ListPlan::V5_0_FAST);
    /// [`ListPlan::MERGED`].
    pub const MERGED: Self = Self::List(ListPlan::MERGED);
    /// [`ListPlan::ZAP_ALL`].
    pub const ZAP_ALL: Self = Self::List(ListPlan::ZAP_ALL);
    /// [`SlotPlan::V5_2`].
    pub const V5_2_SLOT: Self = Self::Slot(SlotPlan::V5_2);
    /// [`ListPlan::V5_3_FAST`].
    pub const V5_3_FAST: Self = Self::List(ListPlan::V5_3_FAST);
    /// [`ListPlan::V5_4_FAST`].
    pub const V5_4_FAST: Self = Self::List(ListPlan::V5_4_FAST);

    /// The named plans, each with a sentence for `kvm-mmu plans`.
    pub const NAMED: [(&'static str, Self, &'static str); 13] = [
        ("seed", Self::SEED, "the patch of January 2019: restart from the head after every zap that returned non-zero"),
        (
            "v3.10-mmio",
            Self::List(ListPlan::V3_10_MMIO),
            "the dedicated walk of v3.10, run when a memslot is created or moved, then every root is reloaded",
        ),
        (
            "v5.0-fast",
            Self::V5_0_FAST,
            "the fast invalidate of v3.11 to v5.0: bump the valid generation, zap obsolete pages from the tail",
        ),
        (
            "merged",
            Self::MERGED,
            "as merged in v5.1: restart only when the list became unstable or the lock was dropped",
        ),
        ("zap-all", Self::ZAP_ALL, "the reviewer's wish: the merged walk over every page"),
        ("v5.2-slot", Self::V5_2_SLOT, "slot removal of v5.1 to v5.2.10: only the slot's rmaps and pages"),
        ("v5.3-fast", Self::V5_3_FAST, "the fast invalidate as it came back in v5.3: no batch, no reload request"),
        (
            "v5.4-fast",
            Self::V5_4_FAST,
            "the fast invalidate of v5.4 to v6.12: batches of ten, one valid bit, obsolete roots dropped at entry",
        ),
        (
            "v6.12-slot",
            Self::Slot(SlotPlan::V6_12),
            "slot removal of v6.12 where the quirk is off: the slot's mappings, of the pages only shadowing ones",
        ),
        (
            "indexed",
            Self::List(ListPlan::INDEXED),
            "ours: a list of only the MMIO-caching pages, kept as they are marked and zapped",
        ),
        (
            "tdp-fast",
            Self::Roots(RootPlan::FAST),
            "the fast zap of v6.1 to v7.3 under the TDP MMU: roots are made invalid, and zapped beside faults",
        ),
        ("tdp-all", Self::Roots(RootPlan::ALL), "the end of a VM under the TDP MMU: every root, nobody else about"),
        (
            "tdp-slot",
            Self::Roots(RootPlan::SLOT),
            "slot removal of v6.12 and later under the TDP MMU where the quirk is off: only the slot's leaves",
        ),
    ];

    /// The plan of this name.
    pub fn named(name: &str) -> Result<Self> {
        Self::NAMED
            .into_iter()
            .find_map(|(known, plan, _)| (known == name).then_some(plan))
            .ok_or_else(|| Error::UnknownPlan(name.to_owned()))
    }

    /// Whether the valid generation is stepped first.
    #[must_use]
    pub const fn bump_valid_gen(&self) -> bool {
        match self {
            Self::List(plan) => plan.bump_valid_gen,
            Self::Slot(plan) => plan.bump_valid_gen,
            Self::Roots(plan) => plan.bump_valid_gen,
        }
    }

    /// Whether and when vCPUs are asked to reload their roots.
    #[must_use]
    pub const fn reload_roots(&self) -> ReloadRoots {
        match self {
            Self::List(plan) => plan.reload_roots,
            Self::Slot(plan) => plan.reload_roots,
            Self::Roots(plan) => plan.reload_roots,
        }
    }

    /// The plan by which a VM of the TDP MMU does the same: shadow pages and roots are zapped by one function of the
    /// kernel. Nothing where a plan looks for a mark that no table of the TDP MMU has.
    #[must_use]
    pub const fn on_roots(&self) -> Option<Self> {
        match self {
            Self::Roots(_) => Some(*self),
            Self::Slot(_) => Some(Self::Roots(RootPlan::SLOT)),
            Self::List(plan) => match plan.only {
                Only::Slot => Some(Self::Roots(RootPlan::SLOT)),
                _ if plan.bump_valid_gen => Some(Self::Roots(RootPlan::FAST)),
                Only::All => Some(Self::Roots(RootPlan::ALL)),
                _ => None,
            },
        }
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
        self.wrap.bump_valid_gen()
            || self.slot_removal.bump_valid_gen()
            || self.teardown.bump_valid_gen()
            || self.flush_all.bump_valid_gen()
    }
}
