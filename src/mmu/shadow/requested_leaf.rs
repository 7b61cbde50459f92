//! Writing a leaf from v6.1 on: what the entry becomes, and what of that is told.
//!
//! Models v6.1/v6.12 `mmu_set_spte`, `make_spte`, and what a sync does with an entry that stays, also up to v5.10.

use crate::kernels::{MmioOverLeaf, OldEntryExempts};
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::Sptep;
use crate::mmu::pages::walk::{child_of, is_large, is_shadow_present, pfn_of};
use crate::mmu::shadow::link::RMAP_RECYCLE_THRESHOLD;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::ACC_WRITE;
use crate::mmu::words::addr::Pfn;
use crate::mmu::words::level::{PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::mmio::is_mmio;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum Set {
    /// It was that leaf already: nothing is mapped ahead.
    Unchanged,
    /// It was written.
    Written,
    /// It is an MMIO SPTE now: nothing is mapped ahead.
    Mmio,
}

impl MmuState {
    /// Installs a leaf or an MMIO SPTE; the flag is that the access must be emulated. `is_written` decides where old and
    /// new leaf differ in nothing but the bits that a processor sets.
    pub(in crate::mmu) fn set_leaf(
        &mut self,
        sptep: Sptep,
        mapping: &Mapping,
        is_written: Option<bool>,
    ) -> (Set, bool) {
        let old = self.arena.spte(sptep);
        let frame = match mapping.backing {
            Backing::Frame { pfn, host_writable } => Some((pfn, host_writable)),
            Backing::NoSlot => None,
        };
        let mut was_mapped = false;
        let mut flush = false;
        if is_shadow_present(&self.masks, old) {
            if mapping.level > PAGE_TABLE && !is_large(old) {
                self.drop_parent_pte(child_of(old), sptep);
                flush = true;
            } else if frame.is_some_and(|(pfn, _)| pfn.hva() & PFN_FIELD == pfn_of(old).hva()) {
                if mapping.speculative && self.config.kernel.prefetch_over_same_is_spurious {
                    return (Set::Unchanged, false);
                }
                was_mapped = true;
            } else if frame.is_none() && self.config.kernel.mmio_over_leaf == MmioOverLeaf::Overwrite {
                // The kernel leaves it in its list.
                self.has_dangling = true;
            } else {
                self.drop_spte(sptep);
                flush = true;
            }
        }
        self.tell_making(sptep, mapping.gfn);
        let Some((pfn, host_writable)) = frame else {
            let slots_gen = self.spaces[usize::from(self.vcpus[mapping.vcpu].as_id())].slots_gen;
            self.vcpus[mapping.vcpu].faults.mmio_spte_created += 1;
            self.mark_mmio_spte(sptep, mapping.gfn, mapping.access, slots_gen);
            let spte = self.arena.spte(sptep);
            if self.config.kernel.set_spte_for_mmio && spte != old {
                self.push_set_spte(sptep, mapping, spte);
            }
            if flush {
                self.flush_remote_tlbs_with_address(mapping.gfn, pages_per(mapping.level));
            }
            return (Set::Mmio, true);
        };
        let before = self.arena.spte(sptep);
        let (spte, is_protected) = self.make_spte(sptep, before, mapping, pfn, host_writable);
        let mut set = Set::Unchanged;
        let is_alike = was_mapped && (spte ^ before) & !(self.masks.accessed | self.masks.dirty) == 0;
        if is_written.filter(|_| is_alike).unwrap_or(spte != before) {
            if was_mapped {
                flush |= self.spte_update(sptep, spte);
            } else {
                self.spte_set(sptep, spte);
            }
            self.push_set_spte(sptep, mapping, spte);
            set = Set::Written;
        }
        if flush {
            self.flush_remote_tlbs_with_address(mapping.gfn, pages_per(mapping.level));
        }
        self.note_shadowed(sptep, mapping);
        if !was_mapped {
            if is_large(spte) {
                self.stats.lpages += 1;
            }
            if self.rmap_add(mapping.slot, sptep, mapping.gfn, mapping.level) > RMAP_RECYCLE_THRESHOLD {
                self.rmap_recycle(sptep, mapping.gfn);
            }
        }
        (set, is_protected && mapping.is_write)
    }

    /// The word of a leaf over `before`, and whether it was write-protected.
    fn make_spte(
        &mut self,
        sptep: Sptep,
        before: u64,
        mapping: &Mapping,
        pfn: Pfn,
        host_writable: bool,
    ) -> (u64, bool) {
        let ad_disabled = self.arena.key(sptep.page()).role.ad_disabled();
        let mut spte = self.leaf_of(sptep, mapping, pfn, host_writable);
        let mut is_protected = false;
        let host_writable = host_writable || is_chosen(Mutant::ReadOnlyMappedWritable);
        if mapping.access & ACC_WRITE != 0 && host_writable {
            let writable = WRITABLE | self.masks.mmu_writeable;
            spte |= writable;
            // Also bit 1 of a stale MMIO SPTE, its access, counts as writable: then no page is looked for, and up to v6.12
            // D is not set.
            let is_stale = is_chosen(Mutant::StaleMmioNotWritable) && is_mmio(&self.masks, before);
            let exempts = self.config.kernel.old_entry_exempts;
            let is_exempt = before & WRITABLE != 0 && !is_stale && exempts != OldEntryExempts::None;
            if !is_exempt {
                let gfn = mapping.gfn;
                let probes = self.config.probes;
                let (can_unsync, prefetch) = (mapping.can_unsync, mapping.speculative);
                self.push_if(probes, || Event::TryUnsync { gfn: gfn.0, can_unsync, prefetch });
                let ret = self.try_to_unsync_pages(mapping.slot, gfn, can_unsync, prefetch);
                is_protected = ret != 0;
                self.push_if(probes, || Event::TryUnsyncRet { ret });
            }
            if is_protected {
                spte &= !writable;
            } else if !(ad_disabled || is_exempt && exempts == OldEntryExempts::DirtyAndUnsync) {
                spte |= self.masks.dirty;
            }
        }
        (self.finished_leaf(spte, mapping), is_protected)
    }

    fn push_if(&mut self, is_on: bool, make: impl FnOnce() -> Event) {
        if is_on {
            self.events.push(make);
        }
    }

    /// Writes a leaf anew that stays where it is and keeps its frame, as a sync does; whether TLBs may hold what it was.
    pub(in crate::mmu) fn remake_leaf(&mut self, sptep: Sptep, mapping: &Mapping) -> bool {
        let Backing::Frame { pfn, host_writable } = mapping.backing else { return false };
        self.tell_making(sptep, mapping.gfn);
        let before = self.arena.spte(sptep);
        if !self.config.kernel.is_role_fixed {
            return self.set_spte(sptep, before, mapping, pfn, host_writable).flush;
        }
        self.note_shadowed(sptep, mapping);
        let (mut spte, _) = self.make_spte(sptep, before, mapping, pfn, host_writable);
        if self.config.kernel.sync_keeps_ad && !self.arena.key(sptep.page()).role.ad_disabled() {
            spte |= self.masks.accessed;
        }
        self.spte_update(sptep, spte)
    }
}
