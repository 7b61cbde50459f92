//! Roots of the direct MMU, vCPU entry, and what resets a vCPU's MMU.
//!
//! Models v5.0/v5.2 `kvm_mmu_load`, `kvm_mmu_unload`, `mmu_free_root_page`, `kvm_mmu_reset_context`, and the requests of
//! `vcpu_enter_guest` that concern the MMU.

use super::addr::Gfn;
use super::error::Result;
use super::invalid_list::InvalidList;
use super::mutants::{Mutant, is_chosen};
use super::page_arena::PageIdx;
use super::state::MmuState;
use super::vcpu_mmu::{REQ_LOAD_CR3, REQ_MMU_RELOAD, REQ_MMU_SYNC, REQ_TLB_FLUSH};

/// No room for a root.
pub(super) const ENOSPC: i32 = 28;

impl MmuState {
    /// What happens before a vCPU runs: requests, then a root if there is none. 0, or a negative errno.
    pub(super) fn enter(&mut self, vcpu: usize) -> Result<i32> {
        let requests = self.vcpus[vcpu].requests;
        if requests != 0 {
            if requests & REQ_MMU_RELOAD != 0 {
                self.vcpus[vcpu].requests &= !REQ_MMU_RELOAD;
                self.unload(vcpu);
            }
            let requests = &mut self.vcpus[vcpu].requests;
            if *requests & REQ_TLB_FLUSH != 0 {
                self.vcpus[vcpu].tlb.flush();
            }
            self.vcpus[vcpu].requests &= !(REQ_TLB_FLUSH | REQ_MMU_SYNC | REQ_LOAD_CR3);
        }
        if self.vcpus[vcpu].root == PageIdx::NONE { self.load(vcpu) } else { Ok(0) }
    }

    /// Loads a root, also where there is one: the count of the one before is then never given back.
    pub(super) fn load(&mut self, vcpu: usize) -> Result<i32> {
        if self.make_mmu_pages_available().is_err() {
            return Ok(-ENOSPC);
        }
        let root = self.get_page(Gfn(0), self.vcpus[vcpu].role)?;
        self.is_root_leaked |= self.vcpus[vcpu].root != PageIdx::NONE;
        self.arena.page_mut(root).root_count += 1;
        self.vcpus[vcpu].root = root;
        self.vcpus[vcpu].tlb.flush();
        Ok(0)
    }

    /// Drops the root; if it was zapped while in use, it goes now.
    pub(super) fn unload(&mut self, vcpu: usize) {
        let root = std::mem::take(&mut self.vcpus[vcpu].root);
        self.vcpus[vcpu].tlb.flush();
        if root == PageIdx::NONE {
            return;
        }
        let page = self.arena.page_mut(root);
        page.root_count = page.root_count.saturating_sub(u32::from(!is_chosen(Mutant::RootCountKept)));
        if page.root_count == 0 && self.arena.key(root).role.invalid() {
            let mut invalid = InvalidList::default();
            self.prepare_zap_page(root, &mut invalid);
            self.commit_zap_page(&mut invalid);
        }
    }

    /// Drops the root and computes the role anew, also when no register changed.
    pub(super) fn reset_context(&mut self, vcpu: usize) {
        self.unload(vcpu);
        self.vcpus[vcpu].update_role();
    }
}
