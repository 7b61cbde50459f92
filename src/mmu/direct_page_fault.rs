//! The page fault of a direct MMU from v6.1 on: the lock-free path, the host's answer, and the level, all settled before
//! anything is built.
//!
//! Models v6.1/v6.12 `kvm_tdp_page_fault`, `direct_page_fault`, `fast_page_fault`, `kvm_mmu_hugepage_adjust`,
//! `is_page_fault_stale`. What the tables become is in `direct_map`.

use super::access::{ACC_ALL, PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_WRITE};
use super::addr::{Gfn, Pfn};
use super::error::Result;
use super::events::Event;
use super::fault::{Frame, Handled, MMIO_CACHE_ACCESS};
use super::level::{MAX_LEAF, PAGE_TABLE, pages_per};
use super::link::{Backing, Mapping};
use super::mutants::{Mutant, is_chosen};
use super::page_arena::PageIdx;
use super::slots::SlotAt;
use super::spte::layout::{PFN_FIELD, WRITABLE};
use super::state::MmuState;
use super::views::{HostHuge, HostLookup};
use super::walk::{Walked, is_access_allowed, is_last, is_shadow_present};

/// `handled` of the event: the entry was made to allow the access.
const FIXED: u8 = 1;
/// `handled` of the event: the entry allowed it already.
const SPURIOUS: u8 = 2;

impl MmuState {
    /// A fault that is not one on an MMIO SPTE.
    pub(super) fn direct_page_fault(
        &mut self,
        vcpu: usize,
        gpa: u64,
        error_code: u64,
        host: &HostLookup,
    ) -> Result<Handled> {
        let gfn = Gfn::of_gpa(gpa);
        let slot = self.find_slot(self.vcpus[vcpu].as_id(), gfn);
        let write_present = PFERR_WRITE | PFERR_PRESENT;
        if error_code & (PFERR_RSVD | write_present) == write_present && self.needs_write_protect(slot, gfn) {
            return Ok(Handled::Emulate);
        }
        if self.try_fast_page_fault(vcpu, slot, gpa, error_code) {
            return Ok(Handled::Retry);
        }
        let is_write = error_code & PFERR_WRITE != 0;
        let frame = self.look_up(slot, gfn, is_write, host);
        let backing = match self.backing_of(&frame) {
            Ok(backing) => backing,
            Err(handled) => return Ok(handled),
        };
        if backing == Backing::NoSlot {
            self.cache_mmio_info(vcpu, gfn, MMIO_CACHE_ACCESS);
            if self.masks.mmio_mask == 0 && !is_chosen(Mutant::MmioWithoutCachingMapped) {
                return Ok(Handled::Emulate);
            }
        }
        let root = self.root_for(vcpu, gpa);
        if *host == HostLookup::Retry
            || root == PageIdx::NONE
            || self.is_obsolete(root) && !is_chosen(Mutant::DeadRootMapped)
        {
            return Ok(Handled::Retry);
        }
        if self.make_mmu_pages_available().is_err() {
            return Ok(Handled::Retry);
        }
        let is_fetch = error_code & PFERR_FETCH != 0;
        let level = if backing == Backing::NoSlot {
            PAGE_TABLE
        } else if let HostLookup::Found { level, .. } = host {
            self.level_within(slot, gfn, (*level).min(MAX_LEAF))
        } else {
            self.max_mapping_level(slot, gfn, is_fetch)
        };
        let mapping = Mapping { vcpu, slot, gfn, level, access: ACC_ALL, backing, is_write, speculative: false };
        let emulate = self.map_requested(root, mapping, is_fetch, host)?;
        Ok(if emulate { Handled::Emulate } else { Handled::Retry })
    }

    /// The lock-free path; whether it answered the fault.
    fn try_fast_page_fault(&mut self, vcpu: usize, slot: Option<SlotAt>, gpa: u64, error_code: u64) -> bool {
        // Without accessed bits an absent entry may only be one whose access is tracked.
        let can_be_fast = error_code & PFERR_RSVD == 0
            && if error_code & PFERR_PRESENT == 0 { self.masks.accessed == 0 } else { error_code & PFERR_WRITE != 0 };
        let root = self.root_for(vcpu, gpa);
        if !can_be_fast || root == PageIdx::NONE {
            return false;
        }
        let walked = self.walk_down(root, gpa, PAGE_TABLE);
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
        handled != 0
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
        let host_writable = match host {
            HostLookup::Ask => return self.find_frame(slot, gfn, is_write),
            _ if spec.is_readonly() && is_write => return Frame::ReadonlyWrite,
            // Nothing is mapped, so this frame is never used.
            HostLookup::Retry => false,
            HostLookup::Found { writable, .. } => *writable && !spec.is_readonly(),
        };
        let pfn = Pfn((spec.hva_of(gfn) & PFN_FIELD) >> 12);
        Frame::Backing(Backing::Frame { pfn, host_writable })
    }

    /// The largest level the host and the slot allow.
    fn max_mapping_level(&self, slot: Option<SlotAt>, gfn: Gfn, is_fetch: bool) -> u8 {
        let Some(slot) = slot else { return PAGE_TABLE };
        let spec = self.slot_spec(slot);
        let is_small = self.config.nx_huge_pages && is_fetch || self.slot_body(slot).dirty.is_some();
        if is_small || !self.host.has_huge() {
            return PAGE_TABLE;
        }
        let host_level = match self.host.huge(Pfn::of_hva(spec.hva_of(gfn))) {
            HostHuge::None => PAGE_TABLE,
            HostHuge::Thp | HostHuge::Hugetlb2m => 2,
            HostHuge::Hugetlb1g => 3,
        };
        let mut level = PAGE_TABLE;
        while level < host_level.min(self.config.lpage_level) && !self.is_large_disallowed(Some(slot), gfn, level + 1) {
            level += 1;
        }
        level
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
