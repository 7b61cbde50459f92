//! Planted faults: single wrong rules that the tests must notice. Compiled in by the feature `mutants` alone, chosen at
//! run time, one at a time in a process; without the feature [`is_chosen`] is `false` at compile time and nothing is left.
//!
//! Owns the names and the choice. Each place that asks for a mutant stands where the right rule stands; the table of
//! mutants, and the test that kills each, is `tests/mutants/table.py`.

macro_rules! mutants {
    ($($(#[$doc:meta])* $mutant:ident $name:literal,)*) => {
        /// A planted fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant { $($(#[$doc])* $mutant,)* }

        /// The names of all of them, in the order of the enumeration.
        #[cfg(feature = "mutants")]
        pub const NAMES: &[&str] = &[$($name,)*];

        #[cfg(feature = "mutants")]
        const ALL: &[Mutant] = &[$(Mutant::$mutant,)*];
    };
}

mutants! {
    /// A walk that restarts on any zapped page restarts only when a child went.
    RestartOnChildrenOnly "restart-on-children-only",
    /// A walk never restarts.
    NeverRestart "never-restart",
    /// The page above the one that holds an MMIO SPTE is flagged.
    FlagOnParentTable "flag-on-parent-table",
    /// The flag goes when a mapping replaces an MMIO SPTE.
    FlagClearedOnOverwrite "flag-cleared-on-overwrite",
    /// Entries that lead to a zapped page stay.
    ParentEntryKept "parent-entry-kept",
    /// A new page stands at the tail of the active list.
    NewPageAtTail "new-page-at-tail",
    /// Zapped pages are freed without a flush.
    FlushSkipped "flush-skipped",
    /// A root in use is freed.
    InUseRootFreed "in-use-root-freed",
    /// The batch counts from zero again although the lock was not dropped.
    BatchResetWithoutDrop "batch-reset-without-drop",
    /// `get_page`: a page of an older valid generation is taken.
    ObsoletePageTaken "obsolete-page-taken",
    /// Roots: a dropped root keeps its count.
    RootCountKept "root-count-kept",
    /// Fast invalidate: vCPUs are not asked to load their roots anew.
    ReloadForgotten "reload-forgotten",
    /// Reclaim: the newest page goes first.
    NewestReclaimed "newest-reclaimed",
    /// Shrinker: what the fast invalidate left to it stays.
    ObsoleteListForgotten "obsolete-list-forgotten",
    /// Dirty log: pages are protected and no TLB is flushed.
    DirtyLogWithoutFlush "dirty-log-without-flush",
    /// Dirty log: a cleared range is protected from the slot's start.
    ClearLogFromStart "clear-log-from-start",
    /// PML: a logged page does not enter the bitmap.
    PmlNotLogged "pml-not-logged",
    /// Fast page fault: a page made writable is not logged dirty.
    FastFaultNotLogged "fast-fault-not-logged",
    /// Prefetch: also into a slot that logs dirty pages.
    PrefetchIntoLoggedSlot "prefetch-into-logged-slot",
    /// Notifier: mappings of memory that is gone are dropped and no TLB is flushed.
    UnmapWithoutFlush "unmap-without-flush",
    /// Notifier: aging leaves the accessed bit.
    AgeKeepsAccessed "age-keeps-accessed",
    /// Notifier: a mapping that follows its frame stays writable.
    ChangedPteWritable "changed-pte-writable",
    /// Tracking: a gfn that becomes tracked is not write-protected.
    TrackedStaysWritable "tracked-stays-writable",
    /// Tracking: a tracked gfn may lie in a large page.
    TrackWithoutVeto "track-without-veto",
    /// Slot walks: what a walk owes is forgotten when it drops the lock.
    WalkForgetsFlush "walk-forgets-flush",
    /// MMIO: any MMIO SPTE counts as fresh.
    StaleMmioAccepted "stale-mmio-accepted",
    /// MMIO: the vCPU's cache goes by the generation of the vCPU's own address space.
    MmioCacheOwnSpace "mmio-cache-own-space",
    /// Large pages: vetoes are not looked at.
    LargeVetoIgnored "large-veto-ignored",
    /// Zap: accessed and dirty bits of dropped leaves do not reach the host page.
    AccessedDirtyLost "accessed-dirty-lost",
    /// v5.4: the valid generation counts on instead of changing its one bit.
    ValidGenCounts "valid-gen-counts",
    /// v5.4: an invalid page of the valid generation is not obsolete.
    InvalidNotObsolete "invalid-not-obsolete",
    /// v5.4: every page zapped by the fast zap counts for its batch.
    BatchCountsAll "batch-counts-all",
    /// v5.4: what a run made obsolete and did not come to stays when it is given up.
    ObsoleteLeftBehind "obsolete-left-behind",
    /// v6.1: a zapped root in use stays on the active list.
    DeadRootStaysListed "dead-root-stays-listed",
    /// v6.1: a fault maps under a root that is not valid any more.
    DeadRootMapped "dead-root-mapped",
    /// v6.1: a vCPU asked to reload drops a valid root, too.
    ValidRootReloaded "valid-root-reloaded",
    /// v6.1: reclaim zaps roots in use.
    RootReclaimed "root-reclaimed",
    /// v6.1: the vCPU's MMIO cache goes by address space 0.
    MmioCacheSpaceZero "mmio-cache-space-zero",
    /// v6.1: without MMIO SPTEs an access to no slot still builds tables.
    MmioWithoutCachingMapped "mmio-without-caching-mapped",
    /// v6.1: all of a guest without paging is walked from its first root.
    FirstRootOnly "first-root-only",
    /// v6.1 lock-free path: a large leaf of a slot with a dirty log is made writable.
    FastFaultThroughLog "fast-fault-through-log",
    /// v6.1 lock-free path: an entry that allows the access already is mapped again.
    SpuriousNotSeen "spurious-not-seen",
    /// v6.1: a table made for an instruction fetch is not marked.
    DisallowedMarkForgotten "disallowed-mark-forgotten",
    /// v6.1: large leaves stay executable.
    LargeLeafExecutable "large-leaf-executable",
    /// v6.1: a stale MMIO SPTE is no writable entry.
    StaleMmioNotWritable "stale-mmio-not-writable",
    /// v6.1: neighbours are mapped although the leaf did not change.
    PrefetchAfterUnchanged "prefetch-after-unchanged",
    /// v6.1: the run of neighbours that reaches the group's end is left out.
    LastRunNotMapped "last-run-not-mapped",
    /// v6.1: neighbours after one that the host does not have are mapped, too.
    PrefetchOverHole "prefetch-over-hole",
    /// v6.1: with bitmaps that start full, clearing leaves large leaves writable.
    LargeLeafKeptByClear "large-leaf-kept-by-clear",
    /// Reverse maps: a leaf that goes stays in its list.
    RmapEntryKept "rmap-entry-kept",
    /// Faults: nobody looks whether the host takes the page meanwhile.
    InvalidationNotTested "invalidation-not-tested",
    /// Notifier: only what address space 0 maps is dropped.
    UnmapFirstSpaceOnly "unmap-first-space-only",
    /// Notifier: the last page of a range stays.
    UnmapRoundsDown "unmap-rounds-down",
    /// Tracking: a gfn that becomes tracked is write-protected and no TLB is flushed.
    TrackWithoutFlush "track-without-flush",
    /// Faults: what the host has read-only is mapped writable.
    ReadOnlyMappedWritable "read-only-mapped-writable",
    /// Dirty log: TLBs are flushed before the pages are protected, and not after.
    DirtyLogFlushFirst "dirty-log-flush-first",
    /// Dirty log: what it should protect stays writable.
    LogKeepsWritable "log-keeps-writable",
    /// Roots: that of SMM and that of normal mode are one.
    RootWithoutSmm "root-without-smm",
    /// TDP MMU, changes: the dirty bit of a leaf that goes does not reach the host page.
    TdpDirtyLost "tdp-dirty-lost",
    /// TDP MMU, changes: a removed table keeps its place on the list of NX recovery.
    TdpNxMarkKept "tdp-nx-mark-kept",
    /// TDP MMU, changes: empty entries of a table removed under the shared lock are not frozen.
    TdpEmptyNotFrozen "tdp-empty-not-frozen",
    /// TDP MMU, changes: an atomic zap flushes one page of a larger entry.
    TdpRangeFlushShort "tdp-range-flush-short",
    /// TDP MMU, roots: a vCPU that finds a root takes no reference.
    TdpRootReferenceLost "tdp-root-reference-lost",
    /// TDP MMU, roots: walks of valid roots come to invalid ones.
    TdpInvalidRootWalked "tdp-invalid-root-walked",
    /// TDP MMU, changes: an entry zapped beside faults stays frozen.
    TdpFrozenLeft "tdp-frozen-left",
    /// TDP MMU, changes: a removed table is reported after its entries.
    TdpTableAfterEntries "tdp-table-after-entries",
    /// TDP MMU, roots: a vCPU that drops its root gives two references back.
    TdpRootPutTwice "tdp-root-put-twice",
    /// TDP MMU, collapse: the dirty bits below a table that gives way are lost.
    TdpCollapseDirtyLost "tdp-collapse-dirty-lost",
    /// TDP MMU, aging: the accessed bit stays.
    TdpAgeKeepsAccessed "tdp-age-keeps-accessed",
    /// TDP MMU, split: small leaves of a large one that was not executable are not either.
    TdpSplitNotExecutable "tdp-split-not-executable",
    /// Shadow paging, accounting: a table that is no table any more keeps its vetoes and its tracking.
    TableVetoKept "table-veto-kept",
    /// Shadow paging, unsync: the tables above an unsync page are not marked.
    UnsyncNotMarked "unsync-not-marked",
    /// Shadow paging, zap: unsync pages below a zapped one stay.
    UnsyncChildrenSpared "unsync-children-spared",
    /// Shadow paging, sync: an entry stays although the guest's leads elsewhere now.
    SyncKeepsGfn "sync-keeps-gfn",
    /// Shadow paging, sync: entries change and no TLB is flushed.
    SyncWithoutFlush "sync-without-flush",
    /// Shadow paging, roots: nothing is synced when they are loaded or CR3 is written.
    RootsNotSynced "roots-not-synced",
    /// Shadow paging, CR3: a root from the cache is used as it is.
    CachedRootNotSynced "cached-root-not-synced",
    /// Shadow paging, INVLPG: cached roots are left alone.
    InvlpgSparesCached "invlpg-spares-cached",
    /// Shadow paging, emulated write: an entry goes and no TLB is flushed.
    WriteWithoutFlush "write-without-flush",
    /// Shadow paging, flooding: a table goes at the fourth write.
    FloodOneLater "flood-one-later",
    /// Shadow paging, flooding: a table that is used again is not forgiven.
    FloodKept "flood-kept",
    /// Shadow paging, prefetch: entries are mapped writable into a slot that logs dirty pages.
    GptePrefetchIntoLog "gpte-prefetch-into-log",
    /// Shadow paging, prefetch: the neighbours of an entry are not mapped.
    NoGptePrefetch "no-gpte-prefetch",
    /// Shadow paging, fault: what a supervisor writes through write protection stays the user's.
    WriteThroughWpForUser "write-through-wp-for-user",
    /// Shadow paging, fault: the guest gets a fault of rights, and the entry that it came by stays.
    FaultLeavesEntry "fault-leaves-entry",
    /// Shadow paging, guest walk: a leaf that the guest has not written yet is mapped writable.
    CleanLeafWritable "clean-leaf-writable",
    /// Shadow paging, guest walk: accessed and dirty bits are stored, and the table's page is not marked dirty.
    WalkedTableNotDirty "walked-table-not-dirty",
    /// Shadow paging, emulated write: one that is no whole entry is taken for one.
    MisalignedTaken "misaligned-taken",
    /// Shadow paging, unprotect: one shadow of a table goes, and the others stay.
    UnprotectFirstOnly "unprotect-first-only",
    /// Shadow paging, unsync: a sync, too, makes pages unsync.
    SyncUnsyncs "sync-unsyncs",
    /// Shadow paging, fault: a linked table stays, whatever is wanted.
    AnyChildKept "any-child-kept",
    /// Shadow paging, bound of parents: a page gets one more.
    ParentsOneMore "parents-one-more",
    /// INIT: the roots stay where they should go.
    InitKeepsRoots "init-keeps-roots",
}

#[cfg(feature = "mutants")]
mod choice {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{ALL, Mutant, NAMES};

    /// Place in [`ALL`], counted from 1; 0 is none.
    static CHOSEN: AtomicUsize = AtomicUsize::new(0);

    /// Chooses a mutant by name for the whole process; whether there is one of that name.
    pub fn choose(name: &str) -> bool {
        let at = NAMES.iter().position(|known| *known == name);
        CHOSEN.store(at.map_or(0, |at| at + 1), Ordering::Relaxed);
        at.is_some()
    }

    /// Whether this mutant was chosen.
    #[inline]
    pub fn is_chosen(mutant: Mutant) -> bool {
        CHOSEN.load(Ordering::Relaxed).checked_sub(1).and_then(|at| ALL.get(at)) == Some(&mutant)
    }
}

#[cfg(feature = "mutants")]
pub use choice::{choose, is_chosen};

/// Never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline]
#[must_use]
pub const fn is_chosen(_: Mutant) -> bool {
    false
}
