//! Many faults of the usual kind at once: writes, reads or fetches of ascending neighbours that are absent in one page table.
//!
//! And accesses that fault no more, and entries that a fault maps ahead, both in one table.
//!
//! Ours; it does what so many guest accesses would do one after the other, where nobody listens: the same entries, reverse
//! maps, dirty bits, translations and counts. What `quick_map` leaves to the steps of a fault it leaves, too, and beyond
//! that every run whose faults would map something ahead.

use crate::mmu::fault::quick_map::Usual;
use crate::mmu::pages::mapping::Mapping;
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{is_large, is_shadow_present};
use crate::mmu::tables::Tables;
use crate::mmu::vm::slots::SlotAt;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::tlb::Translation;
use crate::mmu::words::access::ACC_ALL;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::level::{ENTRIES, PAGE_TABLE, table_index};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::{PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::make::{Leaf, make_leaf};
use crate::mmu::words::spte::mmio::is_mmio;
use crate::mmu::words::views::{AccessKind, AccessResult, Outcome};

/// Bytes of a page.
const PAGE: u64 = 1 << 12;
/// Entries of a group that a fault may map ahead.
const GROUP: usize = 8;

impl MmuState {
    /// How many of these addresses, from the first on, were mapped and accessed at once, and how each access ended; 0 leaves
    /// the first to `access`.
    pub(in crate::mmu) fn access_run(&mut self, vcpu: usize, gpas: &[u64], kind: AccessKind) -> (usize, AccessResult) {
        let done = AccessResult { outcome: Outcome::Hit, faults: 1, ret: self.answer_of_first_mapping().ret };
        let Some((root, usual)) = self.usual_start(vcpu, gpas, kind) else { return (0, done) };
        let count = self.usual_length(&usual, gpas);
        let nr = count as u64;
        let last = usual.spte + nr.saturating_sub(1) * PAGE;
        if count == 0 || is_mmio(&self.masks, last) || self.allows_through(kind, last).is_err() {
            return (0, done);
        }
        self.work.faults += nr;
        if self.tables() == Tables::Tdp {
            self.tdp_count_first_leaves(root, nr);
        } else {
            self.add_usual_heads(usual.slot, usual.index, usual.sptep, count);
        }
        self.set_neighbours(usual.sptep, usual.spte, count);
        self.mark_pages_dirty(usual.slot, usual.index, nr);
        let vcpu = &mut self.vcpus[vcpu];
        if self.config.kernel.is_level_requested {
            vcpu.faults.taken += nr;
            vcpu.faults.fixed += nr;
        }
        if self.config.is_stepped() {
            self.stats.pfn_accessed = self.stats.pfn_accessed.wrapping_add_unsigned(nr);
        }
        for at in 0..nr {
            vcpu.tlb.fill(Translation { gfn: usual.gfn.plus(at), leaf: usual.spte + at * PAGE, level: 1 });
        }
        (count, done)
    }

    /// The first leaf of a run and the root above it, if the accesses may be made at once at all.
    fn usual_start(&mut self, vcpu: usize, gpas: &[u64], kind: AccessKind) -> Option<(PageIdx, Usual)> {
        let gpa = *gpas.first()?;
        let of_vcpu = &self.vcpus[vcpu];
        let root = of_vcpu.root;
        let table = self.last_hardware.get().table(root, gpa)?;
        let is_quiet = of_vcpu.requests == 0
            && !self.events.is_on()
            && self.ghost.is_none()
            && self.last_path.get().lower(root, gpa) == Some(table);
        let is_shadow = self.tables() == Tables::Shadow;
        if !is_quiet || !self.is_root_usual(root) {
            return None;
        }
        // Newer kernels map the rest of a group ahead.
        if is_shadow && self.config.kernel.is_level_requested {
            let slot = self.find_slot(self.vcpus[vcpu].as_id(), Gfn::of_gpa(gpa))?;
            self.slot_body(slot).dirty.as_ref()?;
        }
        let usual = self.usual_leaf(vcpu, gpa, root, is_shadow)?;
        let is_tracking = !self.slot_body(usual.slot).track.is_empty()
            || self.config.kernel.track_all_spaces
                && !self.spaces[usize::from(usual.slot.as_id & 1 ^ 1)].specs().is_empty();
        (!is_tracking && self.allows_through(kind, usual.spte).is_ok()).then_some((root, usual))
    }

    /// How many neighbours are absent, in order and in the slot, so that no fault would map anything ahead.
    fn usual_length(&self, usual: &Usual, gpas: &[u64]) -> usize {
        let first = usize::from(usual.sptep.index());
        let Some(words) = self.arena.table(usual.sptep.page()).full() else { return 0 };
        let group = first / GROUP * GROUP;
        let is_present = |&word: &u64| is_shadow_present(&self.masks, word);
        if self.tables() == Tables::Shadow && !usual.is_logged && !words[group..first].iter().all(is_present) {
            return 0;
        }
        let spec = self.slot_spec(usual.slot);
        let in_slot = usize::try_from(spec.npages - usual.index).unwrap_or(ENTRIES);
        let in_frames = usize::try_from((PFN_FIELD - (usual.spte & PFN_FIELD)) / PAGE).unwrap_or(ENTRIES);
        let most = in_slot.min(in_frames).min(ENTRIES - first);
        let mut count = gpas.iter().zip(0..most as u64).take_while(|&(&gpa, at)| gpa == gpas[0] + at * PAGE).count();
        let absent = words[first..].iter().take_while(|&&word| word == 0).count();
        if first + absent < ENTRIES && !usual.is_logged {
            // The group in which an entry is present is left to single faults.
            count = count.min(((first + absent) / GROUP * GROUP).saturating_sub(first));
        }
        count = count.min(absent);
        if self.tables() == Tables::Shadow {
            let heads = self.slot_body(usual.slot).rmap[0].rest_of_chunk(usual.index).unwrap_or_default();
            count = heads.iter().take(count).take_while(|head| head.is_empty()).count();
        }
        count
    }

    /// How many of these addresses, from the first on, hit leaves of the table that the processor came to last.
    pub(in crate::mmu) fn access_hits(&mut self, vcpu: usize, gpas: &[u64], kind: AccessKind) -> usize {
        let of_vcpu = &self.vcpus[vcpu];
        let Some(&first) = gpas.first() else { return 0 };
        let table = self.last_hardware.get().table(of_vcpu.root, first);
        let Some(table) = table.filter(|_| of_vcpu.requests == 0 && self.ghost.is_none()) else { return 0 };
        let mut count = 0;
        for &gpa in gpas.iter().take_while(|&&gpa| gpa >> 21 == first >> 21) {
            let sptep = table.sptep(table_index(gpa, 1));
            let leaf = self.arena.spte(sptep);
            if self.allows_through(kind, leaf).is_err() {
                break;
            }
            self.set_accessed_dirty(vcpu, gpa, kind, &[sptep], leaf);
            self.vcpus[vcpu].tlb.fill(Translation { gfn: Gfn::of_gpa(gpa), leaf, level: 1 });
            count += 1;
        }
        count
    }

    /// Maps so many absent neighbours that nobody asked for, from an entry of a page on, at once; false, and nothing done,
    /// where anything about one of them is unusual. The host has their pages.
    pub(super) fn map_ahead(&mut self, mapping: &Mapping, slot: SlotAt, at: (PageIdx, u16), count: usize) -> bool {
        let (page, index) = at;
        let sptep = page.sptep(index);
        let (spec, body) = (*self.slot_spec(slot), self.slot_body(slot));
        let gfn = self.arena.key(page).gfn.plus(index.into());
        let in_slot = spec.index(gfn, PAGE_TABLE);
        let last = gfn.plus(count as u64);
        if mapping.access != ACC_ALL
            || self.events.is_on()
            || self.ghost.is_some()
            || self.masks.accessed == 0
            || self.nr_indirect != 0
            || self.has_high_pages
            || last.0 >> self.root_gfn_bits != 0
            || !self.host.is_plain()
            || !body.track.is_empty()
            || self.config.kernel.track_all_spaces && !self.spaces[usize::from(slot.as_id & 1 ^ 1)].specs().is_empty()
            || is_chosen(Mutant::PrefetchOverHole)
        {
            return false;
        }
        let heads = body.rmap[0].rest_of_chunk(in_slot).and_then(|heads| heads.get(..count));
        let words = self.arena.table(page).full().and_then(|words| words.get(usize::from(index)..)?.get(..count));
        let (Some(heads), Some(words)) = (heads, words) else { return false };
        if words.iter().any(|&word| word != 0) || !heads.iter().all(|head| head.is_empty()) {
            return false;
        }
        let pfn = Pfn((spec.hva_of(gfn) & PFN_FIELD) >> 12);
        let leaf = Leaf {
            access: ACC_ALL,
            level: PAGE_TABLE,
            pfn,
            speculative: true,
            host_writable: true,
            ad_disabled: false,
        };
        let spte = make_leaf(&self.masks, &leaf) | WRITABLE | self.masks.mmu_writeable | self.masks.dirty;
        let last = spte + (count as u64).saturating_sub(1) * PAGE;
        let is_plain = |spte| is_shadow_present(&self.masks, spte) && !is_large(spte) && !is_mmio(&self.masks, spte);
        if (spte ^ last) & !PFN_FIELD != 0 || !is_plain(spte) || !is_plain(last) {
            return false;
        }
        self.add_usual_heads(slot, in_slot, sptep, count);
        self.set_neighbours(sptep, spte, count);
        self.mark_pages_dirty(slot, in_slot, count as u64);
        true
    }
}
