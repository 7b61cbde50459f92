//! The rows: every kernel, oldest first, each by what differs from the one before it.

use super::facts::{
    AccessBits, ChildReuse, Collapse, CollapseFlush, DirtyLogFlush, FaultReturns, Kernel, LargeInWay, LogOnFlush,
    MmioCacheAccess, MmioCacheSpace, MmioOverLeaf, OldEntryExempts, PteListOrder, SpteFlush, StaleTest, TdpAtomicZap,
    TdpCollapse, TdpFaultFlush, TdpLargeInWay, TdpRootZap, WalkBound, ZapRangeBlocks, ZapRangeFlush,
};
use super::layouts::{GenerationKind, RoleLayout, SpteKind};
use crate::mmu::{Plans, ZapPlan};

impl Kernel {
    /// Linux 5.0.
    pub const V5_0: Self = Self {
        name: "v5.0",
        release: "5.0.1",
        title: "Linux 5.0 (5.0.1), fast invalidate for everything",
        plans: Plans::all(ZapPlan::V5_0_FAST),
        spte_layout: SpteKind::V5_0,
        generation_layout: GenerationKind::V5_0,
        role_layout: RoleLayout::V5_0,
        access_bits: AccessBits::Xwu,
        direct_role_bit4: false,
        is_role_fixed: false,
        l1tf: true,
        mark_mmio_access_mask: 0,
        fast_pf_whole_error_code: false,
        mem_slots: 512,
        has_max_gfn: false,
        pte_list_ext: 3,
        pte_list_order: PteListOrder::Tail,
        has_valid_gen: true,
        valid_gen_toggles: false,
        obsolete_if_invalid: false,
        has_mmio_cached: false,
        has_zapped_obsolete: true,
        has_shrinker: true,
        has_invalidate_event: true,
        has_zap_all_fast_event: false,
        has_set_spte_event: false,
        set_spte_for_mmio: false,
        has_requested_event: false,
        logs_silent_calls: false,
        batch_counts_unstable: false,
        reload_skips_obsolete: true,
        reload_keeps_valid_root: false,
        zapped_root_leaves: false,
        reclaim_skips_roots: false,
        zap_spares_rooted_child: false,
        stale_test: StaleTest::None,
        enospc_to_user: false,
        child_role_valid: true,
        child_reuse: ChildReuse::Access,
        large_in_way: LargeInWay::DroppedRange,
        mmio_over_leaf: MmioOverLeaf::DropFirst,
        old_entry_exempts: OldEntryExempts::None,
        track_all_spaces: false,
        mmio_cache_space: MmioCacheSpace::Zero,
        is_level_requested: false,
        retry_before_pin: false,
        mmio_cache_access: MmioCacheAccess::All,
        invalid_slot_retries: false,
        pml_while_logging: false,
        mmio_emulate_retry: true,
        fault_returns: FaultReturns::One,
        prefetch_drops_open_run: true,
        prefetch_over_same_is_spurious: false,
        emulate_wins_over_spurious: false,
        has_nx_huge_pages: false,
        nx_keeps_any_table: false,
        nx_marks_all_levels: false,
        has_mmio_caching: false,
        wrap_zaps_without_caching: true,
        clear_log_whole_words: true,
        walk_skips_empty_heads: false,
        notifier_by_hva: false,
        move_renews_arrays: false,
        zap_list_in_order: false,
        walk_flush_ranged: false,
        zap_range_defers: true,
        log_on_flush: LogOnFlush::IfChanged,
        dirty_log_flush: DirtyLogFlush::All,
        zap_range_flush: ZapRangeFlush::EachSlot,
        zap_range_blocks: ZapRangeBlocks::Nothing,
        collapse: Collapse::ByLeaf,
        collapse_flush: CollapseFlush::Table,
        has_change_pte: true,
        unmap_offers_lock: false,
        aging_is_lockless: false,
        has_initially_set: false,
        limit_on_resize: false,
        walk_on_log_change: false,
        has_eager_split: false,
        has_slot_zap_all_quirk: false,
        nx_recovery_spares_logged: false,
        has_prefault: false,
        spte_flush: SpteFlush::AnyBit,
        copies_ad_on_zap: true,
        has_guest_tables: true,
        walk_levels: 4,
        walk_bound: WalkBound::None,
        init_resets: false,
        max_parents: 0,
        keys_obey_wp: false,
        invlpg_warn_line: 876,
        self_map_is_small: true,
        sync_keeps_same_access: false,
        sync_keeps_ad: false,
        invlpg_syncs: false,
        has_dummy_root: false,
        unprotect_counts_freed: false,
        role_has_smep: false,
        direct_gfn_bug_line: 1060,
        has_unsync: true,
        write_flood_limit: 3,
        has_tdp_mmu: false,
        tdp_load_needs_room: true,
        tdp_root_zap: TdpRootZap::Large,
        tdp_atomic_zap: TdpAtomicZap::ReportFirst,
        tdp_large_in_way: TdpLargeInWay::Zapped,
        tdp_fault_flush: TdpFaultFlush::Table,
        tdp_walks_invalid_roots: true,
        tdp_split_whole_mask: false,
        tdp_split_drops_lock: false,
        tdp_log_marks_dirty: false,
        tdp_age_marks_twice: true,
        tdp_collapse: TdpCollapse::Zapped,
        tdp_allowed_is_spurious: false,
        tdp_nx_recovery_shared: false,
        tdp_nx_count_kept: false,
        tdp_subtree_first: false,
    };

    /// Linux 5.0 with the seed patch: the flag `mmio_cached` and a wrap that zaps only flagged pages.
    pub const V5_0_SEED: Self = Self {
        name: "v5.0-seed",
        title: "Linux 5.0 with the seed patch: a dedicated zap of MMIO-caching pages at the wrap",
        plans: Plans { wrap: ZapPlan::SEED, ..Self::V5_0.plans },
        has_mmio_cached: true,
        direct_gfn_bug_line: 1061,
        ..Self::V5_0
    };

    /// Linux 5.2.
    pub const V5_2: Self = Self {
        name: "v5.2",
        release: "5.2.1",
        title: "Linux 5.2 (5.2.1): the merged series, slot-only removal, no fast invalidate",
        plans: Plans { wrap: ZapPlan::MERGED, slot_removal: ZapPlan::V5_2_SLOT, ..Plans::all(ZapPlan::ZAP_ALL) },
        generation_layout: GenerationKind::V5_1,
        role_layout: RoleLayout::V5_1,
        has_valid_gen: false,
        has_zapped_obsolete: false,
        has_mmio_cached: true,
        has_invalidate_event: false,
        direct_role_bit4: true,
        reload_skips_obsolete: false,
        clear_log_whole_words: false,
        walk_flush_ranged: true,
        zap_range_defers: false,
        invlpg_warn_line: 893,
        direct_gfn_bug_line: 1077,
        ..Self::V5_0
    };

    /// Linux 5.3: the fast zap is back, for slot removal.
    pub const V5_3: Self = Self {
        name: "v5.3",
        release: "5.3.1",
        title: "Linux 5.3 (5.3.1): the fast invalidate is back for slot removal (from specification)",
        plans: Plans { slot_removal: ZapPlan::V5_3_FAST, ..Self::V5_2.plans },
        has_valid_gen: true,
        has_set_spte_event: true,
        has_guest_tables: false,
        invlpg_warn_line: 0,
        direct_gfn_bug_line: 0,
        ..Self::V5_2
    };

    /// Linux 5.4: the fast zap as it stayed, one valid bit, no flag `mmio_cached`.
    pub const V5_4: Self = Self {
        name: "v5.4",
        release: "5.4.18",
        title: "Linux 5.4 (5.4.18): the fast invalidate for the wrap too, one valid bit (from specification)",
        plans: Plans { wrap: ZapPlan::V5_4_FAST, slot_removal: ZapPlan::V5_4_FAST, ..Plans::all(ZapPlan::ZAP_ALL) },
        spte_layout: SpteKind::V5_4,
        has_zapped_obsolete: true,
        valid_gen_toggles: true,
        obsolete_if_invalid: true,
        batch_counts_unstable: true,
        has_mmio_cached: false,
        has_zap_all_fast_event: true,
        reload_skips_obsolete: true,
        ..Self::V5_3
    };

    /// Linux 5.10.
    pub const V5_10: Self = Self {
        name: "v5.10",
        release: "5.10.251",
        title: "Linux 5.10 (5.10.251): the level is requested first, 18 generation bits, TDP MMU off",
        spte_layout: SpteKind::V5_10,
        generation_layout: GenerationKind::V5_10,
        l1tf: false,
        batch_counts_unstable: false,
        logs_silent_calls: true,
        mark_mmio_access_mask: 7,
        set_spte_for_mmio: true,
        has_requested_event: true,
        zapped_root_leaves: true,
        reclaim_skips_roots: true,
        enospc_to_user: true,
        mmio_cache_access: MmioCacheAccess::Masked,
        move_renews_arrays: true,
        mmio_over_leaf: MmioOverLeaf::Overwrite,
        is_level_requested: true,
        has_nx_huge_pages: true,
        nx_keeps_any_table: true,
        has_initially_set: true,
        walk_on_log_change: true,
        ..Self::V5_4
    };

    /// Linux 6.1 before the fixes of 2026.
    pub const V6_1_0: Self = Self {
        name: "v6.1.0",
        release: "6.1.0",
        title: "Linux 6.1 before the fixes of 2026 (from source)",
        spte_layout: SpteKind::V6_1,
        generation_layout: GenerationKind::V6_1,
        role_layout: RoleLayout::V6_1,
        direct_role_bit4: false,
        is_role_fixed: true,
        set_spte_for_mmio: false,
        mem_slots: 32767,
        has_max_gfn: true,
        pte_list_ext: 14,
        reload_keeps_valid_root: true,
        stale_test: StaleTest::BeforeReclaim,
        child_role_valid: false,
        child_reuse: ChildReuse::Any,
        old_entry_exempts: OldEntryExempts::DirtyAndUnsync,
        walk_skips_empty_heads: true,
        notifier_by_hva: true,
        invalid_slot_retries: true,
        pml_while_logging: true,
        zap_list_in_order: true,
        prefetch_drops_open_run: false,
        emulate_wins_over_spurious: true,
        has_mmio_caching: true,
        log_on_flush: LogOnFlush::Always,
        dirty_log_flush: DirtyLogFlush::Slot,
        zap_range_flush: ZapRangeFlush::Once,
        zap_range_blocks: ZapRangeBlocks::Everything,
        collapse: Collapse::ByTable,
        limit_on_resize: true,
        has_eager_split: true,
        walk_levels: 5,
        keys_obey_wp: true,
        has_tdp_mmu: true,
        ..Self::V5_10
    };

    /// Linux 6.1 with them.
    pub const V6_1: Self = Self {
        name: "v6.1",
        release: "6.1.192",
        has_guest_tables: true,
        title: "Linux 6.1 (6.1.192): another SPTE layout, reclaim passes over roots, the level is requested first",
        zap_spares_rooted_child: true,
        stale_test: StaleTest::AfterReclaim,
        child_role_valid: true,
        child_reuse: ChildReuse::GfnRole,
        large_in_way: LargeInWay::ZappedFull,
        mmio_over_leaf: MmioOverLeaf::DropFirst,
        track_all_spaces: true,
        mmio_cache_space: MmioCacheSpace::Own,
        collapse: Collapse::ByTableInSlot,
        ..Self::V6_1_0
    };

    /// Linux 6.12 before the fixes of 2026.
    pub const V6_12_0: Self = Self {
        name: "v6.12.0",
        release: "6.12.0",
        title: "Linux 6.12 before the fixes of 2026 (from source)",
        self_map_is_small: false,
        sync_keeps_same_access: true,
        invlpg_syncs: true,
        has_dummy_root: true,
        unprotect_counts_freed: true,
        spte_layout: SpteKind::V6_12,
        fast_pf_whole_error_code: true,
        pte_list_order: PteListOrder::Front,
        retry_before_pin: true,
        mmio_emulate_retry: false,
        nx_keeps_any_table: false,
        nx_marks_all_levels: true,
        zap_range_blocks: ZapRangeBlocks::Range,
        collapse_flush: CollapseFlush::Entry,
        has_change_pte: false,
        unmap_offers_lock: true,
        has_slot_zap_all_quirk: true,
        nx_recovery_spares_logged: true,
        has_prefault: true,
        tdp_load_needs_room: false,
        tdp_root_zap: TdpRootZap::EachLevel,
        tdp_atomic_zap: TdpAtomicZap::FlushFirst,
        tdp_large_in_way: TdpLargeInWay::Split,
        tdp_fault_flush: TdpFaultFlush::Leaf,
        tdp_walks_invalid_roots: false,
        tdp_split_whole_mask: true,
        tdp_split_drops_lock: true,
        tdp_log_marks_dirty: true,
        tdp_age_marks_twice: false,
        ..Self::V6_1_0
    };

    /// Linux 6.12 with them.
    pub const V6_12: Self = Self {
        name: "v6.12",
        release: "6.12.117",
        has_guest_tables: true,
        title: "Linux 6.12 (6.12.117): as 6.1; an empty SPTE has bit 63 set",
        zap_spares_rooted_child: true,
        stale_test: StaleTest::AfterReclaim,
        child_role_valid: true,
        child_reuse: ChildReuse::GfnRole,
        large_in_way: LargeInWay::ZappedFull,
        mmio_over_leaf: MmioOverLeaf::DropFirst,
        track_all_spaces: true,
        mmio_cache_space: MmioCacheSpace::Own,
        collapse: Collapse::ByTableInSlot,
        walk_bound: WalkBound::Template,
        ..Self::V6_12_0
    };

    /// Linux 6.18.
    pub const V6_18: Self = Self {
        name: "v6.18",
        release: "6.18.15",
        has_guest_tables: true,
        sync_keeps_ad: true,
        title: "Linux 6.18 (6.18.15): no shrinker, lock-free aging, before the fixes of 2026",
        has_zapped_obsolete: false,
        has_shrinker: false,
        old_entry_exempts: OldEntryExempts::Unsync,
        fault_returns: FaultReturns::Verdict,
        prefetch_over_same_is_spurious: true,
        aging_is_lockless: true,
        spte_flush: SpteFlush::MmuWritable,
        copies_ad_on_zap: false,
        tdp_log_marks_dirty: false,
        tdp_collapse: TdpCollapse::InPlace,
        tdp_allowed_is_spurious: true,
        tdp_nx_recovery_shared: true,
        tdp_nx_count_kept: true,
        ..Self::V6_12_0
    };

    /// Linux 7.1, an early patch level.
    pub const V7_1_3: Self = Self {
        name: "v7.1.3",
        release: "7.1.3",
        title: "Linux 7.1 (7.1.3): the first fixes of 2026; a wrap zaps only where MMIO SPTEs are made (from source)",
        child_reuse: ChildReuse::GfnRole,
        large_in_way: LargeInWay::ZappedRange,
        mmio_over_leaf: MmioOverLeaf::DropFirst,
        wrap_zaps_without_caching: false,
        collapse: Collapse::ByTableInSlot,
        ..Self::V6_18
    };

    /// Linux 7.1.
    pub const V7_1: Self = Self {
        name: "v7.1",
        release: "7.1.13",
        title: "Linux 7.1 (7.1.13): most fixes of 2026; a wrap zaps only where MMIO SPTEs are made (from source)",
        stale_test: StaleTest::AfterReclaim,
        child_role_valid: true,
        track_all_spaces: true,
        ..Self::V7_1_3
    };

    /// Linux 7.2, an early patch level.
    pub const V7_2_6: Self = Self {
        name: "v7.2.6",
        release: "7.2.6",
        title: "Linux 7.2 (7.2.6): access has a read bit, 18 generation bits",
        spte_layout: SpteKind::V7_2,
        generation_layout: GenerationKind::V7_2,
        role_layout: RoleLayout::V7_2,
        access_bits: AccessBits::Rwux,
        role_has_smep: true,
        mark_mmio_access_mask: 15,
        zap_spares_rooted_child: true,
        tdp_subtree_first: true,
        ..Self::V7_1
    };

    /// Linux 7.2.
    pub const V7_2: Self = Self {
        name: "v7.2",
        release: "7.2.12",
        title: "Linux 7.2 (7.2.12): the vCPU's MMIO cache goes by its own address space",
        mmio_cache_space: MmioCacheSpace::Own,
        ..Self::V7_2_6
    };

    /// Linux 7.3.
    pub const V7_3: Self = Self {
        name: "v7.3",
        release: "7.3.4",
        title: "Linux 7.3 (7.3.4): rules as in 7.2.12; the walk of a guest's tables is bounded",
        walk_bound: WalkBound::Template,
        ..Self::V7_2
    };

    /// Every kernel, oldest first.
    pub const ALL: [Self; 16] = [
        Self::V5_0,
        Self::V5_0_SEED,
        Self::V5_2,
        Self::V5_3,
        Self::V5_4,
        Self::V5_10,
        Self::V6_1_0,
        Self::V6_1,
        Self::V6_12_0,
        Self::V6_12,
        Self::V6_18,
        Self::V7_1_3,
        Self::V7_1,
        Self::V7_2_6,
        Self::V7_2,
        Self::V7_3,
    ];
}
