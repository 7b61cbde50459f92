//! Mapping one gfn in the TDP MMU: tables down to the level wanted, then the leaf or the MMIO SPTE, under the shared lock.
//!
//! Models `kvm_tdp_mmu_map`, `tdp_mmu_map_handle_target_level`, `make_spte`, v6.1 to v7.3. One fault writes one leaf:
//! nothing is mapped ahead.

use crate::kernels::{OldEntryExempts, TdpFaultFlush, TdpLargeInWay};
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::{child_of, is_access_allowed, is_last, is_shadow_present};
use crate::mmu::tdp::tdp_walk::{Entry, Lock};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::PFERR_WRITE;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::error::Result;
use crate::mmu::words::level::{PAGE_TABLE, pages_per, table_index};
use crate::mmu::words::spte::layout::{LARGE, WRITABLE};

/// What became of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum TdpMapped {
    /// It was written.
    Fixed,
    /// It was that already.
    Spurious,
    /// It is an MMIO SPTE.
    Mmio,
    /// It is read-only, because the gfn is write-tracked, and a write was wanted.
    WriteProtected,
}

impl MmuState {
    /// From a root to the mapping; what became of it, and its level. `fetched` is the level that an instruction fetch
    /// could have had.
    pub(in crate::mmu) fn tdp_map(
        &mut self,
        root: PageIdx,
        mapping: &Mapping,
        fetched: Option<u8>,
        error_code: u64,
    ) -> Result<(TdpMapped, u8)> {
        self.stats.tdp_walks += 1;
        let gfn = mapping.gfn;
        let addr = gfn.gpa();
        let mut goal = mapping.level;
        let mut page = root;
        let mut level = self.arena.key(root).role.level();
        let sptep = loop {
            let sptep = page.sptep(table_index(addr, level));
            let spte = self.arena.spte(sptep);
            let is_present = is_shadow_present(&self.masks, spte);
            let child = (is_present && !is_last(spte, level)).then(|| child_of(spte));
            if level == goal && level > PAGE_TABLE && child.is_some_and(|child| self.tdp_keeps_table(child)) {
                goal -= 1;
            }
            if level <= goal {
                break sptep;
            }
            page = match child {
                Some(child) => child,
                None => self.tdp_add_table(sptep, gfn.align_down(level), is_present, fetched)?,
            };
            self.stats.tdp_steps += 1;
            level -= 1;
        };
        let backing = match mapping.backing {
            Backing::Frame { pfn, host_writable } => Backing::Frame { pfn: pfn.align_down(goal), host_writable },
            Backing::NoSlot => Backing::NoSlot,
        };
        if goal == PAGE_TABLE {
            self.remember_path(root, addr, page);
        }
        let mapping = Mapping { gfn: gfn.align_down(goal), level: goal, backing, ..*mapping };
        Ok((self.tdp_map_target(sptep, &mapping, error_code), goal))
    }

    /// While large leaves are not executable, a table that may hold executable ones is not replaced.
    fn tdp_keeps_table(&self, table: PageIdx) -> bool {
        let is_marked = self.arena.page(table).nx_huge_page_disallowed;
        self.config.nx_huge_pages && (self.config.kernel.nx_keeps_any_table || is_marked)
    }

    /// Puts a table where none is; a large leaf there is zapped, or split into it.
    fn tdp_add_table(&mut self, sptep: Sptep, gfn: Gfn, is_leaf: bool, fetched: Option<u8>) -> Result<PageIdx> {
        let role = self.arena.key(sptep.page()).role;
        let level = role.level();
        if is_leaf && self.config.kernel.tdp_large_in_way == TdpLargeInWay::Split {
            self.tdp_split(sptep, gfn, Lock::Shared)?;
        } else {
            if is_leaf {
                self.tdp_zap_atomic(sptep, gfn);
            }
            let table = self.tdp_make_table(gfn, role.with_level(level - 1))?;
            self.tdp_link(sptep, gfn, table, Lock::Shared);
        }
        let table = child_of(self.arena.spte(sptep));
        if self.config.nx_huge_pages
            && let Some(asked) = fetched
        {
            self.tdp_note_nx(table, level, asked);
        }
        Ok(table)
    }

    /// Puts a leaf where nothing was, into a table of level 1 below a root, with the counts of the walk to it.
    #[inline]
    pub(in crate::mmu) fn tdp_set_first_leaf(&mut self, root: PageIdx, sptep: Sptep, gfn: Gfn, spte: u64) {
        let as_id = self.arena.key(root).role.as_id();
        self.tdp_count_walks(root, 1);
        self.spte_set(sptep, spte);
        self.push_tdp_change(Entry { as_id, gfn, level: PAGE_TABLE }, 0, spte, 0, 1);
    }

    /// The counts of so many leaves put where nothing was, where nobody listens.
    pub(in crate::mmu) fn tdp_count_first_leaves(&mut self, root: PageIdx, count: u64) {
        self.tdp_count_walks(root, count);
        self.stats.spte_changed = self.stats.spte_changed.wrapping_add_unsigned(count);
        self.work.sptes_changed += count;
    }

    /// So many walks from a root to level 1.
    #[inline]
    fn tdp_count_walks(&mut self, root: PageIdx, count: u64) {
        let steps = count * u64::from(self.arena.key(root).role.level() - PAGE_TABLE);
        self.stats.tdp_walks = self.stats.tdp_walks.wrapping_add_unsigned(count);
        self.stats.tdp_steps = self.stats.tdp_steps.wrapping_add_unsigned(steps);
    }

    fn tdp_map_target(&mut self, sptep: Sptep, mapping: &Mapping, error_code: u64) -> TdpMapped {
        let old = self.arena.spte(sptep);
        let was_present = is_shadow_present(&self.masks, old);
        let was_leaf = was_present && is_last(old, mapping.level);
        let slots_gen = self.spaces[usize::from(self.vcpus[mapping.vcpu].as_id())].slots_gen;
        let (new, is_protected) = match mapping.backing {
            Backing::NoSlot => (self.make_mmio(mapping.gfn, mapping.access, slots_gen), false),
            Backing::Frame { pfn, host_writable } => {
                let is_allowed = mapping.speculative || is_access_allowed(&self.masks, error_code, old);
                if was_leaf && self.config.kernel.tdp_allowed_is_spurious && is_allowed {
                    return TdpMapped::Spurious;
                }
                self.tdp_make_leaf(sptep, old, mapping, pfn, host_writable)
            }
        };
        let is_changed = old != new;
        if is_changed {
            self.tdp_set_spte(sptep, mapping.gfn, new, Lock::Shared);
            if was_present && !was_leaf {
                let level = match self.config.kernel.tdp_fault_flush {
                    TdpFaultFlush::Table => mapping.level + 1,
                    TdpFaultFlush::Leaf => mapping.level,
                };
                self.flush_remote_tlbs_with_address(mapping.gfn.align_down(level), pages_per(level));
            }
        }
        if mapping.backing == Backing::NoSlot {
            self.vcpus[mapping.vcpu].faults.mmio_spte_created += 1;
            self.push_mark_mmio(sptep, mapping.gfn, new, mapping.access, slots_gen);
            return TdpMapped::Mmio;
        }
        self.push_set_spte(sptep, mapping, new);
        if is_protected && error_code & PFERR_WRITE != 0 {
            return TdpMapped::WriteProtected;
        }
        if is_changed { TdpMapped::Fixed } else { TdpMapped::Spurious }
    }

    /// The leaf of a fault over `old`, and whether write tracking took the write permission from it.
    fn tdp_make_leaf(
        &mut self,
        sptep: Sptep,
        old: u64,
        mapping: &Mapping,
        pfn: Pfn,
        host_writable: bool,
    ) -> (u64, bool) {
        let ad_disabled = self.arena.key(sptep.page()).role.ad_disabled();
        let mut spte = self.leaf_of(sptep, mapping, pfn, host_writable);
        let mut is_protected = false;
        if host_writable {
            let writable = WRITABLE | self.masks.mmu_writeable;
            spte |= writable;
            let exempts = self.config.kernel.old_entry_exempts;
            let was_writable = old & WRITABLE != 0 && (mapping.level == PAGE_TABLE || old & LARGE != 0);
            let is_exempt = was_writable && exempts != OldEntryExempts::None;
            if !is_exempt {
                is_protected = self.needs_write_protect(mapping.slot, mapping.gfn);
                self.push_try_unsync(mapping.gfn, mapping.speculative, is_protected);
            }
            if is_protected {
                spte &= !writable;
            } else if !(ad_disabled || is_exempt && exempts == OldEntryExempts::DirtyAndUnsync) {
                spte |= self.masks.dirty;
            }
        }
        (self.finished_leaf(spte, mapping), is_protected)
    }
}
