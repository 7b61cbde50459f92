//! The one file that writes SPTE words into tables, with what a write owes the host page and the TLBs.
//!
//! Models v5.0/v5.2 `mmu_spte_set`, `mmu_spte_update`, `mmu_spte_clear_track_bits`, `mmu_spte_clear_no_track`,
//! `mark_mmio_spte`. Invariant: a page's reverse maps and parents are settled by the caller (`link`, `zap`).

use crate::kernels::SpteFlush;
use crate::mmu::pages::leaves_gone::LeavesGone;
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::spte_table::SpteTable;
use crate::mmu::pages::walk::{can_be_made_writable, is_accessed, is_ad_disabled, is_dirty, is_shadow_present, pfn_of};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::generation::GenerationBits;
use crate::mmu::words::level::{ENTRIES, PAGE_SHIFT};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::WRITABLE;
use crate::mmu::words::spte::mmio::{STORED_ACCESS, make_mmio_spte};

impl MmuState {
    /// Stores a word, nothing else; a ghost is told.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "one store; what a ghost is told is cold")]
    pub(in crate::mmu) fn spte_set(&mut self, sptep: Sptep, spte: u64) {
        if self.ghost.is_some() {
            let old = self.arena.spte(sptep);
            self.arena.table_mut(sptep.page()).set(sptep.index(), spte);
            self.tell_write(sptep, old, spte);
            return;
        }
        self.arena.table_mut(sptep.page()).set(sptep.index(), spte);
    }

    /// Stores leaves of neighbouring frames into so many neighbouring entries of a full table.
    pub(in crate::mmu) fn set_neighbours(&mut self, first: Sptep, spte: u64, count: usize) {
        if self.ghost.is_some() {
            let indices = first.index()..;
            for (index, shift) in indices.zip(0..count as u64) {
                self.spte_set(first.page().sptep(index), spte + (shift << PAGE_SHIFT));
            }
            return;
        }
        let SpteTable::Full(words) = self.arena.table_mut(first.page()) else { return };
        for (word, at) in words.iter_mut().skip(first.index().into()).take(count).zip(0..ENTRIES as u64) {
            *word = spte + (at << PAGE_SHIFT);
        }
    }

    pub(in crate::mmu) fn push_accessed(&mut self, pfn: Pfn) {
        self.stats.pfn_accessed += 1;
        self.events.push(|| Event::PfnAccessed { pfn: pfn.0 });
    }

    pub(in crate::mmu) fn push_dirty(&mut self, pfn: Pfn) {
        self.stats.pfn_dirty += 1;
        self.events.push(|| Event::PfnDirty { pfn: pfn.0 });
    }

    /// Replaces a word of the same frame; whether TLBs must be flushed. Lost A and D bits go to the host page.
    pub(in crate::mmu) fn spte_update(&mut self, sptep: Sptep, new: u64) -> bool {
        let old = self.arena.spte(sptep);
        self.spte_update_from(sptep, old, new)
    }

    /// The same, where the old word is known.
    #[inline]
    pub(in crate::mmu) fn spte_update_from(&mut self, sptep: Sptep, old: u64, new: u64) -> bool {
        self.spte_set(sptep, new);
        if !is_shadow_present(&self.masks, old) {
            return false;
        }
        if self.config.kernel.spte_flush == SpteFlush::MmuWritable {
            return old & !new & self.masks.mmu_writeable != 0;
        }
        let mut flush = can_be_made_writable(&self.masks, old) && new & WRITABLE == 0;
        if is_accessed(&self.masks, old) && !is_accessed(&self.masks, new) {
            flush = true;
            self.push_accessed(pfn_of(old));
        }
        if is_dirty(&self.masks, old) && !is_dirty(&self.masks, new) {
            flush = true;
            self.push_dirty(pfn_of(old));
        }
        flush
    }

    /// Write-protects what heads of a chunk name, until one needs more than that: a list of several places, or an entry
    /// without dirty bit, whose page is dirty by being writable. How many heads were handled, and whether TLBs must be
    /// flushed.
    pub(in crate::mmu) fn write_protect_plain(
        &mut self,
        slot: SlotAt,
        level: u8,
        index: u64,
        most: u64,
    ) -> (u64, bool) {
        let heads = &self.spaces[usize::from(slot.as_id & 1)].body(slot.at).rmap[usize::from(level) - 1];
        // A ghost is told of one word at a time.
        let is_plain = self.masks.dirty != 0 && self.ghost.is_none() && !self.has_dangling;
        let Some(heads) = heads.rest_of_chunk(index).filter(|_| is_plain) else { return (0, false) };
        let (mut done, mut steps, mut flush) = (0, 0, false);
        let (mut page, mut table) = (PageIdx::NONE, self.arena.table_mut(PageIdx::NONE));
        for (&head, _) in heads.iter().zip(0..most) {
            let Some(sptep) = head.single() else {
                if head.is_empty() {
                    done += 1;
                    continue;
                }
                break;
            };
            if sptep.page() != page {
                page = sptep.page();
                table = self.arena.table_mut(page);
            }
            let spte = table.get(sptep.index());
            if spte & WRITABLE != 0 {
                if is_ad_disabled(&self.masks, spte) {
                    break;
                }
                table.set(sptep.index(), spte & !WRITABLE);
                flush |= is_shadow_present(&self.masks, spte) && can_be_made_writable(&self.masks, spte);
            }
            steps += 1;
            done += 1;
        }
        self.work.rmap_steps += steps;
        (done, flush)
    }

    /// Clears a leaf; whether it was present. Its A and D bits go to the host page.
    pub(in crate::mmu) fn spte_clear_track_bits(&mut self, sptep: Sptep) -> bool {
        let old = self.arena.spte(sptep);
        if old != 0 {
            self.spte_set(sptep, 0);
        }
        if !is_shadow_present(&self.masks, old) {
            return false;
        }
        self.account_leaf_gone(old);
        true
    }

    /// The A and D bits of a leaf that is gone go to the host page, up to v6.12.
    #[inline]
    pub(in crate::mmu) fn account_leaf_gone(&mut self, old: u64) {
        if !self.config.kernel.copies_ad_on_zap || is_chosen(Mutant::AccessedDirtyLost) {
            return;
        }
        if is_accessed(&self.masks, old) {
            self.push_accessed(pfn_of(old));
        }
        if is_dirty(&self.masks, old) {
            self.push_dirty(pfn_of(old));
        }
    }

    /// Empties the present leaves of a full page table from an index on, and counts what they were; nothing if the table is
    /// not full.
    pub(in crate::mmu) fn clear_leaves(&mut self, page: PageIdx, from: u16, count: u16) -> Option<LeavesGone> {
        if self.ghost.is_some() {
            return None;
        }
        let masks = self.masks;
        let SpteTable::Full(words) = self.arena.table_mut(page) else { return None };
        let mut gone = LeavesGone::default();
        let words = words.get_mut(from.into()..)?;
        let most = words.len().min(count.into());
        gone.add_all(&masks, &words[..most]);
        for word in &mut words[..most] {
            if is_shadow_present(&masks, *word) {
                *word = 0;
            }
        }
        Some(gone)
    }

    /// The host pages of leaves that are gone are marked; nobody listens.
    pub(in crate::mmu) fn account_leaves_gone(&mut self, gone: LeavesGone) {
        if self.config.kernel.copies_ad_on_zap && !is_chosen(Mutant::TdpDirtyLost) {
            self.stats.pfn_dirty += gone.dirty;
            self.stats.pfn_accessed += gone.accessed;
        }
    }

    /// Fills a table that nothing links to yet.
    pub(in crate::mmu) fn fill_table(&mut self, page: PageIdx, words: Box<[u64; ENTRIES]>) {
        *self.arena.table_mut(page) = SpteTable::Full(words);
        if self.ghost.is_some() {
            self.tell_filled(page);
        }
    }

    /// Empties a page at once and hands its entries over; the caller settles what each was.
    pub(in crate::mmu) fn take_table(&mut self, page: PageIdx) -> SpteTable {
        let table = std::mem::take(self.arena.table_mut(page));
        if self.ghost.is_some() {
            self.tell_taken(page, &table);
        }
        table
    }

    /// Stores an MMIO SPTE; the page is flagged before the event and the store.
    pub(in crate::mmu) fn mark_mmio_spte(&mut self, sptep: Sptep, gfn: Gfn, access: u8, slots_gen: u64) {
        let page = sptep.page();
        let flagged = if is_chosen(Mutant::FlagOnParentTable) { self.parent_of(page) } else { page };
        if !self.active.is_mmio_cached(flagged) {
            self.active.set_mmio_cached(flagged);
            if !self.arena.key(flagged).role.invalid() {
                self.mmio_pages.push_head(&mut self.arena, flagged);
            }
        }
        let spte = self.make_mmio(gfn, access, slots_gen);
        self.push_mark_mmio(sptep, gfn, spte, access, slots_gen);
        self.spte_set(sptep, spte);
    }

    /// The MMIO SPTE of a gfn.
    pub(in crate::mmu) fn make_mmio(&mut self, gfn: Gfn, access: u8, slots_gen: u64) -> u64 {
        let spte = make_mmio_spte(&self.masks, &self.generation, gfn.0, access.into(), slots_gen);
        if self.config.probes {
            let access = self.config.kernel.access_bits.word(access);
            self.events.push(|| Event::MakeMmioSpte { gfn: gfn.0, access });
            self.events.push(|| Event::MakeMmioSpteRet { spte });
        }
        spte
    }

    /// Logs that an entry was made an MMIO SPTE.
    pub(in crate::mmu) fn push_mark_mmio(&mut self, sptep: Sptep, gfn: Gfn, spte: u64, access: u8, slots_gen: u64) {
        let mmio_gen = self.generation.compared(slots_gen);
        let id = self.arena.key(sptep.page()).id;
        let mut shown = u64::from(access & STORED_ACCESS);
        let mask = self.config.kernel.mark_mmio_access_mask;
        if mask != 0 {
            shown = spte & u64::from(mask);
        }
        self.events.push(|| Event::MarkMmio {
            page: id,
            index: sptep.index(),
            gfn: gfn.0,
            access: u32::try_from(shown).unwrap_or(0),
            mmio_gen,
        });
    }

    /// The page above, or the page itself where there is none. For a mutant.
    fn parent_of(&self, page: PageIdx) -> PageIdx {
        self.pte_lists.first(self.arena.page(page).parents).map_or(page, Sptep::page)
    }

    /// What the processor does on a walk: sets bits in an entry, unseen by the MMU.
    #[inline]
    pub(in crate::mmu) fn spte_set_by_hardware(&mut self, sptep: Sptep, bits: u64) {
        let spte = self.arena.spte(sptep);
        if spte & bits != bits {
            self.spte_set(sptep, spte | bits);
        }
    }
}
