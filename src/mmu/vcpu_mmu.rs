//! `VcpuMmu`: a vCPU's root, requests, registers the MMU reads, its one-entry MMIO cache and its modelled TLB.

use serde::{Deserialize, Serialize};

use super::addr::Gfn;
use super::page_arena::PageIdx;
use super::role::Role;
use super::tlb::Tlb;

/// Flush the TLB.
pub const REQ_TLB_FLUSH: u64 = 1;
/// Drop the roots and load new ones.
pub const REQ_MMU_RELOAD: u64 = 1 << 1;
/// Sync the roots.
pub const REQ_MMU_SYNC: u64 = 1 << 11;
/// Load CR3.
pub const REQ_LOAD_CR3: u64 = 1 << 13;

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
    /// Role of its root.
    pub role: Role,
    /// The one-entry MMIO cache.
    pub mmio: MmioInfo,
    /// Translations the processor may hold.
    pub tlb: Tlb,
}

impl VcpuMmu {
    /// A vCPU in 64-bit mode without a root.
    #[must_use]
    pub fn new(root_level: u8, role_bit4: bool, ad_disabled: bool) -> Self {
        let role = Role::new()
            .with_level(root_level)
            .with_gpte_is_8_bytes(role_bit4)
            .with_direct(true)
            .with_access(super::access::ACC_ALL)
            .with_ad_disabled(ad_disabled);
        let mut vcpu = Self {
            root: PageIdx::NONE,
            requests: 0,
            smm: false,
            cr0: 0x8001_0001,
            cr3: 0x1000,
            cr4: 0x20,
            efer: 0xd00,
            role,
            mmio: MmioInfo::default(),
            tlb: Tlb::default(),
        };
        vcpu.update_role();
        vcpu
    }

    /// Recomputes the role from the registers.
    pub fn update_role(&mut self) {
        self.role = self
            .role
            .with_nxe(self.efer & EFER_NX != 0)
            .with_cr0_wp(self.cr0 & CR0_WP != 0)
            .with_smm(u8::from(self.smm));
    }

    /// The address space whose slots it sees.
    #[inline]
    #[must_use]
    pub const fn as_id(&self) -> u8 {
        if self.smm { 1 } else { 0 }
    }
}
