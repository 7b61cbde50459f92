//! Many faults of the usual kind at once: writes, reads or fetches of ascending neighbours that are absent in one page table.
//!
//! Ours; it does what so many guest accesses would do one after the other, where nobody listens: the same entries, reverse
//! maps, dirty bits, translations and counts. What `quick_map` leaves to the steps of a fault it leaves, too, and beyond
//! that every run whose faults would map something ahead.

use crate::mmu::fault::quick_map::Usual;
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::is_shadow_present;
use crate::mmu::tables::Tables;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::tlb::Translation;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::ENTRIES;
use crate::mmu::words::spte::layout::PFN_FIELD;
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
            self.add_usual_heads(&usual, count);
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
}
