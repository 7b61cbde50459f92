//! Building tables down to the requested level, writing the leaf, and mapping its neighbours, from v6.1 on.
//!
//! Models v6.1/v6.12 `direct_map`, `disallowed_hugepage_adjust`, `direct_pte_prefetch`. A leaf that would not change is left
//! alone, and then nothing is mapped ahead.

use crate::kernels::{ChildReuse, LargeInWay};
use crate::mmu::fault::page_fault::{Handled, PTE_PREFETCH_NUM, lowest};
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::shadow::requested_leaf::Set;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::ACC_WRITE;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::error::Result;
use crate::mmu::words::level::{PAGE_TABLE, pages_per, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;
use crate::mmu::words::spte::layout::PFN_FIELD;
use crate::mmu::words::views::HostLookup;

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
    pub(in crate::mmu) fn keeps_its_place(&self, child: PageIdx) -> bool {
        let is_marked = self.arena.page(child).nx_huge_page_disallowed;
        // A recording does not say that the workaround is on: there the marks of its faults do.
        if self.config.kernel.nx_keeps_any_table { self.config.nx_huge_pages || is_marked } else { is_marked }
    }

    /// Whether a fault keeps the table that is linked.
    pub(in crate::mmu) fn is_reused(&self, child: PageIdx, gfn: Gfn, role: Role) -> bool {
        let key = self.arena.key(child);
        if is_chosen(Mutant::AnyChildKept) {
            return true;
        }
        match self.config.kernel.child_reuse {
            ChildReuse::Access | ChildReuse::Any => true,
            ChildReuse::Gfn => key.gfn == gfn,
            ChildReuse::GfnRole => key.gfn == gfn && key.role == role,
        }
    }

    /// Drops a large leaf, or a link to a table that is not the one wanted.
    pub(in crate::mmu) fn drop_what_is_in_the_way(&mut self, sptep: Sptep, child: Option<PageIdx>) {
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
        let is_logged = self.slot_body(slot).dirty.is_some() && mapping.access & ACC_WRITE != 0;
        let is_refused = spec.is_invalid() || spec.is_readonly() || is_logged;
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
        if self.map_ahead(mapping, slot, (page, start), found) {
            return found != 0;
        }
        for (gfn, index) in (0..len).map(|at| first.plus(at)).zip(start..end).take(found) {
            let frame = self.host.frame(page_of(gfn));
            self.set_leaf(page.sptep(index), &mapping.neighbour(slot, gfn, frame), None);
        }
        found != 0
    }
}
