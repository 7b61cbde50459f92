//! `KernelProfile`: which rules a kernel version has, as data. No structure and no operation asks for a kernel's name.
//!
//! The flags are the differences between v5.0, v5.0 with the seed patch and v5.2 that the direct MMU shows.

use super::error::{Error, Result};
use super::generation::GenerationLayout;
use super::plan::{Plans, ZapPlan};

/// One kernel's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact about a kernel")]
pub struct KernelProfile {
    /// The profile's name.
    pub name: &'static str,
    /// Shadow pages carry a valid generation, and `state` shows it (v5.0).
    pub has_valid_gen: bool,
    /// Pages zapped by the fast invalidate wait on a list of the VM, which the shrinker commits first (v5.0).
    pub has_zapped_obsolete: bool,
    /// `state` shows the flag `mmio_cached`.
    pub has_mmio_cached: bool,
    /// The fast invalidate has its tracepoint.
    pub has_invalidate_event: bool,
    /// Direct pages have role bit 4 set (8-byte guest entries, v5.1 and later).
    pub direct_role_bit4: bool,
    /// A zapped root in use asks for a reload only if it is not obsolete (v5.0).
    pub reload_skips_obsolete: bool,
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
        has_valid_gen: true,
        has_zapped_obsolete: true,
        has_mmio_cached: false,
        has_invalidate_event: true,
        direct_role_bit4: false,
        reload_skips_obsolete: true,
        clear_log_whole_words: true,
        walk_flush_ranged: false,
        zap_range_defers: true,
    };

    /// Linux 5.0 with the seed patch: the flag `mmio_cached` and a wrap that zaps only flagged pages.
    pub const V5_0_SEED: Self = Self { name: "v5.0-seed", has_mmio_cached: true, ..Self::V5_0 };

    /// Linux 5.2.
    pub const V5_2: Self = Self {
        name: "v5.2",
        has_valid_gen: false,
        has_zapped_obsolete: false,
        has_mmio_cached: true,
        has_invalidate_event: false,
        direct_role_bit4: true,
        reload_skips_obsolete: false,
        clear_log_whole_words: false,
        walk_flush_ranged: true,
        zap_range_defers: false,
    };

    /// Every profile, oldest first.
    pub const ALL: [Self; 3] = [Self::V5_0, Self::V5_0_SEED, Self::V5_2];

    /// The profile of this name.
    pub fn by_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name).ok_or_else(|| Error::UnknownKernel(name.to_owned()))
    }

    /// The kernel's own generation layout.
    #[must_use]
    pub fn generation_layout(&self) -> GenerationLayout {
        if self.has_valid_gen { GenerationLayout::v5_0() } else { GenerationLayout::v5_2() }
    }

    /// The kernel's own plan for each trigger.
    #[must_use]
    pub fn plans(&self) -> Plans {
        if !self.has_valid_gen {
            return Plans {
                wrap: ZapPlan::MERGED,
                slot_removal: ZapPlan::V5_2_SLOT,
                teardown: ZapPlan::ZAP_ALL,
                flush_all: ZapPlan::ZAP_ALL,
            };
        }
        Plans {
            wrap: if self.has_mmio_cached { ZapPlan::SEED } else { ZapPlan::V5_0_FAST },
            slot_removal: ZapPlan::V5_0_FAST,
            teardown: ZapPlan::V5_0_FAST,
            flush_all: ZapPlan::V5_0_FAST,
        }
    }
}
