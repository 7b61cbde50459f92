//! The page fault of a direct MMU from v6.1 on: the lock-free path, the host's answer, and the level, all settled before
//! anything is built.
//!
//! Models v6.1/v6.12 `kvm_tdp_page_fault`, `direct_page_fault`, `fast_page_fault`, `kvm_mmu_hugepage_adjust`,
//! `is_page_fault_stale`. What the tables become is in `direct_map`.

use crate::kernels::MmioCacheAccess;
use crate::mmu::fault::guest_fetch::GuestGoal;
use crate::mmu::fault::page_fault::{Frame, Handled};
use crate::mmu::fault::steps::{PageFault, Went};
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::page_count::ENOSPC;
use crate::mmu::pages::walk::{Walked, is_access_allowed, is_last, is_shadow_present};
use crate::mmu::tables::Tables;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::REQ_MMU_RELOAD;
use crate::mmu::words::access::{ACC_ALL, PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_WRITE};
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::error::Result;
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::views::HostLookup;

/// Bits of an address within a page.
const PAGE_SHIFT_U8: u8 = 12;

/// `handled` of the event: the entry was made to allow the access.
const FIXED: u8 = 1;
/// `handled` of the event: the entry allowed it already.
const SPURIOUS: u8 = 2;

impl MmuState {
    /// A fault that is not one on an MMIO SPTE; what became of it, and the level mapped.
    pub(in crate::mmu) fn direct_page_fault(
        &mut self,
        vcpu: usize,
        gpa: u64,
        error_code: u64,
        host: &HostLookup,
        is_prefetch: bool,
    ) -> Result<Went> {
        let mut fault = PageFault::new(self, vcpu, gpa, Gfn::of_gpa(gpa), error_code, host);
        fault.is_prefetch = is_prefetch;
        self.go_through(&mut fault)
    }

    /// The fault of a guest with tables of its own, which said that the address is this gfn.
    pub(in crate::mmu) fn fault_in(
        &mut self,
        vcpu: usize,
        gva: u64,
        error_code: u64,
        gfn: Gfn,
        goal: Option<&GuestGoal<'_>>,
        host: &HostLookup,
    ) -> Result<Handled> {
        let mut fault = PageFault::new(self, vcpu, gva, gfn, error_code, host);
        fault.goal = goal;
        Ok(self.go_on(&mut fault, self.fault_order.after_guest_walk)?.0)
    }

    /// A write to a present entry of a gfn that is tracked is emulated.
    #[inline]
    pub(in crate::mmu) fn step_track(&self, fault: &PageFault<'_>) -> Option<Handled> {
        let write_present = PFERR_WRITE | PFERR_PRESENT;
        let is_write_to_present = fault.error_code & (PFERR_RSVD | write_present) == write_present;
        (is_write_to_present && self.needs_write_protect(fault.slot, fault.gfn)).then_some(Handled::WriteProtected)
    }

    /// The lock-free path.
    #[inline]
    pub(in crate::mmu) fn step_fast(&mut self, fault: &PageFault<'_>) -> Option<Handled> {
        let handled = self.try_fast_page_fault(fault.vcpu, fault.slot, fault.addr, fault.error_code)?;
        self.vcpus[fault.vcpu].faults.fast += 1;
        Some(handled)
    }

    /// A slot that is about to go is not looked at.
    #[inline]
    pub(in crate::mmu) fn step_slot_going(&self, fault: &PageFault<'_>) -> Option<Handled> {
        let is_going = fault.slot.is_some_and(|slot| self.slot_spec(slot).is_invalid());
        (is_going && *fault.host == HostLookup::Ask).then_some(Handled::Retry)
    }

    /// The host takes the page away now, or took one away since the fault began.
    #[inline]
    pub(in crate::mmu) fn step_invalidated(&self, fault: &PageFault<'_>) -> Option<Handled> {
        let at = fault.slot.map(|slot| self.invalidated_as(slot, fault.gfn))?;
        let must_retry = self.invalidation.must_retry(fault.seq, at) && !is_chosen(Mutant::InvalidationNotTested);
        must_retry.then_some(Handled::Retry)
    }

    /// The host's page, or how the fault ends without one.
    #[inline]
    pub(in crate::mmu) fn step_host(&mut self, fault: &mut PageFault<'_>) -> Option<Handled> {
        let frame = self.look_up(fault.slot, fault.gfn, fault.is_write(), fault.host);
        match self.backing_of(&frame) {
            Ok(backing) => {
                fault.backing = Some(backing);
                None
            }
            Err(handled) => Some(handled),
        }
    }

    /// What no slot has is remembered by the vCPU; where there can be no MMIO SPTE for it, that is all.
    #[inline]
    pub(in crate::mmu) fn step_no_slot(&mut self, fault: &PageFault<'_>) -> Option<Handled> {
        if fault.backing != Some(Backing::NoSlot) {
            return None;
        }
        let access = fault.goal.map_or(ACC_ALL, |goal| goal.walk.pte_access);
        self.cache_mmio_info(fault.vcpu, fault.addr, fault.gfn, self.cached_access(access));
        let is_beyond = self.config.kernel.has_max_gfn && fault.gfn.0 >> (self.config.phys_bits - PAGE_SHIFT_U8) != 0;
        let is_all = (self.masks.mmio_mask == 0 || is_beyond) && !is_chosen(Mutant::MmioWithoutCachingMapped);
        is_all.then_some(Handled::Emulate)
    }

    /// Where roots are reloaded by request, only a missing one is looked for.
    #[inline]
    pub(in crate::mmu) fn step_has_root(&self, fault: &PageFault<'_>) -> Option<Handled> {
        (self.root_for(fault.vcpu, fault.addr) == PageIdx::NONE).then_some(Handled::Retry)
    }

    /// Room for shadow pages; the TDP MMU needs none.
    #[inline]
    pub(in crate::mmu) fn step_room(&mut self, fault: &mut PageFault<'_>) -> Option<Handled> {
        fault.zapped_before = self.work.pages_zapped;
        if self.tables() == Tables::Tdp || self.make_mmu_pages_available().is_ok() {
            return None;
        }
        Some(if self.config.kernel.enospc_to_user { Handled::Errno(ENOSPC) } else { Handled::Retry })
    }

    /// What of a slot's gfn an invalidation is about: its host address up to v6.1, later itself.
    fn invalidated_as(&self, slot: SlotAt, gfn: Gfn) -> u64 {
        if self.config.kernel.retry_before_pin { gfn.0 } else { self.slot_spec(slot).hva_of(gfn) }
    }

    /// The access that the vCPU's MMIO cache holds after a fault.
    fn cached_access(&self, access: u8) -> u32 {
        if self.config.kernel.mmio_cache_access == MmioCacheAccess::Masked {
            u32::from(access & self.masks.mmio_access)
        } else {
            u32::from(access)
        }
    }

    /// Whether the fault's root is none that can be mapped into.
    #[inline]
    pub(in crate::mmu) fn is_stale(&self, vcpu: usize, gpa: u64) -> bool {
        let of_vcpu = &self.vcpus[vcpu];
        if self.config.shadows_guest() && (of_vcpu.has_four_roots || of_vcpu.has_dummy_root) {
            // No page stands for them: the request to drop obsolete roots does.
            return of_vcpu.requests & REQ_MMU_RELOAD != 0;
        }
        let root = self.root_for(vcpu, gpa);
        root == PageIdx::NONE || self.is_obsolete(root) && !is_chosen(Mutant::DeadRootMapped)
    }

    /// The level that is asked for, the tables down to it, and the leaf.
    pub(in crate::mmu) fn step_map(&mut self, fault: &PageFault<'_>) -> Result<Went> {
        let &PageFault { vcpu, addr: gpa, gfn, error_code, slot, is_prefetch, goal, host, .. } = fault;
        let backing = fault.backing.unwrap_or(Backing::NoSlot);
        let is_fetch = error_code & PFERR_FETCH != 0;
        let (access, can_unsync) = (ACC_ALL, true);
        let mut mapping = Mapping {
            vcpu,
            slot,
            gfn,
            level: PAGE_TABLE,
            access,
            backing,
            is_write: fault.is_write(),
            speculative: is_prefetch,
            can_unsync,
        };
        if let Some(goal) = goal {
            mapping.access = self.mapped_access(vcpu, goal.walk, backing != Backing::NoSlot);
            return Ok((self.guest_fetch_requested(goal, mapping, is_fetch, host)?, PAGE_TABLE));
        }
        let root = self.root_for(vcpu, gpa);
        let asked = self.requested_level(&mapping, host);
        let is_small = is_fetch && self.config.nx_huge_pages && *host == HostLookup::Ask;
        let level = if is_small { PAGE_TABLE } else { asked };
        self.push_requested(&mapping, level);
        mapping.level = level;
        if self.tables() == Tables::Tdp {
            // What a fetch could have had is not in the host's answer, which is the level it got.
            let could_be = if is_fetch && *host != HostLookup::Ask { self.max_mapping_level(slot, gfn) } else { asked };
            let (mapped, level) = self.tdp_map(root, &mapping, is_fetch.then_some(could_be), error_code)?;
            return Ok((mapped.into(), level));
        }
        self.map_requested(root, mapping, is_fetch.then_some(asked), host)
    }

    /// The largest level that a fault may map at, as the host and the slot have it.
    pub(in crate::mmu) fn requested_level(&self, mapping: &Mapping, host: &HostLookup) -> u8 {
        if mapping.backing == Backing::NoSlot {
            PAGE_TABLE
        } else if let HostLookup::Found { level, .. } = host {
            self.level_within(mapping.slot, mapping.gfn, (*level).min(MAX_LEAF))
        } else {
            self.max_mapping_level(mapping.slot, mapping.gfn)
        }
    }

    /// The lock-free path; how it answered the fault, if it did.
    fn try_fast_page_fault(&mut self, vcpu: usize, slot: Option<SlotAt>, gpa: u64, error_code: u64) -> Option<Handled> {
        // Without accessed bits an absent entry may only be one whose access is tracked.
        let can_be_fast = error_code & PFERR_RSVD == 0
            && if error_code & PFERR_PRESENT == 0 { self.masks.accessed == 0 } else { error_code & PFERR_WRITE != 0 };
        let root = self.root_for(vcpu, gpa);
        if !can_be_fast || root == PageIdx::NONE {
            return None;
        }
        let walked = self.look_down(root, gpa);
        let old = walked.spte;
        let mut new = old;
        let mut handled = 0;
        if is_shadow_present(&self.masks, old) && is_last(old, walked.level) {
            if is_access_allowed(&self.masks, error_code, old) && !is_chosen(Mutant::SpuriousNotSeen) {
                handled = SPURIOUS;
            } else {
                let fixed = self.fixed_spte(old, error_code);
                let is_logged = slot.is_some_and(|slot| self.slot_body(slot).dirty.is_some());
                // Dirty logging must see which small page is written.
                let may_fix = walked.level == PAGE_TABLE
                    || !is_logged
                    || fixed & !old & WRITABLE == 0
                    || is_chosen(Mutant::FastFaultThroughLog);
                if may_fix && is_access_allowed(&self.masks, error_code, fixed) {
                    new = fixed;
                    handled = FIXED;
                    self.spte_set(walked.sptep, new);
                    if new & !old & WRITABLE != 0 {
                        self.mark_page_dirty(slot, Gfn::of_gpa(gpa));
                    }
                }
            }
        }
        self.push_fast_page_fault(vcpu, gpa, error_code, &walked, new, handled);
        match handled {
            FIXED => Some(Handled::Fixed),
            SPURIOUS => Some(Handled::Spurious),
            _ => None,
        }
    }

    fn push_fast_page_fault(
        &mut self,
        vcpu: usize,
        addr: u64,
        error_code: u64,
        walked: &Walked,
        new: u64,
        handled: u8,
    ) {
        let (old, sptep) = (walked.spte, walked.sptep);
        let is_link = is_shadow_present(&self.masks, old) && !is_last(old, walked.level);
        let hide = if is_link { !PFN_FIELD } else { u64::MAX };
        // Tables hold 0 where the kernel has its empty value.
        let shown = |spte: u64| if spte == 0 { self.masks.nonpresent } else { spte & hide };
        let (old, new) = (shown(old), shown(new));
        let page = self.arena.key(sptep.page()).id;
        let error_code =
            if self.config.kernel.fast_pf_whole_error_code { error_code } else { error_code & 0xffff_ffff };
        self.events.push(|| Event::FastPf {
            vcpu: u16::try_from(vcpu).unwrap_or(u16::MAX),
            addr,
            error_code,
            page,
            index: sptep.index(),
            old,
            new,
            handled,
        });
    }

    /// What stands behind a gfn, by the caller's word or the model's.
    fn look_up(&mut self, slot: Option<SlotAt>, gfn: Gfn, is_write: bool, host: &HostLookup) -> Frame {
        let spec = slot.map(|slot| *self.slot_spec(slot)).filter(|spec| !spec.is_invalid());
        let Some(spec) = spec else { return Frame::Backing(Backing::NoSlot) };
        let (host_writable, frame) = match host {
            HostLookup::Ask => return self.find_frame(slot, gfn, is_write),
            _ if spec.is_readonly() && is_write => return Frame::ReadonlyWrite,
            // Nothing is mapped, so this frame is never used.
            HostLookup::Retry => (false, None),
            HostLookup::Found { writable, frame, .. } => (*writable && !spec.is_readonly(), *frame),
        };
        let frame = frame.map_or_else(|| self.host.frame(Pfn::of_hva(spec.hva_of(gfn))), Pfn);
        let pfn = Pfn((frame.hva() & PFN_FIELD) >> 12);
        Frame::Backing(Backing::Frame { pfn, host_writable })
    }

    /// The largest level that the host and the slot allow; the smallest while dirty pages are logged.
    fn max_mapping_level(&self, slot: Option<SlotAt>, gfn: Gfn) -> u8 {
        match slot {
            Some(slot) if self.slot_body(slot).dirty.is_none() && self.host.has_huge() => self.slot_level(slot, gfn),
            _ => PAGE_TABLE,
        }
    }

    /// The caller's level, or the next below it whose mapping lies in the slot: a kernel asks for no other.
    fn level_within(&self, slot: Option<SlotAt>, gfn: Gfn, asked: u8) -> u8 {
        let Some(spec) = slot.map(|slot| self.slot_spec(slot)) else { return PAGE_TABLE };
        let is_within = |level: u8| {
            let first = gfn.align_down(level);
            spec.holds(first) && spec.holds(first.plus(pages_per(level) - 1))
        };
        (PAGE_TABLE..=asked).rev().find(|&level| is_within(level)).unwrap_or(PAGE_TABLE)
    }
}
