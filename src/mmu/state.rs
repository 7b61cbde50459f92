//! `MmuState`: owns the nouns of one VM. No logic beyond what every operation needs: flush requests and slot lookups.

use std::collections::{BTreeMap, VecDeque};

use super::active_pages::ActivePages;
use super::addr::Gfn;
use super::config::{Config, Family};
use super::error::{Error, Result};
use super::events::{Event, Events, PageFacts};
use super::generation::GenerationCodec;
use super::host_memory::HostMemory;
use super::invalid_list::InvalidList;
use super::invalidation::Invalidation;
use super::lock_polls::LockPolls;
use super::mmio_pages::MmioPages;
use super::mutants::{Mutant, is_chosen};
use super::page_arena::{PageArena, PageIdx, Sptep};
use super::page_hash::PageHash;
use super::pte_list::PteLists;
use super::runs::Runs;
use super::slice::Slice;
use super::slots::{AddressSpace, SlotAt};
use super::spte::masks::Masks;
use super::stats::Stats;
use super::vcpu_mmu::{REQ_MMU_RELOAD, REQ_TLB_FLUSH, VcpuMmu};
use super::work::Work;
use crate::kernels::PteListOrder;

/// What a root of level 4 reaches.
const ROOT_4_GFN_BITS: u32 = 36;
/// What four directories reach.
const PAE_GFN_BITS: u32 = 20;

/// Everything a VM's MMU holds.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact")]
pub struct MmuState {
    pub(super) config: Config,
    pub(super) masks: Masks,
    /// gfns below this many bits lie in the range of the roots, so that a table's gfn and index give the gfn mapped.
    pub(super) root_gfn_bits: u32,
    /// A table was made for a gfn beyond them: others may come to be reached through it.
    pub(super) has_high_pages: bool,
    pub(super) generation: GenerationCodec,
    pub(super) arena: PageArena,
    pub(super) hash: PageHash,
    pub(super) active: ActivePages,
    pub(super) mmio_pages: MmioPages,
    pub(super) pte_lists: PteLists,
    pub(super) spaces: [AddressSpace; 2],
    pub(super) vcpus: Vec<VcpuMmu>,
    pub(super) host: HostMemory,
    pub(super) polls: LockPolls,
    pub(super) events: Events,
    pub(super) stats: Stats,
    pub(super) work: Work,
    pub(super) valid_gen: u64,
    pub(super) used: u64,
    pub(super) max: u64,
    pub(super) requested: u64,
    pub(super) zapped_obsolete: InvalidList,
    /// gfns of leaves whose table was made for another gfn, which an address above the root's range does.
    pub(super) aliased: BTreeMap<Sptep, Gfn>,
    /// A call reported that its caller must flush, and none has come since.
    pub(super) is_flush_owed: bool,
    /// A root was loaded over another, whose count stays.
    pub(super) is_root_leaked: bool,
    /// New dirty bitmaps start full (`KVM_DIRTY_LOG_INITIALLY_SET`).
    pub(super) is_log_initially_set: bool,
    /// Invalidations of host memory under way, and how many ended.
    pub(super) invalidation: Invalidation,
    /// Tables that NX recovery would zap, the oldest first.
    pub(super) nx_list: VecDeque<PageIdx>,
    pub(super) runs: Runs,
    pub(super) slice: Slice,
}

impl MmuState {
    pub(super) fn new(config: Config) -> Result<Self> {
        config.check()?;
        let masks = Masks::of(config.kernel.spte_layout.layout(), config.host());
        let (nr_roots, root_level) = config.roots();
        let root_gfn_bits = if nr_roots > 1 { PAE_GFN_BITS } else { ROOT_4_GFN_BITS };
        let mut vcpu = VcpuMmu::new(root_level, config.kernel.direct_role_bit4, masks.accessed == 0);
        if config.kernel.is_role_fixed {
            vcpu.fix_role(config.family != Family::Shadow);
        }
        Ok(Self {
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
            polls: LockPolls::default(),
            events: Events::new(config.events),
            stats: Stats::default(),
            work: Work::default(),
            valid_gen: 0,
            used: 0,
            max: 0,
            requested: 0,
            zapped_obsolete: InvalidList::default(),
            aliased: BTreeMap::new(),
            is_flush_owed: false,
            is_root_leaked: false,
            is_log_initially_set: false,
            invalidation: Invalidation::default(),
            nx_list: VecDeque::new(),
            runs: Runs::default(),
            slice: Slice::default(),
            config,
        })
    }

    pub(super) fn check_vcpu(&self, vcpu: u16) -> Result<usize> {
        if vcpu < self.config.vcpus {
            Ok(usize::from(vcpu))
        } else {
            Err(Error::Vcpu { vcpu, vcpus: self.config.vcpus })
        }
    }

    pub(super) fn space(&self, as_id: u8) -> Result<&AddressSpace> {
        self.spaces.get(usize::from(as_id)).ok_or(Error::AddressSpace(as_id))
    }

    pub(super) fn space_mut(&mut self, as_id: u8) -> Result<&mut AddressSpace> {
        self.spaces.get_mut(usize::from(as_id)).ok_or(Error::AddressSpace(as_id))
    }

    /// The slot of a gfn in an address space (0 or 1).
    #[inline]
    pub(super) fn find_slot(&self, as_id: u8, gfn: Gfn) -> Option<SlotAt> {
        self.spaces[usize::from(as_id & 1)].find(gfn).map(|at| SlotAt { as_id, at })
    }

    /// The slot with an id.
    pub(super) fn find_slot_id(&self, as_id: u8, id: u32) -> Result<Option<SlotAt>> {
        Ok(self.space(as_id)?.find_id(id).map(|at| SlotAt { as_id, at }))
    }

    #[inline]
    pub(super) fn slot_spec(&self, slot: SlotAt) -> &super::views::SlotSpec {
        &self.spaces[usize::from(slot.as_id & 1)].specs()[slot.at]
    }

    #[inline]
    pub(super) fn slot_body(&self, slot: SlotAt) -> &super::slots::SlotBody {
        self.spaces[usize::from(slot.as_id & 1)].body(slot.at)
    }

    #[inline]
    pub(super) fn slot_body_mut(&mut self, slot: SlotAt) -> &mut super::slots::SlotBody {
        self.spaces[usize::from(slot.as_id & 1)].body_mut(slot.at)
    }

    /// Marks a page dirty in its slot's log.
    #[inline]
    pub(super) fn mark_page_dirty(&mut self, slot: Option<SlotAt>, gfn: Gfn) {
        if let Some(slot) = slot {
            let index = self.slot_spec(slot).index(gfn, 1);
            self.slot_body_mut(slot).mark_dirty(index);
        }
    }

    /// Asks every vCPU to flush its TLB before it runs again.
    pub(super) fn flush_remote_tlbs(&mut self) {
        self.events.push(|| Event::Flush);
        self.stats.flush += 1;
        self.work.flushes += 1;
        self.is_flush_owed = false;
        for vcpu in &mut self.vcpus {
            vcpu.requests |= REQ_TLB_FLUSH;
        }
    }

    /// Flushes a range of gfns through the hook, or everything where there is none.
    pub(super) fn flush_remote_tlbs_with_address(&mut self, gfn: Gfn, pages: u64) {
        if !self.config.flush_range {
            self.flush_remote_tlbs();
            return;
        }
        self.events.push(|| Event::FlushRange { gfn: gfn.0, pages });
        self.stats.flush_range += 1;
        self.work.flushes_ranged += 1;
        for vcpu in &mut self.vcpus {
            vcpu.tlb.flush_range(gfn, pages);
        }
    }

    /// Asks every vCPU to load its roots anew.
    pub(super) fn reload_remote_mmus(&mut self) {
        self.events.push(|| Event::ReloadMmus);
        self.stats.reload += 1;
        for vcpu in &mut self.vcpus {
            vcpu.requests |= REQ_MMU_RELOAD;
        }
    }

    /// Whether the page was made under another valid generation; from v5.4 also if it is invalid.
    #[inline]
    pub(super) fn is_obsolete(&self, page: PageIdx) -> bool {
        let key = self.arena.key(page);
        key.valid_gen != self.valid_gen
            || self.config.kernel.obsolete_if_invalid && key.role.invalid() && !is_chosen(Mutant::InvalidNotObsolete)
    }

    /// What a page tracepoint tells.
    pub(super) fn page_facts(&self, page: PageIdx) -> PageFacts {
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

    pub(super) fn need_resched(&mut self) -> bool {
        self.stats.need_resched += 1;
        self.work.lock_polls += 1;
        self.polls.need_resched()
    }

    /// Polls as a walk of reverse maps does: from v6.1 on for the processor, then for the lock.
    pub(super) fn lock_is_wanted(&mut self) -> bool {
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
    pub(super) fn need_resched_many(&mut self, most: u64) -> (u64, bool) {
        let (made, wanted) = self.polls.need_resched_many(most);
        self.stats.need_resched = self.stats.need_resched.wrapping_add_unsigned(made);
        self.work.lock_polls += made;
        (made, wanted)
    }

    /// The same for so many gfns that need no work; how many were polled for, and whether the last was wanted.
    pub(super) fn lock_is_wanted_many(&mut self, most: u64) -> (u64, bool) {
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
    pub(super) fn cond_resched(&mut self) -> bool {
        self.stats.cond_resched += 1;
        self.work.lock_offers += 1;
        let dropped = self.polls.cond_resched();
        if dropped {
            self.events.push(|| Event::LockBreak);
            self.stats.lock_breaks += 1;
            self.work.lock_breaks += 1;
        }
        dropped
    }
}
