//! The roots of a vCPU whose guest has page tables of its own: one in long mode, four otherwise.
//!
//! Models `mmu_alloc_shadow_roots`, `mmu_alloc_direct_roots`, `mmu_check_root`, `kvm_mmu_free_roots`, v5.0 to v6.12. A root
//! that is no memory asks for a triple fault, or is a dummy from v6.12 on: it maps nothing and has no page.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::page_count::ENOSPC;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::{PrevRoot, REQ_TRIPLE_FAULT};
use crate::mmu::words::access::ACC_ALL;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::guest_mode::{GPTE_PRESENT, Paging};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;

/// gfns of one of four roots, as a shift.
const ROOT_GFNS: u32 = 18;
/// Level of one of four roots.
const QUARTER_LEVEL: u8 = 2;
/// The kernel's own slots have the highest ids.
const PRIVATE_SLOTS: u32 = 3;
/// The root cannot be loaded; a triple fault was asked for.
const NOT_LOADED: i32 = 1;

impl MmuState {
    /// Whether user space gave a root's gfn memory: in address space 0 up to v5.10, later in that of the vCPU.
    pub(in crate::mmu) fn is_root_visible(&self, vcpu: usize, gfn: Gfn) -> bool {
        let as_id = if self.config.kernel.is_role_fixed { self.vcpus[vcpu].as_id() } else { 0 };
        let slot = self.find_visible_slot(as_id, gfn);
        let most = self.config.kernel.mem_slots.saturating_sub(PRIVATE_SLOTS).max(1);
        slot.is_some_and(|slot| {
            self.slot_spec(slot).id < most.max(self.config.max_memslots.saturating_sub(PRIVATE_SLOTS))
        })
    }

    fn refuse_roots(&mut self, vcpu: usize) -> i32 {
        self.vcpus[vcpu].requests |= REQ_TRIPLE_FAULT;
        NOT_LOADED
    }

    /// Loads the roots: 0, 1 if the guest's are no memory, or a negative errno.
    pub(in crate::mmu) fn load_guest_roots(&mut self, vcpu: usize) -> Result<i32> {
        let of_vcpu = &mut self.vcpus[vcpu];
        of_vcpu.tlb.flush();
        let (paging, cr3) = (of_vcpu.mode.paging, of_vcpu.cr3);
        let root_gfn = Gfn::of_gpa(cr3 & paging.address_mask());
        let has_dummy = self.config.kernel.has_dummy_root;
        if paging != Paging::None && !self.is_root_visible(vcpu, root_gfn) {
            if !has_dummy {
                return Ok(self.refuse_roots(vcpu));
            }
            let of_vcpu = &mut self.vcpus[vcpu];
            (of_vcpu.has_dummy_root, of_vcpu.root_cr3) = (true, cr3);
            self.tell_loaded(vcpu);
            return Ok(0);
        }
        let mut quarters = self.quarter_gfns(vcpu, root_gfn);
        if paging == Paging::Pae && self.config.kernel.is_role_fixed {
            for quarter in &mut quarters {
                if quarter.is_some_and(|gfn| !self.is_root_visible(vcpu, gfn)) {
                    if !has_dummy {
                        return Ok(self.refuse_roots(vcpu));
                    }
                    *quarter = None;
                }
            }
        }
        let at_once = self.config.kernel.is_role_fixed || paging.is_long();
        if at_once && self.make_mmu_pages_available().is_err() {
            return Ok(-ENOSPC);
        }
        if paging.is_long() {
            let role = self.vcpus[vcpu].role;
            let root = self.get_guest_page(vcpu, root_gfn, role)?;
            self.arena.page_mut(root).root_count += 1;
            let of_vcpu = &mut self.vcpus[vcpu];
            self.is_root_leaked |= of_vcpu.root != PageIdx::NONE;
            (of_vcpu.root, of_vcpu.root_cr3) = (root, cr3);
            self.tell_loaded(vcpu);
            return Ok(0);
        }
        let mut roots = [PageIdx::NONE; 4];
        for (at, gfn) in (0_u8..).zip(quarters) {
            let Some(gfn) = gfn else { continue };
            if !self.config.kernel.is_role_fixed {
                // Those made before stay counted, and nobody knows of them.
                let is_refused = paging == Paging::Pae && !self.is_root_visible(vcpu, gfn);
                let ret = if is_refused {
                    self.refuse_roots(vcpu)
                } else if self.make_mmu_pages_available().is_err() {
                    -ENOSPC
                } else {
                    0
                };
                if ret != 0 {
                    self.is_root_leaked |= roots.iter().any(|&root| root != PageIdx::NONE);
                    return Ok(ret);
                }
            }
            let role = self.quarter_role(vcpu, at);
            let root = self.get_guest_page(vcpu, gfn, role)?;
            self.arena.page_mut(root).root_count += 1;
            roots[usize::from(at)] = root;
        }
        let of_vcpu = &mut self.vcpus[vcpu];
        self.is_root_leaked |= of_vcpu.has_four_roots;
        [of_vcpu.root, of_vcpu.pae_roots[0], of_vcpu.pae_roots[1], of_vcpu.pae_roots[2]] = roots;
        (of_vcpu.has_four_roots, of_vcpu.root_cr3) = (true, cr3);
        self.tell_loaded(vcpu);
        Ok(0)
    }

    /// What four roots shadow: all of one table, the tables of PDPTEs, or plain memory.
    fn quarter_gfns(&self, vcpu: usize, root_gfn: Gfn) -> [Option<Gfn>; 4] {
        let of_vcpu = &self.vcpus[vcpu];
        let mask = of_vcpu.mode.paging.address_mask();
        match of_vcpu.mode.paging {
            Paging::None => [0, 1, 2, 3].map(|at| Some(Gfn(at << ROOT_GFNS))),
            Paging::Pae => of_vcpu.pdptes.map(|pdpte| (pdpte & GPTE_PRESENT != 0).then(|| Gfn::of_gpa(pdpte & mask))),
            _ => [Some(root_gfn); 4],
        }
    }

    /// The role of one of four roots.
    fn quarter_role(&self, vcpu: usize, at: u8) -> Role {
        let base = self.vcpus[vcpu].role;
        let is_quadrant = self.vcpus[vcpu].mode.paging == Paging::P32;
        base.with_level(QUARTER_LEVEL).with_access(ACC_ALL).with_quadrant(if is_quadrant { at } else { 0 })
    }

    /// One user of a root less; if it was zapped while in use, it goes now.
    pub(in crate::mmu) fn release_root(&mut self, root: PageIdx, invalid: &mut InvalidList) {
        if root == PageIdx::NONE {
            return;
        }
        let page = self.arena.page_mut(root);
        page.root_count = page.root_count.saturating_sub(u32::from(!is_chosen(Mutant::RootCountKept)));
        if page.root_count == 0 && self.arena.key(root).role.invalid() {
            self.prepare_zap_page(root, invalid);
        }
    }

    /// Drops the roots in use.
    pub(in crate::mmu) fn drop_current_roots(&mut self, vcpu: usize, invalid: &mut InvalidList) {
        let of_vcpu = &mut self.vcpus[vcpu];
        let roots: Vec<PageIdx> = of_vcpu.roots().collect();
        of_vcpu.root = PageIdx::NONE;
        of_vcpu.pae_roots = [PageIdx::NONE; 3];
        (of_vcpu.has_four_roots, of_vcpu.has_dummy_root, of_vcpu.root_cr3) = (false, false, 0);
        of_vcpu.tlb.flush();
        if let Some(ghost) = &mut self.ghost {
            ghost.root_dropped(vcpu);
        }
        for root in roots {
            self.release_root(root, invalid);
        }
    }

    /// Drops the cached roots, then those in use.
    pub(in crate::mmu) fn drop_guest_roots(&mut self, vcpu: usize) {
        let mut invalid = InvalidList::default();
        let cached = std::mem::take(&mut self.vcpus[vcpu].prev_roots);
        for PrevRoot { root, .. } in cached {
            self.release_root(root, &mut invalid);
        }
        self.drop_current_roots(vcpu, &mut invalid);
        self.commit_zap_page(&mut invalid);
    }

    /// Drops the roots that are obsolete, the cached ones too; four roots are dropped together.
    pub(in crate::mmu) fn drop_obsolete_guest_roots(&mut self, vcpu: usize) {
        let mut invalid = InvalidList::default();
        let of_vcpu = &self.vcpus[vcpu];
        // Whether any of four roots is obsolete is not looked at.
        let is_gone = of_vcpu.has_four_roots
            || of_vcpu.has_dummy_root
            || of_vcpu.root != PageIdx::NONE && self.is_obsolete(of_vcpu.root);
        let mut cached = self.vcpus[vcpu].prev_roots;
        for prev in &mut cached {
            if prev.root != PageIdx::NONE && self.is_obsolete(prev.root) {
                let root = prev.root;
                *prev = PrevRoot::default();
                self.release_root(root, &mut invalid);
            }
        }
        self.vcpus[vcpu].prev_roots = cached;
        if is_gone {
            self.drop_current_roots(vcpu, &mut invalid);
        }
        self.commit_zap_page(&mut invalid);
    }
}
