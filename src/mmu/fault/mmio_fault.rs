//! Faults on MMIO SPTEs and the vCPU's one-entry MMIO cache.
//!
//! Models v5.0/v5.2 `handle_mmio_page_fault`, `check_mmio_spte`, `vcpu_cache_mmio_info`, `vcpu_match_mmio_gpa`. The cache
//! uses the generation of address space 0 up to v5.4, also for a vCPU in SMM; later that of the vCPU's own.

use crate::kernels::MmioCacheSpace;
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::MmioInfo;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::generation::GenerationBits;
use crate::mmu::words::guest_mode::Paging;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::mmio::{is_mmio, mmio_access, mmio_gen, mmio_gfn};

const PAGE_MASK: u64 = !0xfff;

/// What an MMIO check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum MmioCheck {
    Emulate,
    Retry,
    Invalid,
}

impl MmuState {
    /// Whether the vCPU's cache answers for a gfn.
    #[inline]
    pub(in crate::mmu) fn match_mmio_gpa(&self, vcpu: usize, gfn: Gfn) -> bool {
        let mmio = &self.vcpus[vcpu].mmio;
        mmio.gfn == gfn && mmio.gfn != Gfn(0) && mmio.slots_gen == self.mmio_cache_gen(vcpu)
    }

    /// The generation the cache goes by.
    #[inline]
    fn mmio_cache_gen(&self, vcpu: usize) -> u64 {
        let is_own = matches!(self.config.kernel.mmio_cache_space, MmioCacheSpace::Own)
            && !is_chosen(Mutant::MmioCacheSpaceZero)
            || is_chosen(Mutant::MmioCacheOwnSpace);
        let as_id = if is_own { self.vcpus[vcpu].as_id() } else { 0 };
        self.spaces[usize::from(as_id)].slots_gen
    }

    /// The guest's access was taken for MMIO, by the vCPU's cache or by an entry.
    #[inline]
    pub(in crate::mmu) fn tell_mmio(&mut self, vcpu: usize, gfn: Gfn, is_by_cache: bool) {
        if let Some(ghost) = &mut self.ghost {
            let as_id = self.vcpus[vcpu].as_id();
            ghost.mmio_answered(as_id, gfn.0, is_by_cache);
        }
    }

    /// Whether it answers for a guest-virtual address.
    pub(in crate::mmu) fn match_mmio_gva(&self, vcpu: usize, gva: u64) -> bool {
        let mmio = &self.vcpus[vcpu].mmio;
        mmio.gva == gva & PAGE_MASK && mmio.gva != 0 && mmio.slots_gen == self.mmio_cache_gen(vcpu)
    }

    /// Remembers an MMIO gfn; the address counts only where the guest's tables are shadowed.
    pub(in crate::mmu) fn cache_mmio_info(&mut self, vcpu: usize, gva: u64, gfn: Gfn, access: u32) {
        let slots_gen = self.mmio_cache_gen(vcpu);
        if !self.generation.is_refused(slots_gen) {
            let gva = if self.config.shadows_guest() { gva & PAGE_MASK } else { 0 };
            self.vcpus[vcpu].mmio = MmioInfo { gva, gfn, access, slots_gen };
        }
    }

    /// A fault whose code says that a reserved bit was set, and to which the vCPU's cache has no answer.
    #[inline]
    pub(in crate::mmu) fn handle_mmio_page_fault(&mut self, vcpu: usize, gpa: u64) -> MmioCheck {
        let root = self.root_for(vcpu, gpa);
        if root == PageIdx::NONE {
            return MmioCheck::Retry;
        }
        let spte = self.look_down(root, gpa).spte;
        if !is_mmio(&self.masks, spte) {
            return MmioCheck::Retry;
        }
        if !self.check_mmio_spte(vcpu, spte) {
            return MmioCheck::Invalid;
        }
        let gfn = Gfn(mmio_gfn(&self.masks, spte));
        let access = mmio_access(&self.masks, &self.generation, spte);
        // A direct MMU tells of no address.
        let is_direct = !self.config.shadows_guest() || self.vcpus[vcpu].mode.paging == Paging::None;
        let addr = if is_direct { 0 } else { gpa };
        self.events.push(|| Event::HandleMmio { addr, gfn: gfn.0, access });
        self.cache_mmio_info(vcpu, addr, gfn, access);
        MmioCheck::Emulate
    }

    /// Whether an MMIO SPTE was made under the current generation of the vCPU's address space.
    fn check_mmio_spte(&mut self, vcpu: usize, spte: u64) -> bool {
        let slots_gen = self.spaces[usize::from(self.vcpus[vcpu].as_id())].slots_gen;
        let layout = &self.generation;
        if layout.is_refused(slots_gen) {
            return false;
        }
        let kvm_gen = layout.compared(slots_gen);
        let spte_gen = mmio_gen(&self.masks, layout, spte);
        self.events.push(|| Event::CheckMmio { spte, kvm_gen, spte_gen });
        kvm_gen == spte_gen || is_chosen(Mutant::StaleMmioAccepted)
    }
}
