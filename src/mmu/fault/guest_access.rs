//! A vCPU whose guest has page tables of its own: it is entered, its roots are loaded and synced, and its guest touches
//! memory by virtual address, faults, and goes on.
//!
//! Models the requests of `vcpu_enter_guest` and `kvm_mmu_load`, v5.0 to v6.12; the processor's walk of the shadow tables is
//! the environment of the vectors. Syncing the roots may drop the lock: then the run waits and is resumed where it was.

use crate::mmu::fault::guest_fault::EIO;
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::{child_of, is_last, pfn_of};
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::runs::{GuestRun, GuestStage, Step, SyncRun};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::tlb::Translation;
use crate::mmu::vm::vcpu_mmu::{
    REQ_LOAD_CR3, REQ_MMU_RELOAD, REQ_MMU_SYNC, REQ_TLB_FLUSH, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST,
    REQ_UPDATE_CPU_DIRTY_LOGGING,
};
use crate::mmu::words::access::{PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_USER, PFERR_WRITE};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::guest_mode::{CR4_SMAP, CR4_SMEP, EFER_LMA, Paging};
use crate::mmu::words::level::{PAGE_SHIFT, PAGE_TABLE, pages_per, table_index};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::views::{AccessKind, AccessResult, GuestWork, Outcome};

const MAX_FAULTS: u8 = 8;
const MAX_LEVELS: usize = 5;
const PRESENT: u64 = 1;
/// Requests that an entry answers.
const ANSWERED: u64 = REQ_TLB_FLUSH
    | REQ_MMU_SYNC
    | REQ_LOAD_CR3
    | REQ_TLB_FLUSH_CURRENT
    | REQ_TLB_FLUSH_GUEST
    | REQ_UPDATE_CPU_DIRTY_LOGGING;

/// Where each level of the processor's walk went.
struct GuestPath {
    places: [Sptep; MAX_LEVELS],
    len: usize,
    leaf: u64,
    level: u8,
}

impl MmuState {
    /// A run of a vCPU's work. Outside long mode an address has 32 bits.
    pub(in crate::mmu) fn guest_run(&mut self, vcpu: usize, work: GuestWork) -> GuestRun {
        let result = AccessResult { outcome: Outcome::Hit, faults: 0, ret: 0 };
        let mut run = GuestRun { vcpu, work, stage: GuestStage::Enter, sync: SyncRun::default(), result, error: None };
        match work {
            GuestWork::Enter | GuestWork::Invlpg { .. } => {}
            GuestWork::Load => run.stage = GuestStage::Load,
            GuestWork::SyncRoots => {
                run.stage = GuestStage::Run;
                run.sync = self.sync_roots_run(vcpu);
                run.result.ret = 1;
            }
            GuestWork::Access { gva, kind, is_user } => {
                let is_long = self.vcpus[vcpu].efer & EFER_LMA != 0;
                let gva = if is_long { gva } else { gva & 0xffff_ffff };
                run.work = GuestWork::Access { gva, kind, is_user };
            }
        }
        run
    }

    /// Goes on with it until it ends or the lock is dropped.
    pub(in crate::mmu) fn drive_guest(&mut self, run: &mut GuestRun, invalid: &mut InvalidList) -> Step {
        loop {
            let step = self.drive_sync(&mut run.sync, invalid);
            if step != Step::Done {
                return step;
            }
            match self.step_guest(run) {
                Ok(true) => {}
                Ok(false) => return Step::Done,
                Err(error) => {
                    run.error = Some(error);
                    return Step::Done;
                }
            }
        }
    }

    /// One stage of it; false at the end.
    fn step_guest(&mut self, run: &mut GuestRun) -> Result<bool> {
        let vcpu = run.vcpu;
        match run.stage {
            GuestStage::Enter => {
                if self.is_bugged {
                    run.result.ret = -EIO;
                    run.result.outcome = Outcome::Error;
                    return Ok(false);
                }
                if run.result.faults == MAX_FAULTS {
                    run.result.outcome = Outcome::Stuck;
                    return Ok(false);
                }
                if self.answer_requests(vcpu) {
                    run.sync = self.sync_roots_run(vcpu);
                }
                run.stage = GuestStage::Load;
            }
            GuestStage::Load => {
                run.stage = GuestStage::Run;
                let is_load = run.work == GuestWork::Load;
                if !is_load {
                    self.vcpus[vcpu].requests &= !ANSWERED;
                }
                if is_load || !self.vcpus[vcpu].has_roots() {
                    let ret = self.load_guest_roots(vcpu)?;
                    if ret == 0 || !self.config.kernel.is_role_fixed {
                        run.sync = self.sync_roots_run(vcpu);
                    }
                    if ret != 0 && matches!(run.work, GuestWork::Access { .. }) {
                        run.stage = GuestStage::Failed;
                    }
                    if ret != 0 || !matches!(run.work, GuestWork::Access { .. }) {
                        run.result.ret = ret;
                    }
                }
            }
            GuestStage::Failed => {
                run.result.outcome = Outcome::Error;
                return Ok(false);
            }
            GuestStage::Run => {
                self.tell_entered(vcpu);
                return self.run_guest(run);
            }
        }
        Ok(true)
    }

    /// A vCPU is in the guest.
    fn tell_entered(&mut self, vcpu: usize) {
        if self.vcpus[vcpu].roots().next().is_some()
            && let Some(ghost) = &mut self.ghost
        {
            ghost.entered(vcpu);
        }
    }

    /// What the vCPU is entered for; false at the end.
    fn run_guest(&mut self, run: &mut GuestRun) -> Result<bool> {
        let vcpu = run.vcpu;
        match run.work {
            GuestWork::Enter | GuestWork::Load | GuestWork::SyncRoots => Ok(false),
            GuestWork::Invlpg { gva } => {
                self.invlpg(vcpu, gva);
                Ok(false)
            }
            GuestWork::Access { gva, kind, is_user } => {
                run.stage = GuestStage::Enter;
                self.access_once(run, gva, kind, is_user)
            }
        }
    }

    /// Requests that come before the roots are synced; true if they are to be.
    fn answer_requests(&mut self, vcpu: usize) -> bool {
        let requests = self.vcpus[vcpu].requests;
        if requests & REQ_MMU_RELOAD != 0 {
            self.vcpus[vcpu].requests &= !REQ_MMU_RELOAD;
            if self.config.kernel.reload_keeps_valid_root {
                self.drop_obsolete_guest_roots(vcpu);
            } else {
                self.drop_guest_roots(vcpu);
            }
        }
        if requests & (REQ_TLB_FLUSH | REQ_TLB_FLUSH_CURRENT | REQ_TLB_FLUSH_GUEST) != 0 {
            self.vcpus[vcpu].tlb.flush();
            if let Some(ghost) = &mut self.ghost {
                ghost.vcpu_flushed(vcpu);
            }
        }
        self.vcpus[vcpu].requests & REQ_MMU_SYNC != 0
    }

    /// One try of an access, and the fault if it fails; false at the end.
    fn access_once(&mut self, run: &mut GuestRun, gva: u64, kind: AccessKind, is_user: bool) -> Result<bool> {
        let vcpu = run.vcpu;
        let Err(error_code) = self.walk_as_processor(vcpu, gva, kind, is_user) else { return Ok(false) };
        run.result.faults += 1;
        let number = u16::try_from(vcpu).unwrap_or(u16::MAX);
        self.events.push(|| Event::Fault { vcpu: number, addr: gva, error_code });
        let of_guest = self.guest_page_fault(vcpu, gva, error_code)?;
        let ret = of_guest.answer.ret;
        run.result.ret = ret;
        self.events.push(|| Event::Ret { ret });
        let ended = if ret < 0 {
            Some(Outcome::Error)
        } else if of_guest.is_injected {
            Some(Outcome::GuestFault)
        } else if of_guest.answer.is_emulated {
            Some(Outcome::Emulate)
        } else {
            None
        };
        if let Some(outcome) = ended {
            run.result.outcome = outcome;
        }
        Ok(ended.is_none())
    }

    /// A walk of the guest's own tables on behalf of the emulator; the error code of the fault that it finds.
    pub(in crate::mmu) fn emulator_walk(&mut self, vcpu: usize, gva: u64, error_code: u64) -> Result<Option<u64>> {
        if self.vcpus[vcpu].mode.paging == Paging::None {
            return Ok(None);
        }
        // An empty walk leads nowhere.
        if !self.has_room_for_walk(vcpu)? {
            return Ok(Some(0));
        }
        Ok(self.walk_guest(vcpu, gva, error_code).error_code)
    }

    /// A store of the processor through the shadow tables; false where they do not let it.
    pub(in crate::mmu) fn processor_store(
        &mut self,
        vcpu: usize,
        gva: u64,
        (value, size): (u64, u8),
        is_user: bool,
    ) -> bool {
        let Ok((leaf, level)) = self.walk_as_processor(vcpu, gva, AccessKind::Write, is_user) else { return false };
        let within = (pages_per(level) << PAGE_SHIFT) - 1;
        self.guest_memory.write(pfn_of(leaf).hva() & PFN_FIELD | gva & within, value, size);
        true
    }

    /// The next entry syncs the roots.
    pub(in crate::mmu) fn request_sync(&mut self, vcpu: usize) {
        self.vcpus[vcpu].requests |= REQ_MMU_SYNC;
    }

    /// Walks the shadow tables as the processor does, to the leaf and its level; the error code of the fault if it fails.
    fn walk_as_processor(
        &mut self,
        vcpu: usize,
        gva: u64,
        kind: AccessKind,
        is_user: bool,
    ) -> std::result::Result<(u64, u8), u64> {
        let code = if is_user { PFERR_USER } else { 0 }
            | match kind {
                AccessKind::Read => 0,
                AccessKind::Write => PFERR_WRITE,
                AccessKind::Exec => PFERR_FETCH,
            };
        let mut path = GuestPath { places: [Sptep(0); MAX_LEVELS], len: 0, leaf: 0, level: 0 };
        let mut page = self.root_for(vcpu, gva);
        if page == PageIdx::NONE {
            return Err(code);
        }
        let (mut is_refused, mut is_users) = (false, true);
        loop {
            let level = self.arena.key(page).role.level();
            let sptep = page.sptep(table_index(gva, level));
            let spte = self.arena.spte(sptep);
            if spte & PRESENT == 0 {
                return Err(code);
            }
            let is_leaf = level == PAGE_TABLE || is_last(spte, level);
            // A link holds an arena index where the host would have an address of its own.
            if is_leaf && spte & self.masks.reserved_address != 0 {
                return Err(code | PFERR_PRESENT | PFERR_RSVD);
            }
            is_refused |= kind == AccessKind::Write && spte & WRITABLE == 0
                || is_user && spte & self.masks.user == 0
                || kind == AccessKind::Exec && spte & self.masks.nx != 0;
            is_users &= spte & self.masks.user != 0;
            if let Some(place) = path.places.get_mut(path.len) {
                *place = sptep;
                path.len += 1;
            }
            if is_leaf {
                (path.leaf, path.level) = (spte, level);
                break;
            }
            page = child_of(spte);
        }
        let of_vcpu = &self.vcpus[vcpu];
        let keeps_out = match kind {
            AccessKind::Exec => of_vcpu.cr4 & CR4_SMEP != 0,
            AccessKind::Read | AccessKind::Write => of_vcpu.cr4 & CR4_SMAP != 0 && !of_vcpu.ac,
        };
        if is_refused || !is_user && is_users && keeps_out {
            return Err(code | PFERR_PRESENT);
        }
        for &sptep in &path.places[..path.len] {
            let accessed = self.masks.accessed;
            self.spte_set_by_hardware(sptep, accessed);
        }
        if kind == AccessKind::Write
            && let Some(&leaf) = path.places[..path.len].last()
        {
            let dirty = self.masks.dirty;
            self.spte_set_by_hardware(leaf, dirty);
            self.tell_guest_stored(vcpu, leaf, gva);
        }
        let (leaf, level) = (path.leaf, path.level);
        self.vcpus[vcpu].tlb.fill(Translation { gfn: Gfn::of_gpa(gva), leaf, level });
        Ok((leaf, level))
    }

    /// The guest wrote through a leaf.
    fn tell_guest_stored(&mut self, vcpu: usize, leaf: Sptep, gva: u64) {
        let Some(first) = self.ghost.as_ref().and_then(|ghost| ghost.gfn_at(leaf.0)) else { return };
        let within = pages_per(self.arena.key(leaf.page()).role.level()) - 1;
        self.tell_written(vcpu, Gfn(first & !within | gva >> PAGE_SHIFT & within), leaf);
    }
}
