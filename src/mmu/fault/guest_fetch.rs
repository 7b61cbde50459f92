//! Building the shadow tables of what a guest's tables say: indirect ones for its tables, direct ones below its large
//! pages, then the leaf and its neighbours.
//!
//! Models `FNAME(fetch)`, `FNAME(gpte_changed)`, `validate_direct_spte`, `FNAME(pte_prefetch)`, v5.0 to v6.12. A guest's
//! entry that is not any more what was walked ends it: the fault is taken again.

use std::cell::Cell;

use crate::kernels::ChildReuse;
use crate::mmu::fault::page_fault::{Handled, PTE_PREFETCH_NUM};
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::{PageIdx, PageKey, Sptep};
use crate::mmu::pages::walk::{child_of, is_large, is_last, is_shadow_present};
use crate::mmu::shadow::guest_walk::GuestWalk;
use crate::mmu::shadow::requested_leaf::Set;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::level::{PAGE_TABLE, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;
use crate::mmu::words::views::HostLookup;

/// Entries of a guest's page table, read together.
type Group = [u64; PTE_PREFETCH_NUM as usize];

/// What a fault of a guest is to map, from v6.1 on.
#[derive(Clone, Debug)]
pub(in crate::mmu) struct GuestGoal<'a> {
    pub walk: &'a GuestWalk,
    /// The largest level that may be mapped.
    pub most: u8,
    /// The write hits one of the tables that map it.
    pub hits_own_table: Cell<bool>,
}

impl MmuState {
    /// Whether an entry of the guest is not any more what a walk found.
    fn is_gpte_changed(&self, vcpu: usize, walk: &GuestWalk, level: u8, group: &mut Option<Group>) -> bool {
        let size = self.vcpus[vcpu].mode.paging.entry_size();
        let (as_id, entry) = (self.vcpus[vcpu].as_id(), walk.entry(level));
        if level == PAGE_TABLE {
            let first = entry.gpa & !(u64::from(size) * u64::from(PTE_PREFETCH_NUM) - 1);
            let mut read = Group::default();
            for (at, word) in (0_u64..).zip(&mut read) {
                let Some(found) = self.read_guest(as_id, first + at * u64::from(size), size) else { return true };
                *word = found;
            }
            *group = Some(read);
        }
        self.read_guest(as_id, entry.gpa, size) != Some(entry.value)
    }

    /// Drops a table for a part of a large page that was made for another access.
    fn validate_direct_spte(&mut self, sptep: Sptep, access: u8) {
        self.drop_child_unless(sptep, |key| key.role.access() == access);
    }

    /// Drops a linked table that is not to be kept, up to v5.10.
    fn drop_child_unless(&mut self, sptep: Sptep, is_kept: impl Fn(&PageKey) -> bool) {
        let spte = self.arena.spte(sptep);
        if !is_shadow_present(&self.masks, spte) || is_large(spte) {
            return;
        }
        let child = child_of(spte);
        let key = *self.arena.key(child);
        if !is_kept(&key) {
            self.drop_parent_pte(child, sptep);
            self.flush_remote_tlbs_with_address(key.gfn, 1);
        }
    }

    /// Builds and maps, up to v5.10.
    pub(in crate::mmu) fn guest_fetch(&mut self, walk: &GuestWalk, mapping: &Mapping) -> Result<Handled> {
        let (vcpu, gva) = (mapping.vcpu, walk.gva);
        let mut group = None;
        let root = self.root_for(vcpu, gva);
        if self.is_gpte_changed(vcpu, walk, walk.top_level, &mut group) || root == PageIdx::NONE {
            return Ok(Handled::Retry);
        }
        let mut page = root;
        let mut level = self.arena.key(root).role.level();
        while level > mapping.level {
            self.reset_flood(page);
            let sptep = page.sptep(table_index(gva, level));
            let is_direct = level <= walk.level;
            let (gfn, access) = if is_direct {
                (mapping.gfn.align_down(level), mapping.access)
            } else {
                (walk.entry(level - 1).table, walk.pt_access)
            };
            let role = self.guest_child_role(vcpu, gva, (page, sptep.index()), level - 1, (is_direct, access));
            match self.config.kernel.child_reuse {
                ChildReuse::Access if is_direct => self.validate_direct_spte(sptep, access),
                ChildReuse::Any | ChildReuse::Access => {}
                // No kernel of these is known to: assumed to go as a table of another access does.
                ChildReuse::Gfn => self.drop_child_unless(sptep, |key| key.gfn == gfn),
                ChildReuse::GfnRole => self.drop_child_unless(sptep, |key| key.gfn == gfn && key.role == role),
            }
            self.drop_large_spte(sptep);
            let spte = self.arena.spte(sptep);
            let kept = is_shadow_present(&self.masks, spte).then(|| child_of(spte));
            let next = if let Some(child) = kept {
                self.note_kept_child(sptep, child, gfn, role);
                child
            } else {
                self.get_guest_page(vcpu, gfn, role)?
            };
            if !is_direct && self.is_gpte_changed(vcpu, walk, level - 1, &mut group) {
                return Ok(Handled::Retry);
            }
            if kept.is_none() {
                self.link_shadow_page(sptep, next);
            }
            page = next;
            level -= 1;
        }
        self.reset_flood(page);
        let sptep = page.sptep(table_index(gva, level));
        self.check_direct_gfn(sptep, mapping)?;
        let emulate = self.mmu_set_spte(sptep, mapping);
        if self.arena.key(page).role.direct() {
            self.direct_pte_prefetch(mapping, sptep);
        } else {
            self.prefetch_guest_group(vcpu, sptep, group.as_ref(), None);
        }
        Ok(if emulate { Handled::Emulate } else { Handled::Retry })
    }

    /// A ghost is told where a table stays that is not the one wanted.
    fn note_kept_child(&mut self, sptep: Sptep, child: PageIdx, gfn: Gfn, role: Role) {
        if self.ghost.is_none() {
            return;
        }
        let key = self.arena.key(child);
        let is_wanted = key.gfn == gfn
            && key.role.direct() == role.direct()
            && key.role.level() == role.level()
            && (!self.config.kernel.is_role_fixed || key.role.smm() == role.smm());
        let (id, above) = (key.id, self.arena.key(sptep.page()).id);
        if let Some(ghost) = self.ghost.as_mut().filter(|_| !is_wanted) {
            let index = sptep.index();
            ghost.breaks(
                "child_expected",
                format!("page {above} entry {index} keeps page {id}, which is not that of gfn {:#x}", gfn.0),
            );
        }
    }

    /// A kernel stops where it would put a gfn into the direct table of another.
    fn check_direct_gfn(&self, sptep: Sptep, mapping: &Mapping) -> Result<()> {
        let key = self.arena.key(sptep.page());
        let line = self.config.kernel.direct_gfn_bug_line;
        let is_bug = line != 0
            && key.role.direct()
            && key.gfn_of(sptep.index()) != mapping.gfn
            && mapping.backing != Backing::NoSlot;
        let kernel = self.config.kernel.name;
        if is_bug { Err(Error::KernelBug { kernel, line }) } else { Ok(()) }
    }

    /// Maps the entries of the guest beside the one asked for.
    fn prefetch_guest_group(&mut self, vcpu: usize, sptep: Sptep, group: Option<&Group>, neighbours: Option<&[u64]>) {
        let page = sptep.page();
        if self.arena.key(page).role.level() > PAGE_TABLE || is_chosen(Mutant::NoGptePrefetch) {
            return;
        }
        let Some(group) = group else { return };
        let first = sptep.index() / PTE_PREFETCH_NUM * PTE_PREFETCH_NUM;
        for (index, &gpte) in (first..).zip(group) {
            let at = page.sptep(index);
            if at == sptep || is_shadow_present(&self.masks, self.arena.spte(at)) {
                continue;
            }
            if !self.prefetch_gpte_with(vcpu, at, gpte, (true, neighbours)) {
                return;
            }
        }
    }

    /// Builds and maps, from v6.1 on.
    pub(in crate::mmu) fn guest_fetch_requested(
        &mut self,
        goal: &GuestGoal<'_>,
        mut mapping: Mapping,
        is_fetch: bool,
        host: &HostLookup,
    ) -> Result<Handled> {
        let (vcpu, walk, gva) = (mapping.vcpu, goal.walk, goal.walk.gva);
        let mut group = None;
        let root = self.root_for(vcpu, gva);
        if self.is_gpte_changed(vcpu, walk, walk.top_level, &mut group) || root == PageIdx::NONE {
            return Ok(Handled::Retry);
        }
        let mut page = root;
        let mut level = self.arena.key(root).role.level();
        while level > walk.level {
            self.reset_flood(page);
            let sptep = page.sptep(table_index(gva, level));
            let table = walk.entry(level - 1);
            let found = self.guest_child(vcpu, gva, sptep, table.table, (false, table.access_above))?;
            if let Err(new) = found
                && self.arena.page(new).unsync_children != 0
                && !self.sync_children_at_once(vcpu, new)
            {
                return Ok(Handled::Retry);
            }
            if self.is_gpte_changed(vcpu, walk, level - 1, &mut group) {
                return Ok(Handled::Retry);
            }
            page = self.link_guest_child(sptep, found);
            if mapping.is_write && table.table == walk.gfn && !self.config.kernel.self_map_is_small {
                goal.hits_own_table.set(true);
            }
            level -= 1;
        }
        let asked = self.requested_level(&mapping, host).min(goal.most);
        let is_small = is_fetch && self.config.nx_huge_pages && *host == HostLookup::Ask;
        let mut most = if is_small { PAGE_TABLE } else { asked };
        self.push_requested(&mapping, most);
        let sptep = loop {
            self.reset_flood(page);
            let sptep = page.sptep(table_index(gva, level));
            let spte = self.arena.spte(sptep);
            let is_link = is_shadow_present(&self.masks, spte) && !is_last(spte, level);
            if level == most && level > PAGE_TABLE && is_link && self.keeps_its_place(child_of(spte)) {
                most -= 1;
            }
            if level <= most {
                break sptep;
            }
            self.validate_direct_spte(sptep, mapping.access);
            let covered = mapping.gfn.align_down(level);
            let found = self.guest_child(vcpu, gva, sptep, covered, (true, mapping.access))?;
            page = self.link_guest_child(sptep, found);
            if found.is_err() && self.config.nx_huge_pages && is_fetch {
                self.note_nx(page, level, asked);
            }
            level -= 1;
        };
        let backing = match mapping.backing {
            Backing::Frame { pfn, host_writable } => Backing::Frame { pfn: pfn.align_down(most), host_writable },
            Backing::NoSlot => Backing::NoSlot,
        };
        mapping = Mapping { gfn: mapping.gfn.align_down(most), level: most, backing, ..mapping };
        let is_written = if let HostLookup::Found { is_written, .. } = host { *is_written } else { None };
        let (set, emulate) = self.set_leaf(sptep, &mapping, is_written);
        if set != Set::Unchanged || emulate {
            if self.arena.key(sptep.page()).role.direct() {
                if set != Set::Mmio {
                    self.prefetch_group(&mapping, sptep, host);
                }
            } else if self.invalidation.in_progress == 0 {
                let neighbours =
                    if let HostLookup::Found { neighbours, .. } = host { neighbours.as_deref() } else { None };
                self.prefetch_guest_group(vcpu, sptep, group.as_ref(), neighbours);
            }
        }
        Ok(match set {
            Set::Mmio => Handled::Emulate,
            _ if emulate => Handled::WriteProtected,
            Set::Written => Handled::Fixed,
            Set::Unchanged => Handled::Spurious,
        })
    }

    /// The table below an entry: the one that is linked if it is the one wanted, else another one to be linked.
    fn guest_child(
        &mut self,
        vcpu: usize,
        gva: u64,
        sptep: Sptep,
        gfn: Gfn,
        (direct, access): (bool, u8),
    ) -> Result<std::result::Result<PageIdx, PageIdx>> {
        let level = self.arena.key(sptep.page()).role.level();
        let role = self.guest_child_role(vcpu, gva, (sptep.page(), sptep.index()), level - 1, (direct, access));
        let spte = self.arena.spte(sptep);
        if is_shadow_present(&self.masks, spte) && !is_last(spte, level) {
            let child = child_of(spte);
            if self.is_reused(child, gfn, role) {
                self.note_kept_child(sptep, child, gfn, role);
                return Ok(Ok(child));
            }
        }
        Ok(Err(self.get_guest_page(vcpu, gfn, role)?))
    }

    /// Links a table that is not linked yet; what stands there goes first.
    fn link_guest_child(&mut self, sptep: Sptep, found: std::result::Result<PageIdx, PageIdx>) -> PageIdx {
        let new = match found {
            Ok(child) => return child,
            Err(new) => new,
        };
        let spte = self.arena.spte(sptep);
        let level = self.arena.key(sptep.page()).role.level();
        if is_shadow_present(&self.masks, spte) {
            if self.config.probes {
                self.push_page_zap_pte(sptep, spte, level);
            }
            let child = (!is_last(spte, level)).then(|| child_of(spte));
            self.drop_what_is_in_the_way(sptep, child);
        }
        self.link_shadow_page(sptep, new);
        new
    }

    /// Logs the level that a fault settled on.
    pub(in crate::mmu) fn push_requested(&mut self, mapping: &Mapping, level: u8) {
        if self.config.is_stepped() {
            let pfn = if let Backing::Frame { pfn, .. } = mapping.backing { pfn.0 } else { NO_SLOT_PFN };
            let gfn = mapping.gfn.0;
            self.events.push(|| Event::Requested { gfn, pfn, level });
        }
    }
}

/// The frame of a gfn without a slot.
const NO_SLOT_PFN: u64 = 1 << 63;
