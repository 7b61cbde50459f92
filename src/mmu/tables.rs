//! The narrow door to the two page tables: shadow pages, and the TDP MMU. Who maps, unmaps, protects, ages or loads asks
//! here, or asks here which of the two it is; nobody above knows of reverse maps or of the TDP MMU's iterators.
//!
//! Models the places of v5.0 to v7.3 that ask `tdp_mmu_enabled` or `is_tdp_mmu`, `kvm_mmu_load`, `kvm_mmu_unload`,
//! `kvm_mmu_reset_context`, and the requests of `vcpu_enter_guest` that concern the MMU. A VM has one of the two here: no
//! guest is nested.

pub(in crate::mmu) mod unmap_hva;

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::Walked;
use crate::mmu::tdp::tdp_walk::{Roots, TdpWalk};
use crate::mmu::vm::runs::{Handler, HeadWalk, RangeWalk, Step};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::{
    REQ_LOAD_CR3, REQ_MMU_RELOAD, REQ_MMU_SYNC, REQ_TLB_FLUSH, REQ_UPDATE_CPU_DIRTY_LOGGING,
};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::guest_mode::GuestMode;
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE};
use crate::mmu::words::mutants::{Mutant, is_chosen};

/// Which page table serves the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum Tables {
    /// Shadow pages, direct.
    Shadow,
    /// The TDP MMU.
    Tdp,
}

/// A range of a slot that is to be unmapped, and how.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct Unmapped {
    pub as_id: u8,
    pub id: u32,
    pub first: Gfn,
    /// The last gfn, inclusive.
    pub last: Gfn,
    /// The lock may be dropped on the way, where the kernel does so.
    pub may_block: bool,
    /// A flush is owed from before.
    pub flush: bool,
}

impl MmuState {
    /// Which page table serves the guest.
    #[inline]
    pub(in crate::mmu) const fn tables(&self) -> Tables {
        if self.config.tdp_mmu { Tables::Tdp } else { Tables::Shadow }
    }

    /// What happens before a vCPU runs: requests, then a root if there is none. 0, or a negative errno.
    pub(in crate::mmu) fn enter(&mut self, vcpu: usize) -> Result<i32> {
        let requests = self.vcpus[vcpu].requests;
        if requests != 0 {
            if requests & REQ_MMU_RELOAD != 0 {
                self.vcpus[vcpu].requests &= !REQ_MMU_RELOAD;
                if !self.config.kernel.reload_keeps_valid_root
                    || is_chosen(Mutant::ValidRootReloaded)
                    || self.has_obsolete_root(vcpu)
                {
                    self.unload(vcpu);
                }
            }
            let requests = &mut self.vcpus[vcpu].requests;
            if *requests & REQ_TLB_FLUSH != 0 {
                self.vcpus[vcpu].tlb.flush();
                if let Some(ghost) = &mut self.ghost {
                    ghost.vcpu_flushed(vcpu);
                }
            }
            self.vcpus[vcpu].requests &= !(REQ_TLB_FLUSH | REQ_MMU_SYNC | REQ_LOAD_CR3 | REQ_UPDATE_CPU_DIRTY_LOGGING);
        }
        let entered = if self.vcpus[vcpu].root == PageIdx::NONE { self.load(vcpu)? } else { 0 };
        if entered == 0
            && let Some(ghost) = &mut self.ghost
        {
            ghost.entered(vcpu);
        }
        Ok(entered)
    }

    /// Loads a root, also where there is one. 0, or a negative errno.
    pub(in crate::mmu) fn load(&mut self, vcpu: usize) -> Result<i32> {
        match self.tables() {
            Tables::Shadow => self.load_shadow_root(vcpu),
            Tables::Tdp => self.load_tdp_root(vcpu),
        }
    }

    /// Drops the vCPU's root.
    pub(in crate::mmu) fn unload(&mut self, vcpu: usize) {
        match self.tables() {
            Tables::Shadow if self.config.shadows_guest() => {
                self.drop_guest_roots(vcpu);
                if self.config.kernel.is_role_fixed {
                    self.vcpus[vcpu].mmio.gva = 0;
                }
            }
            Tables::Shadow => self.drop_shadow_roots(vcpu),
            Tables::Tdp => {
                let root = std::mem::take(&mut self.vcpus[vcpu].root);
                self.vcpus[vcpu].tlb.flush();
                if let Some(ghost) = &mut self.ghost {
                    ghost.root_dropped(vcpu);
                }
                if root != PageIdx::NONE {
                    if is_chosen(Mutant::TdpRootPutTwice) {
                        self.put_tdp_root(root);
                    }
                    self.put_tdp_root(root);
                }
            }
        }
    }

    /// Drops the root and computes the role anew, also when no register changed.
    pub(in crate::mmu) fn reset_context(&mut self, vcpu: usize) {
        self.unload(vcpu);
        let kernel = self.config.kernel;
        let shadows_guest = self.config.shadows_guest();
        let vcpu = &mut self.vcpus[vcpu];
        if shadows_guest {
            vcpu.build_shadow_context(self.config.phys_bits, &kernel);
            return;
        }
        vcpu.mode = GuestMode::of(&vcpu.registers(), self.config.phys_bits, false);
        vcpu.update_role();
    }

    /// Down from a root to the entry that a fault finds: a leaf, or one that is not present. The TDP MMU's iterator is
    /// stepped to its end.
    #[inline]
    pub(in crate::mmu) fn look_down(&mut self, root: PageIdx, addr: u64) -> Walked {
        if self.config.tdp_mmu {
            let levels = self.arena.key(root).role.level();
            let walked = self.walk_down(root, addr, PAGE_TABLE);
            self.stats.tdp_walks += 1;
            self.stats.tdp_steps += i64::from(levels - walked.level) + 1;
            return walked;
        }
        self.walk_down(root, addr, PAGE_TABLE)
    }

    /// The walk that removes every leaf of a part of a slot.
    pub(in crate::mmu) fn unmap_slot_walk(&self, unmapped: &Unmapped) -> RangeWalk {
        let &Unmapped { as_id, id, first, last, may_block, flush } = unmapped;
        match self.tables() {
            Tables::Shadow => {
                let offers_lock = self.config.kernel.unmap_offers_lock;
                RangeWalk::Heads(HeadWalk {
                    as_id,
                    id,
                    handler: Handler::Zap,
                    is_flush_inside: offers_lock,
                    is_flush_at_end: false,
                    is_polled: offers_lock && may_block,
                    start: first,
                    end: last,
                    level: PAGE_TABLE,
                    last_level: MAX_LEAF,
                    done: 0,
                    flush,
                })
            }
            Tables::Tdp => {
                let roots = Roots { as_id: Some(as_id), only_valid: false };
                let walk = self.unmap_walk(roots, first, last.plus(1), may_block);
                RangeWalk::Tdp(TdpWalk { flush, ..walk })
            }
        }
    }

    /// Goes on with a walk over a range.
    pub(in crate::mmu) fn walk_range(&mut self, walk: &mut RangeWalk) -> Step {
        match walk {
            RangeWalk::Heads(walk) => self.walk_heads(walk),
            RangeWalk::Tdp(walk) => self.drive_tdp_walk(walk),
        }
    }

    /// Ends a walk over a range that will not be carried on; whether it owes a flush.
    pub(in crate::mmu) fn drop_range_walk(&mut self, walk: &mut Option<RangeWalk>) -> bool {
        match walk {
            Some(RangeWalk::Heads(walk)) => walk.flush,
            Some(RangeWalk::Tdp(walk)) => {
                self.drop_tdp_walk(walk);
                walk.flush
            }
            None => false,
        }
    }
}
