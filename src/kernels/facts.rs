//! The facts a kernel is made of: a named rule each, with what it says, the upstream change, the CVE and how it is known.
//!
//! A fact is asked for by its name (`kernel.has_valid_gen`); no other room compares the names of kernels. The list is
//! read by Python (`kvm_mmu.facts`) and by the generated tables of the documentation.
//!
//! Long: one entry per fact; the list is what the file is for.

use super::layouts::{GenerationKind, RoleLayout, SpteKind};
use crate::mmu::Plans;

/// How a rule is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// A vector of the kernel's own code shows it.
    Vector,
    /// A recording of a running kernel shows it.
    Recording,
    /// Read in the source; nothing we have run shows it.
    Source,
    /// Neither: the rule of the nearest kernel that is known.
    Assumed,
}

impl Known {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Vector => "vector",
            Self::Recording => "recording",
            Self::Source => "source",
            Self::Assumed => "assumed",
        }
    }
}

impl AccessBits {
    /// The model's access (execute 1, write 2, user 4) as this kernel has it.
    #[must_use]
    pub const fn word(self, access: u8) -> u32 {
        match self {
            Self::Xwu => access as u32,
            Self::Rwux => super::layouts::rwux(access),
        }
    }
}

/// What is known of one rule, whatever its value in a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its name, that of the field in [`Kernel`].
    pub name: &'static str,
    /// The rule, a sentence.
    pub rule: &'static str,
    /// The upstream change that made the difference; empty where none is known.
    pub commit: &'static str,
    /// The CVE it fixed; empty if none.
    pub cve: &'static str,
    /// How the values are known.
    pub known: Known,
    /// The words it can have; empty for a boolean or a number.
    pub words: &'static [&'static str],
}

/// The value of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The kernel has the rule or not.
    Bool(bool),
    /// A number.
    Number(u64),
    /// One of the fact's words.
    Word(&'static str),
}

impl std::fmt::Display for Value {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(is_so) => to.write_str(if *is_so { "yes" } else { "no" }),
            Self::Number(number) => write!(to, "{number}"),
            Self::Word(word) => to.write_str(word),
        }
    }
}

/// A type that a fact can have.
pub trait Valued: Copy {
    /// The words it can have.
    const WORDS: &'static [&'static str];
    /// Its value.
    fn value(self) -> Value;
    /// The value of a text: `yes`, `no`, a number or one of the words.
    fn of(text: &str) -> Option<Self>;
}

impl Valued for bool {
    const WORDS: &'static [&'static str] = &[];
    fn value(self) -> Value {
        Value::Bool(self)
    }
    fn of(text: &str) -> Option<Self> {
        match text {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        }
    }
}

impl Valued for u32 {
    const WORDS: &'static [&'static str] = &[];
    fn value(self) -> Value {
        Value::Number(self.into())
    }
    fn of(text: &str) -> Option<Self> {
        text.parse().ok().filter(|_| text.bytes().all(|digit| digit.is_ascii_digit()))
    }
}

macro_rules! words {
    ($($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $what:literal])* $variant:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $what])* $variant),+ }

        impl Valued for $name {
            const WORDS: &'static [&'static str] = &[$($word),+];
            fn value(self) -> Value {
                Value::Word(match self { $(Self::$variant => $word),+ })
            }
            fn of(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    )+};
}
pub(super) use words;

words! {
    /// The access bits of a role and of events.
    AccessBits {
        /// Execute 1, write 2, user 4; reading is always allowed.
        Xwu = "xwu",
        /// Read 1, write 2, user 4, execute 8.
        Rwux = "rwux",
    }
    /// Where a reverse map adds a descriptor.
    PteListOrder {
        /// At the end of the chain.
        Tail = "tail",
        /// At its front.
        Front = "front",
    }
    /// Where a fault tests whether its root became obsolete.
    StaleTest {
        /// Nowhere: roots are reloaded by request.
        None = "none",
        /// Before it makes room for pages.
        BeforeReclaim = "before_reclaim",
        /// After it.
        AfterReclaim = "after_reclaim",
    }
    /// Which child table a fault keeps.
    ChildReuse {
        /// A direct child whose access is equal; an indirect one always.
        Access = "access",
        /// Any present table.
        Any = "any",
        /// One whose gfn is that wanted.
        Gfn = "gfn",
        /// One whose gfn and role are those wanted.
        GfnRole = "gfn_role",
    }
    /// What bounds the walk of a guest's tables.
    WalkBound {
        /// Nothing: more levels than it has room for are written past its end.
        None = "none",
        /// Its own template: such a walk is empty and the VM is dead.
        Template = "template",
    }
    /// What becomes of a large leaf where a table is wanted.
    LargeInWay {
        /// The leaf is dropped and its range flushed.
        DroppedRange = "dropped_range",
        /// The leaf is zapped as an entry of its page, with a full flush.
        ZappedFull = "zapped_full",
        /// The leaf is zapped as an entry of its page, with a flush of its range.
        ZappedRange = "zapped_range",
    }
    /// What a fault without a memslot does to a present leaf.
    MmioOverLeaf {
        /// It drops the leaf first.
        DropFirst = "drop_first",
        /// It writes the MMIO SPTE over it.
        Overwrite = "overwrite",
    }
    /// What the entry that was there exempts a new leaf from.
    OldEntryExempts {
        /// Nothing.
        None = "none",
        /// The dirty bit and the test for write-protected tables.
        DirtyAndUnsync = "dirty_and_unsync",
        /// The test for write-protected tables.
        Unsync = "unsync",
    }
    /// Whose generation the vCPU's MMIO cache goes by.
    MmioCacheSpace {
        /// That of address space 0.
        Zero = "zero",
        /// That of the vCPU's own address space.
        Own = "own",
    }
    /// Which access the vCPU's MMIO cache holds after a fault.
    MmioCacheAccess {
        /// All of it.
        All = "all",
        /// The part that an MMIO SPTE holds.
        Masked = "masked",
    }
    /// What `kvm_mmu_page_fault` returns for a fault that was handled.
    FaultReturns {
        /// 1, whatever became of it.
        One = "one",
        /// The verdict: fixed, spurious or retry.
        Verdict = "verdict",
    }
    /// When starting the dirty log flushes.
    LogOnFlush {
        /// When the walk changed an entry.
        IfChanged = "if_changed",
        /// Always, unless the bitmap starts full.
        Always = "always",
    }
    /// What reading or clearing the dirty log flushes.
    DirtyLogFlush {
        /// Everything.
        All = "all",
        /// The slot, where a ranged flush exists.
        Slot = "slot",
    }
    /// How `zap_gfn_range` flushes.
    ZapRangeFlush {
        /// After each slot.
        EachSlot = "each_slot",
        /// Once at the end; slots in ascending order.
        Once = "once",
    }
    /// Which faults `zap_gfn_range` makes retry while a notifier is active.
    ZapRangeBlocks {
        /// None.
        Nothing = "nothing",
        /// All of them.
        Everything = "everything",
        /// Those of its range.
        Range = "range",
    }
    /// How small leaves are collapsed when the dirty log ends.
    Collapse {
        /// Leaves of level 1 whose host page is compound.
        ByLeaf = "by_leaf",
        /// Leaves of levels 1 and 2 of a table that may be larger, by the level of the table's gfn.
        ByTable = "by_table",
        /// The same, only where the table begins inside the slot.
        ByTableInSlot = "by_table_in_slot",
    }
    /// The range that is flushed for one leaf that goes.
    CollapseFlush {
        /// That of the table.
        Table = "table",
        /// That of the entry.
        Entry = "entry",
    }
    /// Which change of an SPTE needs a flush.
    SpteFlush {
        /// Accessed, dirty or writable lost.
        AnyBit = "any_bit",
        /// The bit MMU-writable lost.
        MmuWritable = "mmu_writable",
    }
    /// In which passes a root of the TDP MMU is zapped.
    TdpRootZap {
        /// Level 3, then the root's level: what lies below goes by recursion.
        Large = "large",
        /// Level 1, 2, 3, then the root's level.
        EachLevel = "each_level",
    }
    /// The order of an atomic zap of one entry in the TDP MMU.
    TdpAtomicZap {
        /// The entry becomes frozen and is reported so, then the flush.
        ReportFirst = "report_first",
        /// The flush, then the entry is reported as empty.
        FlushFirst = "flush_first",
    }
    /// What a fault does to a large leaf of the TDP MMU that stands where a table is needed.
    TdpLargeInWay {
        /// It is zapped: the rest of the large page is unmapped.
        Zapped = "zapped",
        /// It is split in place.
        Split = "split",
    }
    /// What is flushed when a fault puts a large leaf of the TDP MMU where a table was.
    TdpFaultFlush {
        /// What the table that holds the leaf maps.
        Table = "table",
        /// What the leaf maps.
        Leaf = "leaf",
    }
    /// What the end of the dirty log does to a link of the TDP MMU that could be a large leaf.
    TdpCollapse {
        /// The link is zapped: the next fault maps large.
        Zapped = "zapped",
        /// A large leaf takes its place.
        InPlace = "in_place",
    }
}

macro_rules! facts {
    ($($name:ident: $type:ty, $rule:literal, $known:ident $(, commit $commit:literal)? $(, cve $cve:literal)?;)+) => {
        /// One kernel: a name, a patch level, its plans and its facts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(clippy::struct_excessive_bools, reason = "each is an independent fact about a kernel")]
        #[allow(clippy::doc_markdown, reason = "the rules are sentences for people, shown by the command line too")]
        pub struct Kernel {
            /// Its name: the branch if it is the branch's newest row, else branch and patch level.
            pub name: &'static str,
            /// The patch level it describes.
            pub release: &'static str,
            /// What is special about it, in a line.
            pub title: &'static str,
            /// Which plan answers which trigger.
            pub plans: Plans,
            $(#[doc = $rule] pub $name: $type,)+
        }

        /// Every fact, in the order of the documentation.
        pub const FACTS: &[Fact] = &[$(Fact {
            name: stringify!($name),
            rule: $rule,
            commit: concat!($($commit)?),
            cve: concat!($($cve)?),
            known: Known::$known,
            words: <$type as Valued>::WORDS,
        }),+];

        impl Kernel {
            /// The values of its facts, in the order of [`FACTS`].
            #[must_use]
            pub fn values(&self) -> Vec<Value> {
                vec![$(self.$name.value()),+]
            }

            /// Gives a fact another value; false if there is no such fact or it cannot have that value.
            pub(super) fn set(&mut self, fact: &str, text: &str) -> bool {
                match fact {
                    $(stringify!($name) => Valued::of(text).map(|value| self.$name = value).is_some(),)+
                    _ => false,
                }
            }
        }
    };
}

facts! {
    spte_layout: SpteKind, "Where the kernel's own bits lie in an SPTE.", Vector;
    generation_layout: GenerationKind, "How the memslot generation lies in an MMIO SPTE.", Vector;
    role_layout: RoleLayout, "How a page role is packed into a word.", Vector;
    access_bits: AccessBits, "Which bits the access of a page has.", Recording;
    direct_role_bit4: bool, "Direct pages have role bit 4 set (8-byte guest entries).", Vector;
    is_role_fixed: bool, "The role of a direct page follows only from SMM, not from control registers.", Vector;
    l1tf: bool, "The L1TF mask is in use whatever the CPU.", Vector;
    mark_mmio_access_mask: u32, "Which bits of the entry the tracepoint mark_mmio_spte shows as access; 0: the access itself.", Recording;
    fast_pf_whole_error_code: bool, "The tracepoint fast_page_fault has all bits of the error code, else the low 32.", Vector;
    mem_slots: u32, "How many memslots an address space has, the kernel's own three included.", Source;
    has_max_gfn: bool, "No memslot and no MMIO SPTE lies above the host's physical address width.", Vector;
    pte_list_ext: u32, "How many entries a descriptor of a reverse map holds.", Source, commit "dc1cff969101";
    pte_list_order: PteListOrder, "Where a reverse map adds a descriptor.", Source;
    has_valid_gen: bool, "Shadow pages carry a valid generation.", Vector;
    valid_gen_toggles: bool, "The valid generation is one bit.", Vector;
    obsolete_if_invalid: bool, "An invalid page is obsolete.", Vector;
    has_mmio_cached: bool, "Shadow pages carry the flag mmio_cached.", Vector;
    has_zapped_obsolete: bool, "Pages zapped by the fast zap wait on a list of the VM, which the shrinker commits first.",
        Vector, commit "10605204e91f";
    has_shrinker: bool, "The memory shrinker zaps shadow pages.", Source;
    has_invalidate_event: bool, "The fast invalidate has the tracepoint kvm_mmu_invalidate_zap_all_pages.", Vector;
    has_zap_all_fast_event: bool, "The fast zap has the tracepoint kvm_mmu_zap_all_fast.", Vector;
    has_set_spte_event: bool, "A leaf that is written has the tracepoint kvm_mmu_set_spte.", Vector;
    set_spte_for_mmio: bool, "The tracepoint kvm_mmu_set_spte is printed for MMIO SPTEs too.", Recording;
    has_requested_event: bool, "The level asked for has the tracepoint kvm_mmu_spte_requested.", Recording;
    logs_silent_calls: bool, "Functions without a tracepoint are logged where recordings have kprobes on them.", Recording;
    batch_counts_unstable: bool, "A fast zap counts a page for its batch only if its prepare made the list unstable.", Source;
    reload_skips_obsolete: bool, "A zapped root in use asks for a reload only if it is not obsolete.", Vector;
    reload_keeps_valid_root: bool, "A vCPU asked to reload keeps a root that is not obsolete.", Recording;
    zapped_root_leaves: bool, "A zapped root in use leaves the active list for good, else it moves to its head.", Vector;
    reclaim_skips_roots: bool, "Reclaim passes over roots in use, else they end it.", Vector;
    zap_spares_rooted_child: bool, "Zapping a page leaves a child that is itself a root in use.", Source;
    stale_test: StaleTest, "Where a fault tests whether its root became obsolete.", Source,
        commit "2abd5287f083", cve "CVE-2026-64561";
    enospc_to_user: bool, "A fault that cannot get a page returns -ENOSPC to user space, else it retries.", Vector,
        commit "7bd7ded64297";
    child_role_valid: bool, "A child table never inherits the mark invalid from its parent.", Source,
        commit "2abd5287f083", cve "CVE-2026-64561";
    child_reuse: ChildReuse, "Which child table a fault keeps.", Source, commit "81ccda30b4e8", cve "CVE-2026-53359";
    large_in_way: LargeInWay, "What becomes of a large leaf where a table is wanted.", Recording, commit "81ccda30b4e8";
    mmio_over_leaf: MmioOverLeaf, "What a fault without a memslot does to a present leaf.", Source,
        commit "aad885e77496", cve "CVE-2026-23401";
    old_entry_exempts: OldEntryExempts, "What the entry that was there exempts a new leaf from.", Recording;
    track_all_spaces: bool, "Write tracking is looked up in both address spaces, else in the vCPU's own.", Source,
        commit "0f38453cdb2e";
    mmio_cache_space: MmioCacheSpace, "Whose generation the vCPU's MMIO cache goes by.", Recording,
        commit "b3e6212dea2e", cve "CVE-2026-99082";
    is_level_requested: bool, "A fault settles the level before the tables, and the tables before the leaf.", Vector;
    retry_before_pin: bool, "A fault tests for an invalidation before it pins the host page, else after.", Vector;
    mmio_cache_access: MmioCacheAccess, "Which access the vCPU's MMIO cache holds after a fault.", Vector;
    invalid_slot_retries: bool, "A fault on a slot that is being removed retries, else it is one without a slot.", Vector;
    pml_while_logging: bool, "The processor logs dirty pages only while some slot's log is on.", Vector;
    mmio_emulate_retry: bool, "An MMIO fault that did not fill the vCPU's cache lets the emulator retry.", Vector;
    fault_returns: FaultReturns, "What kvm_mmu_page_fault returns for a fault that was handled.", Recording;
    prefetch_drops_open_run: bool, "Prefetch forgets a run of gfns that is open at the end of its window.", Vector;
    prefetch_over_same_is_spurious: bool, "A prefetch never rewrites a present leaf of the same frame.", Source;
    emulate_wins_over_spurious: bool, "A write to a tracked gfn is emulated although its leaf is there, and prefetches.", Source;
    has_nx_huge_pages: bool, "The NX huge page workaround exists.", Vector;
    nx_keeps_any_table: bool, "With NX huge pages no present table is replaced by a large leaf.", Vector;
    nx_marks_all_levels: bool, "With NX huge pages an instruction fetch marks the tables it links at every level.", Vector;
    has_mmio_caching: bool, "MMIO SPTEs can be switched off.", Recording;
    wrap_zaps_without_caching: bool, "A wrap of the generation zaps although MMIO SPTEs are switched off.", Source;
    clear_log_whole_words: bool, "KVM_CLEAR_DIRTY_LOG demands a multiple of 64 pages even at the slot's end.", Vector;
    walk_skips_empty_heads: bool, "A slot walk offers the lock after the first reverse map of a level and those that are not empty.", Vector;
    notifier_by_hva: bool, "Notifiers come to memslots in the order of their host addresses, else as the array has them.", Source;
    move_renews_arrays: bool, "A moved memslot gets new arrays of reverse maps and vetoes, else keeps its old ones.", Source;
    zap_list_in_order: bool, "All entries of a reverse map are zapped in list order, else always the first.", Source;
    walk_flush_ranged: bool, "A slot walk that flushes inside uses the ranged hook, else it flushes everything.", Vector;
    zap_range_defers: bool, "zap_gfn_range defers to one ranged flush at the end where the hook exists.", Vector;
    log_on_flush: LogOnFlush, "When starting the dirty log flushes.", Vector;
    dirty_log_flush: DirtyLogFlush, "What reading or clearing the dirty log flushes.", Vector;
    zap_range_flush: ZapRangeFlush, "How zap_gfn_range flushes.", Vector;
    zap_range_blocks: ZapRangeBlocks, "Which faults zap_gfn_range makes retry while a notifier is active.", Vector;
    collapse: Collapse, "How small leaves are collapsed when the dirty log ends.", Vector, commit "20d49186c030";
    collapse_flush: CollapseFlush, "The range that is flushed for one leaf: collapsed, in the way of a table, or of a reverse map grown too long.", Vector;
    has_change_pte: bool, "The host can change a page's frame in place (notifier change_pte).", Vector;
    unmap_offers_lock: bool, "An unmap that may block offers the lock after each head, and flushes before it drops it.", Vector;
    aging_is_lockless: bool, "Aging takes no lock and never flushes.", Recording;
    has_initially_set: bool, "The dirty log can start with every page set.", Vector;
    limit_on_resize: bool, "The automatic limit of pages follows only slots created or deleted.", Vector;
    walk_on_log_change: bool, "A slot's mappings are walked only when its dirty log goes on or off.", Vector;
    has_eager_split: bool, "Large leaves can be split when the dirty log starts.", Vector;
    has_slot_zap_all_quirk: bool, "A quirk chooses between zapping everything and only the slot at its removal.", Vector;
    nx_recovery_spares_logged: bool, "NX recovery leaves tables of a logged slot in place.", Vector;
    has_prefault: bool, "KVM_PRE_FAULT_MEMORY exists.", Vector;
    spte_flush: SpteFlush, "Which change of an SPTE needs a flush.", Source;
    copies_ad_on_zap: bool, "A zapped leaf hands its accessed and dirty bits to the host page.", Source;
    has_guest_tables: bool, "Guests with page tables of their own are modelled; by the reference only.", Vector;
    walk_levels: u32, "How many levels of a guest's tables the kernel's own walk has room for.", Source;
    walk_bound: WalkBound, "What a walk of a guest's tables does that has more levels than that.", Source,
        cve "CVE-2026-99343";
    init_resets: bool, "INIT of a vCPU resets its MMU context, else what was loaded in SMM stays in use.", Assumed,
        cve "CVE-2026-99312";
    max_parents: u32, "How many parent entries a shadow page may have; 0: any number.", Assumed,
        commit "e4558c3d7198", cve "CVE-2026-99710";
    keys_obey_wp: bool, "A supervisor's writes obey protection keys by CR0.WP as it is, else also after it was cleared while CR4.PKE stays on.", Source;
    invlpg_warn_line: u32, "The line of paging_tmpl.h that warns of an INVLPG without a root; 0: none does.", Vector;
    self_map_is_small: bool, "A large guest page that holds one of the tables that map it is mapped small.", Vector;
    sync_keeps_same_access: bool, "A sync leaves an entry alone whose gfn and access are the same, else it is made anew.", Vector;
    sync_keeps_ad: bool, "An entry that a sync makes anew has its accessed bit, else it is as a prefetched one.", Recording;
    invlpg_syncs: bool, "INVLPG syncs an entry of an unsync page, else it zaps it and fills it again.", Vector;
    has_dummy_root: bool, "A root whose table is no memory is a dummy that maps nothing, else a triple fault.", Vector;
    unprotect_counts_freed: bool, "Unprotecting a gfn succeeds only where one of its tables left the active list.", Vector;
    role_has_smep: bool, "The role of a page that shadows a guest table says CR4.SMEP, else SMEP without CR0.WP.", Recording;
    direct_gfn_bug_line: u32, "The line of mmu.c that stops a kernel which puts a gfn into a direct table of another; 0: none does.", Vector;
    has_unsync: bool, "A guest may write a level-1 table whose shadow then lags behind, else each write is emulated.", Vector;
    write_flood_limit: u32, "How many emulated writes to a table above level 1 zap its shadow page; 0: none do.", Vector;
    has_tdp_mmu: bool, "There is a TDP MMU, and it serves guests that are not nested unless a parameter says otherwise.", Recording;
    tdp_load_needs_room: bool, "Loading a root of the TDP MMU makes room for shadow pages first, and fails before the first memslot.", Vector;
    tdp_root_zap: TdpRootZap, "In which passes a root of the TDP MMU is zapped.", Vector;
    tdp_atomic_zap: TdpAtomicZap, "In which order one entry of the TDP MMU is zapped under the shared lock.", Vector;
    tdp_large_in_way: TdpLargeInWay, "What a fault does to a large leaf of the TDP MMU where it needs a table.", Vector;
    tdp_fault_flush: TdpFaultFlush, "What is flushed when a fault puts a leaf of the TDP MMU over a link.", Vector;
    tdp_walks_invalid_roots: bool, "The dirty log's masks, write protection of a gfn and zap_gfn_range also walk invalid roots of the TDP MMU.", Vector;
    tdp_split_whole_mask: bool, "A split for a mask of the dirty log reaches the last page of the mask, else it ends before it.", Recording;
    tdp_split_drops_lock: bool, "A split of the TDP MMU drops the lock for each table it allocates.", Vector;
    tdp_log_marks_dirty: bool, "Where the dirty log takes W or D from a small leaf of the TDP MMU, the host page is marked dirty whatever the leaf's D.", Vector;
    tdp_age_marks_twice: bool, "Aging a writable leaf of the TDP MMU without A/D bits marks the host page dirty again after the report.", Vector;
    tdp_collapse: TdpCollapse, "What the end of the dirty log does to a link of the TDP MMU that could be a large leaf.", Recording;
    tdp_allowed_is_spurious: bool, "A fault that finds a leaf of the TDP MMU that allows it is spurious at once and reports nothing.", Recording;
    tdp_nx_recovery_shared: bool, "NX recovery zaps a table of the TDP MMU under the shared lock.", Recording;
    tdp_nx_count_kept: bool, "NX recovery does not lower the count of the TDP MMU's tables that it takes off its list.", Recording;
    tdp_subtree_first: bool, "A change that removes a table is reported after the table's own.", Recording;
}
