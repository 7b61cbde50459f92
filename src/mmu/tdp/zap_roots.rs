//! Zapping roots of the TDP MMU, and the ranges that are unmapped from them.
//!
//! Models `tdp_mmu_zap_root`, `kvm_tdp_mmu_zap_invalidated_roots`, `kvm_tdp_mmu_zap_all`, `tdp_mmu_zap_leafs`, v6.1 to v7.3.

use crate::kernels::TdpRootZap;
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::tdp::tdp_walk::{Body, Lock, Roots, TdpWalk};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::{MAX_LEAF, PAGE_SHIFT, PAGE_TABLE};

const EVERY_ROOT: Roots = Roots { as_id: None, only_valid: false };

impl MmuState {
    /// The level of a pass over a root that is zapped: what is there and below goes. Nothing after the last pass.
    pub(in crate::mmu) fn zap_level(&self, root: PageIdx, pass: u8) -> Option<u8> {
        let first = match self.config.kernel.tdp_root_zap {
            TdpRootZap::EachLevel => PAGE_TABLE,
            TdpRootZap::Large => MAX_LEAF,
        };
        let level = first + pass;
        match level {
            _ if level <= MAX_LEAF => Some(level),
            _ if level == MAX_LEAF + 1 => Some(self.arena.key(root).role.level()),
            _ => None,
        }
    }

    /// Zaps the roots that were made invalid, beside faults on the others.
    pub(in crate::mmu) fn zap_invalid_roots_walk(&self) -> TdpWalk {
        let body = Body::ZapRoot { only_scheduled: true };
        TdpWalk::new(EVERY_ROOT, self.all_gfns(), body, Lock::Shared)
    }

    /// Zaps every root, with nobody else about.
    pub(in crate::mmu) fn zap_all_roots_walk(&self) -> TdpWalk {
        let body = Body::ZapRoot { only_scheduled: false };
        TdpWalk::new(EVERY_ROOT, self.all_gfns(), body, Lock::Exclusive)
    }

    /// Removes the leaves over a range of gfns, as far as the host's address width goes, and no table.
    pub(in crate::mmu) fn unmap_walk(&self, roots: Roots, start: Gfn, end: Gfn, is_polled: bool) -> TdpWalk {
        let end = end.min(self.all_gfns().1);
        let walk = TdpWalk::new(roots, (start, end), Body::Unmap, Lock::Exclusive);
        TdpWalk { is_polled, is_flush_inside: true, ..walk }
    }

    fn all_gfns(&self) -> (Gfn, Gfn) {
        (Gfn(0), Gfn(1 << (u32::from(self.config.phys_bits) - PAGE_SHIFT)))
    }
}
