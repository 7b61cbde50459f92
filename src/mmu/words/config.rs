//! `Config`: what a VM is made from. Checked once; nothing in it changes while the VM lives, except the plans.

use serde::{Deserialize, Serialize};

use crate::kernels::Kernel;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::generation::GenerationLayout;
use crate::mmu::words::plan::Plans;
use crate::mmu::words::spte::masks::Host;

/// The kernel's number of memslots, its own three included.
pub const MEM_SLOTS_NUM: u32 = 512;

/// Which set of SPTE masks the host uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// AMD's nested paging: the legacy 64-bit masks.
    Npt,
    /// Intel's EPT with accessed and dirty bits.
    EptAd,
    /// Intel's EPT without them.
    EptNoad,
    /// The legacy masks without two-dimensional paging.
    Shadow,
}

impl Family {
    /// The family of this name.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "npt" => Ok(Self::Npt),
            "ept_ad" => Ok(Self::EptAd),
            "ept_noad" => Ok(Self::EptNoad),
            "shadow" => Ok(Self::Shadow),
            _ => Err(Error::UnknownFamily(name.to_owned())),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Npt => "npt",
            Self::EptAd => "ept_ad",
            Self::EptNoad => "ept_noad",
            Self::Shadow => "shadow",
        }
    }
}

/// How many tracepoint events are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventMode {
    /// None.
    Off,
    /// The last so many.
    Ring(usize),
    /// All.
    All,
}

/// How shadow pages are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GfnHash {
    /// The kernel's 4,096 buckets, with its collision statistic.
    Kernel,
    /// As many buckets as there are pages; no collision statistic.
    Wide,
}

/// What a VM is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact about the host")]
pub struct Config {
    /// The kernel's rules.
    #[serde(with = "crate::mmu::watch::saved::by_name")]
    pub kernel: Kernel,
    /// SPTE masks.
    pub family: Family,
    /// Host physical address width.
    pub phys_bits: u8,
    /// EPT supports execute-only entries.
    pub execonly: bool,
    /// Intel's page-modification logging.
    pub pml: bool,
    /// Root level of two-dimensional paging.
    pub tdp_level: u8,
    /// Largest leaf level.
    pub lpage_level: u8,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// A ranged-flush hook exists.
    pub flush_range: bool,
    /// How the generation lies in an MMIO SPTE.
    pub generation: GenerationLayout,
    /// Which plan answers which trigger.
    pub plans: Plans,
    /// How many events are kept.
    pub events: EventMode,
    /// How shadow pages are hashed.
    pub gfn_hash: GfnHash,
    /// The L1TF mask is in use: always up to v5.4, later only where the CPU has the flaw.
    pub l1tf: bool,
    /// Large leaves are never executable (v6.1 and later).
    pub nx_huge_pages: bool,
    /// MMIO SPTEs are made; without them every MMIO access is a full fault (v6.1 and later).
    pub mmio_caching: bool,
    /// The guest pages. One that does not is mapped directly also without two-dimensional paging (v6.1 and later).
    pub guest_paging: bool,
    /// The TDP MMU serves the guest, not shadow pages (v6.1 and later).
    pub tdp_mmu: bool,
    /// Functions without a tracepoint are logged too, as recordings with kprobes show them.
    pub probes: bool,
    /// Form of events, counters and state: 1, or 6 as the stepped code of v6.1 and v6.12 is written down.
    pub format: u8,
    /// Slot ids lie below this; above the kernel's 512 only on purpose.
    pub max_memslots: u32,
}

impl Config {
    /// The vectors' defaults for a kernel: `ept_ad`, 46 physical bits, one vCPU.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            family: Family::EptAd,
            phys_bits: 46,
            execonly: true,
            pml: false,
            tdp_level: 4,
            lpage_level: 3,
            vcpus: 1,
            flush_range: false,
            generation: kernel.generation_layout.layout(),
            plans: kernel.plans,
            events: EventMode::All,
            gfn_hash: GfnHash::Kernel,
            l1tf: kernel.l1tf,
            nx_huge_pages: false,
            mmio_caching: true,
            guest_paging: true,
            tdp_mmu: false,
            probes: kernel.logs_silent_calls,
            format: 1,
            max_memslots: MEM_SLOTS_NUM,
        }
    }

    /// Refuses values out of range.
    pub fn check(&self) -> Result<()> {
        let range = |key, value: u64, low: u64, high: u64, allowed| {
            if (low..=high).contains(&value) { Ok(()) } else { Err(Error::Config { key, value, allowed }) }
        };
        range("phys_bits", self.phys_bits.into(), 36, 52, "36..=52")?;
        range("tdp_level", self.tdp_level.into(), 4, 5, "4..=5")?;
        range("lpage_level", self.lpage_level.into(), 1, 3, "1..=3")?;
        range("vcpus", self.vcpus.into(), 1, 4096, "1..=4096")?;
        let needs = |key, is_refused: bool, allowed| {
            if is_refused { Err(Error::ConfigNeeds { key, kernel: self.kernel.name, allowed }) } else { Ok(()) }
        };
        needs("nx_huge_pages=1", self.nx_huge_pages && !self.kernel.has_nx_huge_pages, "v5.10 or later")?;
        needs("mmio_caching=0", !self.mmio_caching && !self.kernel.has_mmio_caching, "v6.1 or later")?;
        needs("format=6", self.format == 6 && !self.kernel.is_role_fixed, "v6.1 or later")?;
        needs("tdp_mmu=1", self.tdp_mmu && !self.kernel.has_tdp_mmu, "v6.1 or later")?;
        let is_shadow = self.family == Family::Shadow;
        needs("tdp_mmu=1", self.tdp_mmu && is_shadow, "two-dimensional paging: family npt, ept_ad or ept_noad")?;
        needs(
            "family=shadow",
            self.shadows_guest() && !self.kernel.has_guest_tables,
            "a kernel whose shadow paging is modelled: v5.0, v5.0-seed, v5.2, v6.1, v6.12 and later; or guest_paging=0",
        )?;
        needs(
            "family=shadow and guest_paging=0",
            is_shadow && !self.guest_paging && !self.kernel.is_level_requested,
            "v5.10 or later",
        )?;
        self.generation.check_up_to(self.kernel.spte_layout.layout().generation_top)?;
        let is_overlapping = self.generation.spte_mask() & self.kernel.spte_layout.layout().mmu_present != 0;
        if is_overlapping { Err(Error::Layout("a field overlaps the bit MMU-present")) } else { Ok(()) }
    }

    /// Whether events, counters and state have the form of the stepped code of v6.
    #[must_use]
    pub const fn is_stepped(&self) -> bool {
        self.format == 6
    }

    /// What the masks follow from.
    #[must_use]
    pub const fn host(&self) -> Host {
        Host {
            family: self.family,
            phys_bits: self.phys_bits,
            execonly: self.execonly,
            l1tf: self.l1tf,
            mmio_caching: self.mmio_caching,
        }
    }

    /// The guest has page tables of its own, and they are shadowed.
    #[inline]
    #[must_use]
    pub const fn shadows_guest(&self) -> bool {
        matches!(self.family, Family::Shadow) && self.guest_paging
    }

    /// How many root pages a vCPU has, and their level.
    #[must_use]
    pub const fn roots(&self) -> (usize, u8) {
        if matches!(self.family, Family::Shadow) { (4, 2) } else { (1, self.tdp_level) }
    }
}
