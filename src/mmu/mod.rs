//! The core: the structures and operations of KVM's x86 shadow MMU, v5.0 to v5.2, direct paging.
//!
//! [`Mmu`] is the facade: one method per thing that can happen to the MMU. It holds what is stored, encoded, walked and
//! zapped; which slot, which generation, which plan and in what order is the caller's. No I/O, no clock, no randomness;
//! no method panics, whatever the arguments.

pub mod config;
pub mod error;
pub mod events;
pub mod generation;
pub mod plan;
pub mod profile;
pub mod role;
pub mod spte;
pub mod stats;
pub mod views;
pub mod work;

pub use config::{Config, EventMode, Family, GfnHash};
pub use error::{Error, Result};
pub use events::{Event, Events, PageFacts};
pub use generation::{GenerationField, GenerationLayout};
pub use plan::{BeforeDrop, Offer, Only, Plans, ReloadRoots, RestartRules, Skip, Stop, Walk, ZapPlan};
pub use profile::KernelProfile;
pub use role::Role;
pub use spte::masks::Masks;
pub use stats::Stats;
pub use views::{
    AccessKind, AccessResult, BatchId, Finding, HostHuge, HostState, MemoryReport, Outcome, PageView, Prepared,
    Progress, PtMasked, RunId, RunOutcome, RunReport, SlotChange, SlotSpec, SlotWalk, Task, VcpuView, named_masks,
};
pub use work::Work;

/// One VM's MMU. `Clone` is a deep, independent copy.
#[derive(Clone, Debug)]
pub struct Mmu {
    config: Config,
    masks: Masks,
    events: Events,
    stats: Stats,
    work: Work,
}

#[allow(unused_variables, missing_docs, clippy::all, clippy::pedantic)]
impl Mmu {
    /// A VM without slots and without shadow pages; both generations are 0 until set.
    pub fn new(config: Config) -> Result<Self> {
        config.check()?;
        let masks = Masks::new(config.family, config.phys_bits, config.execonly);
        let events = Events::new(config.events);
        Ok(Self { config, masks, events, stats: Stats::default(), work: Work::default() })
    }
    pub fn config(&self) -> &Config { &self.config }
    pub fn masks(&self) -> &Masks { &self.masks }
    pub fn plans(&self) -> &Plans { &self.config.plans }
    pub fn set_plans(&mut self, plans: Plans) { self.config.plans = plans; }

    pub fn access(&mut self, vcpu: u16, gpa: u64, kind: AccessKind) -> Result<AccessResult> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }
    pub fn fault(&mut self, vcpu: u16, gpa: u64, error_code: u64) -> Result<i32> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }
    pub fn enter(&mut self, vcpu: u16) -> Result<i32> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }
    pub fn load(&mut self, vcpu: u16) -> Result<i32> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }
    pub fn unload(&mut self, vcpu: u16) -> Result<()> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }
    pub fn set_smm(&mut self, vcpu: u16, on: bool) -> Result<()> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }
    pub fn set_regs(&mut self, vcpu: u16, cr0: Option<u64>, cr4: Option<u64>, efer: Option<u64>, smm: Option<bool>) -> Result<()> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }
    pub fn clear_mmio_info(&mut self, vcpu: u16) -> Result<()> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }

    pub fn install_slot(&mut self, as_id: u8, generation: u64, change: SlotChange) -> Result<()> { Err(Error::AddressSpace(as_id)) }
    pub fn set_generation(&mut self, as_id: u8, generation: u64) -> Result<()> { Err(Error::AddressSpace(as_id)) }
    pub fn generation(&self, as_id: u8) -> Result<u64> { Err(Error::AddressSpace(as_id)) }
    pub fn slots(&self, as_id: u8) -> Result<Vec<SlotSpec>> { Err(Error::AddressSpace(as_id)) }
    pub fn total_slot_pages(&self) -> u64 { 0 }

    pub fn change_mmu_pages(&mut self, goal: u64) -> Result<()> { Ok(()) }
    pub fn set_requested_mmu_pages(&mut self, n: u64) {}
    pub fn requested_mmu_pages(&self) -> u64 { 0 }
    pub fn used_mmu_pages(&self) -> u64 { 0 }
    pub fn max_mmu_pages(&self) -> u64 { 0 }
    pub fn set_max_raw(&mut self, n: u64) {}
    pub fn shrink(&mut self, nr_to_scan: u64) -> u64 { 0 }

    pub fn set_host_state(&mut self, hva: u64, npages: u64, state: HostState) {}
    pub fn set_host_huge(&mut self, hva: u64, npages: u64, kind: HostHuge) {}

    pub fn unmap_hva(&mut self, start: u64, end: u64) {}
    pub fn age_hva(&mut self, start: u64, end: u64, flush: bool) -> i32 { 0 }
    pub fn test_age_hva(&mut self, hva: u64) -> i32 { 0 }
    pub fn change_pte(&mut self, hva: u64, pfn: u64, write: bool) {}
    pub fn get_dirty_log(&mut self, as_id: u8, id: u32, manual: bool) -> Result<(i32, Vec<u64>)> { Err(Error::AddressSpace(as_id)) }
    pub fn clear_dirty_log(&mut self, as_id: u8, id: u32, first: u64, num: u64, mask: &[u64]) -> Result<i32> { Err(Error::AddressSpace(as_id)) }
    pub fn pt_masked(&mut self, as_id: u8, id: u32, offset: u64, mask: u64, what: PtMasked) -> Result<i32> { Err(Error::AddressSpace(as_id)) }
    pub fn gfn_write_protect(&mut self, as_id: u8, gfn: u64) -> Result<i32> { Err(Error::AddressSpace(as_id)) }
    pub fn track(&mut self, as_id: u8, gfn: u64, on: bool) -> Result<i32> { Err(Error::AddressSpace(as_id)) }

    pub fn set_lock_break(&mut self, cond: u64, need: u64) {}
    pub fn lock_break_index(&self) -> u64 { 0 }

    pub fn start(&mut self, task: Task) -> Result<Progress> { Err(Error::Run(0)) }
    pub fn resume(&mut self, run: RunId) -> Result<Progress> { Err(Error::Run(run.0)) }
    pub fn abandon(&mut self, run: RunId) -> Result<RunReport> { Err(Error::Run(run.0)) }
    pub fn push_nested_begin(&mut self, kind: u8) { self.events.push(|| Event::NestedBegin { kind }); }
    pub fn push_nested_end(&mut self, kind: u8) { self.events.push(|| Event::NestedEnd { kind }); }

    pub fn batch_begin(&mut self) -> BatchId { BatchId(0) }
    pub fn batch_prepare(&mut self, batch: BatchId, page: u32) -> Result<Prepared> { Err(Error::Batch(batch.0)) }
    pub fn batch_commit(&mut self, batch: BatchId) -> Result<RunReport> { Err(Error::Batch(batch.0)) }
    pub fn active_first(&mut self, from_tail: bool) -> Option<u32> { None }
    pub fn active_next(&mut self, page: u32, from_tail: bool) -> Result<Option<u32>> { Err(Error::Page(page)) }

    pub fn page(&self, id: u32) -> Option<PageView> { None }
    pub fn active_page_ids(&self) -> Vec<u32> { Vec::new() }
    pub fn vcpu(&self, vcpu: u16) -> Result<VcpuView> { Err(Error::Vcpu { vcpu, vcpus: 0 }) }
    pub fn stats(&self) -> Stats { self.stats }
    pub fn work(&self) -> Work { self.work }
    pub fn events(&self) -> impl Iterator<Item = &Event> { self.events.iter() }
    pub fn events_json(&self) -> String { self.events.json(Event::write_json) }
    pub fn events_json_rich(&self) -> String { self.events.json(Event::write_json_rich) }
    pub fn clear_events(&mut self) { self.events.clear(); }
    pub fn state_json(&self) -> String { String::from("{}") }
    pub fn digest(&self) -> String { String::new() }
    pub fn audit(&self) -> Vec<Finding> { Vec::new() }
    pub fn memory(&self) -> MemoryReport { MemoryReport::default() }
}
