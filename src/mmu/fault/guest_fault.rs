//! The page fault of a guest with page tables of its own: what its tables say, who answers it, and what of it becomes a
//! mapping, up to v5.10. Later kernels come to `direct_page_fault` with what the guest's tables said.
//!
//! Models `kvm_mmu_page_fault` and `FNAME(page_fault)`, v5.0 to v6.12, `is_self_change_mapping`,
//! `shadow_page_table_clear_flood`.

use crate::kernels::WalkBound;
use crate::mmu::fault::guest_fetch::GuestGoal;
use crate::mmu::fault::mmio_fault::MmioCheck;
use crate::mmu::fault::page_fault::{Answer, EMULTYPE_ALLOW_RETRY, Handled};
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::shadow::guest_walk::GuestWalk;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{ACC_EXEC, ACC_USER, ACC_WRITE, PFERR_PRESENT, PFERR_RSVD, PFERR_WRITE};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::guest_mode::Paging;
use crate::mmu::words::level::{PAGE_TABLE, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::views::HostLookup;

/// The write hit one of the tables that map it.
const EMULTYPE_WRITE_PF_TO_SP: u16 = 0x100;

/// The VM is dead.
pub(in crate::mmu) const EIO: i32 = 5;

/// How a guest's fault ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct GuestAnswer {
    pub answer: Answer,
    /// The guest got a page fault of its own.
    pub is_injected: bool,
}

/// What the handler says of a fault that it walked for.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct GuestHandled {
    pub handled: Handled,
    pub is_injected: bool,
    /// The write hit one of the tables that map it.
    pub hits_own_table: bool,
}

impl From<Handled> for GuestHandled {
    fn from(handled: Handled) -> Self {
        Self { handled, is_injected: false, hits_own_table: false }
    }
}

impl MmuState {
    /// A page fault of a vCPU whose guest has tables of its own, or does not page at present.
    pub(in crate::mmu) fn guest_page_fault(&mut self, vcpu: usize, gva: u64, error_code: u64) -> Result<GuestAnswer> {
        self.guest_page_fault_with(vcpu, gva, error_code, &HostLookup::Ask)
    }

    /// The same, where the caller may say what the host lookup found.
    pub(in crate::mmu) fn guest_page_fault_with(
        &mut self,
        vcpu: usize,
        gva: u64,
        error_code: u64,
        host: &HostLookup,
    ) -> Result<GuestAnswer> {
        let is_none = self.vcpus[vcpu].mode.paging == Paging::None;
        let plain = |answer| GuestAnswer { answer, is_injected: false };
        self.work.faults += 1;
        if error_code & PFERR_RSVD != 0 {
            self.work.mmio_faults += 1;
            let is_known =
                if is_none { self.match_mmio_gpa(vcpu, Gfn::of_gpa(gva)) } else { self.match_mmio_gva(vcpu, gva) };
            if is_known {
                self.tell_mmio(vcpu, self.vcpus[vcpu].mmio.gfn, true);
            }
            let check = if is_known { MmioCheck::Emulate } else { self.handle_mmio_page_fault(vcpu, gva) };
            match check {
                MmioCheck::Emulate => return Ok(plain(self.emulate(vcpu, gva, 0))),
                MmioCheck::Retry => return Ok(plain(Answer::RETRY)),
                MmioCheck::Invalid => {}
            }
        }
        if is_none {
            return Ok(plain(self.page_fault_below(vcpu, gva, error_code, host)?));
        }
        let is_newer = self.config.kernel.is_level_requested;
        let of_guest = if is_newer {
            self.vcpus[vcpu].faults.taken += 1;
            let of_guest = self.requested_guest_fault(vcpu, gva, error_code & !PFERR_RSVD, host)?;
            self.count_fault(vcpu, of_guest.handled);
            of_guest
        } else {
            self.shadow_page_fault(vcpu, gva, error_code & !PFERR_RSVD & 0xffff_ffff)?
        };
        let answer = match of_guest.handled {
            Handled::Retry => Answer::RETRY,
            Handled::Fixed | Handled::Spurious => self.done(of_guest.handled),
            Handled::Errno(errno) => Answer { ret: -errno, is_emulated: false },
            Handled::Emulate | Handled::WriteProtected => {
                let may_retry = if self.config.kernel.mmio_emulate_retry {
                    !self.match_mmio_gva(vcpu, gva)
                } else {
                    // The address of the fault that was retried last is 0 at first.
                    of_guest.handled == Handled::WriteProtected && gva != 0
                };
                let own = if of_guest.hits_own_table { EMULTYPE_WRITE_PF_TO_SP } else { 0 };
                self.emulate(vcpu, gva, own | if may_retry { EMULTYPE_ALLOW_RETRY } else { 0 })
            }
        };
        Ok(GuestAnswer { answer, is_injected: of_guest.is_injected })
    }

    /// The guest gets the page fault that its own tables make.
    fn inject_page_fault(&mut self, vcpu: usize, gva: u64, error_code: u64) -> GuestHandled {
        let is_stale = error_code & (PFERR_PRESENT | PFERR_RSVD) == PFERR_PRESENT;
        if is_stale && self.config.kernel.is_role_fixed && !is_chosen(Mutant::FaultLeavesEntry) {
            self.invalidate_addr(vcpu, gva, false);
        }
        let number = u16::try_from(vcpu).unwrap_or(u16::MAX);
        self.events.push(|| Event::InjectPf { vcpu: number, addr: gva, error_code });
        GuestHandled { is_injected: true, ..Handled::Retry.into() }
    }

    /// The tables on the way to an address count as used: a write to one of them begins the flood anew.
    fn clear_flood(&mut self, vcpu: usize, gva: u64) {
        let mut page = self.root_for(vcpu, gva);
        while page != PageIdx::NONE {
            self.reset_flood(page);
            let level = self.arena.key(page).role.level();
            let spte = self.arena.spte(page.sptep(table_index(gva, level)));
            let goes_on = is_shadow_present(&self.masks, spte) && !is_last(spte, level);
            page = if goes_on { child_of(spte) } else { PageIdx::NONE };
        }
    }

    /// Whether a large page of the guest holds one of the tables that lead to it, and whether the write hits one itself.
    pub(in crate::mmu) fn is_self_mapping(&self, vcpu: usize, walk: &GuestWalk) -> (bool, bool) {
        let by_supervisor = !self.vcpus[vcpu].mode.wp && !walk.wanted.is_user;
        if walk.pte_access & ACC_WRITE == 0 && !by_supervisor {
            return (false, false);
        }
        let mask = !(512_u64.wrapping_pow(u32::from(walk.level) - 1) - 1);
        let (mut is_self, mut is_own) = (false, false);
        for level in walk.level..=walk.top_level {
            let differs = walk.gfn.0 ^ walk.entry(level).table.0;
            is_self |= differs & mask == 0;
            is_own |= differs == 0;
        }
        (is_self, is_own)
    }

    /// The access of a mapping. With write protection off a supervisor may write what it may not: then the page is the
    /// supervisor's alone, and not to be fetched from where it must not fetch the user's.
    pub(in crate::mmu) fn mapped_access(&self, vcpu: usize, walk: &GuestWalk, is_memory: bool) -> u8 {
        let mode = &self.vcpus[vcpu].mode;
        let wanted = walk.wanted;
        let is_through = wanted.is_write && !wanted.is_user && !mode.wp && is_memory;
        if !is_through || walk.pte_access & ACC_WRITE != 0 || is_chosen(Mutant::WriteThroughWpForUser) {
            return walk.pte_access;
        }
        let no_exec = if mode.smep { ACC_EXEC } else { 0 };
        (walk.pte_access | ACC_WRITE) & !ACC_USER & !no_exec
    }

    /// Whether the kernel's walk has room for the levels of a guest's tables. Without a bound the kernel writes past its
    /// end; with one it finds nothing, and the VM is dead from then on.
    pub(in crate::mmu) fn has_room_for_walk(&mut self, vcpu: usize) -> Result<bool> {
        let kernel = &self.config.kernel;
        let (levels, most) = (self.vcpus[vcpu].mode.paging.root_level(), kernel.walk_levels);
        if u32::from(levels) <= most {
            return Ok(true);
        }
        if kernel.walk_bound == WalkBound::None {
            return Err(Error::WalkDepth { kernel: kernel.name, most, levels });
        }
        self.is_bugged = true;
        Ok(false)
    }

    /// Walks, and answers what needs no mapping: the guest's own fault, or a write to what is tracked.
    fn walk_or_answer(
        &mut self,
        vcpu: usize,
        gva: u64,
        error_code: u64,
    ) -> Result<std::result::Result<GuestWalk, GuestHandled>> {
        if !self.has_room_for_walk(vcpu)? {
            return Ok(Err(Handled::Errno(EIO).into()));
        }
        let walk = self.walk_guest(vcpu, gva, error_code);
        if let Some(code) = walk.error_code {
            return Ok(Err(self.inject_page_fault(vcpu, gva, code)));
        }
        let write_present = PFERR_WRITE | PFERR_PRESENT;
        let slot = self.find_visible_slot(self.vcpus[vcpu].as_id(), walk.gfn);
        if error_code & write_present == write_present && self.needs_write_protect(slot, walk.gfn) {
            self.clear_flood(vcpu, gva);
            return Ok(Err(Handled::WriteProtected.into()));
        }
        Ok(Ok(walk))
    }

    /// The handler up to v5.10.
    fn shadow_page_fault(&mut self, vcpu: usize, gva: u64, error_code: u64) -> Result<GuestHandled> {
        let walk = match self.walk_or_answer(vcpu, gva, error_code)? {
            Ok(walk) => walk,
            Err(answered) => return Ok(answered),
        };
        let as_id = self.vcpus[vcpu].as_id();
        let slot = self.find_slot(as_id, walk.gfn);
        let is_write = error_code & PFERR_WRITE != 0;
        let (mut gfn, mut level, mut is_forced) = (walk.gfn, PAGE_TABLE, true);
        if walk.level >= 2 && !self.is_self_mapping(vcpu, &walk).0 {
            let (most, forced) = self.mapping_level(slot, gfn);
            if !forced {
                (level, is_forced) = (most.min(walk.level), false);
                gfn = gfn.align_down(level);
            }
        }
        let frame = self.find_frame(slot, gfn, is_write);
        let backing = match self.backing_of(&frame) {
            Ok(backing) => backing,
            Err(handled) => return Ok(handled.into()),
        };
        if backing == Backing::NoSlot {
            self.cache_mmio_info(vcpu, gva, gfn, walk.pte_access.into());
        }
        let access = self.mapped_access(vcpu, &walk, backing != Backing::NoSlot);
        if self.make_mmu_pages_available().is_err() {
            return Ok(Handled::Retry.into());
        }
        let (speculative, can_unsync) = (false, true);
        let mut mapping = Mapping { vcpu, slot, gfn, level, access, backing, is_write, speculative, can_unsync };
        if !is_forced {
            self.thp_adjust(&mut mapping);
        }
        Ok(self.guest_fetch(&walk, &mapping)?.into())
    }

    /// The handler from v6.1 on.
    fn requested_guest_fault(
        &mut self,
        vcpu: usize,
        gva: u64,
        error_code: u64,
        host: &HostLookup,
    ) -> Result<GuestHandled> {
        let walk = match self.walk_or_answer(vcpu, gva, error_code)? {
            Ok(walk) => walk,
            Err(answered) => return Ok(answered),
        };
        let (mut most, mut hits_own_table) = (walk.level, false);
        if self.config.kernel.self_map_is_small {
            let (is_self, is_own) = self.is_self_mapping(vcpu, &walk);
            hits_own_table = is_own;
            if is_self {
                most = PAGE_TABLE;
            }
        }
        let goal = GuestGoal { walk: &walk, most, hits_own_table: std::cell::Cell::new(hits_own_table) };
        let handled = self.fault_in(vcpu, gva, error_code, walk.gfn, Some(&goal), host)?;
        Ok(GuestHandled { handled, is_injected: false, hits_own_table: goal.hits_own_table.get() })
    }
}
