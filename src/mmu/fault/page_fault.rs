//! The page fault of a direct MMU, from the error code to the mapping.
//!
//! Models v5.0/v5.2 `kvm_mmu_page_fault`, `tdp_page_fault`, `mapping_level`, `try_async_pf`, `handle_abnormal_pfn`,
//! `transparent_hugepage_adjust`, `__direct_map`, `direct_pte_prefetch`.

use crate::kernels::FaultReturns;
use crate::mmu::fault::mmio_fault::MmioCheck;
use crate::mmu::fault::steps::PageFault;
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::{child_of, is_shadow_present};
use crate::mmu::tdp::map::TdpMapped;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::host_memory::Pinned;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{ACC_ALL, ACC_WRITE, PFERR_NESTED_GUEST_PAGE, PFERR_PRESENT, PFERR_RSVD};
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::error::Result;
use crate::mmu::words::level::{PAGE_TABLE, level_shift, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;
use crate::mmu::words::spte::layout::PFN_FIELD;
use crate::mmu::words::views::{HostHuge, HostLookup, HostState};

const EFAULT: i32 = 14;
pub(in crate::mmu) const PTE_PREFETCH_NUM: u16 = 8;
/// The emulator may run the instruction again natively.
pub(in crate::mmu) const EMULTYPE_ALLOW_RETRY: u16 = 8;

/// How a fault was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) struct Answer {
    /// Above 0 resume the guest, 0 exit to user space, negative errno.
    pub ret: i32,
    /// The emulator was called.
    pub is_emulated: bool,
}

impl Answer {
    pub const RETRY: Self = Self { ret: 1, is_emulated: false };
    const EMULATED: Self = Self { ret: 0, is_emulated: true };
}

/// What the direct handler decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum Handled {
    Retry,
    /// The entry was made.
    Fixed,
    /// It was there already.
    Spurious,
    Emulate,
    /// A write to a page that stays write-protected.
    WriteProtected,
    Errno(i32),
}

impl From<TdpMapped> for Handled {
    fn from(mapped: TdpMapped) -> Self {
        match mapped {
            TdpMapped::Fixed => Self::Fixed,
            TdpMapped::Spurious => Self::Spurious,
            TdpMapped::Mmio => Self::Emulate,
            TdpMapped::WriteProtected => Self::WriteProtected,
        }
    }
}

/// What stands behind a gfn.
pub(in crate::mmu) enum Frame {
    Backing(Backing),
    ReadonlyWrite,
    Poison { hva: u64 },
    Fault,
}

/// Number of the lowest bit set.
#[expect(clippy::cast_possible_truncation, reason = "at most 16")]
pub(in crate::mmu) const fn lowest(bits: u16) -> u16 {
    bits.trailing_zeros() as u16
}

impl MmuState {
    /// A page fault of a vCPU, as the exit handler passes it on.
    #[inline]
    pub(in crate::mmu) fn page_fault(&mut self, vcpu: usize, gpa: u64, error_code: u64) -> Result<Answer> {
        self.page_fault_with(vcpu, gpa, error_code, &HostLookup::Ask)
    }

    /// The same, where the caller may say what the host lookup found.
    #[inline]
    pub(in crate::mmu) fn page_fault_with(
        &mut self,
        vcpu: usize,
        gpa: u64,
        error_code: u64,
        host: &HostLookup,
    ) -> Result<Answer> {
        self.work.faults += 1;
        if error_code & (PFERR_RSVD | PFERR_PRESENT) == 0 {
            return self.page_fault_on_absent(vcpu, gpa, error_code, host);
        }
        if error_code & PFERR_RSVD == 0 {
            return self.page_fault_below(vcpu, gpa, error_code, host);
        }
        self.work.mmio_faults += 1;
        // The vCPU's cache answers before anything is walked.
        if self.match_mmio_gpa(vcpu, Gfn::of_gpa(gpa)) {
            if !self.events.is_on() && self.ghost.is_none() {
                return Ok(Answer::EMULATED);
            }
            return Ok(self.answer_from_cache(vcpu, gpa));
        }
        self.page_fault_on_mmio(vcpu, gpa, error_code, host)
    }

    /// A fault whose code says that an entry was not present.
    #[inline(never)]
    fn page_fault_on_absent(&mut self, vcpu: usize, gpa: u64, error_code: u64, host: &HostLookup) -> Result<Answer> {
        if let Some(handled) = self.map_quickly(vcpu, gpa, error_code, host) {
            return Ok(self.done(handled));
        }
        self.page_fault_below(vcpu, gpa, error_code, host)
    }

    /// The vCPU's cache has the answer, and somebody listens.
    #[cold]
    fn answer_from_cache(&mut self, vcpu: usize, gpa: u64) -> Answer {
        self.tell_mmio(vcpu, Gfn::of_gpa(gpa), true);
        self.emulate(vcpu, gpa, 0)
    }

    /// A fault whose code says that a reserved bit was set, and to which the vCPU's cache has no answer.
    #[inline(never)]
    fn page_fault_on_mmio(&mut self, vcpu: usize, gpa: u64, error_code: u64, host: &HostLookup) -> Result<Answer> {
        match self.handle_mmio_page_fault(vcpu, gpa) {
            MmioCheck::Emulate => {
                self.tell_mmio(vcpu, Gfn::of_gpa(gpa), false);
                Ok(self.emulate(vcpu, gpa, 0))
            }
            MmioCheck::Retry => Ok(Answer::RETRY),
            MmioCheck::Invalid => self.page_fault_below(vcpu, gpa, error_code, host),
        }
    }

    /// A fault that is none on a current MMIO SPTE.
    #[inline(never)]
    pub(in crate::mmu) fn page_fault_below(
        &mut self,
        vcpu: usize,
        gpa: u64,
        error_code: u64,
        host: &HostLookup,
    ) -> Result<Answer> {
        let handled = if self.config.kernel.is_level_requested {
            self.vcpus[vcpu].faults.taken += 1;
            let handled = self.direct_page_fault(vcpu, gpa, error_code, host, false)?.0;
            self.count_fault(vcpu, handled);
            handled
        } else {
            self.direct_page_fault(vcpu, gpa, error_code & 0xffff_ffff, &HostLookup::Ask, false)?.0
        };
        match handled {
            Handled::Retry => Ok(Answer::RETRY),
            Handled::Fixed | Handled::Spurious => Ok(self.done(handled)),
            Handled::Errno(errno) => Ok(Answer { ret: -errno, is_emulated: false }),
            // A write to a guest page table drops the indirect pages of the gfn instead; a direct MMU has none.
            Handled::Emulate | Handled::WriteProtected
                if error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE =>
            {
                Ok(Answer::RETRY)
            }
            Handled::Emulate | Handled::WriteProtected => {
                let may_retry = if self.config.kernel.mmio_emulate_retry {
                    !self.match_mmio_gpa(vcpu, Gfn::of_gpa(gpa))
                } else {
                    // The address of the fault that was retried last is 0 at first.
                    handled == Handled::WriteProtected && !(gpa == 0 && self.config.shadows_guest())
                };
                Ok(self.emulate(vcpu, gpa, if may_retry { EMULTYPE_ALLOW_RETRY } else { 0 }))
            }
        }
    }

    /// What newer kernels return for a fault that is dealt with: how; older ones only that the guest goes on.
    pub(in crate::mmu) fn done(&self, handled: Handled) -> Answer {
        match (self.config.kernel.fault_returns, handled) {
            (FaultReturns::Verdict, Handled::Fixed) => Answer { ret: 5, is_emulated: false },
            (FaultReturns::Verdict, Handled::Spurious) => Answer { ret: 6, is_emulated: false },
            _ => Answer::RETRY,
        }
    }

    /// The answer to a fault that made an entry.
    #[inline]
    pub(in crate::mmu) fn answer_of_first_mapping(&self) -> Answer {
        if self.config.kernel.is_level_requested { self.done(Handled::Fixed) } else { Answer::RETRY }
    }

    pub(in crate::mmu) const fn count_fault(&mut self, vcpu: usize, handled: Handled) {
        let faults = &mut self.vcpus.as_mut_slice()[vcpu].faults;
        match handled {
            Handled::Fixed => faults.fixed += 1,
            Handled::Spurious => faults.spurious += 1,
            Handled::Emulate | Handled::WriteProtected => faults.emulate += 1,
            Handled::Retry | Handled::Errno(_) => {}
        }
    }

    /// The emulator of the model always exits to user space.
    pub(in crate::mmu) fn emulate(&mut self, vcpu: usize, addr: u64, kind: u16) -> Answer {
        self.events.push(|| Event::Emulate { vcpu: u16::try_from(vcpu).unwrap_or(u16::MAX), addr, kind });
        Answer::EMULATED
    }

    /// The level that the slot and the host's tables allow; what is mapped begins at it.
    #[inline]
    pub(in crate::mmu) fn step_level(&self, fault: &mut PageFault<'_>) {
        let (mut level, is_forced) = self.mapping_level(fault.slot, fault.gfn);
        if self.config.shadows_guest() {
            // A guest that does not page now: 1 GiB is no leaf, and addresses are those of pages.
            level = level.min(2);
            fault.addr &= !0xfff;
        }
        if !is_forced {
            fault.gfn = fault.gfn.align_down(level);
        }
        (fault.level, fault.is_forced) = (level, is_forced);
    }

    /// The lock-free path, down to the level found.
    #[inline]
    pub(in crate::mmu) fn step_fast_at_level(&mut self, fault: &mut PageFault<'_>) -> Option<Handled> {
        let (is_fast, walked) = self.fast_page_fault(fault.vcpu, fault.slot, fault.addr, fault.level, fault.error_code);
        fault.walked = walked;
        is_fast.then_some(Handled::Retry)
    }

    /// Tables and leaf at the level found, larger where the host frame is part of a huge page.
    #[inline]
    pub(in crate::mmu) fn step_map_at_level(&mut self, fault: &PageFault<'_>) -> Result<Handled> {
        let mut mapping = Mapping {
            vcpu: fault.vcpu,
            slot: fault.slot,
            gfn: fault.gfn,
            level: fault.level,
            access: ACC_ALL,
            backing: fault.backing.unwrap_or(Backing::NoSlot),
            is_write: fault.is_write(),
            speculative: false,
            can_unsync: true,
        };
        if !fault.is_forced {
            self.thp_adjust(&mut mapping);
        }
        // The walk of the lock-free path ended where the mapping goes, and nothing was zapped since.
        let is_as_it_was = self.work.pages_zapped == fault.zapped_before;
        let at_hand = fault.walked.as_ref().filter(|walked| walked.level == mapping.level && is_as_it_was);
        let emulate = match at_hand.map(|walked| walked.sptep) {
            Some(sptep) => self.map_at(sptep, &mapping),
            None => self.direct_map(&mapping)?,
        };
        Ok(if emulate { Handled::Emulate } else { Handled::Retry })
    }

    /// The level to map at, and whether 4 KiB pages are forced.
    pub(in crate::mmu) fn mapping_level(&self, slot: Option<SlotAt>, gfn: Gfn) -> (u8, bool) {
        let Some(slot) = slot else { return (PAGE_TABLE, true) };
        if self.slot_spec(slot).is_invalid() || self.slot_body(slot).dirty.is_some() {
            return (PAGE_TABLE, true);
        }
        if !self.host.has_huge() {
            return (PAGE_TABLE, false);
        }
        let host_level = self.host_level(gfn);
        let mut level = PAGE_TABLE;
        while level < host_level.min(self.config.lpage_level) && !self.is_large_disallowed(Some(slot), gfn, level + 1) {
            level += 1;
        }
        (level, false)
    }

    /// The level the host maps a gfn at; asked through address space 0, also for a vCPU in SMM.
    fn host_level(&self, gfn: Gfn) -> u8 {
        let Some(slot) = self.find_slot(0, gfn) else { return PAGE_TABLE };
        let spec = self.slot_spec(slot);
        if spec.is_invalid() || spec.is_readonly() {
            return PAGE_TABLE;
        }
        match self.host.huge(Pfn::of_hva(spec.hva_of(gfn))) {
            HostHuge::None | HostHuge::Thp => PAGE_TABLE,
            HostHuge::Hugetlb2m => 2,
            HostHuge::Hugetlb1g => 3,
        }
    }

    pub(in crate::mmu) fn find_frame(&mut self, slot: Option<SlotAt>, gfn: Gfn, is_write: bool) -> Frame {
        let Some(spec) = slot.map(|slot| *self.slot_spec(slot)) else { return Frame::Backing(Backing::NoSlot) };
        if spec.is_invalid() {
            return Frame::Backing(Backing::NoSlot);
        }
        if spec.is_readonly() && is_write {
            return Frame::ReadonlyWrite;
        }
        let hva = spec.hva_of(gfn);
        if is_write && self.host.state(Pfn::of_hva(hva)) == HostState::CowCopy {
            self.copy_page(Pfn::of_hva(hva));
        }
        let pfn = Pfn((self.host.frame(Pfn::of_hva(hva)).hva() & PFN_FIELD) >> 12);
        match self.host.pin(Pfn::of_hva(hva), is_write, spec.is_readonly()) {
            Pinned::Frame { host_writable } => Frame::Backing(Backing::Frame { pfn, host_writable }),
            Pinned::Fault => Frame::Fault,
            Pinned::Poison => Frame::Poison { hva },
        }
    }

    /// What to map, or how the fault ends without it.
    pub(in crate::mmu) fn backing_of(&mut self, frame: &Frame) -> std::result::Result<Backing, Handled> {
        match *frame {
            Frame::Backing(backing) => Ok(backing),
            Frame::ReadonlyWrite => Err(Handled::Emulate),
            Frame::Poison { hva } => {
                self.events.push(|| Event::HwpoisonSignal { hva });
                Err(Handled::Retry)
            }
            Frame::Fault => Err(Handled::Errno(EFAULT)),
        }
    }

    /// Maps 2 MiB where the host frame is part of a huge page, of hugetlbfs too.
    pub(in crate::mmu) fn thp_adjust(&self, mapping: &mut Mapping) {
        if let Backing::Frame { pfn, host_writable } = mapping.backing
            && self.host.has_huge()
            && mapping.level == PAGE_TABLE
            && self.host.is_compound(pfn)
            && !self.is_large_disallowed(mapping.slot, mapping.gfn, 2)
        {
            mapping.level = 2;
            mapping.gfn = mapping.gfn.align_down(2);
            mapping.backing = Backing::Frame { pfn: pfn.align_down(2), host_writable };
        }
    }

    /// Builds the tables down to the mapping's level and installs it; true if the access must be emulated.
    fn direct_map(&mut self, mapping: &Mapping) -> Result<bool> {
        let addr = mapping.gfn.gpa();
        let root = self.root_for(mapping.vcpu, addr);
        if root == PageIdx::NONE {
            return Ok(false);
        }
        let mut page = root;
        let mut level = self.arena.key(root).role.level();
        while level > mapping.level {
            let sptep = page.sptep(table_index(addr, level));
            self.drop_large_spte(sptep);
            let spte = self.arena.spte(sptep);
            page = if is_shadow_present(&self.masks, spte) {
                child_of(spte)
            } else {
                let covered = Gfn((addr & PFN_FIELD) >> 12).align_down(level);
                let child = self.get_page(covered, self.child_role(mapping.vcpu, level - 1))?;
                self.link_shadow_page(sptep, child);
                child
            };
            level -= 1;
        }
        if level == PAGE_TABLE {
            self.remember_path(root, addr, page);
        }
        Ok(self.map_at(page.sptep(table_index(addr, level)), mapping))
    }

    /// Installs the mapping at its place and what lies before it; true if the access must be emulated.
    fn map_at(&mut self, sptep: Sptep, mapping: &Mapping) -> bool {
        let emulate = self.mmu_set_spte(sptep, mapping);
        self.direct_pte_prefetch(mapping, sptep);
        emulate
    }

    pub(in crate::mmu) const fn child_role(&self, vcpu: usize, level: u8) -> Role {
        self.vcpu_role(vcpu).with_level(level)
    }

    const fn vcpu_role(&self, vcpu: usize) -> Role {
        self.vcpus.as_slice()[vcpu].role
    }

    /// Maps the empty entries before the faulting one, where the host pages are at hand.
    pub(in crate::mmu) fn direct_pte_prefetch(&mut self, mapping: &Mapping, sptep: Sptep) {
        let page = sptep.page();
        let role = self.arena.key(page).role;
        if role.ad_disabled() || role.level() > PAGE_TABLE {
            return;
        }
        let first = sptep.index() / PTE_PREFETCH_NUM * PTE_PREFETCH_NUM;
        // One bit an entry: the faulting one and those present close a run, the others are open.
        let present = self.arena.table(page).which_of_eight(first, |spte| is_shadow_present(&self.masks, spte));
        let closed = u16::from(present) | 1 << (sptep.index() - first) | 1 << PTE_PREFETCH_NUM;
        let mut at = 0;
        loop {
            let start = lowest(!closed >> at) + at;
            if start >= PTE_PREFETCH_NUM {
                return;
            }
            let end = lowest(closed >> start) + start;
            if end >= PTE_PREFETCH_NUM || !self.prefetch_run(mapping, page, first + start, first + end) {
                return;
            }
            at = end;
        }
    }

    /// Maps a run of empty entries; false ends the prefetch.
    #[cold]
    #[inline(never)]
    fn prefetch_run(&mut self, mapping: &Mapping, page: PageIdx, start: u16, end: u16) -> bool {
        let key = self.arena.key(page);
        let first = key.gfn.plus(u64::from(start) << level_shift(PAGE_TABLE));
        let Some(slot) = self.find_slot(self.vcpus[mapping.vcpu].as_id(), first) else { return false };
        let spec = *self.slot_spec(slot);
        let len = u64::from(end - start);
        if spec.is_invalid()
            || spec.is_readonly()
            || self.slot_body(slot).dirty.is_some()
                && mapping.access & ACC_WRITE != 0
                && !is_chosen(Mutant::PrefetchIntoLoggedSlot)
            || spec.npages - spec.index(first, PAGE_TABLE) < len
        {
            return false;
        }
        let pinned = (0..len).take_while(|&at| self.host.pin_atomic(Pfn::of_hva(spec.hva_of(first.plus(at))))).count();
        if self.map_ahead(mapping, slot, (page, start), pinned) {
            return pinned != 0;
        }
        for (at, index) in (0_u64..).zip(start..end).take(pinned) {
            let gfn = first.plus(at);
            let next = mapping.neighbour(slot, gfn, Pfn::of_hva(spec.hva_of(gfn)));
            self.mmu_set_spte(page.sptep(index), &next);
        }
        pinned != 0
    }
}
