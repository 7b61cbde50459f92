//! The properties of the bookkeeping alone: what shadow pages, lists, roots and counters say of each other. They need no
//! ghost, and no operation.

use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present, pfn_of};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::REQ_MMU_RELOAD;
use crate::mmu::watch::judge::Verdict;
use crate::mmu::words::generation::GenerationBits;
use crate::mmu::words::level::{PAGE_TABLE, pages_per};
use crate::mmu::words::spte::mmio::{is_mmio, mmio_gen, mmio_gfn};

impl MmuState {
    /// The properties of pages and roots.
    pub(in crate::mmu) fn judge_pages(&self, verdict: &mut Verdict) {
        let is_idle = !self.has_unfinished_runs();
        for page in self.arena.indices() {
            let header = self.arena.page(page);
            let key = self.arena.key(page);
            let role = key.role;
            if header.place == Place::Free {
                continue;
            }
            let is_kept_root = header.root_count > 0 && !self.config.kernel.zapped_root_leaves;
            verdict.check(header.place != Place::Active || !role.invalid() || is_kept_root, "active_valid", || {
                format!("page {}", key.id)
            });
            verdict.check(header.place != Place::Invalid || header.root_count == 0, "rooted_kept", || {
                format!("page {} is a root in use, and waits to be freed", key.id)
            });
            let most = self.config.kernel.max_parents as usize;
            let is_bounded = most == 0 || self.pte_lists.iter(header.parents).take(most + 1).count() <= most;
            verdict.check(is_bounded, "bounded_parents", || format!("page {} has more than {most}", key.id));
            self.judge_table(verdict, page, is_idle);
        }
        let mut places = vec![0_u8; self.arena.nr_indices()];
        let waiting = self.zapped_obsolete.iter().chain(self.prepared_elsewhere());
        for page in self.active.iter().take(places.len()).chain(waiting) {
            if let Some(count) = places.get_mut(page.at()) {
                *count = count.saturating_add(1);
            }
        }
        for page in self.arena.indices() {
            let place = self.arena.page(page).place;
            let expected = u8::from(matches!(place, Place::Active | Place::Invalid));
            verdict.check(places[page.at()] == expected, "one_place", || {
                format!("page {} stands in {} lists", self.arena.key(page).id, places[page.at()])
            });
        }
        let live = self.active.iter().take(places.len()).count();
        let rooted = self.arena.indices().filter(|&page| self.arena.page(page).place == Place::Root).count();
        verdict.check(self.used == (live + rooted) as u64, "recount", || {
            format!("used_mmu_pages is {}, and {} pages are", self.used, live + rooted)
        });
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            let is_asked = vcpu.requests & REQ_MMU_RELOAD != 0;
            for root in vcpu.roots() {
                let is_unused = !self.is_obsolete(root) || is_asked;
                verdict.check(is_unused, "obsolete_unused", || {
                    format!(
                        "vCPU {number} has the obsolete root {} and was not asked to drop it",
                        self.arena.key(root).id
                    )
                });
            }
        }
        self.judge_tdp(verdict, is_idle);
    }

    /// One table's entries.
    fn judge_table(&self, verdict: &mut Verdict, page: PageIdx, is_idle: bool) {
        let key = *self.arena.key(page);
        let (level, as_id) = (key.role.level(), key.role.as_id());
        let is_high = key.gfn.0 >> self.root_gfn_bits != 0 || self.has_high_pages;
        for (index, spte) in self.arena.table(page).iter() {
            let at = || format!("page {} entry {index}", key.id);
            let gfn = key.gfn_of(index);
            if !is_shadow_present(&self.masks, spte) {
                if is_mmio(&self.masks, spte) {
                    let stored = mmio_gfn(&self.masks, spte);
                    let slots_gen = self.spaces[usize::from(as_id & 1)].slots_gen;
                    let is_fresh = !self.generation.is_refused(slots_gen)
                        && mmio_gen(&self.masks, &self.generation, spte) == self.generation.compared(slots_gen);
                    let is_memory =
                        self.ghost.as_ref().is_some_and(|ghost| !ghost.backing.may_be_absent(as_id, stored));
                    let is_placed = level == PAGE_TABLE && (is_high || !key.role.direct() || stored == gfn.0);
                    verdict.check(is_placed && !(is_fresh && is_memory), "mmio_place", || {
                        let why = if is_placed { "is fresh, and the gfn is memory" } else { "is not at its place" };
                        format!("page {} entry {index}: the MMIO entry of gfn {stored:#x} {why}", key.id)
                    });
                }
                verdict.check(spte == 0 || !is_idle || spte != self.masks.frozen, "tdp_shape", at);
                continue;
            }
            if is_last(spte, level) {
                let frame = pfn_of(spte);
                let is_aligned = frame.0 & (pages_per(level) - 1) == 0;
                verdict.check(is_aligned && !self.is_misplaced(page.sptep(index)), "leaf_gfn", at);
                continue;
            }
            let child = child_of(spte);
            if child == PageIdx::NONE || !self.arena.has(child) {
                verdict.check(false, "child_expected", at);
                continue;
            }
            let below = self.arena.key(child);
            let is_expected = below.role.level() + 1 == level
                && below.role.smm() == key.role.smm()
                // Below a table of the guest's stands one, or a part of a large page: `judge_guest` knows which.
                && (!key.role.direct() || below.role.direct())
                && !below.role.invalid()
                && (!key.role.direct() || is_high || below.gfn == gfn);
            verdict.check(is_expected, "child_expected", || {
                format!("page {} entry {index} leads to page {}", key.id, below.id)
            });
            // A root without a test for it is mapped into, and what is made there are orphans.
            let is_invalid = key.role.invalid() && self.arena.page(page).place != Place::Tdp;
            verdict.check(!is_invalid, "no_page_under_invalid", at);
        }
    }

    fn judge_tdp(&self, verdict: &mut Verdict, is_idle: bool) {
        for root in self.tdp.roots.iter() {
            let is_dead = self.arena.key(root.page).role.invalid() && !root.is_scheduled;
            let is_empty = self.arena.table(root.page).iter().all(|(_, spte)| !is_shadow_present(&self.masks, spte));
            verdict.check(!is_idle || !is_dead || is_empty, "tdp_shape", || {
                format!("root {} was zapped and still has entries", self.arena.key(root.page).id)
            });
        }
    }
}
