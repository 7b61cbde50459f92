//! Roots of shadow pages: loaded and dropped through the door (`tables`).
//!
//! Models v5.0 to v6.12 `mmu_alloc_direct_roots`, `mmu_free_root_page`.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::page_count::ENOSPC;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::config::Family;
use crate::mmu::words::error::Result;
use crate::mmu::words::mutants::{Mutant, is_chosen};

/// gfns of one of four roots, as a shift.
const PAE_ROOT_GFNS: u32 = 18;

impl MmuState {
    /// Loads a root, also where there is one: the count of the one before is then never given back.
    pub(in crate::mmu) fn load_shadow_root(&mut self, vcpu: usize) -> Result<i32> {
        if self.make_mmu_pages_available().is_err() {
            return Ok(-ENOSPC);
        }
        if self.config.family == Family::Shadow {
            self.load_pae_roots(vcpu)?;
            return Ok(0);
        }
        let mut role = self.vcpus[vcpu].role;
        if is_chosen(Mutant::RootWithoutSmm) {
            role = role.with_smm(0);
        }
        let root = self.get_page(Gfn(0), role)?;
        self.is_root_leaked |= self.vcpus[vcpu].root != PageIdx::NONE;
        self.arena.page_mut(root).root_count += 1;
        self.vcpus[vcpu].root = root;
        self.vcpus[vcpu].tlb.flush();
        self.tell_loaded(vcpu);
        Ok(0)
    }

    /// Drops the root; if it was zapped while in use, it goes now.
    pub(in crate::mmu) fn drop_shadow_roots(&mut self, vcpu: usize) {
        let roots = self.vcpus[vcpu].roots();
        let root = std::mem::take(&mut self.vcpus[vcpu].root);
        self.vcpus[vcpu].pae_roots = [PageIdx::NONE; 3];
        self.vcpus[vcpu].has_four_roots = false;
        self.vcpus[vcpu].tlb.flush();
        if let Some(ghost) = &mut self.ghost {
            ghost.root_dropped(vcpu);
        }
        if root == PageIdx::NONE {
            return;
        }
        let mut invalid = InvalidList::default();
        for root in roots {
            let page = self.arena.page_mut(root);
            page.root_count = page.root_count.saturating_sub(u32::from(!is_chosen(Mutant::RootCountKept)));
            if page.root_count == 0 && self.arena.key(root).role.invalid() {
                self.prepare_zap_page(root, &mut invalid);
            }
        }
        self.commit_zap_page(&mut invalid);
    }

    /// The four directories of a guest without paging, in the order of their addresses.
    fn load_pae_roots(&mut self, vcpu: usize) -> Result<()> {
        let mut roots = [PageIdx::NONE; 4];
        for (gfn, root) in (0_u64..).map(|at| Gfn(at << PAE_ROOT_GFNS)).zip(&mut roots) {
            *root = self.get_page(gfn, self.vcpus[vcpu].role)?;
            self.arena.page_mut(*root).root_count += 1;
        }
        let at = vcpu;
        let vcpu = &mut self.vcpus[vcpu];
        self.is_root_leaked |= vcpu.root != PageIdx::NONE;
        [vcpu.root, vcpu.pae_roots[0], vcpu.pae_roots[1], vcpu.pae_roots[2]] = roots;
        vcpu.has_four_roots = true;
        vcpu.tlb.flush();
        self.tell_loaded(at);
        Ok(())
    }

    /// The root from which an address is walked.
    #[inline]
    pub(in crate::mmu) fn root_for(&self, vcpu: usize, gpa: u64) -> PageIdx {
        let vcpu = &self.vcpus[vcpu];
        if vcpu.has_four_roots && !is_chosen(Mutant::FirstRootOnly) { vcpu.pae_root(gpa) } else { vcpu.root }
    }

    /// Whether any root in use is obsolete.
    pub(in crate::mmu) fn has_obsolete_root(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu].roots().any(|root| self.is_obsolete(root))
    }
}
