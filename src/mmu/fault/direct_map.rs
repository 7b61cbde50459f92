//! Building tables down to the requested level, writing the leaf, and mapping its neighbours, from v6.1 on.
//!
//! Models v6.1/v6.12 `direct_map`, `disallowed_hugepage_adjust`, `mmu_set_spte`, `make_spte`, `direct_pte_prefetch`. A leaf
//! that would not change is left alone, and then nothing is mapped ahead.

use crate::kernels::{ChildReuse, LargeInWay, MmioOverLeaf, OldEntryExempts};
use crate::mmu::fault::page_fault::{Handled, PTE_PREFETCH_NUM, lowest};
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::{child_of, is_large, is_last, is_shadow_present, pfn_of};
use crate::mmu::shadow::link::RMAP_RECYCLE_THRESHOLD;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{ACC_EXEC, ACC_WRITE};
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::error::Result;
use crate::mmu::words::level::{PAGE_TABLE, pages_per, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::make::{Leaf, make_access_track, make_leaf};
use crate::mmu::words::spte::mmio::is_mmio;
use crate::mmu::words::views::HostLookup;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// It was that leaf already: nothing is mapped ahead.
    Unchanged,
    /// It was written.
    Written,
    /// It is an MMIO SPTE now: nothing is mapped ahead.
    Mmio,
}

impl MmuState {
    /// From a root to the mapping; what became of it, and its level. `fetched` is the level that an instruction fetch
    /// could have had.
    pub(in crate::mmu) fn map_requested(
        &mut self,
        root: PageIdx,
        mapping: Mapping,
        fetched: Option<u8>,
        host: &HostLookup,
    ) -> Result<(Handled, u8)> {
        let asked = mapping.gfn;
        let (addr, nx_huge_pages) = (asked.gpa(), self.config.nx_huge_pages);
        let mut goal = mapping.level;
        let mut page = root;
        let sptep = loop {
            let level = self.arena.key(page).role.level();
            let sptep = page.sptep(table_index(addr, level));
            let spte = self.arena.spte(sptep);
            let is_present = is_shadow_present(&self.masks, spte);
            let child = (is_present && !is_last(spte, level)).then(|| child_of(spte));
            if level == goal && level > PAGE_TABLE && child.is_some_and(|child| self.keeps_its_place(child)) {
                goal -= 1;
            }
            if level <= goal {
                break sptep;
            }
            let covered = Gfn((addr & PFN_FIELD) >> 12).align_down(level);
            let is_invalid = !self.config.kernel.child_role_valid && self.arena.key(page).role.invalid();
            let role = self.child_role(mapping.vcpu, level - 1).with_invalid(is_invalid);
            page = if let Some(child) = child.filter(|&child| self.is_reused(child, covered, role)) {
                child
            } else {
                let new = self.get_page(covered, role)?;
                if is_present {
                    // A large leaf that is only dropped does not pass the function that zaps a page's entries.
                    let is_silent = child.is_none() && self.config.kernel.large_in_way == LargeInWay::DroppedRange;
                    if self.config.probes && !is_silent {
                        self.push_page_zap_pte(sptep, spte, level);
                    }
                    self.drop_what_is_in_the_way(sptep, child);
                }
                self.link_shadow_page(sptep, new);
                if nx_huge_pages && let Some(asked) = fetched {
                    self.note_nx(new, level, asked);
                }
                new
            };
        };
        let backing = match mapping.backing {
            Backing::Frame { pfn, host_writable } => Backing::Frame { pfn: pfn.align_down(goal), host_writable },
            Backing::NoSlot => Backing::NoSlot,
        };
        let mapping = Mapping { gfn: asked.align_down(goal), level: goal, backing, ..mapping };
        let is_written = if let HostLookup::Found { is_written, .. } = host { *is_written } else { None };
        if goal == PAGE_TABLE {
            self.remember_path(root, addr, page);
        }
        let (set, emulate) = self.set_leaf(sptep, &mapping, is_written);
        let is_emulated = emulate && set != Set::Mmio && self.config.kernel.emulate_wins_over_spurious;
        if set == Set::Written || is_emulated || set == Set::Unchanged && is_chosen(Mutant::PrefetchAfterUnchanged) {
            self.prefetch_group(&mapping, sptep, host);
        }
        let handled = match set {
            Set::Mmio => Handled::Emulate,
            _ if emulate => Handled::WriteProtected,
            Set::Written => Handled::Fixed,
            Set::Unchanged => Handled::Spurious,
        };
        Ok((handled, goal))
    }

    /// While large leaves are not executable, a table that may hold executable ones is not replaced.
    fn keeps_its_place(&self, child: PageIdx) -> bool {
        let is_marked = self.arena.page(child).nx_huge_page_disallowed;
        // A recording does not say that the workaround is on: there the marks of its faults do.
        if self.config.kernel.nx_keeps_any_table { self.config.nx_huge_pages || is_marked } else { is_marked }
    }

    /// Whether a fault keeps the table that is linked.
    fn is_reused(&self, child: PageIdx, gfn: Gfn, role: Role) -> bool {
        let key = self.arena.key(child);
        self.config.kernel.child_reuse != ChildReuse::GfnRole || key.gfn == gfn && key.role == role
    }

    /// Drops a large leaf, or a link to a table that is not the one wanted.
    fn drop_what_is_in_the_way(&mut self, sptep: Sptep, child: Option<PageIdx>) {
        let gfn = self.arena.key(sptep.page()).gfn_of(sptep.index());
        let level = self.arena.key(sptep.page()).role.level();
        if let Some(child) = child {
            self.drop_parent_pte(child, sptep);
        } else if self.config.kernel.large_in_way == LargeInWay::DroppedRange {
            self.drop_large_spte(sptep);
            return;
        } else {
            self.drop_spte(sptep);
            self.stats.lpages -= 1;
        }
        if self.config.kernel.large_in_way == LargeInWay::ZappedRange {
            self.flush_remote_tlbs_with_address(gfn.align_down(level), pages_per(level));
        } else {
            self.flush_remote_tlbs();
        }
    }

    /// Installs a leaf or an MMIO SPTE; the flag is that the access must be emulated. `is_written` decides where old and
    /// new leaf differ in nothing but the bits that a processor sets.
    fn set_leaf(&mut self, sptep: Sptep, mapping: &Mapping, is_written: Option<bool>) -> (Set, bool) {
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
                // The kernel leaves the leaf in its list, where it dangles once the table is freed.
                self.rmap_remove(sptep);
            } else {
                self.drop_spte(sptep);
                flush = true;
            }
        }
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
        let is_nx = self.config.nx_huge_pages && mapping.level > PAGE_TABLE && !is_chosen(Mutant::LargeLeafExecutable);
        let leaf = Leaf {
            access: if is_nx { mapping.access & !ACC_EXEC } else { mapping.access },
            level: mapping.level,
            pfn,
            speculative: mapping.speculative,
            host_writable,
            ad_disabled,
        };
        let mut spte = make_leaf(&self.masks, &leaf);
        let mut is_protected = false;
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
                is_protected = self.needs_write_protect(mapping.slot, gfn);
                self.push_try_unsync(gfn, mapping.speculative, is_protected);
            }
            if is_protected {
                spte &= !writable;
            } else if !(ad_disabled || is_exempt && exempts == OldEntryExempts::DirtyAndUnsync) {
                spte |= self.masks.dirty;
            }
        }
        if mapping.speculative {
            spte = make_access_track(&self.masks, spte);
        }
        if spte & WRITABLE != 0 {
            self.mark_page_dirty(mapping.slot, mapping.gfn);
        }
        (spte, is_protected)
    }

    /// Maps the absent entries of the aligned group of eight, run by run; the last run may reach the group's end, or is
    /// forgotten there.
    pub(in crate::mmu) fn prefetch_group(&mut self, mapping: &Mapping, sptep: Sptep, host: &HostLookup) {
        let page = sptep.page();
        let role = self.arena.key(page).role;
        // What is being invalidated could be among the neighbours.
        let is_unsafe = self.invalidation.in_progress > 0;
        if is_unsafe || role.ad_disabled() || role.level() > PAGE_TABLE {
            return;
        }
        let first = sptep.index() / PTE_PREFETCH_NUM * PTE_PREFETCH_NUM;
        let drops_last = self.config.kernel.prefetch_drops_open_run != is_chosen(Mutant::LastRunNotMapped);
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
            let is_dropped = drops_last && end == PTE_PREFETCH_NUM;
            if is_dropped || !self.prefetch_found(mapping, page, first + start, first + end, host) {
                return;
            }
            at = end;
        }
    }

    /// Maps a run as far as the host has it; false ends the prefetch.
    fn prefetch_found(&mut self, mapping: &Mapping, page: PageIdx, start: u16, end: u16, host: &HostLookup) -> bool {
        let first = self.arena.key(page).gfn.plus(start.into());
        let Some(slot) = self.find_slot(self.vcpus[mapping.vcpu].as_id(), first) else { return false };
        let spec = *self.slot_spec(slot);
        let len = u64::from(end - start);
        let is_refused = spec.is_invalid() || spec.is_readonly() || self.slot_body(slot).dirty.is_some();
        if is_refused || spec.npages - spec.index(first, PAGE_TABLE) < len {
            return false;
        }
        let page_of = |gfn: Gfn| Pfn::of_hva(spec.hva_of(gfn));
        let is_found = |gfn: Gfn| match host {
            HostLookup::Found { neighbours: Some(neighbours), .. } => neighbours.contains(&gfn.0),
            _ => self.host.pin_atomic(page_of(gfn)),
        };
        let is_over_hole = is_chosen(Mutant::PrefetchOverHole);
        let found = (0..len).take_while(|&at| is_found(first.plus(at)) || is_over_hole).count();
        for (gfn, index) in (0..len).map(|at| first.plus(at)).zip(start..end).take(found) {
            let frame = self.host.frame(page_of(gfn));
            self.set_leaf(page.sptep(index), &mapping.neighbour(slot, gfn, frame), None);
        }
        found != 0
    }
}
