//! `VcpuMmu`: a vCPU's root, requests, registers the MMU reads, its one-entry MMIO cache and its modelled TLB.

use serde::{Deserialize, Serialize};

use crate::kernels::Kernel;
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::vm::tlb::Tlb;
use crate::mmu::words::access::ACC_ALL;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::guest_mode::{
    CR0_PG, CR4_LA57, CR4_PAE, CR4_PKE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, GuestMode, Paging, Registers,
};
use crate::mmu::words::role::Role;

/// Flush the TLB.
pub const REQ_TLB_FLUSH: u64 = 1;
/// Drop the roots and load new ones.
pub const REQ_MMU_RELOAD: u64 = 1 << 1;
/// The processor's own dirty log goes on or off.
pub const REQ_UPDATE_CPU_DIRTY_LOGGING: u64 = 1 << 38;
/// Sync the roots.
pub const REQ_MMU_SYNC: u64 = 1 << 11;
/// Load CR3.
pub const REQ_LOAD_CR3: u64 = 1 << 13;

/// Triple fault.
pub const REQ_TRIPLE_FAULT: u64 = 1 << 10;
/// Flush what the TLB holds of the root in use (v6.1 and later).
pub const REQ_TLB_FLUSH_CURRENT: u64 = 1 << 34;
/// The guest flushes its TLB (v6.1 and later).
pub const REQ_TLB_FLUSH_GUEST: u64 = 1 << 35;

/// What one of four roots covers: 1 GiB.
const PAE_ROOT_SHIFT: u32 = 30;

const EFER_NX: u64 = 1 << 11;
const CR0_WP: u64 = 1 << 16;

/// The MMIO access remembered last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioInfo {
    /// Page of the guest virtual address; 0 on a direct MMU.
    pub gva: u64,
    /// The gfn; 0 is none.
    pub gfn: Gfn,
    /// Access it was made with.
    pub access: u32,
    /// Generation of address space 0 then, whole.
    pub slots_gen: u64,
}

/// A root that may be used again, and the CR3 it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrevRoot {
    /// CR3, all bits.
    pub cr3: u64,
    /// The root; none if the place is free.
    pub root: PageIdx,
}

/// One vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact of the vCPU")]
pub struct VcpuMmu {
    /// Page used as root.
    pub root: PageIdx,
    /// The other three of a guest without paging, where two-dimensional paging is off: 1 to 3 GiB.
    pub pae_roots: [PageIdx; 3],
    /// Four roots are loaded, of which some may be none.
    pub has_four_roots: bool,
    /// The root in use is a dummy, which has no page.
    pub has_dummy_root: bool,
    /// The CR3 that the root in use is for; 0 without one.
    pub root_cr3: u64,
    /// Roots of other values of CR3, the one used last first.
    pub prev_roots: [PrevRoot; 3],
    /// What the MMU context was built from: the bits of CR0, CR4 and EFER that count, and whether in SMM.
    pub built_from: [u64; 4],
    /// Control registers do not change the role.
    pub is_role_fixed: bool,
    /// Pending requests.
    pub requests: u64,
    /// In system management mode: address space 1.
    pub smm: bool,
    /// Control registers.
    pub cr0: u64,
    /// Guest page table; not read by a direct MMU.
    pub cr3: u64,
    /// Control registers.
    pub cr4: u64,
    /// Extended features.
    pub efer: u64,
    /// Rights of protection keys.
    pub pkru: u32,
    /// `EFLAGS.AC`.
    pub ac: bool,
    /// The four entries above the tables of a guest in PAE mode, as the processor read them last.
    pub pdptes: [u64; 4],
    /// How the guest pages: the registers as the MMU context was built for them.
    pub mode: GuestMode,
    /// Role of its root.
    pub role: Role,
    /// The one-entry MMIO cache.
    pub mmio: MmioInfo,
    /// Translations the processor may hold.
    pub tlb: Tlb,
    /// What became of its faults.
    pub faults: FaultStats,
}

/// What became of a vCPU's faults, under the kernel's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub struct FaultStats {
    pub taken: u64,
    pub fixed: u64,
    pub emulate: u64,
    pub spurious: u64,
    pub fast: u64,
    pub mmio_spte_created: u64,
}

impl VcpuMmu {
    /// A vCPU in 64-bit mode without a root.
    #[must_use]
    pub fn new(root_level: u8, role_bit4: bool, ad_disabled: bool, phys_bits: u8) -> Self {
        let start = Registers { cr0: 0x8001_0001, cr3: 0x1000, cr4: 0x20, efer: 0xd00, pkru: 0, ac: false };
        let role = Role::new()
            .with_level(root_level)
            .with_gpte_is_8_bytes(role_bit4)
            .with_direct(true)
            .with_access(crate::mmu::words::access::ACC_ALL)
            .with_ad_disabled(ad_disabled);
        let mut vcpu = Self {
            root: PageIdx::NONE,
            pae_roots: [PageIdx::NONE; 3],
            has_four_roots: false,
            has_dummy_root: false,
            root_cr3: 0,
            prev_roots: [PrevRoot::default(); 3],
            built_from: [0; 4],
            is_role_fixed: false,
            requests: 0,
            smm: false,
            cr0: start.cr0,
            cr3: start.cr3,
            cr4: start.cr4,
            efer: start.efer,
            pkru: start.pkru,
            ac: start.ac,
            pdptes: [0; 4],
            mode: GuestMode::of(&start, phys_bits, false),
            role,
            mmio: MmioInfo::default(),
            tlb: Tlb::default(),
            faults: FaultStats::default(),
        };
        vcpu.update_role();
        vcpu
    }

    /// Its registers, as far as they say how the guest pages.
    #[must_use]
    pub const fn registers(&self) -> Registers {
        Registers { cr0: self.cr0, cr3: self.cr3, cr4: self.cr4, efer: self.efer, pkru: self.pkru, ac: self.ac }
    }

    /// Recomputes the role from the registers.
    pub fn update_role(&mut self) {
        if self.is_role_fixed {
            self.role = self.role.with_smm(u8::from(self.smm));
            return;
        }
        self.role = self
            .role
            .with_nxe(self.efer & EFER_NX != 0)
            .with_cr0_wp(self.cr0 & CR0_WP != 0)
            .with_smm(u8::from(self.smm));
    }

    /// From now on only SMM changes the role. Models v6.1 `kvm_calc_tdp_mmu_root_page_role`; a guest without paging has
    /// the bit WP only under two-dimensional paging.
    pub fn fix_role(&mut self, cr0_wp: bool) {
        self.is_role_fixed = true;
        self.role = self.role.with_nxe(true).with_cr0_wp(cr0_wp);
    }

    /// Whether any root is loaded, be it a dummy.
    #[must_use]
    pub fn has_roots(&self) -> bool {
        self.root != PageIdx::NONE || self.has_four_roots || self.has_dummy_root
    }

    /// CR4.PAE.
    #[must_use]
    pub const fn has_pae(&self) -> bool {
        self.cr4 & CR4_PAE != 0
    }

    /// Whether the processor keeps four PDPTEs.
    #[must_use]
    pub const fn uses_pdptes(&self) -> bool {
        matches!(self.registers().paging(), Paging::Pae)
    }

    /// Builds the context of an MMU that shadows the guest's tables, if what it was built from changed. Up to v5.10 long
    /// mode alone is no such change, and the role has all mode bits; later an NX bit that is always set.
    pub fn build_shadow_context(&mut self, phys_bits: u8, facts: &Kernel) {
        let (is_newer, direct_bit4) = (facts.is_role_fixed, facts.direct_role_bit4);
        let (cr4_bits, efer_bits) = if is_newer {
            (CR4_PSE | CR4_PAE | CR4_LA57 | CR4_SMEP | CR4_SMAP | CR4_PKE, EFER_NX | EFER_LMA)
        } else {
            (CR4_PSE | CR4_PAE | CR4_LA57 | CR4_SMEP | CR4_SMAP | CR4_PKE, EFER_NX)
        };
        let from =
            [self.cr0 & (CR0_PG | CR0_WP), self.cr4 & cr4_bits, self.efer & efer_bits, u64::from(self.smm) | 1 << 1];
        if from == self.built_from {
            return;
        }
        // Older kernels only ever add to the table of protection keys while they are on.
        let kept = self.mode.keys_obey_wp && self.built_from[1] & self.cr4 & CR4_PKE != 0 && !facts.keys_obey_wp;
        self.built_from = from;
        self.mode = GuestMode::of(&self.registers(), phys_bits, false);
        self.mode.keys_obey_wp |= kept;
        let paging = self.mode.paging;
        let (wp, smep, smap) = (self.cr0 & CR0_WP != 0, self.cr4 & CR4_SMEP != 0, self.cr4 & CR4_SMAP != 0);
        let is_none = matches!(paging, Paging::None);
        let base = Role::new().with_access(ACC_ALL).with_direct(is_none).with_smm(u8::from(self.smm));
        self.role = if is_newer {
            let level = if paging.is_long() { paging.root_level() } else { 3 };
            let base = base.with_level(level).with_nxe(true);
            if is_none {
                base
            } else {
                base.with_gpte_is_8_bytes(matches!(paging, Paging::P32))
                    .with_cr0_wp(wp)
                    .with_smep_andnot_wp(smep && (!wp || facts.role_has_smep))
                    .with_smap_andnot_wp(smap && !wp)
            }
        } else {
            base.with_level(if paging.is_long() { paging.root_level() } else { 2 })
                .with_gpte_is_8_bytes(if is_none { direct_bit4 } else { self.has_pae() })
                .with_nxe(self.efer & EFER_NX != 0)
                .with_cr0_wp(wp)
                .with_smep_andnot_wp(smep && !wp)
                .with_smap_andnot_wp(smap && !wp)
        };
    }

    /// Its roots, in the order of their addresses; fewer than four are none.
    pub fn roots(&self) -> impl Iterator<Item = PageIdx> + use<> {
        std::iter::once(self.root).chain(self.pae_roots).filter_map(PageIdx::some)
    }

    /// The one of four roots from which an address is walked; they repeat every 4 GiB.
    #[must_use]
    pub const fn pae_root(&self, gpa: u64) -> PageIdx {
        match gpa >> PAE_ROOT_SHIFT & 3 {
            0 => self.root,
            1 => self.pae_roots[0],
            2 => self.pae_roots[1],
            _ => self.pae_roots[2],
        }
    }

    /// The address space whose slots it sees.
    #[inline]
    #[must_use]
    pub const fn as_id(&self) -> u8 {
        if self.smm { 1 } else { 0 }
    }
}
