//! `judge`: compares what the tables say with what the ghost remembers, and names every property that does not hold.
//! Changes nothing and is never part of an operation.
//!
//! Properties of the moment (a table freed too early, a flush that never came) are noted by the ghost as they happen; here
//! are those of a state. What needs no ghost is in `judge_pages`.

use crate::mmu::ghost::backing::GhostSlot;
use crate::mmu::ghost::memory::Ghost;
use crate::mmu::ghost::operations::OpKind;
use crate::mmu::ghost::told::{EXEC, Entry, HeldLeaf, Premises, WRITE};
use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::pages::walk::is_shadow_present;
use crate::mmu::vm::slots::MEM_LOG_DIRTY_PAGES;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::words::guest_mode::Paging;
use crate::mmu::words::role::Role;
use crate::mmu::words::views::Finding;

/// Every property the judge knows: its name, its sentence, and when it must hold.
pub const PROPERTIES: [(&str, &str, &str); 34] = [
    ("stale_ram", "memory of a slot that was removed is not mapped", "when an operation has returned"),
    ("mmio_as_ram", "a gfn without a slot is not mapped", "when an operation has returned"),
    ("host_taken", "a page that the host took back is not mapped", "when the notifier has returned"),
    ("stale_mmio", "memory is not taken for MMIO", "at each access"),
    ("unlogged_write", "after a harvest every write is logged or impossible", "when no harvest or update runs"),
    ("lost_dirty", "each write is in the next harvest", "at each harvest"),
    ("tracked_write", "no write goes past tracking", "at each write"),
    ("readonly_write", "nothing read-only is mapped writable", "at each write of an entry"),
    ("freed_reachable", "no table is freed that a processor may still come to", "when a table is freed"),
    ("debt_overdue", "every flush is paid in time", "when the operation that owes it returns"),
    ("debt_shared", "no operation relies on a flush that another still owes", "when an operation returns"),
    (
        "guest_rights",
        "a leaf gives no more than the guest's own tables do",
        "when an operation has returned, of tables in sync",
    ),
    ("nx_exec", "with the workaround on, no large leaf is executable", "always"),
    ("progress", "a guest access that nothing disturbs ends within eight faults", "at each access"),
    ("no_bug", "the model comes to no state in which the kernel stops", "always"),
    (
        "active_valid",
        "a page on the active list is valid, or a root in use where the kernel keeps those",
        "when the lock is free",
    ),
    ("child_expected", "a link leads to the table that its place asks for", "when the lock is free"),
    ("leaf_gfn", "a leaf maps the gfn of its place, with the frame of that gfn", "when the lock is free"),
    ("tables_protected", "a table that is shadowed and in sync is not mapped writable", "when the lock is free"),
    ("tracked_all_spaces", "no space maps a tracked gfn writable", "when the lock is free"),
    (
        "mmio_cache_space",
        "what a vCPU's MMIO cache answers for is no memory of its address space",
        "when an operation has returned",
    ),
    ("no_page_under_invalid", "no valid page hangs below an invalid one", "when the lock is free"),
    ("slot_bounds", "a slot's arrays are read inside the slot", "always"),
    ("walk_depth", "a guest's tables have no more levels than the kernel's walk has room for", "at each walk"),
    ("bounded_parents", "a shadow page has no more parents than it may have", "when the lock is free"),
    ("rooted_kept", "a page in use as root is on no invalid list", "when the lock is free"),
    (
        "one_place",
        "each page stands in one place: active list, one invalid list, or zapped and in use",
        "when the lock is free",
    ),
    ("recount", "counters are what counting again gives", "when the lock is free"),
    (
        "obsolete_unused",
        "a vCPU that entered has no obsolete root, unless it was asked to drop it",
        "when the lock is free",
    ),
    ("mmio_place", "an MMIO entry stands on level 1 and, if fresh, covers no memory", "when an operation has returned"),
    ("root_role", "a loaded root has the role of the vCPU's registers", "when an operation has returned"),
    (
        "tdp_shape",
        "no frozen entry is left when the lock is free, and an invalid root that was zapped is empty",
        "when the lock is free",
    ),
    ("present_dropped_first", "an entry that gets an MMIO value was not present", "at each write of an entry"),
    ("ghost_agrees", "the ghost knows every entry, and no other: nobody writes past it", "when the lock is free"),
];

/// Collects findings.
pub(in crate::mmu) struct Verdict(pub Vec<Finding>);

impl Verdict {
    pub(in crate::mmu) fn check(&mut self, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Finding { invariant, detail: detail() });
        }
    }
}

impl MmuState {
    /// Begins to remember, or forgets.
    pub(in crate::mmu) fn set_judged(&mut self, on: bool) {
        if !on {
            self.ghost = None;
            return;
        }
        self.ghost = Some(Box::default());
        for as_id in 0..2_u8 {
            let specs = self.spaces[usize::from(as_id)].specs().to_vec();
            for (at, spec) in specs.iter().enumerate() {
                let tracked: Vec<u64> = self.spaces[usize::from(as_id)].body(at).track.keys().copied().collect();
                let Some(ghost) = &mut self.ghost else { continue };
                let (id, base, npages) = (spec.id, spec.base, spec.npages);
                let host_page = Pfn::of_hva(spec.hva).0;
                if !spec.is_invalid() {
                    ghost.backing.slots.push(GhostSlot { as_id, id, base, npages, host_page, since: 0 });
                }
                for index in tracked {
                    ghost.tracked(as_id, spec.base + index, true);
                }
            }
        }
        let pages: Vec<PageIdx> =
            self.arena.indices().filter(|&page| self.arena.page(page).place != Place::Free).collect();
        for page in pages {
            self.tell_filled(page);
        }
        for vcpu in 0..self.vcpus.len() {
            self.tell_loaded(vcpu);
        }
        let unlike = self.tables_unlike_memory();
        if let Some(ghost) = &mut self.ghost {
            ghost.behind.extend(unlike);
            ghost.backing.settle();
            ghost.broken.clear();
            // Leaves of a real VM have frames that this model of host memory does not know: what is there is sound.
            let is_foreign = ghost.entries.values().any(|entry| {
                let Entry::Leaf(held) = entry else { return false };
                ghost.backing.is_stale(&held.leaf, held.made_at) == Some("host_taken")
            });
            ghost.backing.are_frames_unknown = is_foreign;
        }
    }

    /// Every property that does not hold.
    pub(in crate::mmu) fn judge(&self) -> Vec<Finding> {
        let Some(ghost) = &self.ghost else { return Vec::new() };
        let mut verdict = Verdict(
            ghost
                .broken
                .iter()
                .map(|broken| Finding {
                    invariant: broken.property,
                    detail: format!("{} ({})", broken.detail, broken.owner),
                })
                .collect(),
        );
        self.judge_state(&mut verdict);
        verdict.0
    }

    /// The first property of mappings and vCPUs that does not hold.
    pub(in crate::mmu) fn judge_step(&self) -> Option<Finding> {
        let ghost = self.ghost.as_ref()?;
        let mut verdict = Verdict(Vec::new());
        self.judge_leaves(&mut verdict, ghost);
        self.judge_vcpus(&mut verdict, ghost);
        verdict.0.into_iter().next()
    }

    /// What kind of state this is.
    pub(in crate::mmu) fn coverage_key(&self) -> u64 {
        let Some(ghost) = &self.ghost else { return 0 };
        let saturated = |count: usize| count.min(2) as u64;
        let mut pages = 0_u64;
        for page in self.active.iter() {
            let key = self.arena.key(page);
            let kind = u64::from(key.role.level())
                | u64::from(key.role.invalid()) << 3
                | u64::from(self.is_obsolete(page)) << 4
                | u64::from(self.arena.page(page).root_count > 0) << 5
                | u64::from(key.role.as_id()) << 6;
            pages = pages.wrapping_add(kind.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        }
        let (mut writable, mut large) = (0, 0);
        for entry in ghost.entries.values() {
            if let Entry::Leaf(held) = entry {
                writable += usize::from(held.leaf.rights & WRITE != 0);
                large += usize::from(held.leaf.level > 1);
            }
        }
        let kinds = [
            pages,
            ghost.debts.iter().fold(0, |all, debt| all | 1 << debt.class as u64),
            ghost.ops.open_kinds().fold(1, |all, kind| all << 4 | kind as u64),
            saturated(self.tdp.roots.len()) | saturated(ghost.promises.tracked.len()) << 2,
            saturated(ghost.promises.written.len()),
            saturated(writable) | saturated(large) << 2 | saturated(ghost.entries.len()) << 4,
            self.spaces.iter().fold(0, |all, space| all << 2 | saturated(space.specs().len())),
            self.vcpus.iter().fold(0, |all, vcpu| {
                let tag = self.spaces.iter().any(|space| space.slots_gen == vcpu.mmio.slots_gen);
                all << 3 | u64::from(vcpu.root != PageIdx::NONE) | u64::from(vcpu.smm) << 1 | u64::from(tag) << 2
            }),
        ];
        kinds.iter().fold(0_u64, |all, &kind| (all ^ kind).wrapping_mul(0xc2b2_ae3d_27d4_eb4f).rotate_left(23)) >> 1
    }

    /// Every property of the state that does not hold, the audit's among them, and how much could have broken them.
    pub(in crate::mmu) fn judge_found(&self) -> (Vec<Finding>, Premises) {
        let mut verdict = Verdict(Vec::new());
        let Some(ghost) = &self.ghost else { return (verdict.0, Premises::default()) };
        self.judge_state(&mut verdict);
        let leaves = ghost.entries.values().filter(|entry| matches!(entry, Entry::Leaf(_))).count() as u64;
        let premises = Premises {
            leaves,
            links: ghost.entries.len() as u64 - leaves,
            tracked: ghost.promises.tracked.len() as u64,
            roots: self.vcpus.iter().filter(|vcpu| vcpu.root != PageIdx::NONE).count() as u64,
            ..Premises::default()
        };
        (verdict.0, premises)
    }

    /// The properties of a state alone.
    pub(in crate::mmu) fn judge_state(&self, verdict: &mut Verdict) {
        let Some(ghost) = &self.ghost else { return };
        self.judge_leaves(verdict, ghost);
        self.judge_vcpus(verdict, ghost);
        self.judge_pages(verdict);
        self.judge_guest(verdict, ghost);
        self.judge_entries(verdict, ghost);
    }

    fn judge_leaves(&self, verdict: &mut Verdict, ghost: &Ghost) {
        let is_harvest_open =
            ghost.ops.open_kinds().any(|kind| matches!(kind, OpKind::Update | OpKind::DirtyLog | OpKind::Inner));
        for (&place, entry) in &ghost.entries {
            if let Entry::Leaf(held) = entry {
                self.judge_leaf(verdict, ghost, place, held, is_harvest_open);
            }
        }
    }

    fn judge_leaf(&self, verdict: &mut Verdict, ghost: &Ghost, place: u32, held: &HeldLeaf, is_harvest_open: bool) {
        let leaf = &held.leaf;
        self.judge_leaf_gfn(verdict, place, leaf);
        // What an update or a notifier under way takes is still being taken.
        if let Some(property) = ghost.backing.is_stale(leaf, held.made_at)
            && !ghost.ops.open_kinds().any(|kind| matches!(kind, OpKind::Update | OpKind::Unmap))
        {
            verdict.check(false, property, || {
                format!("gfn {:#x} of space {}, {} pages", leaf.gfn, leaf.as_id, leaf.pages())
            });
        }
        let is_nx_broken = self.config.nx_huge_pages && leaf.level > 1 && leaf.rights & EXEC != 0;
        verdict.check(!is_nx_broken || ghost.ops.is_any_open(), "nx_exec", || format!("gfn {:#x}", leaf.gfn));
        if leaf.rights & WRITE == 0 {
            return;
        }
        if let Some(tracked) = ghost.tracked_past(held) {
            verdict.check(false, "tracked_all_spaces", || {
                format!(
                    "gfn {:#x}, tracked in space {}, is writable in space {}",
                    tracked.gfn, tracked.as_id, leaf.as_id
                )
            });
        }
        let is_logged_by_cpu = self.config.pml && !leaf.is_dirty;
        if is_harvest_open || is_logged_by_cpu || ghost.holders_of(place >> 9) == 0 {
            return;
        }
        let Some(slot) = self.find_slot(leaf.as_id, Gfn(leaf.gfn)) else { return };
        let (spec, body) = (self.slot_spec(slot), self.slot_body(slot));
        let Some(words) = body.dirty.as_ref().filter(|_| spec.flags & MEM_LOG_DIRTY_PAGES != 0) else { return };
        let first = leaf.gfn - spec.base;
        let is_clear = |page: u64| page / 64 < words.len() && words.get(page / 64) >> (page % 64) & 1 == 0;
        if let Some(page) = (first..first + leaf.pages()).find(|&page| is_clear(page)) {
            verdict.check(false, "unlogged_write", || {
                format!("page {page} of slot {} is writable, and its bit is clear", spec.id)
            });
        }
    }

    fn judge_vcpus(&self, verdict: &mut Verdict, ghost: &Ghost) {
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            let (gva, gfn) = (vcpu.mmio.gva, vcpu.mmio.gfn);
            let answers = if self.config.shadows_guest() && !matches!(vcpu.mode.paging, Paging::None) {
                self.match_mmio_gva(number, gva)
            } else {
                gfn != Gfn(0) && self.match_mmio_gpa(number, gfn)
            };
            if answers {
                verdict.check(ghost.backing.may_be_absent(vcpu.as_id(), gfn.0), "mmio_cache_space", || {
                    format!("vCPU {number} would answer for gfn {:#x} of space {}", gfn.0, vcpu.as_id())
                });
            }
            for root in vcpu.roots() {
                // Of four roots each has a level of its own.
                let level = |role: Role| if vcpu.has_four_roots { 0 } else { role.level() };
                let of_root = |role: Role| role.with_invalid(false).with_quadrant(0).with_level(level(role));
                let role = self.arena.key(root).role;
                let is_own = of_root(role) == of_root(vcpu.role) && role.as_id() == vcpu.as_id();
                verdict.check(is_own, "root_role", || format!("vCPU {number}"));
            }
        }
    }

    /// The ghost and the tables say the same.
    fn judge_entries(&self, verdict: &mut Verdict, ghost: &Ghost) {
        let mut count = 0;
        for page in self.arena.indices().filter(|&page| self.arena.page(page).place != Place::Free) {
            for (index, spte) in self.arena.table(page).iter() {
                if is_shadow_present(&self.masks, spte) {
                    count += 1;
                    let place = page.sptep(index).0;
                    verdict.check(ghost.entries.contains_key(&place), "ghost_agrees", || format!("entry {index}"));
                }
            }
        }
        verdict.check(count == ghost.entries.len(), "ghost_agrees", || {
            format!("{count} entries are present, the ghost knows {}", ghost.entries.len())
        });
    }
}
