//! One page fault of a direct MMU as a value that fills up, and the loop that takes it through the steps of its kernel.
//!
//! Owns the value and nothing of the steps' content; the order is the row's (`kernels::FaultOrder`). A step either fills in
//! what the next ones need, or ends the fault. Stands above `direct_page_fault` and `page_fault`, which have the steps.

use crate::kernels::FaultStep;
use crate::mmu::fault::guest_fetch::GuestGoal;
use crate::mmu::fault::page_fault::Handled;
use crate::mmu::pages::mapping::Backing;
use crate::mmu::pages::walk::Walked;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{PFERR_PRESENT, PFERR_WRITE};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::views::HostLookup;

/// How a fault went: what became of it, and the level mapped.
pub(in crate::mmu) type Went = (Handled, u8);

/// A fault on its way.
pub(in crate::mmu) struct PageFault<'a> {
    pub vcpu: usize,
    /// The address that the shadow tables are walked for.
    pub addr: u64,
    /// What is to be mapped: from the step `Level` on the first gfn at that level.
    pub gfn: Gfn,
    pub error_code: u64,
    pub slot: Option<SlotAt>,
    pub is_prefetch: bool,
    pub host: &'a HostLookup,
    /// What the guest's own tables said, where it has some.
    pub goal: Option<&'a GuestGoal<'a>>,
    /// How many invalidations of host memory had ended when it began.
    pub seq: u64,
    /// Filled by `Level`: the level found, and whether 4 KiB pages are forced.
    pub level: u8,
    pub is_forced: bool,
    /// Filled by `FastAtLevel`: where its walk ended.
    pub walked: Option<Walked>,
    /// Filled by `Host`.
    pub backing: Option<Backing>,
    /// Filled by `Room`: how many pages had been zapped before.
    pub zapped_before: u64,
}

impl<'a> PageFault<'a> {
    pub const fn is_write(&self) -> bool {
        self.error_code & PFERR_WRITE != 0
    }

    /// The fault of an address at its start.
    #[inline]
    pub fn new(state: &MmuState, vcpu: usize, addr: u64, gfn: Gfn, error_code: u64, host: &'a HostLookup) -> Self {
        let slot = state.find_slot(state.vcpus[vcpu].as_id(), gfn);
        Self {
            vcpu,
            addr,
            gfn,
            error_code,
            slot,
            is_prefetch: false,
            host,
            goal: None,
            seq: state.invalidation.seq,
            level: PAGE_TABLE,
            is_forced: true,
            walked: None,
            backing: None,
            zapped_before: 0,
        }
    }
}

impl MmuState {
    /// Takes a fault through every step of its kernel.
    #[inline]
    pub(in crate::mmu) fn go_through(&mut self, fault: &mut PageFault<'_>) -> Result<Went> {
        if fault.error_code & PFERR_PRESENT == 0 {
            self.touch_rmap_head(fault.slot, fault.gfn);
        }
        self.go_on(fault, 0)
    }

    /// Takes a fault through the steps from a place on.
    pub(in crate::mmu) fn go_on(&mut self, fault: &mut PageFault<'_>, mut at: usize) -> Result<Went> {
        let mut went = (Handled::Retry, PAGE_TABLE);
        while let Some(step) = self.fault_order.get(at) {
            if let Some(end) = self.take_step(step, fault)? {
                went = end;
                break;
            }
            at += 1;
        }
        // The host's page is let go: a reference to it is its use.
        if let Some(Backing::Frame { pfn, .. }) = fault.backing
            && self.config.is_stepped()
            && self.config.kernel.is_level_requested
        {
            self.push_accessed(pfn);
        }
        Ok(went)
    }

    #[inline]
    fn take_step(&mut self, step: FaultStep, fault: &mut PageFault<'_>) -> Result<Option<Went>> {
        let end = match step {
            FaultStep::Track => self.step_track(fault),
            FaultStep::Level => {
                self.step_level(fault);
                None
            }
            FaultStep::FastAtLevel => self.step_fast_at_level(fault),
            FaultStep::Fast => self.step_fast(fault),
            FaultStep::SlotGoing => self.step_slot_going(fault),
            FaultStep::Invalidated => self.step_invalidated(fault),
            FaultStep::Host => self.step_host(fault),
            FaultStep::NoSlot => self.step_no_slot(fault),
            FaultStep::Lock => (*fault.host == HostLookup::Retry).then_some(Handled::Retry),
            FaultStep::HasRoot => self.step_has_root(fault),
            FaultStep::Stale => self.is_stale(fault.vcpu, fault.addr).then_some(Handled::Retry),
            FaultStep::Room => self.step_room(fault),
            FaultStep::MapAtLevel => Some(self.step_map_at_level(fault)?),
            FaultStep::Map => return self.step_map(fault).map(Some),
        };
        Ok(end.map(|handled| (handled, PAGE_TABLE)))
    }
}
