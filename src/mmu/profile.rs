//! `KernelProfile`: which rules a kernel version has, as data. No structure and no operation asks for a kernel's name.
//!
//! The flags are the differences between v5.0, v5.0 with the seed patch, v5.2, v5.3, v5.4, v6.1 and v6.12 that the direct
//! MMU shows. v5.3 and v5.4 are from the specification: no recording of their direct MMU exists.

use super::error::{Error, Result};
use super::generation::GenerationLayout;
use super::plan::{Plans, ZapPlan};
use super::spte::layout::SpteLayout;

/// Which generation layout a kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the first kernel that had it")]
pub enum GenerationKind {
    V5_0,
    V5_1,
    V6_1,
}

/// One kernel's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact about a kernel")]
pub struct KernelProfile {
    /// The profile's name.
    pub name: &'static str,
    /// Where its own bits lie in an SPTE.
    pub spte: SpteLayout,
    /// How the generation lies in an MMIO SPTE.
    pub generation: GenerationKind,
    /// Which plan answers which trigger.
    pub plans: Plans,
    /// The L1TF mask is in use whatever the CPU (up to v5.4).
    pub l1tf: bool,
    /// Shadow pages carry a valid generation, and `state` shows it (not v5.1, v5.2).
    pub has_valid_gen: bool,
    /// The valid generation is one bit (v5.4 and later).
    pub valid_gen_toggles: bool,
    /// An invalid page is obsolete (v5.4 and later).
    pub obsolete_if_invalid: bool,
    /// A fast zap counts a page for its batch only when its prepare made the list unstable (v5.4).
    pub batch_counts_unstable: bool,
    /// Pages zapped by the fast invalidate wait on a list of the VM, which the shrinker commits first (v5.0).
    pub has_zapped_obsolete: bool,
    /// `state` shows the flag `mmio_cached`.
    pub has_mmio_cached: bool,
    /// The fast invalidate has its tracepoint (v5.0).
    pub has_invalidate_event: bool,
    /// The fast zap has its tracepoint (v5.4 and later).
    pub has_zap_all_fast_event: bool,
    /// A leaf that is written has its tracepoint (v5.3 and later).
    pub has_set_spte_event: bool,
    /// The tracepoint of the lock-free path has all bits of the error code (v6.12), else the low 32.
    pub fast_pf_whole_error_code: bool,
    /// Functions without a tracepoint are logged too, as the recordings' kprobes were (v6.1, v6.12).
    pub has_probes: bool,
    /// Direct pages have role bit 4 set (8-byte guest entries, v5.1 to v5.4).
    pub direct_role_bit4: bool,
    /// The role of a direct page follows only from SMM, not from control registers (v6.1 and later).
    pub is_role_fixed: bool,
    /// A zapped root in use asks for a reload only if it is not obsolete (not v5.1 to v5.3).
    pub reload_skips_obsolete: bool,
    /// A vCPU asked to reload keeps a root that is not obsolete (v6.1 and later).
    pub reload_keeps_valid_root: bool,
    /// A zapped root in use leaves the active list for good (v6.1 and later), else it moves to its head.
    pub zapped_root_leaves: bool,
    /// Reclaim passes over roots in use (v6.1 and later), else they end it.
    pub reclaim_skips_roots: bool,
    /// The vCPU's MMIO cache goes by the generation of its own address space (v6.1 and later), else of space 0.
    pub mmio_cache_own_space: bool,
    /// The level is settled before the tables are built, the tables before the leaf is compared with the one there; the
    /// fault path of v6.1 and later.
    pub is_level_requested: bool,
    /// `KVM_CLEAR_DIRTY_LOG` demands a multiple of 64 pages even at the slot's end (v5.0).
    pub clear_log_whole_words: bool,
    /// A slot walk that flushes inside uses the ranged hook (v5.1 and later); v5.0 flushes in full.
    pub walk_flush_ranged: bool,
    /// `zap_gfn_range` defers to one ranged flush at the end where the hook exists (v5.0).
    pub zap_range_defers: bool,
}

impl KernelProfile {
    /// Linux 5.0.
    pub const V5_0: Self = Self {
        name: "v5.0",
        spte: SpteLayout::V5_0,
        generation: GenerationKind::V5_0,
        plans: Plans::all(ZapPlan::V5_0_FAST),
        l1tf: true,
        has_valid_gen: true,
        valid_gen_toggles: false,
        obsolete_if_invalid: false,
        batch_counts_unstable: false,
        has_zapped_obsolete: true,
        has_mmio_cached: false,
        has_invalidate_event: true,
        has_zap_all_fast_event: false,
        has_set_spte_event: false,
        fast_pf_whole_error_code: false,
        has_probes: false,
        direct_role_bit4: false,
        is_role_fixed: false,
        reload_skips_obsolete: true,
        reload_keeps_valid_root: false,
        zapped_root_leaves: false,
        reclaim_skips_roots: false,
        mmio_cache_own_space: false,
        is_level_requested: false,
        clear_log_whole_words: true,
        walk_flush_ranged: false,
        zap_range_defers: true,
    };

    /// Linux 5.0 with the seed patch: the flag `mmio_cached` and a wrap that zaps only flagged pages.
    pub const V5_0_SEED: Self = Self {
        name: "v5.0-seed",
        plans: Plans { wrap: ZapPlan::SEED, ..Self::V5_0.plans },
        has_mmio_cached: true,
        ..Self::V5_0
    };

    /// Linux 5.2.
    pub const V5_2: Self = Self {
        name: "v5.2",
        generation: GenerationKind::V5_1,
        plans: Plans { wrap: ZapPlan::MERGED, slot_removal: ZapPlan::V5_2_SLOT, ..Plans::all(ZapPlan::ZAP_ALL) },
        has_valid_gen: false,
        has_zapped_obsolete: false,
        has_mmio_cached: true,
        has_invalidate_event: false,
        direct_role_bit4: true,
        reload_skips_obsolete: false,
        clear_log_whole_words: false,
        walk_flush_ranged: true,
        zap_range_defers: false,
        ..Self::V5_0
    };

    /// Linux 5.3: the fast zap is back, for slot removal.
    pub const V5_3: Self = Self {
        name: "v5.3",
        plans: Plans { slot_removal: ZapPlan::V5_3_FAST, ..Self::V5_2.plans },
        has_valid_gen: true,
        has_set_spte_event: true,
        ..Self::V5_2
    };

    /// Linux 5.4: the fast zap as it stayed, one valid bit, no flag `mmio_cached`.
    pub const V5_4: Self = Self {
        name: "v5.4",
        spte: SpteLayout::V5_4,
        plans: Plans { wrap: ZapPlan::V5_4_FAST, slot_removal: ZapPlan::V5_4_FAST, ..Plans::all(ZapPlan::ZAP_ALL) },
        valid_gen_toggles: true,
        obsolete_if_invalid: true,
        batch_counts_unstable: true,
        has_mmio_cached: false,
        has_zap_all_fast_event: true,
        reload_skips_obsolete: true,
        ..Self::V5_3
    };

    /// Linux 6.1.
    pub const V6_1: Self = Self {
        name: "v6.1",
        spte: SpteLayout::V6_1,
        generation: GenerationKind::V6_1,
        l1tf: false,
        batch_counts_unstable: false,
        has_probes: true,
        direct_role_bit4: false,
        is_role_fixed: true,
        reload_keeps_valid_root: true,
        zapped_root_leaves: true,
        reclaim_skips_roots: true,
        mmio_cache_own_space: true,
        is_level_requested: true,
        ..Self::V5_4
    };

    /// Linux 6.12.
    pub const V6_12: Self =
        Self { name: "v6.12", spte: SpteLayout::V6_12, fast_pf_whole_error_code: true, ..Self::V6_1 };

    /// Every profile, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V5_0, Self::V5_0_SEED, Self::V5_2, Self::V5_3, Self::V5_4, Self::V6_1, Self::V6_12];

    /// The profile of this name.
    pub fn by_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name).ok_or_else(|| Error::UnknownKernel(name.to_owned()))
    }

    /// The kernel's own generation layout.
    #[must_use]
    pub fn generation_layout(&self) -> GenerationLayout {
        match self.generation {
            GenerationKind::V5_0 => GenerationLayout::v5_0(),
            GenerationKind::V5_1 => GenerationLayout::v5_2(),
            GenerationKind::V6_1 => GenerationLayout::v6_1(),
        }
    }

    /// The kernel's own plan for each trigger.
    #[must_use]
    pub const fn plans(&self) -> Plans {
        self.plans
    }
}
