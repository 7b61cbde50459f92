//! `Mapping`: what is to be mapped where, and what a slot says about it: vetoes of large pages, write tracking, the event.
//!
//! Models the questions of v5.0 to v7.3 `kvm_mmu_max_mapping_level`, `mmu_need_write_protect` (for direct pages) and the
//! event `kvm_mmu_set_spte`. How a leaf is stored is each page table's own.

use crate::mmu::pages::page_arena::Sptep;
use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::ACC_EXEC;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE, pages_per};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::make::{Leaf, make_access_track, make_leaf};

const EPERM: i32 = 1;

/// What a gfn is backed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mmu) enum Backing {
    /// A host frame.
    Frame { pfn: Pfn, host_writable: bool },
    /// No slot: MMIO.
    NoSlot,
}

/// A mapping to be made.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct Mapping {
    pub vcpu: usize,
    pub slot: Option<SlotAt>,
    pub gfn: Gfn,
    pub level: u8,
    pub access: u8,
    pub backing: Backing,
    pub is_write: bool,
    pub speculative: bool,
    /// Pages that shadow the gfn as a table may fall out of sync for it, else it stays read-only while there are any.
    pub can_unsync: bool,
}

impl Mapping {
    /// A page near this one, mapped ahead: the host has it, writable.
    pub fn neighbour(&self, slot: SlotAt, gfn: Gfn, frame: Pfn) -> Self {
        let backing = Backing::Frame { pfn: Pfn((frame.hva() & PFN_FIELD) >> 12), host_writable: true };
        Self { slot: Some(slot), gfn, level: PAGE_TABLE, backing, is_write: false, speculative: true, ..*self }
    }
}

impl MmuState {
    /// Logs a written leaf.
    #[cold]
    pub(in crate::mmu) fn push_set_spte(&mut self, sptep: Sptep, mapping: &Mapping, spte: u64) {
        let page = self.arena.key(sptep.page()).id;
        let (gfn, level) = (mapping.gfn.0, mapping.level);
        let masks = &self.masks;
        let is_readable = masks.present != 0 || masks.suppress_ve != 0 || spte & 1 != 0;
        let is_executable = spte & (masks.x | masks.nx) == masks.x;
        let rxu = u8::from(is_readable) | u8::from(is_executable) << 1 | u8::from(spte & masks.user != 0) << 2;
        self.events.push(|| Event::SetSpte { page, index: sptep.index(), gfn, spte, level, rxu });
    }

    /// The word of a leaf that may not be written yet, as v6.1 and later make it.
    pub(in crate::mmu) fn leaf_of(&self, sptep: Sptep, mapping: &Mapping, pfn: Pfn, host_writable: bool) -> u64 {
        let is_nx = self.config.nx_huge_pages && mapping.level > PAGE_TABLE && !is_chosen(Mutant::LargeLeafExecutable);
        let leaf = Leaf {
            access: if is_nx { mapping.access & !ACC_EXEC } else { mapping.access },
            level: mapping.level,
            pfn,
            speculative: mapping.speculative,
            host_writable,
            ad_disabled: self.arena.key(sptep.page()).role.ad_disabled(),
        };
        make_leaf(&self.masks, &leaf)
    }

    /// The same with its permissions settled: one that nobody asked for is tracked, one that is writable is logged.
    pub(in crate::mmu) fn finished_leaf(&mut self, spte: u64, mapping: &Mapping) -> u64 {
        let spte = if mapping.speculative { make_access_track(&self.masks, spte) } else { spte };
        if spte & WRITABLE != 0 {
            self.mark_page_dirty(mapping.slot, mapping.gfn);
        }
        spte
    }

    /// Logs the question whether a gfn may be written through a leaf (kernels with probes), and its answer.
    #[inline]
    pub(in crate::mmu) fn push_try_unsync(&mut self, gfn: Gfn, prefetch: bool, is_protected: bool) {
        if self.config.probes {
            let ret = if is_protected { -EPERM } else { 0 };
            self.events.push(|| Event::TryUnsync { gfn: gfn.0, can_unsync: true, prefetch });
            self.events.push(|| Event::TryUnsyncRet { ret });
        }
    }

    /// Whether large pages of this level are vetoed at the gfn.
    ///
    /// Differs: one that would reach over the slot's edge always is. The kernel vetoes those when a slot is created, but a
    /// move keeps the old vetoes, and the kernel then maps, and looks for reverse maps, outside the slot.
    pub(in crate::mmu) fn is_large_disallowed(&self, slot: Option<SlotAt>, gfn: Gfn, level: u8) -> bool {
        slot.is_none_or(|slot| {
            let spec = self.slot_spec(slot);
            let first = gfn.align_down(level);
            let last = first.plus(pages_per(level) - 1);
            !spec.holds(first)
                || !spec.holds(last)
                || self.slot_body(slot).disallowed(spec.index(gfn, level), level) != 0
                    && !is_chosen(Mutant::LargeVetoIgnored)
        })
    }

    /// The largest level that the host and the slot's vetoes allow for a gfn.
    pub(in crate::mmu) fn slot_level(&self, slot: SlotAt, gfn: Gfn) -> u8 {
        let most = self.config.lpage_level.min(MAX_LEAF);
        let is_allowed = |level: &u8| !self.is_large_disallowed(Some(slot), gfn, *level);
        let level = (2..=most).rev().find(is_allowed).unwrap_or(PAGE_TABLE);
        level.min(self.host.level(Pfn::of_hva(self.slot_spec(slot).hva_of(gfn))))
    }

    /// A write-tracked gfn stays read-only. (Pages that shadow it as a table may fall out of sync for it: `unsync`.)
    #[inline]
    pub(in crate::mmu) fn needs_write_protect(&self, slot: Option<SlotAt>, gfn: Gfn) -> bool {
        let is_tracked = |slot: SlotAt| {
            let track = &self.slot_body(slot).track;
            !track.is_empty() && track.contains_key(&self.slot_spec(slot).index(gfn, PAGE_TABLE))
        };
        slot.is_some_and(|slot| {
            is_tracked(slot)
                || self.config.kernel.track_all_spaces && self.find_slot(slot.as_id ^ 1, gfn).is_some_and(is_tracked)
        })
    }
}
