//! Loading, dropping and invalidating roots of the TDP MMU.
//!
//! Models `kvm_tdp_mmu_get_vcpu_root_hpa`, `kvm_tdp_mmu_put_root`, `kvm_tdp_mmu_invalidate_all_roots`,
//! `tdp_mmu_next_root`, v6.1 to v7.3. A root that goes is not reported.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::page_count::ENOSPC;
use crate::mmu::tdp::tdp_walk::Roots;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::mutants::{Mutant, is_chosen};

impl MmuState {
    /// Loads a root: a valid one of the vCPU's role, or a new one. 0, or a negative errno.
    pub(in crate::mmu) fn load_tdp_root(&mut self, vcpu: usize) -> Result<i32> {
        if self.config.kernel.tdp_load_needs_room && self.available_mmu_pages() == 0 {
            return Ok(-ENOSPC);
        }
        let role = self.vcpus[vcpu].role;
        let found = self.tdp.roots.iter().map(|root| root.page).find(|&page| self.arena.key(page).role == role);
        let root = if let Some(root) = found {
            self.work.get_page_found += 1;
            if !is_chosen(Mutant::TdpRootReferenceLost) {
                self.tdp.roots.get(root);
            }
            root
        } else {
            let root = self.tdp_make_table(Gfn(0), role)?;
            self.tdp.roots.push_head(root);
            root
        };
        self.is_root_leaked |= self.vcpus[vcpu].root != PageIdx::NONE;
        self.vcpus[vcpu].root = root;
        self.vcpus[vcpu].tlb.flush();
        self.tell_loaded(vcpu);
        Ok(0)
    }

    /// Gives a reference back; the last one frees the root, which is empty then.
    pub(in crate::mmu) fn put_tdp_root(&mut self, root: PageIdx) {
        if self.tdp.roots.put(root) {
            self.free_page(root);
        }
    }

    /// Makes every root invalid and notes that it is to be zapped.
    pub(in crate::mmu) fn invalidate_tdp_roots(&mut self) {
        for root in self.tdp.roots.iter_mut() {
            let key = self.arena.key_mut(root.page);
            if !key.role.invalid() {
                key.role = key.role.with_invalid(true);
                root.is_scheduled = true;
            }
        }
    }

    /// Whether a walk comes to a root.
    pub(in crate::mmu) fn is_walked(&self, roots: Roots, page: PageIdx) -> bool {
        let role = self.arena.key(page).role;
        roots.as_id.is_none_or(|as_id| role.as_id() == as_id)
            && !(roots.only_valid && role.invalid() && !is_chosen(Mutant::TdpInvalidRootWalked))
    }

    /// The next root of a walk, held; the one before is given back.
    pub(in crate::mmu) fn next_tdp_root(&mut self, before: PageIdx, roots: Roots) -> Option<PageIdx> {
        let next = self.tdp.roots.after(before).map(|root| root.page).find(|&page| self.is_walked(roots, page));
        if let Some(next) = next {
            self.tdp.roots.get(next);
        }
        if before != PageIdx::NONE {
            self.put_tdp_root(before);
        }
        next
    }

    /// The roots of a walk that never gives the lock away.
    pub(in crate::mmu) fn tdp_roots(&self, roots: Roots) -> Vec<PageIdx> {
        self.tdp.roots.iter().map(|root| root.page).filter(|&page| self.is_walked(roots, page)).collect()
    }
}
