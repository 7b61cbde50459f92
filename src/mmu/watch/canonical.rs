//! The canonical state: what decides about everything to come, as a stream of numbers, and its hash of 128 bits. Two states
//! that differ only in how pages are numbered, in statistics, in the past or in bits that nothing decides by are one.
//!
//! Pages are numbered by their first visit: the active list, invalid lists, roots of vCPUs, then the TDP MMU's from its
//! roots down. Left out: ids, indices, counters, work, events, the valid generation as a number, poll counters, the order
//! inside reverse maps, and accessed bits unless they are asked for.

use crate::mmu::ghost::told::Entry;
use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::generation::GenerationBits;
use crate::mmu::words::level::MAX_LEAF;
use crate::mmu::words::spte::layout::PFN_FIELD;

/// A hash of 128 bits over numbers, without a key: two lanes that multiply and fold.
#[derive(Clone, Debug)]
pub struct Hash128 {
    lanes: [u64; 2],
}

impl Default for Hash128 {
    fn default() -> Self {
        Self { lanes: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344] }
    }
}

/// The product of two numbers, its halves folded together.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a product")]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

impl Hash128 {
    /// One more number.
    #[inline]
    pub const fn add(&mut self, word: u64) {
        self.lanes[0] = fold(self.lanes[0] ^ word, 0x9e37_79b9_7f4a_7c15).wrapping_add(0xa409_3822_299f_31d0);
        self.lanes[1] = fold(self.lanes[1] ^ word.rotate_left(32), 0xc2b2_ae3d_27d4_eb4f).wrapping_add(self.lanes[0]);
    }

    /// A text.
    pub fn add_text(&mut self, text: &str) {
        for chunk in text.as_bytes().chunks(8) {
            self.add(chunk.iter().fold(chunk.len() as u64, |word, &byte| word << 8 | u64::from(byte)));
        }
    }

    /// The hash of what came so far.
    #[must_use]
    pub fn value(&self) -> u128 {
        let high = fold(self.lanes[0], 0x4cf5_ad43_2745_937f) ^ self.lanes[1];
        u128::from(high) << 64 | u128::from(fold(self.lanes[1], 0x52dc_e729_38f5_9d2d) ^ self.lanes[0])
    }
}

impl MmuState {
    /// Adds the canonical state to a hash; `has_accessed`: accessed bits decide about something.
    pub(in crate::mmu) fn canonical(&self, to: &mut Hash128, has_accessed: bool) {
        let mut numbers = vec![0_u32; self.arena.nr_indices()];
        let pages = self.number_pages(&mut numbers);
        let number = |page: PageIdx| u64::from(numbers.get(page.at()).copied().unwrap_or(0));
        self.canonical_slots(to);
        let ignored = if has_accessed { 0 } else { self.masks.accessed };
        for &page in &pages {
            let (key, header) = (self.arena.key(page), self.arena.page(page));
            to.add(key.gfn.0);
            to.add(u64::from(self.config.kernel.role_layout.pack(key.role)) << 8 | header.place as u64);
            let flags = u64::from(self.is_obsolete(page))
                | u64::from(self.active.is_mmio_cached(page)) << 1
                | u64::from(header.unsync) << 2
                | u64::from(header.nx_huge_page_disallowed) << 3;
            to.add(u64::from(header.root_count) << 32 | u64::from(header.unsync_children) << 8 | flags);
            for (index, spte) in self.arena.table(page).iter().filter(|&(_, spte)| spte != 0) {
                let is_link = is_shadow_present(&self.masks, spte) && !is_last(spte, key.role.level());
                let word = if is_link { spte & !PFN_FIELD | number(child_of(spte)) << 12 } else { spte };
                to.add(word & !ignored);
                to.add(index.into());
            }
            to.add(u64::MAX);
        }
        for root in self.tdp.roots.iter() {
            to.add(number(root.page) << 33 | u64::from(root.refs) << 1 | u64::from(root.is_scheduled));
        }
        to.add(self.max << 32 ^ self.requested);
        to.add(
            u64::from(self.config.nx_huge_pages)
                | u64::from(self.is_root_leaked) << 1
                | u64::from(self.is_bugged) << 2
                | self.tdp.nr_nx_possible << 3,
        );
        for page in self.nx_list.iter() {
            to.add(number(page));
        }
        for vcpu in &self.vcpus {
            for root in vcpu.roots() {
                to.add(number(root));
            }
            to.add(vcpu.requests);
            to.add(u64::from(self.config.kernel.role_layout.pack(vcpu.role)) << 1 | u64::from(vcpu.smm));
            to.add(vcpu.cr3);
            let tags = self.spaces.iter().map(|space| u64::from(space.slots_gen == vcpu.mmio.slots_gen));
            let tags = tags.fold(0, |tags, tag| tags << 1 | tag);
            if tags != 0 && vcpu.mmio.gfn != Gfn(0) {
                to.add(vcpu.mmio.gfn.0 << 2 | tags);
            }
        }
        if self.config.shadows_guest() {
            self.canonical_guest(to, &pages, &number);
        }
        self.host.add_to(|word| to.add(word));
        to.add(self.invalidation.in_progress);
        if self.invalidation.in_progress > 0 {
            to.add_text(&format!("{:?}", self.invalidation.range()));
        }
        for run in self.runs.waiting.values() {
            to.add_text(&format!("{:?}", run.kind));
        }
        self.canonical_ghost(to, &number);
    }

    /// Numbers pages from 1, in the order of their first visit.
    fn number_pages(&self, numbers: &mut [u32]) -> Vec<PageIdx> {
        let mut pages: Vec<PageIdx> = Vec::with_capacity(numbers.len());
        let invalid = self.zapped_obsolete.iter().chain(self.prepared_elsewhere());
        let held = self.vcpus.iter().flat_map(crate::mmu::vm::vcpu_mmu::VcpuMmu::roots);
        let roots = self.tdp.roots.iter().map(|root| root.page);
        let cached = self.vcpus.iter().flat_map(|vcpu| vcpu.prev_roots).filter_map(|prev| prev.root.some());
        for page in self.active.iter().chain(invalid).chain(roots).chain(held).chain(cached) {
            if numbers[page.at()] == 0 {
                pages.push(page);
                numbers[page.at()] = u32::try_from(pages.len()).unwrap_or(u32::MAX);
            }
        }
        if !self.config.tdp_mmu {
            return pages;
        }
        let mut at = 0;
        while let Some(&page) = pages.get(at) {
            at += 1;
            if self.arena.page(page).place != Place::Tdp {
                continue;
            }
            let level = self.arena.key(page).role.level();
            for (_, spte) in self.arena.table(page).iter() {
                if is_shadow_present(&self.masks, spte) && !is_last(spte, level) {
                    let child = child_of(spte);
                    if numbers[child.at()] == 0 {
                        pages.push(child);
                        numbers[child.at()] = u32::try_from(pages.len()).unwrap_or(u32::MAX);
                    }
                }
            }
        }
        pages
    }

    fn canonical_slots(&self, to: &mut Hash128) {
        for space in &self.spaces {
            let refused = u64::from(self.generation.is_refused(space.slots_gen));
            to.add(self.generation.compared(space.slots_gen) << 1 | refused);
            for (at, spec) in space.specs().iter().enumerate() {
                to.add(u64::from(spec.id) << 32 | u64::from(spec.flags));
                to.add(spec.base);
                to.add(spec.npages);
                to.add(spec.hva);
                let body = space.body(at);
                for level in 2..=MAX_LEAF {
                    for index in 0..spec.level_len(level).min(64) {
                        #[expect(clippy::cast_sign_loss, reason = "only equality matters")]
                        to.add(body.disallowed(index, level) as u64);
                    }
                }
                for (&index, &count) in &body.track {
                    to.add(index << 8 | u64::from(count));
                }
                if let Some(dirty) = &body.dirty {
                    to.add(1);
                    for span in dirty.spans().filter(|span| span.value != 0) {
                        to.add(span.first << 32 | span.count);
                        to.add(span.value);
                    }
                }
            }
        }
    }

    /// What decides where a guest's own tables are shadowed: its memory, registers and cached roots, what each entry was made
    /// for, and which tables are out of sync.
    fn canonical_guest(&self, to: &mut Hash128, pages: &[PageIdx], number: &impl Fn(PageIdx) -> u64) {
        self.guest_memory.add_to(|word| to.add(word));
        to.add(self.tlbs_dirty.min(1));
        for vcpu in &self.vcpus {
            for word in vcpu.built_from {
                to.add(word);
            }
            for word in [vcpu.cr0, vcpu.cr4, vcpu.efer, vcpu.root_cr3, u64::from(vcpu.ac), vcpu.pkru.into()] {
                to.add(word);
            }
            for pdpte in vcpu.pdptes {
                to.add(pdpte);
            }
            to.add(u64::from(vcpu.has_four_roots) | u64::from(vcpu.has_dummy_root) << 1 | vcpu.mmio.gva);
            for prev in vcpu.prev_roots {
                to.add(number(prev.root));
                to.add(prev.cr3);
            }
        }
        for &page in pages {
            let Some(indirect) = self.arena.indirect(page) else { continue };
            to.add(number(page) << 32 | u64::from(indirect.flood));
            for index in indirect.unsync_children() {
                to.add(index.into());
            }
            for (index, _) in self.arena.table(page).iter().filter(|&(_, spte)| is_shadow_present(&self.masks, spte)) {
                to.add(indirect.gfn(index).0 << 16 | u64::from(indirect.access(index)) << 12 | u64::from(index));
            }
        }
        if let Some(ghost) = &self.ghost {
            let mut behind: Vec<u64> = ghost.behind.iter().map(|&table| number(PageIdx(table))).collect();
            behind.sort_unstable();
            for table in behind {
                to.add(table);
            }
        }
    }

    fn canonical_ghost(&self, to: &mut Hash128, number: &impl Fn(PageIdx) -> u64) {
        let Some(ghost) = &self.ghost else { return };
        to.add(ghost.holders.filled << 32 ^ ghost.holders.kicked & 0xffff_ffff);
        let mut detached: Vec<(u64, u64)> =
            ghost.holders.detached().map(|(page, held)| (number(PageIdx(page)), held)).collect();
        detached.sort_unstable();
        for (page, held) in detached {
            to.add(page);
            to.add(held);
        }
        let mut debts: Vec<[u64; 4]> = ghost
            .debts
            .iter()
            .map(|debt| {
                let what = debt.class as u64 | u64::from(debt.as_id) << 8 | u64::from(debt.is_due) << 9;
                [what | u64::from(debt.is_left) << 10, debt.gfn, debt.holders, number(PageIdx(debt.table))]
            })
            .collect();
        debts.sort_unstable();
        for word in debts.into_iter().flatten() {
            to.add(word);
        }
        for &(as_id, id, page) in &ghost.promises.written {
            to.add(u64::from(as_id) << 60 ^ u64::from(id) << 40 ^ page);
        }
        // Only a leaf that is not as it should be has a past that matters.
        let mut odd: u64 = 0;
        for (&place, entry) in &ghost.entries {
            if let Entry::Leaf(held) = entry {
                let is_stale = ghost.backing.is_stale(&held.leaf, held.made_at).is_some();
                if is_stale || held.is_exempt || !ghost.promises.tracked.is_empty() {
                    let is_past = ghost.tracked_past(held).is_some();
                    let page = number(PageIdx(place >> 9)) << 12 | u64::from(place & 0x1ff) << 3;
                    odd ^= fold(
                        page | u64::from(is_stale) | u64::from(held.is_exempt) << 1 | u64::from(is_past) << 2,
                        0x9e37_79b9_7f4a_7c15,
                    );
                }
            }
        }
        to.add(odd);
        if ghost.ops.is_any_open() {
            to.add(ghost.ops.open_kinds().fold(7, |all, kind| all << 4 | kind as u64));
            for slot in &ghost.backing.settled {
                to.add(u64::from(slot.as_id) << 63 ^ u64::from(slot.id) << 48 ^ slot.base);
            }
        }
    }
}
