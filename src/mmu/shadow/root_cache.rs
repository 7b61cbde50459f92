//! CR3 and the cache of roots that a switch of CR3 goes through: three roots beside the one in use, in long mode only.
//!
//! Models `kvm_set_cr3`, `load_pdptrs`, `kvm_mmu_new_cr3`/`kvm_mmu_new_pgd`, `cached_root_available`, v5.0 to v6.12.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::{PrevRoot, REQ_LOAD_CR3, REQ_MMU_SYNC, REQ_TLB_FLUSH_CURRENT, REQ_TRIPLE_FAULT};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::guest_mode::{GPTE_PRESENT, GuestMode};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;

/// PDPTEs lie on 32 bytes.
const PDPTES_MASK: u64 = 0xffff_ffe0;
/// Level whose reserved bits PDPTEs have.
const PDPTE_LEVEL: u8 = 3;

/// CR3 has the value it had.
const SAME: i32 = 1;
/// The new PDPTEs are none; nothing changed.
const REFUSED: i32 = 2;

impl MmuState {
    /// The four PDPTEs that a value of CR3 leads to; `None` without memory.
    fn read_pdptes(&self, vcpu: usize, cr3: u64) -> Option<[u64; 4]> {
        let as_id = self.vcpus[vcpu].as_id();
        let mut pdptes = [0; 4];
        for (at, pdpte) in (0_u64..).zip(&mut pdptes) {
            *pdpte = self.read_guest(as_id, (cr3 & PDPTES_MASK) + 8 * at, 8)?;
        }
        Some(pdptes)
    }

    /// Reads the PDPTEs into the vCPU; false if they are none.
    pub(in crate::mmu) fn load_pdptes(&mut self, vcpu: usize, cr3: u64) -> bool {
        let of_vcpu = &self.vcpus[vcpu];
        // Up to v5.10 they are judged as the MMU context would, which may be one of another mode.
        let mode = if self.config.kernel.is_role_fixed {
            GuestMode::of(&of_vcpu.registers(), self.config.phys_bits, false)
        } else {
            of_vcpu.mode
        };
        // None of them is a leaf, whatever its bit PS.
        let reserved = mode.reserved(0, PDPTE_LEVEL);
        let Some(pdptes) = self.read_pdptes(vcpu, cr3) else { return false };
        if pdptes.iter().any(|&pdpte| pdpte & GPTE_PRESENT != 0 && pdpte & reserved != 0) {
            return false;
        }
        if self.config.kernel.is_role_fixed {
            if self.vcpus[vcpu].pdptes != pdptes {
                let mut invalid = InvalidList::default();
                self.drop_current_roots(vcpu, &mut invalid);
                self.commit_zap_page(&mut invalid);
            }
            self.vcpus[vcpu].requests |= REQ_LOAD_CR3;
        }
        self.vcpus[vcpu].pdptes = pdptes;
        true
    }

    /// Reads the PDPTEs anew where they are in use; false if they are none.
    pub(in crate::mmu) fn load_pdptes_in_use(&mut self, vcpu: usize) -> bool {
        let of_vcpu = &self.vcpus[vcpu];
        !of_vcpu.uses_pdptes() || self.load_pdptes(vcpu, of_vcpu.cr3)
    }

    /// The guest writes CR3: 0, or why nothing was switched. With the value it had, older kernels sync the roots then.
    pub(in crate::mmu) fn set_cr3(&mut self, vcpu: usize, cr3: u64) -> i32 {
        let of_vcpu = &self.vcpus[vcpu];
        let (is_same, uses_pdptes) = (of_vcpu.cr3 == cr3, of_vcpu.uses_pdptes());
        if self.config.kernel.is_role_fixed {
            if uses_pdptes && !self.load_pdptes(vcpu, cr3) {
                return 1;
            }
            if !is_same {
                self.new_root(vcpu, cr3);
            }
            let of_vcpu = &mut self.vcpus[vcpu];
            of_vcpu.cr3 = cr3;
            of_vcpu.requests |= REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT;
            return 0;
        }
        let is_changed = uses_pdptes && self.read_pdptes(vcpu, of_vcpu.cr3) != Some(of_vcpu.pdptes);
        if is_same && !is_changed {
            return SAME;
        }
        if uses_pdptes && !self.load_pdptes(vcpu, cr3) {
            return REFUSED;
        }
        self.new_root(vcpu, cr3);
        self.vcpus[vcpu].cr3 = cr3;
        0
    }

    /// Drops the cached roots that are out of sync or have something below them that is.
    pub(in crate::mmu) fn drop_unsync_prev_roots(&mut self, vcpu: usize) {
        let mut invalid = InvalidList::default();
        let mut cached = self.vcpus[vcpu].prev_roots;
        for prev in &mut cached {
            let header = self.arena.page(prev.root);
            if prev.root != PageIdx::NONE && (header.unsync || header.unsync_children != 0) {
                let root = std::mem::take(prev).root;
                self.release_root(root, &mut invalid);
            }
        }
        self.vcpus[vcpu].prev_roots = cached;
        self.commit_zap_page(&mut invalid);
    }

    /// The root of another CR3 is to be used: the cached one, or none until the next entry.
    pub(in crate::mmu) fn new_root(&mut self, vcpu: usize, cr3: u64) {
        let mut invalid = InvalidList::default();
        let of_vcpu = &self.vcpus[vcpu];
        let is_cached = if of_vcpu.mode.paging.is_long() && !of_vcpu.has_four_roots {
            if self.config.kernel.is_role_fixed {
                self.take_cached_root(vcpu, cr3, &mut invalid)
            } else {
                self.rotate_roots(vcpu, cr3, &mut invalid)
            }
        } else {
            false
        };
        if is_cached {
            let root = self.vcpus[vcpu].root;
            if let Some(indirect) = self.arena.indirect_mut(root) {
                indirect.flood = 0;
            }
            let is_synced = !self.config.kernel.is_role_fixed && !is_chosen(Mutant::CachedRootNotSynced);
            let of_vcpu = &mut self.vcpus[vcpu];
            of_vcpu.requests |= REQ_LOAD_CR3 | if is_synced { REQ_MMU_SYNC } else { 0 };
            of_vcpu.mmio.gva = 0;
            of_vcpu.tlb.flush();
            self.tell_loaded(vcpu);
        } else {
            self.drop_current_roots(vcpu, &mut invalid);
        }
        self.commit_zap_page(&mut invalid);
    }

    /// Up to v5.10: every cached root moves on by one place until the wanted one comes to the front.
    fn rotate_roots(&mut self, vcpu: usize, cr3: u64, _invalid: &mut InvalidList) -> bool {
        let of_vcpu = &self.vcpus[vcpu];
        let gfn = Gfn::of_gpa(cr3 & of_vcpu.mode.paging.address_mask());
        if !self.is_root_visible(vcpu, gfn) {
            self.vcpus[vcpu].requests |= REQ_TRIPLE_FAULT;
            return false;
        }
        // With these two bits no root is found again.
        let wanted = of_vcpu.role.with_smep_andnot_wp(false).with_smap_andnot_wp(false);
        let is_wanted = |state: &Self, at: PrevRoot| {
            at.root != PageIdx::NONE && at.cr3 == cr3 && state.arena.key(at.root).role == wanted
        };
        let mut cached = of_vcpu.prev_roots;
        let mut at = PrevRoot { cr3: of_vcpu.root_cr3, root: of_vcpu.root };
        let mut is_found = false;
        for prev in &mut cached {
            std::mem::swap(&mut at, prev);
            if is_wanted(self, at) {
                is_found = true;
                break;
            }
        }
        let of_vcpu = &mut self.vcpus[vcpu];
        (of_vcpu.root, of_vcpu.root_cr3, of_vcpu.prev_roots) = (at.root, at.cr3, cached);
        is_found
    }

    /// From v6.1 on the root in use is kept if it is the wanted one; where there is none, the cached ones move up.
    fn take_cached_root(&mut self, vcpu: usize, cr3: u64, invalid: &mut InvalidList) -> bool {
        let of_vcpu = &self.vcpus[vcpu];
        let wanted = of_vcpu.role;
        let is_wanted = |state: &Self, at: PrevRoot, wanted: Role| {
            at.root != PageIdx::NONE && at.cr3 == cr3 && state.arena.key(at.root).role == wanted
        };
        let mut cached = of_vcpu.prev_roots;
        let mut at = PrevRoot { cr3: of_vcpu.root_cr3, root: of_vcpu.root };
        if is_wanted(self, at, wanted) {
            return true;
        }
        // A dummy is none that could be kept.
        let has_root = of_vcpu.root != PageIdx::NONE;
        let mut is_found = false;
        if has_root {
            for prev in &mut cached {
                std::mem::swap(&mut at, prev);
                if is_wanted(self, at, wanted) {
                    is_found = true;
                    break;
                }
            }
            if !is_found {
                self.release_root(at.root, invalid);
                at = PrevRoot::default();
            }
        } else if let Some(found) = cached.iter().position(|&prev| is_wanted(self, prev, wanted)) {
            at = cached[found];
            cached[found..].rotate_left(1);
            cached[cached.len() - 1] = PrevRoot::default();
            is_found = true;
        }
        let of_vcpu = &mut self.vcpus[vcpu];
        (of_vcpu.root, of_vcpu.root_cr3, of_vcpu.prev_roots) = (at.root, at.cr3, cached);
        of_vcpu.has_dummy_root = false;
        is_found
    }
}
