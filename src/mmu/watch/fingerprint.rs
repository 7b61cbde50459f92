//! The fingerprint of a state: a sum of hashes of its pages, so that a step changes the terms of what it changed.
//!
//! Ours. What was summed is kept as a copy that shares everything with the VM (`SharedArray`); the next fingerprint takes the
//! terms of the blocks that were changed since out of the sum and puts them in again as they are. Equal dumps have equal
//! fingerprints, whatever came before. Left out, because the rest decides it: reverse maps and lists of parents, whose
//! order the digest tells and this does not.

use crate::mmu::pages::indirect_page::Indirect;
use crate::mmu::pages::page_arena::{PageArena, PageIdx, Place};
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::shadow::active_pages::ActivePages;
use crate::mmu::vm::state::MmuState;
use crate::mmu::watch::canonical::Hash128;
use crate::mmu::words::spte::layout::PFN_FIELD;

/// Below so many changed pages the sum is always carried on.
const FEW: usize = 1024;

/// Pages as they were, and the sum of their terms.
#[derive(Clone, Debug)]
pub(in crate::mmu) struct Summed {
    arena: PageArena,
    active: ActivePages,
    sum: u128,
}

impl MmuState {
    /// The fingerprint, and what the next one begins with.
    pub(in crate::mmu) fn fingerprint(&mut self, known: &mut Option<Box<Summed>>) -> u128 {
        let sum = self.carried_on(known.as_deref()).unwrap_or_else(|| self.summed_anew(known));
        let mut hash = Hash128::default();
        for half in [sum >> 64, sum & u128::from(u64::MAX)] {
            hash.add(u64::try_from(half).unwrap_or(u64::MAX));
        }
        self.add_rest(&mut hash);
        hash.value()
    }

    /// The sum over all pages, which are common with the copy from here on.
    fn summed_anew(&mut self, known: &mut Option<Box<Summed>>) -> u128 {
        *known = None;
        // What is common with nobody any more is whole again first.
        self.arena.settle();
        self.active.settle();
        let terms = self.arena.indices().map(|page| self.terms_of(&self.arena, &self.active, page, [true; 3]));
        let sum = terms.fold(0, u128::wrapping_add);
        self.arena.lend();
        self.active.lend();
        *known = Some(Box::new(Summed { arena: self.arena.clone(), active: self.active.clone(), sum }));
        sum
    }

    /// The sum of now, from that of a copy; nothing if too much was changed since, or it is not known what.
    fn carried_on(&self, known: Option<&Summed>) -> Option<u128> {
        let known = known?;
        let headers = self.arena.headers_changed_since(&known.arena, self.active.changed_since(&known.active)?)?;
        let tables = self.arena.tables_changed_since(&known.arena)?;
        let indirect = self.arena.indirect_changed_since(&known.arena)?;
        if headers.len() + tables.len() + indirect.len() > FEW.max(self.arena.nr_indices() / 8) {
            return None;
        }
        let mut sum = known.sum;
        for (pages, which) in
            [(headers, [true, false, false]), (tables, [false, true, false]), (indirect, [false, false, true])]
        {
            for page in pages {
                sum = sum.wrapping_sub(self.terms_of(&known.arena, &known.active, page, which));
                sum = sum.wrapping_add(self.terms_of(&self.arena, &self.active, page, which));
            }
        }
        Some(sum)
    }

    /// The terms of a page: of its header, of its table, of what only a page of a guest's table has.
    fn terms_of(&self, arena: &PageArena, active: &ActivePages, page: PageIdx, which: [bool; 3]) -> u128 {
        if !arena.has(page) || arena.page(page).place == Place::Free {
            return 0;
        }
        let key = arena.key(page);
        let begun = |part: u64| {
            let mut hash = Hash128::default();
            hash.add(u64::from(key.id) << 2 | part);
            hash
        };
        let mut sum = 0_u128;
        if which[0] {
            let (header, mut hash) = (arena.page(page), begun(0));
            hash.add(key.gfn.0);
            hash.add(u64::from(self.config.kernel.role_layout.pack(key.role)) << 8 | header.place as u64);
            hash.add(if self.config.kernel.has_valid_gen { key.valid_gen } else { 0 });
            hash.add(u64::from(header.root_count) << 32 | u64::from(header.unsync_children));
            let next = if header.place == Place::Active { arena.key(active.next(page)).id } else { 0 };
            let flags = u64::from(header.unsync)
                | u64::from(header.nx_huge_page_disallowed) << 1
                | u64::from(active.is_mmio_cached(page) && self.config.kernel.has_mmio_cached) << 2;
            hash.add(u64::from(next) << 3 | flags);
            sum = sum.wrapping_add(hash.value());
        }
        // A page may be made where another's empty table is left as it is: that has no term.
        if which[1] && !arena.table(page).is_empty() {
            let mut hash = begun(1);
            let level = key.role.level();
            for (index, spte) in arena.table(page).iter() {
                let is_link = is_shadow_present(&self.masks, spte) && !is_last(spte, level);
                // A link names a page by its place here, which says nothing.
                let child = if is_link { arena.key(child_of(spte)).id } else { 0 };
                hash.add(if is_link { spte & !PFN_FIELD } else { spte });
                hash.add(u64::from(child) << 10 | u64::from(index));
            }
            sum = sum.wrapping_add(hash.value());
        }
        if which[2]
            && let Some(indirect) = arena.indirect(page)
        {
            let mut hash = begun(2);
            hash.add(indirect.flood.into());
            Indirect::unsync_children(indirect).for_each(|index| hash.add(index.into()));
            sum = sum.wrapping_add(hash.value());
        }
        sum
    }

    /// What is not a page: slots, limits, vCPUs, roots.
    fn add_rest(&self, hash: &mut Hash128) {
        for space in &self.spaces {
            hash.add(space.slots_gen);
            for (at, spec) in space.specs().iter().enumerate() {
                let body = space.body(at);
                for word in [spec.base, spec.npages, spec.hva, u64::from(spec.id) << 32 | u64::from(spec.flags)] {
                    hash.add(word);
                }
                for (level, counts) in (2..).zip(&body.disallow) {
                    for run in counts.runs().into_iter().filter(|run| run.value != 0) {
                        hash.add(run.first << 2 | level);
                        hash.add(run.count << 32 ^ u64::from(run.value.cast_unsigned()));
                    }
                }
                body.track.iter().for_each(|(&index, &count)| hash.add(index << 32 ^ u64::from(count)));
                if let Some(words) = &body.dirty {
                    hash.add(u64::MAX);
                    for run in words.runs().into_iter().filter(|run| run.value != 0) {
                        for word in [run.first, run.count, run.value] {
                            hash.add(word);
                        }
                    }
                }
            }
            hash.add(u64::MAX);
        }
        let valid_gen = if self.config.kernel.has_valid_gen { self.valid_gen } else { 0 };
        for word in [self.nr_indirect, self.max, self.requested, self.used, valid_gen] {
            hash.add(word);
        }
        let mut text = String::new();
        for vcpu in &self.vcpus {
            self.put_vcpu(&mut text, vcpu);
        }
        self.put_roots(&mut text);
        hash.add_text(&text);
        self.zapped_obsolete
            .iter()
            .chain(self.nx_list.iter())
            .for_each(|page| hash.add(self.arena.key(page).id.into()));
    }
}
