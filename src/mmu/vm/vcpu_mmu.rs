//! `VcpuMmu`: a vCPU's root, requests, registers the MMU reads, its one-entry MMIO cache and its modelled TLB.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::vm::tlb::Tlb;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::guest_mode::{GuestMode, Registers};
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

/// One vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuMmu {
    /// Page used as root.
    pub root: PageIdx,
    /// The other three of a guest without paging, where two-dimensional paging is off: 1 to 3 GiB.
    pub pae_roots: [PageIdx; 3],
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
