//! The core: the structures and operations of KVM's x86 MMU, v5.0 to v7.3: shadow pages, direct or
//! of guests with tables of their own, and the TDP MMU.
//!
//! [`Mmu`] is the facade: one method per thing that can happen to the MMU. It holds what is stored, encoded, walked and
//! zapped; which slot, which generation, which plan and in what order is the caller's. No I/O, no clock, no randomness;
//! no method panics, whatever the arguments.
//!
//! Words (encodings) know no structures, nouns (structures) know no operations, verbs (operations) know no caller:
//! `docs/architecture.md` has the rooms and their files, `tests/architecture` who may know whom.
//!
//! Long: one method for each thing that can happen to the MMU, and nothing else.

mod driver;
mod fault;
mod ghost;
pub mod pages;
mod range;
mod shadow;
mod tables;
mod tdp;
#[cfg(test)]
mod tests;
pub mod vm;
mod watch;
pub mod words;
mod zap;

pub use crate::kernels::Kernel;
pub use ghost::told::{Broken, Premises};
pub use shadow::guest_walk::{GuestWalk, WalkedEntry};
pub use vm::events::{Event, Events, PageFacts};
pub use watch::audit::INVARIANTS;
pub use watch::canonical::Hash128;
pub use watch::judge::PROPERTIES;
pub use watch::restored::{Found, FoundEntry, FoundInSlot, FoundMapping, FoundOn, FoundPage, FoundVcpu};
pub use words::config::{Config, EventMode, Family, GfnHash};
pub use words::error::{Error, Result};
pub use words::generation::{GenerationField, GenerationLayout};
pub use words::guest_mode::{GuestMode, Paging, Registers};
pub use words::guest_permission::Wanted;
pub use words::plan::{
    BeforeDrop, ListPlan, Offer, Only, PLAN_FIELDS, PlanLock, Plans, ReloadRoots, RestartRules, RootPages, RootPlan,
    Skip, SlotPages, SlotPlan, Stop, Walk, ZapPlan,
};
pub use words::role::Role;
pub use words::spte::layout::SpteLayout;
pub use words::spte::masks::Masks;
pub use words::stats::Stats;
pub use words::views::{
    AccessKind, AccessResult, BatchId, DirtyLog, DirtyLogTask, Finding, FlagUpdate, GuestWork, HostHuge, HostLookup,
    HostState, MemoryReport, Outcome, PageView, Prepared, Progress, PtMasked, RunId, RunOutcome, RunReport, SlotChange,
    SlotSpec, SlotWalk, Task, VcpuView, named_masks, stepped_masks,
};
pub use words::work::Work;

use ghost::operations::OpKind;
use vm::state::MmuState;
use watch::fingerprint::Summed;
use words::addr::{Gfn, Pfn};
use words::guest_mode::CR0_AFTER_INIT;
use words::mutants::{Mutant, is_chosen};

/// One VM's MMU. `Clone` is a deep, independent copy, [`Mmu::fork`] one that copies what is written to.
#[derive(Clone, Debug)]
pub struct Mmu {
    state: MmuState,
    /// What the last fingerprint was the sum of.
    summed: Option<Box<Summed>>,
}

impl Mmu {
    /// A VM without slots and without shadow pages; both generations are 0 until set.
    pub fn new(config: Config) -> Result<Self> {
        Ok(Self { state: MmuState::new(config)?, summed: None })
    }

    /// An independent copy that shares pages, lists, slots' arrays and events with this VM until one of both writes to them.
    /// A write copies the 16 tables, the 32,768 heads or the array that it goes to, once.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self { state: self.state.fork(), summed: self.summed.clone() }
    }

    /// What it was made from.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.state.config
    }

    /// Its SPTE masks.
    #[must_use]
    pub const fn masks(&self) -> &Masks {
        &self.state.masks
    }

    /// Which plan answers which trigger.
    #[must_use]
    pub const fn plans(&self) -> &Plans {
        &self.state.config.plans
    }

    /// Replaces the plans.
    pub const fn set_plans(&mut self, plans: Plans) {
        self.state.config.plans = plans;
    }

    // ---- the guest's side ----

    /// A guest access by physical address, by virtual address where its own tables are shadowed: vCPU entry, hardware walk, faults until it hits or ends.
    pub fn access(&mut self, vcpu: u16, gpa: u64, kind: AccessKind) -> Result<AccessResult> {
        if self.state.config.shadows_guest() {
            return self.guest(vcpu, GuestWork::Access { gva: gpa, kind, is_user: false });
        }
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Access, |state| state.access(vcpu, gpa, kind))
    }

    /// Guest accesses in turn, as so many calls of [`Self::access`]; `done` is told how each ended. Ascending neighbours that
    /// are mapped for the first time are mapped together.
    pub fn access_many(
        &mut self,
        vcpu: u16,
        gpas: &[u64],
        kind: AccessKind,
        mut done: impl FnMut(AccessResult),
    ) -> Result<()> {
        if self.state.config.shadows_guest() {
            for &gpa in gpas {
                done(self.access(vcpu, gpa, kind)?);
            }
            return Ok(());
        }
        let vcpu = self.state.check_vcpu(vcpu)?;
        let mut left = gpas;
        let mut may_run = false;
        let hit = AccessResult { outcome: Outcome::Hit, faults: 0, ret: 0 };
        while let Some((&gpa, rest)) = left.split_first() {
            let hits = self.state.access_hits(vcpu, left, kind);
            if hits > 0 {
                (0..hits).for_each(|_| done(hit));
                left = &left[hits..];
                // What follows in the table is likely to fault.
                may_run = true;
                continue;
            }
            if may_run {
                let (count, each) = self.state.access_run(vcpu, left, kind);
                (0..count).for_each(|_| done(each));
                left = &left[count..];
                may_run = false;
                if count > 0 {
                    continue;
                }
            }
            let ended = self.state.access(vcpu, gpa, kind)?;
            done(ended);
            // What follows a fault is likely to fault as well.
            may_run = ended.faults == 1 && rest.first() == Some(&gpa.wrapping_add(1 << 12));
            left = rest;
        }
        Ok(())
    }

    /// A vCPU whose guest has page tables of its own is entered; where the lock is dropped nobody else is there.
    pub fn guest(&mut self, vcpu: u16, work: GuestWork) -> Result<AccessResult> {
        let mut progress = self.start(Task::Guest { vcpu, work })?;
        while let Progress::LockBreak(run) | Progress::Slice(run) = progress {
            progress = self.resume(run)?;
        }
        self.take_guest_result()
    }

    /// What became of the vCPU that was entered last.
    pub fn take_guest_result(&mut self) -> Result<AccessResult> {
        let none = AccessResult { outcome: Outcome::Hit, faults: 0, ret: 0 };
        std::mem::replace(&mut self.state.guest_result, Ok(none))
    }

    /// The registers that say how a vCPU's guest pages.
    pub fn registers(&self, vcpu: u16) -> Result<Registers> {
        Ok(self.state.vcpus[self.state.check_vcpu(vcpu)?].registers())
    }

    /// Refuses what only a VM whose guest's page tables are shadowed has.
    fn check_shadows_guest(&self, what: &'static str) -> Result<()> {
        if self.state.config.shadows_guest() { Ok(()) } else { Err(Error::NeedsShadow { what }) }
    }

    /// The guest writes CR3: 0, 1 with the value it had, 2 if its PDPTEs are refused; from v6.1 on 0, or 1 if refused. With
    /// the value it had, older kernels sync the roots: the caller asks for it.
    pub fn set_cr3(&mut self, vcpu: u16, cr3: u64) -> Result<i32> {
        self.check_shadows_guest("set_cr3")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        Ok(self.told(OpKind::Vcpu, |state| state.set_cr3(vcpu, cr3)))
    }

    /// The CR3 that a vCPU has and the root for it are switched, as a call from outside does.
    pub fn new_pgd(&mut self, vcpu: u16, cr3: u64) -> Result<()> {
        self.check_shadows_guest("new_pgd")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Vcpu, |state| {
            state.vcpus[vcpu].cr3 = cr3;
            state.new_root(vcpu, cr3);
        });
        Ok(())
    }

    /// The guest writes memory and the MMU is told: 0, or -EFAULT without a slot.
    pub fn emulate_write(&mut self, vcpu: u16, gpa: u64, value: u64, size: u8) -> Result<i32> {
        self.check_shadows_guest("emul_write")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        Ok(self.told(OpKind::Access, |state| state.emulate_write(vcpu, gpa, value, size)))
    }

    /// The MMU is told of a write to guest memory that was done.
    pub fn track_write(&mut self, vcpu: u16, gpa: u64, size: u8) -> Result<()> {
        self.check_shadows_guest("track_write")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Access, |state| state.track_write(vcpu, gpa, size));
        Ok(())
    }

    /// The emulator walks the guest's own tables: the error code of the fault that it finds, if any.
    pub fn emulator_walk(&mut self, vcpu: u16, gva: u64, error_code: u64) -> Result<Option<u64>> {
        self.check_shadows_guest("guest_walk")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Access, |state| state.emulator_walk(vcpu, gva, error_code))
    }

    /// The processor stores through the shadow tables it has, stale ones too; false where they do not let it.
    pub fn processor_store(&mut self, vcpu: u16, gva: u64, value: u64, size: u8, is_user: bool) -> Result<bool> {
        self.check_shadows_guest("guest_store")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        Ok(self.state.processor_store(vcpu, gva, (value, size), is_user))
    }

    /// Asks the vCPU's next entry to sync its roots.
    pub fn request_sync(&mut self, vcpu: u16) -> Result<()> {
        self.check_shadows_guest("sync_roots")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.state.request_sync(vcpu);
        Ok(())
    }

    /// Zaps what shadows a gfn as a table; whether anything was.
    pub fn unprotect(&mut self, gfn: u64) -> Result<bool> {
        self.check_shadows_guest("unprotect")?;
        Ok(self.told(OpKind::Access, |state| state.unprotect_gfn(Gfn(gfn))))
    }

    /// Drops the cached roots that are out of sync, as the guest's own flush of its TLB does (v6.1 and later).
    pub fn sync_prev_roots(&mut self, vcpu: u16) -> Result<()> {
        self.check_shadows_guest("sync_prev_roots")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Vcpu, |state| state.drop_unsync_prev_roots(vcpu));
        Ok(())
    }

    /// Stores registers without anything that follows: CR3, and `EFLAGS.AC`.
    pub fn store_regs(&mut self, vcpu: u16, cr3: Option<u64>, ac: Option<bool>) -> Result<()> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        let regs = &mut self.state.vcpus[vcpu];
        regs.cr3 = cr3.unwrap_or(regs.cr3);
        regs.ac = ac.unwrap_or(regs.ac);
        Ok(())
    }

    /// The page fault entry with an error code, without vCPU entry: 1 resume, 0 exit to user space, negative errno.
    #[inline]
    pub fn fault(&mut self, vcpu: u16, gpa: u64, error_code: u64) -> Result<i32> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        if self.state.config.shadows_guest() || self.state.ghost.is_some() {
            return self.fault_told(vcpu, gpa, error_code);
        }
        Ok(self.state.page_fault(vcpu, gpa, error_code)?.ret)
    }

    /// The same where a guest's own tables are shadowed, or a ghost listens.
    #[cold]
    #[inline(never)]
    fn fault_told(&mut self, vcpu: usize, gpa: u64, error_code: u64) -> Result<i32> {
        if self.state.config.shadows_guest() {
            return self.told(OpKind::Access, |state| Ok(state.guest_page_fault(vcpu, gpa, error_code)?.answer.ret));
        }
        self.told(OpKind::Access, |state| Ok(state.page_fault(vcpu, gpa, error_code)?.ret))
    }

    /// The same from v6.1 on, where the caller knows what the host's page lookup said.
    pub fn fault_with(&mut self, vcpu: u16, gpa: u64, error_code: u64, host: &HostLookup) -> Result<i32> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        if !self.state.config.kernel.is_level_requested {
            return Err(Error::NeedsKernel { what: "a fault with the host's answer", kernels: "v6.1 or later" });
        }
        if self.state.config.shadows_guest() {
            let answered =
                |state: &mut MmuState| Ok(state.guest_page_fault_with(vcpu, gpa, error_code, host)?.answer.ret);
            return self.told(OpKind::Access, answered);
        }
        self.told(OpKind::Access, |state| Ok(state.page_fault_with(vcpu, gpa, error_code, host)?.ret))
    }

    /// vCPU entry: requests, then a root if there is none.
    pub fn enter(&mut self, vcpu: u16) -> Result<i32> {
        if self.state.config.shadows_guest() {
            return Ok(self.guest(vcpu, GuestWork::Enter)?.ret);
        }
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Vcpu, |state| state.enter(vcpu))
    }

    /// Loads a root, whether there is one or not.
    pub fn load(&mut self, vcpu: u16) -> Result<i32> {
        if self.state.config.shadows_guest() {
            return Ok(self.guest(vcpu, GuestWork::Load)?.ret);
        }
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Vcpu, |state| state.load(vcpu))
    }

    /// Frees the root.
    pub fn unload(&mut self, vcpu: u16) -> Result<()> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Vcpu, |state| state.unload(vcpu));
        Ok(())
    }

    /// Enters or leaves system management mode and resets the MMU context.
    pub fn set_smm(&mut self, vcpu: u16, on: bool) -> Result<()> {
        let index = self.state.check_vcpu(vcpu)?;
        self.state.vcpus[index].smm = on;
        self.state.reset_context(index);
        Ok(())
    }

    /// INIT: registers have their values after it, and system management mode is left. Kernels that do not reset the MMU
    /// context there go on with the roots and the role they have.
    pub fn init(&mut self, vcpu: u16) -> Result<()> {
        let index = self.state.check_vcpu(vcpu)?;
        self.told(OpKind::Vcpu, |state| {
            let of_vcpu = &mut state.vcpus[index];
            let was_smm = std::mem::take(&mut of_vcpu.smm);
            (of_vcpu.cr0, of_vcpu.cr3, of_vcpu.cr4, of_vcpu.efer, of_vcpu.ac) = (CR0_AFTER_INIT, 0, 0, 0, false);
            if state.config.kernel.init_resets && !is_chosen(Mutant::InitKeepsRoots) {
                state.reset_context(index);
            } else {
                // What is mapped from here on stands in the lists of one space, and says it is of the other.
                state.has_dangling |= was_smm;
            }
        });
        Ok(())
    }

    /// Sets registers and resets the MMU context, also when nothing changes: 0, or 2 if the guest's PDPTEs are refused.
    pub fn set_regs(
        &mut self,
        vcpu: u16,
        cr0: Option<u64>,
        cr4: Option<u64>,
        efer: Option<u64>,
        smm: Option<bool>,
    ) -> Result<i32> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        let regs = &mut self.state.vcpus[vcpu];
        regs.cr0 = cr0.unwrap_or(regs.cr0);
        regs.cr4 = cr4.unwrap_or(regs.cr4);
        regs.efer = efer.unwrap_or(regs.efer);
        regs.smm = smm.unwrap_or(regs.smm);
        let shadows_guest = self.state.config.shadows_guest();
        let is_first = shadows_guest && self.state.config.kernel.is_role_fixed;
        let is_loaded = self.told(OpKind::Vcpu, |state| {
            let mut is_loaded = !is_first || state.load_pdptes_in_use(vcpu);
            state.reset_context(vcpu);
            if shadows_guest && !is_first {
                is_loaded = state.load_pdptes_in_use(vcpu);
            }
            is_loaded
        });
        // From v6.1 on the processor's own check is not told to who sets registers from outside.
        Ok(if is_loaded || is_first { 0 } else { 2 })
    }

    /// The guest writes its rights of protection keys: what is mapped stays as it is.
    pub fn set_pkru(&mut self, vcpu: u16, pkru: u32) -> Result<()> {
        self.check_shadows_guest("set_pkru")?;
        let vcpu = self.state.check_vcpu(vcpu)?;
        self.state.vcpus[vcpu].pkru = pkru;
        Ok(())
    }

    /// Forgets the vCPU's cached MMIO gva and gfn; access and generation stay.
    pub fn clear_mmio_info(&mut self, vcpu: u16) -> Result<()> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        let mmio = &mut self.state.vcpus[vcpu].mmio;
        mmio.gva = 0;
        mmio.gfn = Gfn(0);
        Ok(())
    }

    // ---- guest memory ----

    /// The value of 1 to 8 bytes at a guest-physical address as the vCPU sees it; `None` without a slot.
    pub fn peek(&self, vcpu: u16, gpa: u64, size: u8) -> Result<Option<u64>> {
        let as_id = self.state.vcpus[self.state.check_vcpu(vcpu)?].as_id();
        Ok(self.state.read_guest(as_id, gpa, size))
    }

    /// Stores 1 to 8 bytes at a guest-physical address without telling the MMU: 0, or -EFAULT without a slot.
    pub fn poke(&mut self, vcpu: u16, gpa: u64, value: u64, size: u8) -> Result<i32> {
        let as_id = self.state.vcpus[self.state.check_vcpu(vcpu)?].as_id();
        if self.state.ghost.is_some() && self.state.read_guest(as_id, gpa, size) != Some(value) {
            self.state.tell_behind(Gfn::of_gpa(gpa));
        }
        Ok(self.state.poke_guest(as_id, gpa, value, size))
    }

    /// Stores 1 to 8 bytes and marks the page dirty, as a guest's own write does: 0, or -EFAULT without a slot.
    pub fn write_guest(&mut self, vcpu: u16, gpa: u64, value: u64, size: u8) -> Result<i32> {
        let as_id = self.state.vcpus[self.state.check_vcpu(vcpu)?].as_id();
        Ok(self.state.write_guest(as_id, gpa, value, size))
    }

    /// Where the guest's own tables lead an address; nothing is marked, and no rights are asked.
    pub fn find_gpa(&self, vcpu: u16, gva: u64) -> Result<Option<u64>> {
        Ok(self.state.find_gpa(self.state.check_vcpu(vcpu)?, gva))
    }

    /// Walks the guest's own tables for what an error code wants, as a page fault does: accessed and dirty bits are set.
    pub fn walk_guest(&mut self, vcpu: u16, gva: u64, error_code: u64) -> Result<GuestWalk> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        Ok(self.state.walk_guest(vcpu, gva, error_code))
    }

    // ---- memslots ----

    /// Publishes a slot array under a generation.
    pub fn install_slot(&mut self, as_id: u8, generation: u64, change: SlotChange) -> Result<()> {
        self.told(OpKind::Update, |state| state.install_slot(as_id, generation, change))
    }

    /// Publishes two updates of a slot's flags in turn, once for each pair of a generation in flight and a final one, both
    /// the caller's; none of them may be a wrap. Nothing pauses it.
    pub fn repeat_flag_updates(
        &mut self,
        as_id: u8,
        updates: &[FlagUpdate; 2],
        generations: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<()> {
        for ((in_flight, published), update) in generations.into_iter().zip(updates.iter().cycle()) {
            self.install_slot(as_id, in_flight, SlotChange::Put(update.spec))?;
            self.push_memslots_updated(published);
            self.push_invalidate_mmio(published);
            self.set_generation(as_id, published)?;
            if update.switches_cpu_log {
                self.request_cpu_dirty_logging();
            }
            for &what in &update.walks {
                let mut progress = self.start(Task::SlotWalk { as_id, id: update.spec.id, what })?;
                while let Progress::Slice(run) | Progress::LockBreak(run) = progress {
                    progress = self.resume(run)?;
                }
            }
            if update.is_flushed {
                self.flush_slot(as_id, update.spec.id)?;
            }
        }
        Ok(())
    }

    /// Stores a generation.
    pub fn set_generation(&mut self, as_id: u8, generation: u64) -> Result<()> {
        self.state.space_mut(as_id)?.slots_gen = generation;
        Ok(())
    }

    /// The generation of an address space.
    pub fn generation(&self, as_id: u8) -> Result<u64> {
        Ok(self.state.space(as_id)?.slots_gen)
    }

    /// The slots in array order: descending base.
    pub fn slots(&self, as_id: u8) -> Result<Vec<SlotSpec>> {
        Ok(self.state.space(as_id)?.specs().to_vec())
    }

    /// The slot of a gfn, an invalid one as well.
    #[inline]
    pub fn find_slot(&self, as_id: u8, gfn: u64) -> Result<Option<SlotSpec>> {
        let space = self.state.space(as_id)?;
        Ok(space.find(Gfn(gfn)).map(|at| space.specs()[at]))
    }

    /// The address space whose slots a vCPU sees.
    #[inline]
    pub fn as_id(&self, vcpu: u16) -> Result<u8> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        Ok(self.state.vcpus[vcpu].as_id())
    }

    /// Pages of all slots of both address spaces.
    #[must_use]
    pub fn total_slot_pages(&self) -> u64 {
        self.state.spaces.iter().flat_map(vm::slots::AddressSpace::specs).map(|spec| spec.npages).sum()
    }

    // ---- limits ----

    /// Sets the limit and zaps down to it as far as that goes.
    pub fn change_mmu_pages(&mut self, goal: u64) -> Result<()> {
        self.told(OpKind::Reclaim, |state| state.change_mmu_pages(goal));
        Ok(())
    }

    /// Notes the limit user space asked for; 0 is none.
    pub const fn set_requested_mmu_pages(&mut self, n: u64) {
        self.state.requested = n;
    }

    /// The limit user space asked for.
    #[must_use]
    pub const fn requested_mmu_pages(&self) -> u64 {
        self.state.requested
    }

    /// Shadow pages in use.
    #[must_use]
    pub const fn used_mmu_pages(&self) -> u64 {
        self.state.used
    }

    /// The limit in force.
    #[must_use]
    pub const fn max_mmu_pages(&self) -> u64 {
        self.state.max
    }

    /// Stores the limit, nothing else.
    pub const fn set_max_raw(&mut self, n: u64) {
        self.state.max = n;
    }

    /// A shrinker scan; how many pages it freed.
    pub fn shrink(&mut self, nr_to_scan: u64) -> u64 {
        self.told(OpKind::Reclaim, |state| state.shrink(nr_to_scan))
    }

    /// Zaps the oldest pages that are no roots in use; how many (v6.1 and later).
    pub fn zap_oldest(&mut self, nr_to_zap: u64) -> Result<u64> {
        if !self.state.config.kernel.reclaim_skips_roots {
            return Err(Error::NeedsKernel { what: "zap_oldest", kernels: "v6.1 or later" });
        }
        Ok(self.told(OpKind::Reclaim, |state| state.zap_oldest_mmu_pages(nr_to_zap)))
    }

    // ---- host memory ----

    /// Sets the state of host pages.
    pub fn set_host_state(&mut self, hva: u64, npages: u64, state: HostState) {
        self.state.host.set_state(Pfn::of_hva(hva), npages, state);
    }

    /// Sets how host pages are mapped.
    pub fn set_host_huge(&mut self, hva: u64, npages: u64, kind: HostHuge) {
        self.state.host.set_huge(Pfn::of_hva(hva), npages, kind);
    }

    /// The host takes memory back; `end` exclusive.
    pub fn unmap_hva(&mut self, start: u64, end: u64) {
        self.begin(OpKind::Unmap, Some((start, end)));
        self.state.unmap_hva(start, end);
        self.end();
    }

    /// The memory that was taken back is gone: faults of the range go on. After a [`Task::UnmapHva`], whose faults retry.
    pub fn finish_unmap(&mut self, start: u64, end: u64) {
        self.state.finish_unmap(start, end);
    }

    /// 1 if any mapping of the range was accessed; forgets that it was.
    pub fn age_hva(&mut self, start: u64, end: u64, flush: bool) -> i32 {
        i32::from(self.told(OpKind::Age, |state| state.age_hva(start, end, flush)))
    }

    /// 1 if any mapping of the page was accessed.
    pub fn test_age_hva(&mut self, hva: u64) -> i32 {
        i32::from(self.state.test_age_hva(hva))
    }

    /// The host maps another frame at the address.
    pub fn change_pte(&mut self, hva: u64, pfn: u64, write: bool) -> Result<()> {
        if !self.state.config.kernel.has_change_pte {
            return Err(Error::NeedsKernel { what: "change_pte", kernels: "v6.1 or older" });
        }
        if words::spte::mmio::is_mmio(&self.state.masks, Pfn(pfn).hva() & words::spte::layout::PFN_FIELD | 1) {
            return Err(Error::Frame(pfn));
        }
        let kind = if write { OpKind::ChangeWrite } else { OpKind::ChangeRead };
        self.told(kind, |state| state.change_pte(hva, Pfn(pfn), write));
        Ok(())
    }

    /// The processor used these gfns, or wrote them, through leaves of the TDP MMU that allow it, and KVM was not told.
    pub fn processor_sets(&mut self, as_id: u8, gfns: &[u64], is_write: bool) -> Result<()> {
        self.state.space(as_id)?;
        self.state.tdp_set_by_processor(as_id, gfns, is_write);
        Ok(())
    }

    // ---- dirty log, write tracking ----

    /// Return value and words of the dirty bitmap; nobody else is there where the lock is dropped.
    pub fn get_dirty_log(&mut self, as_id: u8, id: u32, manual: bool) -> Result<DirtyLog> {
        self.run_dirty_log(as_id, id, DirtyLogTask::Get { manual })?;
        Ok(self.take_dirty_log())
    }

    /// What the dirty log that was read last said; once.
    pub fn take_dirty_log(&mut self) -> DirtyLog {
        std::mem::take(&mut self.state.log_read)
    }

    /// Clears bits of the dirty bitmap and protects those pages.
    pub fn clear_dirty_log(&mut self, as_id: u8, id: u32, first: u64, num: u64, mask: &[u64]) -> Result<i32> {
        self.run_dirty_log(as_id, id, DirtyLogTask::Clear { first, num, mask: mask.to_vec() })
    }

    fn run_dirty_log(&mut self, as_id: u8, id: u32, what: DirtyLogTask) -> Result<i32> {
        let mut progress = self.start(Task::DirtyLog { as_id, id, what })?;
        loop {
            match progress {
                Progress::Done(report) => return Ok(i32::try_from(report.ret).unwrap_or(0)),
                Progress::LockBreak(run) | Progress::Slice(run) => progress = self.resume(run)?,
            }
        }
    }

    /// Protects up to 64 pages of a slot; never flushes.
    pub fn pt_masked(&mut self, as_id: u8, id: u32, offset: u64, mask: u64, what: PtMasked) -> Result<i32> {
        if what == PtMasked::EnableLogDirty {
            return self.dirty_masked(as_id, id, offset, mask);
        }
        self.told(OpKind::Inner, |state| state.pt_masked(as_id, id, offset, mask, what))
    }

    /// Write-protects one gfn from this level up, as page tracking does; never flushes. 1 if TLBs may hold it writable.
    pub fn gfn_write_protect(&mut self, as_id: u8, gfn: u64, least_level: u8) -> Result<i32> {
        self.told(OpKind::Inner, |state| state.gfn_write_protect(as_id, Gfn(gfn), least_level))
    }

    /// Adds or removes a write-tracked gfn.
    pub fn track(&mut self, as_id: u8, gfn: u64, on: bool) -> Result<i32> {
        self.told(OpKind::Track, |state| state.track(as_id, Gfn(gfn), on))
    }

    /// Flushes the gfns of a slot; nothing if it is not there.
    pub fn flush_slot(&mut self, as_id: u8, id: u32) -> Result<()> {
        if let Some(slot) = self.state.find_slot_id(as_id, id)? {
            self.state.flush_slot(slot);
        }
        Ok(())
    }

    /// Every vCPU is to switch its processor's own dirty log.
    pub fn request_cpu_dirty_logging(&mut self) {
        for vcpu in &mut self.state.vcpus {
            vcpu.requests |= vm::vcpu_mmu::REQ_UPDATE_CPU_DIRTY_LOGGING;
        }
    }

    /// The parameter `eager_page_split`: large leaves of the TDP MMU are split when a dirty log starts or is cleared.
    pub const fn set_eager_split(&mut self, on: bool) {
        self.state.tdp.is_eager_split = on;
    }

    /// Whether they are.
    #[must_use]
    pub const fn is_eager_split(&self) -> bool {
        self.state.tdp.is_eager_split
    }

    /// Large leaves are never executable from now on, or may be.
    pub const fn set_nx_huge_pages(&mut self, on: bool) {
        self.state.config.nx_huge_pages = on;
    }

    /// Maps what covers an address ahead of the guest: bytes mapped, or a negative errno (v6.12 and later).
    pub fn prefault(&mut self, vcpu: u16, gpa: u64, size: u64, host: &HostLookup) -> Result<i64> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        if !self.state.config.kernel.has_prefault {
            return Err(Error::NeedsKernel { what: "prefault", kernels: "v6.12 or later" });
        }
        self.told(OpKind::Access, |state| state.prefault(vcpu, gpa, size, host))
    }

    /// Whether new dirty bitmaps start full, and large leaves are protected only when their pages are cleared.
    pub const fn set_dirty_log_initially_set(&mut self, on: bool) {
        self.state.is_log_initially_set = on;
    }

    /// Whether new dirty bitmaps start full.
    #[must_use]
    pub const fn is_dirty_log_initially_set(&self) -> bool {
        self.state.is_log_initially_set
    }

    /// Protects up to 64 pages of a slot whose dirty log was read or cleared; never flushes.
    pub fn dirty_masked(&mut self, as_id: u8, id: u32, offset: u64, mask: u64) -> Result<i32> {
        self.run_dirty_log(as_id, id, DirtyLogTask::Masked { offset, mask })
    }

    /// Flushes what TLBs hold of a slot, as a read or cleared dirty log does at its end; true if there is the slot.
    pub fn flush_slot_tlbs(&mut self, as_id: u8, id: u32) -> Result<bool> {
        let slot = self.state.find_slot_id(as_id, id)?;
        if let Some(slot) = slot {
            self.state.flush_slot(slot);
        }
        Ok(slot.is_some())
    }

    // ---- what the caller's policy did, for the log ----

    /// The kernel is told that the slots have another generation (kernels with probes).
    pub fn push_memslots_updated(&mut self, slots_gen: u64) {
        self.push_probe(Event::MemslotsUpdated { slots_gen });
    }

    /// The generation is looked at for a wrap (kernels with probes).
    pub fn push_invalidate_mmio(&mut self, slots_gen: u64) {
        self.push_probe(Event::InvalidateMmio { slots_gen });
    }

    /// A slot is about to be zapped (kernels with probes).
    pub fn push_flush_shadow_memslot(&mut self) {
        self.push_probe(Event::FlushShadowMemslot);
    }

    fn push_probe(&mut self, event: Event) {
        if self.state.config.probes {
            self.state.events.push(|| event);
        }
    }

    // ---- lock polls and resumable work ----

    /// Every `cond`-th offer of the lock is taken, and the one after every `need`-th poll; 0 is never. Resets the counts.
    pub fn set_lock_break(&mut self, cond: u64, need: u64) {
        self.state.polls.set(cond, need);
        if !self.state.config.is_stepped() {
            self.state.stats.cond_resched = 0;
            self.state.stats.need_resched = 0;
        }
    }

    /// The lock counts as contended at every so-manieth poll that asks for it (v6.1 and later); 0 is never.
    pub const fn set_contended(&mut self, every: u64) {
        self.state.polls.set_contend(every);
    }

    /// Every so-manieth table that a split allocates with the lock dropped counts as a lock break (v6.12 and later).
    pub const fn set_alloc_break(&mut self, every: u64) {
        self.state.polls.set_alloc(every);
    }

    /// Breaks since `set_lock_break`.
    #[must_use]
    pub const fn lock_break_index(&self) -> u64 {
        self.state.polls.breaks()
    }

    /// Work that may drop the lock also comes back after about so many steps, as [`Progress::Slice`]; 0 (at first): never.
    pub const fn set_slice(&mut self, steps: u64) {
        self.state.slice.set(steps);
    }

    /// Starts work that may drop the lock.
    pub fn start(&mut self, task: Task) -> Result<Progress> {
        if self.state.ghost.is_none() {
            return self.state.start(task);
        }
        let (kind, taken) = match &task {
            Task::Zap { .. } | Task::ZapGfnRange { .. } => (OpKind::Zap, None),
            Task::Guest { .. } => (OpKind::Access, None),
            Task::NxRecover { .. } => (OpKind::Reclaim, None),
            Task::SlotWalk { .. } | Task::DirtyLog { what: DirtyLogTask::Masked { .. }, .. } => (OpKind::Inner, None),
            Task::DirtyLog { .. } => (OpKind::DirtyLog, None),
            Task::UnmapHva { start, end, .. } => (OpKind::Unmap, Some((*start, *end))),
        };
        self.begin(kind, taken);
        let progress = self.state.start(task);
        self.settle(progress)
    }

    /// Goes on after a lock break or a slice.
    pub fn resume(&mut self, run: RunId) -> Result<Progress> {
        if let Some(ghost) = &mut self.state.ghost {
            ghost.unpark(run.0);
            let progress = self.state.resume(run);
            return self.settle(progress);
        }
        self.state.resume(run)
    }

    /// Gives a waiting run up; what it prepared is flushed and freed.
    pub fn abandon(&mut self, run: RunId) -> Result<RunReport> {
        if let Some(ghost) = &mut self.state.ghost {
            ghost.unpark(run.0);
        }
        let report = self.state.abandon(run);
        self.end();
        report
    }

    /// Logs that nested operations begin: 1 in a lock break, 2 in a publication.
    pub fn push_nested_begin(&mut self, kind: u8) {
        self.state.events.push(|| Event::NestedBegin { kind });
    }

    /// Logs that they ended.
    pub fn push_nested_end(&mut self, kind: u8) {
        self.state.events.push(|| Event::NestedEnd { kind });
    }

    /// Begins a zap loop of the caller's own.
    pub fn batch_begin(&mut self) -> BatchId {
        self.state.batch_begin()
    }

    /// Prepares one page of the active list in it.
    pub fn batch_prepare(&mut self, batch: BatchId, page: u32) -> Result<Prepared> {
        self.told(OpKind::Inner, |state| state.batch_prepare(batch, page))
    }

    /// Flushes, then frees what it prepared.
    pub fn batch_commit(&mut self, batch: BatchId) -> Result<RunReport> {
        self.told(OpKind::Zap, |state| state.batch_commit(batch))
    }

    /// Begins a counted walk of the active list: its first page, not yet visited.
    pub fn active_begin(&mut self, from_tail: bool) -> Option<u32> {
        self.state.count_walk_start();
        let page = if from_tail { self.state.active.tail() } else { self.state.active.head() };
        page.some().map(|page| self.state.arena.key(page).id)
    }

    /// Visits a page of a counted walk and notes the one after it, as a safe walk does; an error if it has left the list.
    pub fn active_visit(&mut self, page: u32, from_tail: bool) -> Result<Option<u32>> {
        let page = self.state.find_active(page)?;
        self.state.count_visit(page);
        let next = if from_tail { self.state.active.prev(page) } else { self.state.active.next(page) };
        Ok(next.some().map(|next| self.state.arena.key(next).id))
    }

    /// Facts of a live page that loops over many pages ask for: MMIO-caching, invalid, obsolete, in use as root.
    #[must_use]
    pub fn page_facts(&self, id: u32) -> Option<[bool; 4]> {
        let page = self.state.arena.find_id(id)?;
        let key = self.state.arena.key(page);
        let is_in_use = self.state.arena.page(page).root_count > 0;
        Some([self.state.active.is_mmio_cached(page), key.role.invalid(), self.state.is_obsolete(page), is_in_use])
    }

    /// The whole state as bytes, with version, profile, a note of the caller's and a checksum; events are left out.
    pub fn to_bytes(&self, note: &str) -> Result<Vec<u8>> {
        self.state.to_bytes(note)
    }

    /// The VM of such bytes, and the note; refused when foreign, damaged, cut short or broken inside.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, String)> {
        let (state, note) = MmuState::from_bytes(bytes)?;
        Ok((Self { state, summed: None }, note))
    }

    /// Fills a new VM, whose slots are installed, with what was read of a real one; refused where it is broken inside.
    pub fn restore(&mut self, found: &Found) -> Result<()> {
        self.state.restore(found)
    }

    /// How many pages stand on the active list.
    #[must_use]
    pub fn nr_active_pages(&self) -> usize {
        self.state.active.iter().count()
    }

    /// Runs that wait at a lock break.
    #[must_use]
    pub fn nr_paused_runs(&self) -> usize {
        self.state.nr_paused_runs()
    }

    // ---- the judge ----

    /// Begins to remember what the judge needs, or forgets it. What is there counts as mapped just now, and as flushed.
    pub fn set_judged(&mut self, on: bool) {
        self.state.set_judged(on);
    }

    /// Whether a ghost listens.
    #[must_use]
    pub const fn is_judged(&self) -> bool {
        self.state.ghost.is_some()
    }

    /// Adds the state that decides about what is to come to a hash; with `has_accessed` accessed bits decide, too.
    pub fn canonical(&self, to: &mut Hash128, has_accessed: bool) {
        self.state.canonical(to, has_accessed);
    }

    /// Every property of a state that does not hold, and how much there was that could have broken them.
    #[must_use]
    pub fn judge_state(&self) -> (Vec<Finding>, Premises) {
        self.state.judge_found()
    }

    /// How often what a property is about has happened.
    #[must_use]
    pub fn premises(&self) -> Premises {
        self.state.ghost.as_ref().map_or_else(Premises::default, |ghost| ghost.premises)
    }

    /// The first property of mappings and vCPUs that does not hold: what is looked at after every step of a long search.
    #[must_use]
    pub fn judge_step(&self) -> Option<Finding> {
        self.state.judge_step()
    }

    /// Whether a flush is owed.
    #[must_use]
    pub fn owes_flush(&self) -> bool {
        self.state.ghost.as_ref().is_some_and(|ghost| ghost.debts.iter().next().is_some())
    }

    /// Whether a gfn is tracked in an address space; nothing where there is no slot.
    #[must_use]
    pub fn is_tracked(&self, as_id: u8, gfn: u64) -> Option<bool> {
        let slot = self.state.find_slot(as_id, Gfn(gfn))?;
        let index = gfn - self.state.slot_spec(slot).base;
        Some(self.state.slot_body(slot).track.contains_key(&index))
    }

    /// How many pages that shadow a guest's tables are out of sync.
    #[must_use]
    pub fn nr_unsync(&self) -> usize {
        if self.state.nr_indirect == 0 {
            return 0;
        }
        self.state.active.iter().filter(|&page| self.state.arena.page(page).unsync).count()
    }

    /// Whether a vCPU has a root.
    #[must_use]
    pub fn has_root(&self, vcpu: u16) -> bool {
        self.state.check_vcpu(vcpu).is_ok_and(|vcpu| self.state.vcpus[vcpu].roots().next().is_some())
    }

    /// What kind of state this is, in 63 bits: small numbers of pages, entries, debts and what waits.
    #[must_use]
    pub fn coverage_key(&self) -> u64 {
        self.state.coverage_key()
    }

    /// Every property that does not hold, those of the moment first; nothing without a ghost.
    #[must_use]
    pub fn judge(&self) -> Vec<Finding> {
        self.state.judge()
    }

    /// What was found as it happened, whose operation was to blame, and nothing of it any more.
    pub fn take_broken(&mut self) -> Vec<Broken> {
        self.state.ghost.as_mut().map_or_else(Vec::new, |ghost| std::mem::take(&mut ghost.broken))
    }

    /// A memslot update begins: until it ends its steps are its own, and operations between them are others'. With
    /// `takes`, the slot as it is goes.
    pub fn begin_update(&mut self, as_id: u8, id: u32, takes: bool) {
        let slot = self.state.find_slot_id(as_id, id).ok().flatten().filter(|_| takes);
        let promise = slot.map(|slot| (as_id, self.state.slot_spec(slot).base, self.state.slot_spec(slot).npages));
        if let Some(ghost) = &mut self.state.ghost {
            ghost.ops.begin_update(promise.as_slice());
        }
    }

    /// The update has returned.
    pub fn end_update(&mut self) {
        if let Some(ghost) = &mut self.state.ghost {
            ghost.ops.end_update();
            ghost.end();
        }
    }

    /// Does something as an operation of its own.
    #[inline]
    fn told<T>(&mut self, kind: OpKind, work: impl FnOnce(&mut MmuState) -> T) -> T {
        self.begin(kind, None);
        let done = work(&mut self.state);
        self.end();
        done
    }

    /// An operation begins; the host addresses that it takes away.
    #[inline]
    fn begin(&mut self, kind: OpKind, taken: Option<(u64, u64)>) {
        if self.state.ghost.is_some() {
            let promise = taken.map_or_else(Vec::new, |(start, end)| self.state.gfns_of_hva(start, end));
            if let Some(ghost) = &mut self.state.ghost {
                ghost.begin(kind, &promise);
            }
        }
    }

    #[inline]
    fn end(&mut self) {
        if let Some(ghost) = &mut self.state.ghost {
            ghost.end();
        }
    }

    /// The operation that runs is over, or waits.
    fn settle(&mut self, progress: Result<Progress>) -> Result<Progress> {
        if let (Ok(Progress::LockBreak(run) | Progress::Slice(run)), Some(ghost)) =
            (progress.as_ref(), &mut self.state.ghost)
        {
            ghost.park(run.0);
        } else {
            self.end();
        }
        progress
    }

    // ---- watchers ----

    /// MMIO SPTEs of any generation on active pages up to a creation number.
    #[must_use]
    pub fn count_mmio_sptes(&self, last_page: u32) -> u64 {
        self.state.count_mmio_sptes(last_page)
    }

    /// Leaves that map a gfn of a slot on active pages up to a creation number; 0 for a slot that is not there.
    pub fn count_mappings(&self, as_id: u8, id: u32, last_page: u32) -> Result<u64> {
        self.state.count_mappings(as_id, id, last_page)
    }

    /// The tables of the TDP MMU, roots first, newest first otherwise: creation number, level, and whether one holds an
    /// MMIO SPTE.
    #[must_use]
    pub fn tdp_tables(&self) -> Vec<(u32, u8, bool)> {
        self.state.tdp_table_facts()
    }

    /// How many roots the TDP MMU has, and how many tables below them.
    #[must_use]
    pub fn nr_tdp_tables(&self) -> (usize, u64) {
        (self.state.tdp.roots.len(), self.state.tdp.nr_tables)
    }

    /// A copy of a page, while it lives.
    #[must_use]
    pub fn page(&self, id: u32) -> Option<PageView> {
        self.state.page_view(id)
    }

    /// Level and word of the entry a walk for this address ends on, without vCPU entry; nothing without a root.
    pub fn translate(&self, vcpu: u16, gpa: u64) -> Result<Option<(u8, u64)>> {
        let vcpu = self.state.check_vcpu(vcpu)?;
        let root = self.state.vcpus[vcpu].root.some();
        Ok(root.map(|root| self.state.walk_down(root, gpa, 1)).map(|walked| (walked.level, walked.spte)))
    }

    /// Id of the valid page with this gfn and role, found as a fault would find it.
    pub fn find_page(&mut self, gfn: u64, role: u32) -> Option<u32> {
        let page = self.state.find_page(Gfn(gfn), self.state.config.kernel.role_layout.unpack(role))?;
        Some(self.state.arena.key(page).id)
    }

    /// Ids of the active list from the newest; not counted as a walk.
    #[must_use]
    pub fn active_page_ids(&self) -> Vec<u32> {
        self.state.active.iter().map(|page| self.state.arena.key(page).id).collect()
    }

    /// A copy of a vCPU.
    pub fn vcpu(&self, vcpu: u16) -> Result<VcpuView> {
        self.state.vcpu_view(vcpu)
    }

    /// Running numbers behind a line's `ctr`.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.state.stats
    }

    /// Exact work counters.
    #[must_use]
    pub const fn work(&self) -> Work {
        self.state.work
    }

    /// The events kept, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.state.events.iter()
    }

    /// The events in the vectors' form.
    #[must_use]
    pub fn events_json(&self) -> String {
        let write = if self.state.config.is_stepped() { Event::write_json_stepped } else { Event::write_json };
        self.state.events.json(write)
    }

    /// The events as recordings are compared with them: of pages and walks all that tracepoints say.
    #[must_use]
    pub fn events_json_traced(&self) -> String {
        self.state.events.json(Event::write_json_traced)
    }

    /// The events with every field.
    #[must_use]
    pub fn events_json_rich(&self) -> String {
        self.state.events.json(Event::write_json_rich)
    }

    /// Forgets the events.
    pub fn clear_events(&mut self) {
        self.state.events.clear();
    }

    /// The vectors' dump as canonical JSON.
    #[must_use]
    pub fn state_json(&self) -> String {
        self.state.state_json()
    }

    /// First sixteen hex digits of the dump's SHA-256.
    #[must_use]
    pub fn digest(&self) -> String {
        self.state.digest()
    }

    /// A hash of the state that costs what was changed since it was last asked for: VMs that went the same way have the same,
    /// and VMs of one fingerprint have the same dump, but for the order in reverse maps and lists of parents.
    pub fn fingerprint(&mut self) -> u128 {
        self.state.fingerprint(&mut self.summed)
    }

    /// Every broken invariant, by name.
    #[must_use]
    pub fn audit(&self) -> Vec<Finding> {
        self.state.audit()
    }

    /// Bytes held, by kind.
    #[must_use]
    pub fn memory(&self) -> MemoryReport {
        self.state.memory()
    }
}
