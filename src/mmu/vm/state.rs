//! `MmuState`: owns the nouns of one VM. No logic beyond what every operation needs: flush requests and slot lookups.

use std::cell::Cell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kernels::{FaultOrder, PteListOrder};
use crate::mmu::ghost::memory::Ghost;
use crate::mmu::pages::last_path::{LastHardware, LastPath};
use crate::mmu::pages::page_arena::{PageArena, PageIdx, Sptep};
use crate::mmu::pages::pte_list::PteLists;
use crate::mmu::shadow::active_pages::ActivePages;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::shadow::mmio_pages::MmioPages;
use crate::mmu::shadow::page_hash::PageHash;
use crate::mmu::tdp::root_list::RootList;
use crate::mmu::vm::debt::Debt;
use crate::mmu::vm::events::{Event, Events, PageFacts};
use crate::mmu::vm::guest_memory::GuestMemory;
use crate::mmu::vm::host_memory::HostMemory;
use crate::mmu::vm::invalidation::Invalidation;
use crate::mmu::vm::lock_polls::LockPolls;
use crate::mmu::vm::nx_list::NxList;
use crate::mmu::vm::runs::Runs;
use crate::mmu::vm::slice::Slice;
use crate::mmu::vm::slots::{AddressSpace, SlotAt};
use crate::mmu::vm::vcpu_mmu::{REQ_MMU_RELOAD, REQ_TLB_FLUSH, VcpuMmu};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::config::{Config, Family};
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::generation::GenerationCodec;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::masks::Masks;
use crate::mmu::words::stats::Stats;
use crate::mmu::words::views::{AccessResult, DirtyLog, Outcome};
use crate::mmu::words::work::Work;

/// What a root of level 4 reaches.
const ROOT_4_GFN_BITS: u32 = 36;
/// What four directories reach.
const PAE_GFN_BITS: u32 = 20;

/// What of the TDP MMU is not in the tables themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TdpMmu {
    pub(in crate::mmu) roots: RootList,
    /// Tables below roots.
    pub(in crate::mmu) nr_tables: u64,
    /// Tables that NX recovery counts.
    pub(in crate::mmu) nr_nx_possible: u64,
    /// The parameter `eager_page_split`.
    pub(in crate::mmu) is_eager_split: bool,
}

impl Default for TdpMmu {
    fn default() -> Self {
        Self { roots: RootList::default(), nr_tables: 0, nr_nx_possible: 0, is_eager_split: true }
    }
}

/// Everything a VM's MMU holds.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact")]
pub struct MmuState {
    pub(in crate::mmu) config: Config,
    /// The steps of a page fault, as the kernel's row has them.
    pub(in crate::mmu) fault_order: FaultOrder,
    pub(in crate::mmu) masks: Masks,
    /// gfns below this many bits lie in the range of the roots, so that a table's gfn and index give the gfn mapped.
    pub(in crate::mmu) root_gfn_bits: u32,
    /// A table was made for a gfn beyond them: others may come to be reached through it.
    pub(in crate::mmu) has_high_pages: bool,
    pub(in crate::mmu) generation: GenerationCodec,
    pub(in crate::mmu) arena: PageArena,
    pub(in crate::mmu) hash: PageHash,
    pub(in crate::mmu) active: ActivePages,
    pub(in crate::mmu) mmio_pages: MmioPages,
    pub(in crate::mmu) pte_lists: PteLists,
    pub(in crate::mmu) spaces: [AddressSpace; 2],
    pub(in crate::mmu) vcpus: Vec<VcpuMmu>,
    pub(in crate::mmu) host: HostMemory,
    /// What the guest's memory holds, by host address.
    pub(in crate::mmu) guest_memory: GuestMemory,
    pub(in crate::mmu) polls: LockPolls,
    pub(in crate::mmu) events: Events,
    pub(in crate::mmu) stats: Stats,
    pub(in crate::mmu) work: Work,
    pub(in crate::mmu) valid_gen: u64,
    pub(in crate::mmu) used: u64,
    pub(in crate::mmu) max: u64,
    pub(in crate::mmu) requested: u64,
    /// Shadow pages of tables of the guest.
    pub(in crate::mmu) nr_indirect: u64,
    /// Entries that a sync dropped, with no full flush since.
    pub(in crate::mmu) tlbs_dirty: u64,
    pub(in crate::mmu) zapped_obsolete: InvalidList,
    /// gfns of leaves whose table was made for another gfn, which an address above the root's range does.
    pub(in crate::mmu) aliased: BTreeMap<Sptep, Gfn>,
    /// Reverse maps may name entries that map nothing, or another gfn: an old kernel left them there.
    pub(in crate::mmu) has_dangling: bool,
    /// The VM is dead: the kernel met what it holds impossible.
    pub(in crate::mmu) is_bugged: bool,
    /// Calls reported that their callers must flush this, and no such flush has come since.
    pub(in crate::mmu) owed: Debt,
    /// A root was loaded over another, whose count stays.
    pub(in crate::mmu) is_root_leaked: bool,
    /// New dirty bitmaps start full (`KVM_DIRTY_LOG_INITIALLY_SET`).
    pub(in crate::mmu) is_log_initially_set: bool,
    /// What became of the vCPU that was entered last.
    pub(in crate::mmu) guest_result: Result<AccessResult>,
    /// What the dirty log that was read last said.
    pub(in crate::mmu) log_read: DirtyLog,
    /// Invalidations of host memory under way, and how many ended.
    pub(in crate::mmu) invalidation: Invalidation,
    /// Tables that NX recovery would zap, the oldest first.
    pub(in crate::mmu) nx_list: NxList,
    pub(in crate::mmu) tdp: TdpMmu,
    pub(in crate::mmu) runs: Runs,
    pub(in crate::mmu) slice: Slice,
    /// Where the last walk came through.
    pub(in crate::mmu) last_path: Cell<LastPath>,
    /// What the judge remembers, if anybody asked for it.
    pub(in crate::mmu) ghost: Option<Box<Ghost>>,
    /// Where the processor came last.
    pub(in crate::mmu) last_hardware: Cell<LastHardware>,
}

impl MmuState {
    pub(in crate::mmu) fn new(config: Config) -> Result<Self> {
        config.check()?;
        let masks = Masks::of(config.kernel.spte_layout.layout(), config.host());
        let (nr_roots, root_level) = config.roots();
        let root_gfn_bits = if nr_roots > 1 { PAE_GFN_BITS } else { ROOT_4_GFN_BITS };
        let mut vcpu = VcpuMmu::new(root_level, config.kernel.direct_role_bit4, masks.accessed == 0, config.phys_bits);
        if config.shadows_guest() {
            vcpu.build_shadow_context(config.phys_bits, &config.kernel);
        } else if config.kernel.is_role_fixed {
            vcpu.fix_role(config.family != Family::Shadow);
        }
        Ok(Self {
            fault_order: FaultOrder::of(&config.kernel),
            masks,
            root_gfn_bits,
            has_high_pages: false,
            generation: GenerationCodec::new(&config.generation),
            arena: PageArena::default(),
            hash: PageHash::new(config.gfn_hash),
            active: ActivePages::default(),
            mmio_pages: MmioPages::default(),
            pte_lists: PteLists::new(
                config.kernel.pte_list_ext as usize,
                config.kernel.pte_list_order == PteListOrder::Front,
            ),
            spaces: [AddressSpace::default(), AddressSpace::default()],
            vcpus: vec![vcpu; usize::from(config.vcpus)],
            host: HostMemory::default(),
            guest_memory: GuestMemory::default(),
            polls: LockPolls::default(),
            events: Events::new(config.events),
            stats: Stats::default(),
            work: Work::default(),
            valid_gen: 0,
            used: 0,
            max: 0,
            requested: 0,
            nr_indirect: 0,
            tlbs_dirty: 0,
            zapped_obsolete: InvalidList::default(),
            aliased: BTreeMap::new(),
            has_dangling: false,
            is_bugged: false,
            owed: Debt::NONE,
            is_root_leaked: false,
            is_log_initially_set: false,
            guest_result: Ok(AccessResult { outcome: Outcome::Hit, faults: 0, ret: 0 }),
            log_read: DirtyLog::default(),
            invalidation: Invalidation::default(),
            nx_list: NxList::default(),
            tdp: TdpMmu::default(),
            runs: Runs::default(),
            slice: Slice::default(),
            last_path: Cell::default(),
            ghost: None,
            last_hardware: Cell::default(),
            config,
        })
    }

    /// A copy that shares what is large until one of both writes to it.
    pub(in crate::mmu) fn fork(&mut self) -> Self {
        self.arena.lend();
        self.hash.lend();
        self.active.lend();
        self.spaces.iter_mut().for_each(AddressSpace::lend);
        self.events.lend();
        self.clone()
    }

    pub(in crate::mmu) fn check_vcpu(&self, vcpu: u16) -> Result<usize> {
        if vcpu < self.config.vcpus {
            Ok(usize::from(vcpu))
        } else {
            Err(Error::Vcpu { vcpu, vcpus: self.config.vcpus })
        }
    }

    pub(in crate::mmu) fn space(&self, as_id: u8) -> Result<&AddressSpace> {
        self.spaces.get(usize::from(as_id)).ok_or(Error::AddressSpace(as_id))
    }

    pub(in crate::mmu) fn space_mut(&mut self, as_id: u8) -> Result<&mut AddressSpace> {
        self.spaces.get_mut(usize::from(as_id)).ok_or(Error::AddressSpace(as_id))
    }

    /// The slot of a gfn in an address space (0 or 1).
    #[inline]
    pub(in crate::mmu) fn find_slot(&self, as_id: u8, gfn: Gfn) -> Option<SlotAt> {
        self.spaces[usize::from(as_id & 1)].find(gfn).map(|at| SlotAt { as_id, at })
    }

    /// The slot with an id.
    pub(in crate::mmu) fn find_slot_id(&self, as_id: u8, id: u32) -> Result<Option<SlotAt>> {
        Ok(self.space(as_id)?.find_id(id).map(|at| SlotAt { as_id, at }))
    }

    #[inline]
    pub(in crate::mmu) fn slot_spec(&self, slot: SlotAt) -> &crate::mmu::words::views::SlotSpec {
        &self.spaces[usize::from(slot.as_id & 1)].specs()[slot.at]
    }

    #[inline]
    pub(in crate::mmu) fn slot_body(&self, slot: SlotAt) -> &crate::mmu::vm::slots::SlotBody {
        self.spaces[usize::from(slot.as_id & 1)].body(slot.at)
    }

    #[inline]
    pub(in crate::mmu) fn slot_body_mut(&mut self, slot: SlotAt) -> &mut crate::mmu::vm::slots::SlotBody {
        self.spaces[usize::from(slot.as_id & 1)].body_mut(slot.at)
    }

    /// Marks a page dirty in its slot's log.
    #[inline]
    pub(in crate::mmu) fn mark_page_dirty(&mut self, slot: Option<SlotAt>, gfn: Gfn) {
        if let Some(slot) = slot {
            let index = self.slot_spec(slot).index(gfn, 1);
            self.slot_body_mut(slot).mark_dirty(index);
        }
    }

    /// The same for so many neighbours from an index of the slot on.
    pub(in crate::mmu) fn mark_pages_dirty(&mut self, slot: SlotAt, first: u64, count: u64) {
        let body = self.slot_body_mut(slot);
        if body.dirty.is_some() {
            (first..first + count).for_each(|index| body.mark_dirty(index));
        }
    }

    /// Asks every vCPU to flush its TLB before it runs again.
    pub(in crate::mmu) fn flush_remote_tlbs(&mut self) {
        self.events.push(|| Event::Flush);
        self.stats.flush += 1;
        self.work.flushes += 1;
        self.owed = Debt::NONE;
        self.tlbs_dirty = 0;
        for vcpu in &mut self.vcpus {
            vcpu.requests |= REQ_TLB_FLUSH;
        }
        if let Some(ghost) = &mut self.ghost {
            ghost.flushed();
        }
    }

    /// Leaves a flush to the caller.
    pub(in crate::mmu) fn owe(&mut self, debt: Debt) {
        self.owed = self.owed.join(debt);
    }

    /// Leaves a flush of a slot to the caller.
    pub(in crate::mmu) fn owe_slot(&mut self, slot: SlotAt) {
        let spec = self.slot_spec(slot);
        self.owe(Debt::of(Gfn(spec.base), spec.npages));
    }

    /// Flushes a range of gfns through the hook, or everything where there is none.
    pub(in crate::mmu) fn flush_remote_tlbs_with_address(&mut self, gfn: Gfn, pages: u64) {
        if self.config.tdp_mmu && self.config.probes {
            self.events.push(|| Event::FlushRemoteTlbsRange { gfn: gfn.0, pages });
        }
        self.flush_range(gfn, pages);
    }

    /// The same where the call has no function of its own: of a slot.
    pub(in crate::mmu) fn flush_range(&mut self, gfn: Gfn, pages: u64) {
        if !self.config.flush_range {
            self.flush_remote_tlbs();
            return;
        }
        self.events.push(|| Event::FlushRange { gfn: gfn.0, pages });
        self.stats.flush_range += 1;
        self.work.flushes_ranged += 1;
        self.owed = self.owed.after_flush(gfn, pages);
        for vcpu in &mut self.vcpus {
            vcpu.tlb.flush_range(gfn, pages);
        }
        if let Some(ghost) = &mut self.ghost {
            ghost.range_flushed(gfn.0, pages);
        }
    }

    /// Asks every vCPU to load its roots anew.
    pub(in crate::mmu) fn reload_remote_mmus(&mut self) {
        self.events.push(|| Event::ReloadMmus);
        self.stats.reload += 1;
        for vcpu in &mut self.vcpus {
            vcpu.requests |= REQ_MMU_RELOAD;
        }
        if let Some(ghost) = &mut self.ghost {
            ghost.kicked();
        }
    }

    /// A vCPU loaded its roots, which flushes it.
    pub(in crate::mmu) fn tell_loaded(&mut self, vcpu: usize) {
        if let Some(ghost) = &mut self.ghost {
            ghost.vcpu_flushed(vcpu);
            ghost.root_loaded(vcpu, self.vcpus[vcpu].roots().map(|root| root.0));
        }
    }

    /// Whether the page was made under another valid generation; from v5.4 also if it is invalid.
    #[inline]
    pub(in crate::mmu) fn is_obsolete(&self, page: PageIdx) -> bool {
        let key = self.arena.key(page);
        key.valid_gen != self.valid_gen && !self.config.tdp_mmu
            || self.config.kernel.obsolete_if_invalid && key.role.invalid() && !is_chosen(Mutant::InvalidNotObsolete)
    }

    /// What a page tracepoint tells.
    pub(in crate::mmu) fn page_facts(&self, page: PageIdx) -> PageFacts {
        let key = self.arena.key(page);
        let header = self.arena.page(page);
        PageFacts {
            id: key.id,
            gfn: key.gfn.0,
            role: self.config.kernel.role_layout.pack(key.role),
            root_count: header.root_count,
            unsync: header.unsync,
            valid_gen: key.valid_gen,
        }
    }

    pub(in crate::mmu) fn need_resched(&mut self) -> bool {
        self.stats.need_resched += 1;
        self.work.lock_polls += 1;
        self.polls.need_resched()
    }

    /// Polls as a walk of reverse maps does: from v6.1 on for the processor, then for the lock.
    pub(in crate::mmu) fn lock_is_wanted(&mut self) -> bool {
        if self.need_resched() {
            return true;
        }
        if !self.config.kernel.is_role_fixed {
            return false;
        }
        self.stats.needbreak += 1;
        self.polls.needbreak()
    }

    /// Polls for `most` heads that need no work; how many polls were made, and whether the last was true.
    pub(in crate::mmu) fn need_resched_many(&mut self, most: u64) -> (u64, bool) {
        let (made, wanted) = self.polls.need_resched_many(most);
        self.stats.need_resched = self.stats.need_resched.wrapping_add_unsigned(made);
        self.work.lock_polls += made;
        (made, wanted)
    }

    /// The same for so many gfns that need no work; how many were polled for, and whether the last was wanted.
    pub(in crate::mmu) fn lock_is_wanted_many(&mut self, most: u64) -> (u64, bool) {
        if !self.config.kernel.is_role_fixed {
            return self.need_resched_many(most);
        }
        if self.polls.is_quiet() {
            let polls = i64::try_from(most).unwrap_or(i64::MAX);
            self.stats.need_resched += polls;
            self.stats.needbreak += polls;
            self.work.lock_polls += most;
            return (most, false);
        }
        for made in 1..=most {
            if self.lock_is_wanted() {
                return (made, true);
            }
        }
        (most, false)
    }

    /// Offers the lock. On a real drop the event is logged and the caller must pause.
    pub(in crate::mmu) fn cond_resched(&mut self) -> bool {
        self.cond_resched_of(0)
    }

    /// The same for a lock held for writing (0) or for reading (1).
    pub(in crate::mmu) fn cond_resched_of(&mut self, kind: u8) -> bool {
        self.stats.cond_resched += 1;
        self.work.lock_offers += 1;
        let dropped = self.polls.cond_resched();
        if dropped {
            self.push_lock_break(kind);
        }
        dropped
    }

    /// The lock is dropped, for whatever reason.
    pub(in crate::mmu) fn push_lock_break(&mut self, kind: u8) {
        self.events.push(|| Event::LockBreak { kind });
        self.stats.lock_breaks += 1;
        self.work.lock_breaks += 1;
        if let Some(ghost) = &mut self.ghost {
            ghost.lock_dropped();
        }
    }
}
