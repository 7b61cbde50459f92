//! The page fault of a direct MMU from v6.1 on: the lock-free path, the host's answer, and the level, all settled before
//! anything is built.
//!
//! Models v6.1/v6.12 `kvm_tdp_page_fault`, `direct_page_fault`, `fast_page_fault`, `kvm_mmu_hugepage_adjust`,
//! `is_page_fault_stale`. What the tables become is in `direct_map`.

use crate::kernels::{MmioCacheAccess, StaleTest};
use crate::mmu::fault::guest_fetch::GuestGoal;
use crate::mmu::fault::page_fault::{Frame, Handled};
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

/// A fault that got as far as the lock.
struct Fault<'a> {
    vcpu: usize,
    /// The address that the shadow tables are walked for.
    addr: u64,
    gfn: Gfn,
    error_code: u64,
    slot: Option<SlotAt>,
    backing: Backing,
    is_prefetch: bool,
    /// What the guest's own tables said, where it has some.
    goal: Option<&'a GuestGoal<'a>>,
}

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
    ) -> Result<(Handled, u8)> {
        let gfn = Gfn::of_gpa(gpa);
        let slot = self.find_slot(self.vcpus[vcpu].as_id(), gfn);
        if error_code & PFERR_PRESENT == 0 {
            self.touch_rmap_head(slot, gfn);
        }
        let write_present = PFERR_WRITE | PFERR_PRESENT;
        if error_code & (PFERR_RSVD | write_present) == write_present && self.needs_write_protect(slot, gfn) {
            return Ok((Handled::WriteProtected, PAGE_TABLE));
        }
        if let Some(handled) = self.try_fast_page_fault(vcpu, slot, gpa, error_code) {
            self.vcpus[vcpu].faults.fast += 1;
            return Ok((handled, PAGE_TABLE));
        }
        self.fault_in_slot(vcpu, gpa, error_code, (gfn, slot), (None, is_prefetch), host)
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
        let slot = self.find_slot(self.vcpus[vcpu].as_id(), gfn);
        Ok(self.fault_in_slot(vcpu, gva, error_code, (gfn, slot), (goal, false), host)?.0)
    }

    /// From the host's answer on.
    fn fault_in_slot(
        &mut self,
        vcpu: usize,
        addr: u64,
        error_code: u64,
        (gfn, slot): (Gfn, Option<SlotAt>),
        (goal, is_prefetch): (Option<&GuestGoal<'_>>, bool),
        host: &HostLookup,
    ) -> Result<(Handled, u8)> {
        let seq = self.invalidation.seq;
        // A slot that is about to go is not looked at.
        let is_going = slot.is_some_and(|slot| self.slot_spec(slot).is_invalid());
        if is_going && *host == HostLookup::Ask && self.config.kernel.invalid_slot_retries {
            return Ok((Handled::Retry, PAGE_TABLE));
        }
        let at = slot.map(|slot| self.invalidated_as(slot, gfn));
        let is_looked = !is_chosen(Mutant::InvalidationNotTested);
        let must_retry = |state: &Self| is_looked && at.is_some_and(|at| state.invalidation.must_retry(seq, at));
        let checks_first = self.config.kernel.retry_before_pin;
        if checks_first && must_retry(self) {
            return Ok((Handled::Retry, PAGE_TABLE));
        }
        let frame = self.look_up(slot, gfn, error_code & PFERR_WRITE != 0, host);
        let backing = match self.backing_of(&frame) {
            Ok(backing) => backing,
            Err(handled) => return Ok((handled, PAGE_TABLE)),
        };
        if backing == Backing::NoSlot {
            let access = goal.map_or(ACC_ALL, |goal| goal.walk.pte_access);
            self.cache_mmio_info(vcpu, addr, gfn, self.cached_access(access));
            let is_beyond = self.config.kernel.has_max_gfn && gfn.0 >> (self.config.phys_bits - PAGE_SHIFT_U8) != 0;
            if (self.masks.mmio_mask == 0 || is_beyond) && !is_chosen(Mutant::MmioWithoutCachingMapped) {
                return Ok((Handled::Emulate, PAGE_TABLE));
            }
        }
        let found = if checks_first && must_retry(self) {
            (Handled::Retry, PAGE_TABLE)
        } else {
            let fault = Fault { vcpu, addr, gfn, error_code, slot, backing, is_prefetch, goal };
            self.map_under_lock(&fault, host, must_retry)?
        };
        if let Backing::Frame { pfn, .. } = backing
            && self.config.is_stepped()
        {
            self.push_accessed(pfn);
        }
        Ok(found)
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
    fn is_stale(&self, vcpu: usize, gpa: u64) -> bool {
        let of_vcpu = &self.vcpus[vcpu];
        if self.config.shadows_guest() && (of_vcpu.has_four_roots || of_vcpu.has_dummy_root) {
            // No page stands for them: the request to drop obsolete roots does.
            return of_vcpu.requests & REQ_MMU_RELOAD != 0;
        }
        let root = self.root_for(vcpu, gpa);
        root == PageIdx::NONE || self.is_obsolete(root) && !is_chosen(Mutant::DeadRootMapped)
    }

    fn map_under_lock(
        &mut self,
        fault: &Fault<'_>,
        host: &HostLookup,
        must_retry: impl Fn(&Self) -> bool,
    ) -> Result<(Handled, u8)> {
        let &Fault { vcpu, addr: gpa, gfn, error_code, slot, backing, is_prefetch, goal } = fault;
        let stale_test = self.config.kernel.stale_test;
        let is_late = stale_test == StaleTest::AfterReclaim;
        // Where roots are reloaded by request, only a missing one is looked for.
        let is_stale = match stale_test {
            StaleTest::None => self.root_for(vcpu, gpa) == PageIdx::NONE,
            StaleTest::BeforeReclaim | StaleTest::AfterReclaim => self.is_stale(vcpu, gpa),
        };
        if *host == HostLookup::Retry || !is_late && (must_retry(self) || is_stale) {
            return Ok((Handled::Retry, PAGE_TABLE));
        }
        let is_tdp = self.tables() == Tables::Tdp;
        if !is_tdp && self.make_mmu_pages_available().is_err() {
            let errno = Handled::Errno(ENOSPC);
            return Ok((if self.config.kernel.enospc_to_user { errno } else { Handled::Retry }, PAGE_TABLE));
        }
        if is_late && (must_retry(self) || self.is_stale(vcpu, gpa)) {
            return Ok((Handled::Retry, PAGE_TABLE));
        }
        let is_fetch = error_code & PFERR_FETCH != 0;
        let is_write = error_code & PFERR_WRITE != 0;
        let (access, can_unsync) = (ACC_ALL, true);
        let mut mapping = Mapping {
            vcpu,
            slot,
            gfn,
            level: PAGE_TABLE,
            access,
            backing,
            is_write,
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
        if is_tdp {
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
