//! Putting entries into tables: links to child tables and leaves, with parents and reverse maps.
//!
//! Models v5.0/v5.2 `link_shadow_page`, `mmu_set_spte`, `set_spte`, `drop_large_spte`, `rmap_recycle`.

use crate::kernels::CollapseFlush;
use crate::mmu::pages::mapping::{Backing, Mapping};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::{child_of, is_large, is_shadow_present, pfn_of};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::REQ_TLB_FLUSH;
use crate::mmu::words::access::ACC_WRITE;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::{PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::WRITABLE;
use crate::mmu::words::spte::make::{Leaf, make_access_track, make_leaf, make_link};
use crate::mmu::words::spte::mmio::is_mmio;

/// A list longer than this is dropped whole.
pub(in crate::mmu) const RMAP_RECYCLE_THRESHOLD: u32 = 1000;

/// What `set_spte` found.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::mmu) struct SetSpte {
    write_protected: bool,
    pub flush: bool,
}

impl MmuState {
    /// Links a child table.
    pub(in crate::mmu) fn link_shadow_page(&mut self, sptep: Sptep, child: PageIdx) {
        self.bound_parents(child);
        let ad_disabled = self.arena.key(child).role.ad_disabled();
        let spte = make_link(&self.masks, child.0, ad_disabled);
        self.spte_set(sptep, spte);
        self.forget_last_path();
        self.work.parent_steps += 1;
        let mut parents = self.arena.page(child).parents;
        self.pte_lists.add(&mut parents, sptep);
        let header = self.arena.page_mut(child);
        header.parents = parents;
        if header.unsync || header.unsync_children != 0 {
            self.mark_unsync(sptep);
        }
    }

    /// A page with as many parents as it may have loses them all before it gets another one. What a kernel does there is
    /// not known: assumed to be what it does with a reverse map that grew too long.
    fn bound_parents(&mut self, child: PageIdx) {
        let most = self.config.kernel.max_parents as usize + usize::from(is_chosen(Mutant::ParentsOneMore));
        if self.config.kernel.max_parents != 0
            && self.pte_lists.iter(self.arena.page(child).parents).take(most).count() == most
        {
            self.unlink_parents(child);
            self.flush_remote_tlbs();
        }
    }

    /// Takes a parent out of a child's list; the entry itself is the caller's.
    pub(in crate::mmu) fn remove_parent(&mut self, child: PageIdx, sptep: Sptep) {
        self.work.parent_steps += 1;
        let mut parents = self.arena.page(child).parents;
        self.pte_lists.remove(&mut parents, sptep);
        self.arena.page_mut(child).parents = parents;
    }

    /// Clears a link and takes it out of the child's parents.
    pub(in crate::mmu) fn drop_parent_pte(&mut self, child: PageIdx, sptep: Sptep) {
        self.remove_parent(child, sptep);
        self.spte_set(sptep, 0);
        self.forget_last_path();
    }

    /// Drops a large leaf that stands where a table is needed.
    pub(in crate::mmu) fn drop_large_spte(&mut self, sptep: Sptep) {
        let spte = self.arena.spte(sptep);
        if is_shadow_present(&self.masks, spte) && is_large(spte) {
            self.drop_spte(sptep);
            self.stats.lpages -= 1;
            self.flush_place(sptep, self.arena.key(sptep.page()).gfn_of(sptep.index()));
        }
    }

    /// Flushes the range of an entry that mapped a gfn; older kernels begin at the gfn of its table and miss it.
    pub(in crate::mmu) fn flush_place(&mut self, sptep: Sptep, gfn: Gfn) {
        let key = self.arena.key(sptep.page());
        let level = key.role.level();
        let first = match self.config.kernel.collapse_flush {
            CollapseFlush::Table => key.gfn,
            CollapseFlush::Entry => gfn.align_down(level),
        };
        self.flush_remote_tlbs_with_address(first, pages_per(level));
    }

    /// Installs a leaf or an MMIO SPTE; true if the access must be emulated.
    pub(in crate::mmu) fn mmu_set_spte(&mut self, sptep: Sptep, mapping: &Mapping) -> bool {
        let old = self.arena.spte(sptep);
        let mut was_mapped = false;
        let mut flush = false;
        if is_shadow_present(&self.masks, old) {
            if mapping.level > PAGE_TABLE && !is_large(old) {
                self.drop_parent_pte(child_of(old), sptep);
                flush = true;
            } else if matches!(mapping.backing, Backing::Frame { pfn, .. } if pfn_of(make_leaf_pfn(pfn)) == pfn_of(old))
            {
                was_mapped = true;
            } else {
                self.drop_spte(sptep);
                flush = true;
            }
        }
        self.tell_making(sptep, mapping.gfn);
        let set = match mapping.backing {
            Backing::NoSlot => {
                let slots_gen = self.spaces[usize::from(self.vcpus[mapping.vcpu].as_id())].slots_gen;
                self.mark_mmio_spte(sptep, mapping.gfn, mapping.access, slots_gen);
                SetSpte::default()
            }
            Backing::Frame { pfn, host_writable } => {
                let before = if was_mapped { old } else { 0 };
                self.set_spte(sptep, before, mapping, pfn, host_writable)
            }
        };
        let mut emulate = false;
        if set.write_protected {
            emulate = mapping.is_write;
            self.vcpus[mapping.vcpu].requests |= REQ_TLB_FLUSH;
        }
        if set.flush || flush {
            self.flush_remote_tlbs_with_address(mapping.gfn, pages_per(mapping.level));
        }
        #[cfg(feature = "mutants")]
        if is_chosen(Mutant::FlagClearedOnOverwrite) && is_mmio(&self.masks, old) && mapping.backing != Backing::NoSlot
        {
            self.active.clear_mmio_cached(sptep.page());
            self.mmio_pages.remove(&mut self.arena, sptep.page());
        }
        self.note_shadowed(sptep, mapping);
        let new = self.arena.spte(sptep);
        if self.config.kernel.has_set_spte_event {
            self.push_set_spte(sptep, mapping, new);
        }
        if is_mmio(&self.masks, new) {
            emulate = true;
        }
        if !was_mapped {
            // An MMIO SPTE's generation may have this bit; the kernel counts it and never takes it back.
            if is_large(new) {
                self.stats.lpages += 1;
            }
            if is_shadow_present(&self.masks, new)
                && self.rmap_add(mapping.slot, sptep, mapping.gfn, mapping.level) > RMAP_RECYCLE_THRESHOLD
            {
                self.rmap_recycle(sptep, mapping.gfn);
            }
        }
        emulate
    }

    /// Notes what an entry of a page that shadows a guest's table is made for.
    #[inline]
    pub(in crate::mmu) fn note_shadowed(&mut self, sptep: Sptep, mapping: &Mapping) {
        if let Some(indirect) = self.arena.indirect_mut(sptep.page()) {
            indirect.set_shadowed(sptep.index(), mapping.gfn, mapping.access);
        }
    }

    /// Stores a leaf over `before`, which is empty unless it maps the same frame.
    #[inline]
    pub(in crate::mmu) fn set_spte(
        &mut self,
        sptep: Sptep,
        before: u64,
        mapping: &Mapping,
        pfn: Pfn,
        host_writable: bool,
    ) -> SetSpte {
        let ad_disabled = self.arena.key(sptep.page()).role.ad_disabled();
        let leaf = Leaf {
            access: mapping.access,
            level: mapping.level,
            pfn,
            speculative: mapping.speculative,
            host_writable,
            ad_disabled,
        };
        let mut spte = make_leaf(&self.masks, &leaf);
        let mut set = SetSpte::default();
        let mut may_write = mapping.access & ACC_WRITE != 0 && host_writable;
        if may_write {
            if mapping.level > PAGE_TABLE && self.is_large_disallowed(mapping.slot, mapping.gfn, mapping.level) {
                return set;
            }
            // What was writable before a sync stays so, and is not marked dirty again.
            if !mapping.can_unsync && before & WRITABLE != 0 {
                spte |= WRITABLE | self.masks.mmu_writeable;
                may_write = false;
            } else if self.try_to_unsync_pages(mapping.slot, mapping.gfn, mapping.can_unsync, false) != 0 {
                set.write_protected = true;
                may_write = false;
            }
        }
        if may_write {
            spte |= WRITABLE | self.masks.mmu_writeable;
            self.mark_page_dirty(mapping.slot, mapping.gfn);
            if !ad_disabled {
                spte |= self.masks.dirty;
            }
        }
        if mapping.speculative {
            spte = make_access_track(&self.masks, spte);
        }
        if before == 0 {
            self.spte_set(sptep, spte);
        } else {
            set.flush = self.spte_update(sptep, spte);
        }
        set
    }

    /// Drops a list that grew too long.
    pub(in crate::mmu) fn rmap_recycle(&mut self, sptep: Sptep, gfn: Gfn) {
        let role = self.arena.key(sptep.page()).role;
        if let Some(slot) = self.find_slot(role.as_id(), gfn) {
            let index = self.slot_spec(slot).index(gfn, role.level());
            self.zap_rmap(slot, index, role.level());
        }
        self.flush_place(sptep, gfn);
    }
}

/// The frame as an entry would hold it, so that frames beyond the field compare as stored.
const fn make_leaf_pfn(pfn: Pfn) -> u64 {
    pfn.hva()
}
