//! Telling the ghost of writes: what each word means to a processor. Only `spte_write` calls this, once for every word it
//! stores; nothing is done, and nothing read, where no ghost listens.

use crate::kernels::OldEntryExempts;
use crate::mmu::ghost::told::{EXEC, Leaf, Link, READ, Told, WRITE, Write};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::spte_table::SpteTable;
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present, pfn_of};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::pages_per;
use crate::mmu::words::spte::layout::WRITABLE;
use crate::mmu::words::spte::mmio::is_mmio;
use crate::mmu::words::views::HostState;

impl MmuState {
    /// What a word at a place means, where a leaf maps this gfn.
    fn told(&self, sptep: Sptep, spte: u64, leaf_gfn: u64) -> Told {
        if !is_shadow_present(&self.masks, spte) {
            return Told::Nothing;
        }
        let role = self.arena.key(sptep.page()).role;
        if !is_last(spte, role.level()) {
            let (table, level) = (child_of(spte).0, role.level());
            let gfn = self.arena.key(sptep.page()).gfn_of(sptep.index()).0;
            return Told::Link(Link { table, as_id: role.as_id(), gfn, pages: pages_per(level) });
        }
        let is_executable = spte & (self.masks.x | self.masks.nx) == self.masks.x;
        let rights = if spte & 1 != 0 { READ } else { 0 }
            | if spte & WRITABLE != 0 { WRITE } else { 0 }
            | if is_executable { EXEC } else { 0 };
        Told::Leaf(Leaf {
            as_id: role.as_id(),
            gfn: leaf_gfn,
            level: role.level(),
            frame: pfn_of(spte).0,
            rights,
            is_dirty: spte & self.masks.dirty != 0,
        })
    }

    /// An entry is about to be made for a gfn.
    #[inline]
    pub(in crate::mmu) fn tell_making(&mut self, sptep: Sptep, gfn: Gfn) {
        if let Some(ghost) = &mut self.ghost {
            ghost.makes(sptep.0, gfn.0);
        }
    }

    /// What is dropped from now on is dropped because the guest's own entry does not say it any more, or not so.
    #[inline]
    pub(in crate::mmu) fn tell_guests(&mut self, on: bool) {
        if let Some(ghost) = &mut self.ghost {
            ghost.is_guests = on;
        }
    }

    /// The gfn that the place of a leaf gives, for leaves that nobody told of; a table of the guest's says it of each entry.
    fn told_gfn(&self, sptep: Sptep) -> Gfn {
        if let Some(&gfn) = self.aliased.get(&sptep) {
            return gfn;
        }
        let page = sptep.page();
        let index = sptep.index();
        self.arena.indirect(page).map_or_else(|| self.arena.key(page).gfn_of(index), |indirect| indirect.gfn(index))
    }

    /// A word was stored.
    #[cold]
    #[inline(never)]
    pub(in crate::mmu) fn tell_write(&mut self, sptep: Sptep, old: u64, new: u64) {
        self.tell_word(sptep, old, new, false);
    }

    fn tell_word(&mut self, sptep: Sptep, old: u64, new: u64, is_table_taken: bool) {
        if old == new {
            return;
        }
        // What a leaf maps is what it was made for: its place says it only of leaves that nobody told of.
        let of_place = || self.told_gfn(sptep).0;
        let known = self.ghost.as_ref().and_then(|ghost| ghost.gfn_at(sptep.0));
        let made = self.ghost.as_ref().and_then(|ghost| ghost.gfn_made(sptep.0));
        let was = self.told(sptep, old, known.unwrap_or_else(of_place));
        let is = self.told(sptep, new, made.or(known).unwrap_or_else(of_place));
        let is_exempt = self.config.kernel.old_entry_exempts != OldEntryExempts::None && old & WRITABLE != 0;
        let is_readonly = matches!(is, Told::Leaf(leaf) if self.is_read_only(&leaf));
        let place = sptep.0;
        let is_pml = self.config.pml;
        let is_mmio = is_mmio(&self.masks, new);
        if let Some(ghost) = &mut self.ghost {
            ghost.written(Write { place, is_table_taken, is_exempt, is_readonly, is_pml, is_mmio }, was, is);
        }
    }

    /// Whether the slot or the host page of a leaf forbids writing.
    fn is_read_only(&self, leaf: &Leaf) -> bool {
        let gfn = Gfn(leaf.gfn);
        let Some(slot) = self.find_slot(leaf.as_id, gfn) else { return false };
        let spec = self.slot_spec(slot);
        let state = self.host.state(Pfn::of_hva(spec.hva_of(gfn)));
        spec.is_readonly()
            || matches!(state, HostState::Cow | HostState::CowCopy | HostState::Zero | HostState::ReadOnly)
    }

    /// A whole table was emptied.
    #[cold]
    #[inline(never)]
    pub(in crate::mmu) fn tell_taken(&mut self, page: PageIdx, table: &SpteTable) {
        for (index, spte) in table.iter().filter(|&(_, spte)| spte != 0) {
            self.tell_word(page.sptep(index), spte, 0, true);
        }
    }

    /// A whole table was filled.
    #[cold]
    #[inline(never)]
    pub(in crate::mmu) fn tell_filled(&mut self, page: PageIdx) {
        let words: Vec<(u16, u64)> = self.arena.table(page).iter().filter(|&(_, spte)| spte != 0).collect();
        for (index, spte) in words {
            self.tell_word(page.sptep(index), 0, spte, false);
        }
    }
}
