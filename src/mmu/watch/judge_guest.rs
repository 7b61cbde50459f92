//! The properties of pages that shadow a guest's tables: each is compared with the guest's own tables, which are read anew,
//! down from the roots that vCPUs have.
//!
//! A page in sync says what the guest's table says. One out of sync may say what it said before: it is looked at again when
//! it was synced. Nothing is said of a table whose memory was changed without the MMU being told (`poke`), nor of tables of
//! 4-byte entries. Models no kernel function.

use crate::mmu::ghost::memory::Ghost;
use crate::mmu::ghost::told::{EXEC, Entry, Leaf, WRITE};
use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::vm::state::MmuState;
use crate::mmu::watch::judge::Verdict;
use crate::mmu::words::access::{ACC_ALL, ACC_EXEC, ACC_USER, ACC_WRITE};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::guest_mode::{GPTE_PRESENT, GuestMode, Paging, gpte_access, protect_clean_gpte};
use crate::mmu::words::level::pages_per;

/// A walk down the shadow tables beside the guest's: where it is, and what the guest's entries above give.
#[derive(Clone, Copy)]
struct Below {
    page: PageIdx,
    access: u8,
}

/// What an entry must be, by the guest's own.
#[derive(Clone, Copy)]
struct Expected {
    gfn: Gfn,
    access: u8,
    is_table: bool,
}

impl MmuState {
    /// The properties of shadowed tables.
    pub(in crate::mmu) fn judge_guest(&self, verdict: &mut Verdict, ghost: &Ghost) {
        if !self.config.shadows_guest() || self.has_unfinished_runs() {
            return;
        }
        self.judge_protected(verdict, ghost);
        for vcpu in 0..self.vcpus.len() {
            let mode = &self.vcpus[vcpu].mode;
            if !matches!(mode.paging, Paging::Pae | Paging::Long4 | Paging::Long5) {
                continue;
            }
            let mut todo: Vec<Below> = self.vcpus[vcpu]
                .roots()
                .filter(|&root| !self.is_obsolete(root))
                .map(|page| Below { page, access: ACC_ALL })
                .collect();
            // A page is looked at once for each access that ways to it give.
            let mut seen: Vec<(PageIdx, u8)> = Vec::new();
            while let Some(below) = todo.pop() {
                if !seen.contains(&(below.page, below.access)) {
                    seen.push((below.page, below.access));
                    self.judge_shadow(verdict, ghost, vcpu, below, &mut todo);
                }
            }
        }
    }

    /// Tables in sync that lead somewhere where the guest's memory, as far as it is known, leads nowhere: a real VM's memory is
    /// not, and what is there counts as sound.
    pub(in crate::mmu) fn tables_unlike_memory(&self) -> Vec<u32> {
        let is_unlike = |&page: &PageIdx| {
            let role = self.arena.key(page).role;
            self.arena.page(page).place != Place::Free
                && !role.direct()
                && self.arena.table(page).iter().any(|(index, spte)| {
                    let gpa = self.arena.key(page).gfn.gpa() + u64::from(index) * 8;
                    let is_there = self.read_guest(role.as_id(), gpa, 8).is_some_and(|gpte| gpte & GPTE_PRESENT != 0);
                    is_shadow_present(&self.masks, spte) && !is_there
                })
        };
        self.arena.indices().filter(is_unlike).map(|page| page.0).collect()
    }

    /// One page's entries.
    fn judge_shadow(&self, verdict: &mut Verdict, ghost: &Ghost, vcpu: usize, below: Below, todo: &mut Vec<Below>) {
        let Below { page, access } = below;
        let key = self.arena.key(page);
        let (level, is_direct) = (key.role.level(), key.role.direct());
        if !is_direct && (self.arena.page(page).unsync || ghost.behind.contains(&page.0)) {
            return;
        }
        let mode = &self.vcpus[vcpu].mode;
        for (index, spte) in self.arena.table(page).iter().filter(|&(_, spte)| is_shadow_present(&self.masks, spte)) {
            let at = || format!("page {} entry {index}", key.id);
            let expected = if is_direct {
                Some(Expected { gfn: key.gfn_of(index), access, is_table: false })
            } else {
                self.expected_entry(vcpu, page, index, access)
            };
            let Some(expected) = expected else {
                verdict.check(false, "guest_rights", || format!("{}: the guest's own leads nowhere", at()));
                continue;
            };
            let sptep = page.sptep(index);
            if is_last(spte, level) {
                let Some(Entry::Leaf(held)) = ghost.entries.get(&sptep.0) else { continue };
                let is_right = !expected.is_table && held.leaf.gfn == expected.gfn.0;
                verdict.check(is_right, "leaf_gfn", || {
                    let (is, wanted) = (held.leaf.gfn, expected.gfn.0);
                    format!("{} maps gfn {is:#x}, where the guest's tables say {wanted:#x}", at())
                });
                let is_within = Self::is_within(mode, &held.leaf, spte & self.masks.user != 0, expected.access);
                verdict.check(is_within, "guest_rights", || {
                    format!("{} lets the guest do what its own tables do not", at())
                });
                continue;
            }
            let child = child_of(spte);
            let below = self.arena.key(child);
            let is_right = below.gfn == expected.gfn && below.role.direct() != expected.is_table;
            verdict.check(is_right, "child_expected", || {
                format!("{} leads to page {}, and the guest's own does not", at(), below.id)
            });
            if is_right {
                todo.push(Below { page: child, access: expected.access });
            }
        }
    }

    /// What the guest's own entry makes of an entry of a page in sync; nothing where it leads nowhere.
    fn expected_entry(&self, vcpu: usize, page: PageIdx, index: u16, access: u8) -> Option<Expected> {
        let (level, mode) = (self.arena.key(page).role.level(), &self.vcpus[vcpu].mode);
        let gpte = self.read_gpte(vcpu, page, index)?;
        if gpte & GPTE_PRESENT == 0 || mode.is_reserved(gpte, level) {
            return None;
        }
        let access = access & gpte_access(gpte);
        if mode.is_leaf(gpte, level) {
            let gfn = Gfn(mode.leaf_gfn(gpte, level, 0));
            return Some(Expected { gfn, access: protect_clean_gpte(access, gpte), is_table: false });
        }
        let gfn = Gfn::of_gpa(gpte & mode.paging.address_mask());
        Some(Expected { gfn, access, is_table: true })
    }

    /// Whether a leaf allows no more than this access. With write protection off a supervisor may write what is read-only:
    /// then it is the supervisor's alone.
    const fn is_within(mode: &GuestMode, leaf: &Leaf, is_users: bool, access: u8) -> bool {
        let has_write = access & ACC_WRITE != 0 || !mode.wp && !is_users;
        (leaf.rights & WRITE == 0 || has_write)
            && (!is_users || access & ACC_USER != 0)
            && (leaf.rights & EXEC == 0 || !mode.nx || access & ACC_EXEC != 0)
    }

    /// No leaf of the same address space is writable over a table that is shadowed and in sync: the kernel protects a table
    /// in the memslots of the vCPU that shadows it.
    fn judge_protected(&self, verdict: &mut Verdict, ghost: &Ghost) {
        let is_table = |&page: &PageIdx| {
            let (key, header) = (self.arena.key(page), self.arena.page(page));
            header.place == Place::Active
                && !key.role.direct()
                && !key.role.invalid()
                && key.valid_gen == self.valid_gen
                && !header.unsync
        };
        let tables: Vec<(u64, u8)> = self
            .arena
            .indices()
            .filter(is_table)
            .map(|page| {
                let key = self.arena.key(page);
                (key.gfn.0, key.role.as_id())
            })
            .collect();
        for held in ghost.entries.values().filter_map(|entry| match entry {
            Entry::Leaf(held) if held.leaf.rights & WRITE != 0 && !held.is_exempt => Some(held),
            _ => None,
        }) {
            let leaf = &held.leaf;
            let is_over =
                |&&(gfn, as_id): &&(u64, u8)| gfn.wrapping_sub(leaf.gfn) < leaf.pages() && as_id == leaf.as_id;
            if let Some(&(gfn, as_id)) = tables.iter().find(is_over) {
                verdict.check(false, "tables_protected", || {
                    format!("gfn {gfn:#x}, a table in sync, is writable in space {as_id}")
                });
            }
        }
    }

    /// What a leaf maps is what its place and its page's record say.
    pub(in crate::mmu) fn judge_leaf_gfn(&self, verdict: &mut Verdict, place: u32, leaf: &Leaf) {
        let (page, index) = (PageIdx(place >> 9), u16::try_from(place & 0x1ff).unwrap_or(0));
        let key = self.arena.key(page);
        let is_high = key.gfn.0 >> self.root_gfn_bits != 0 || self.has_high_pages;
        if key.role.direct() && is_high {
            return;
        }
        let gfn = self.arena.indirect(page).map_or_else(|| key.gfn_of(index), |indirect| indirect.gfn(index)).0;
        let is_right = gfn == leaf.gfn && leaf.gfn & (pages_per(leaf.level) - 1) == 0;
        verdict.check(is_right, "leaf_gfn", || {
            format!("page {} entry {index} was made for gfn {:#x}, and its place is that of {gfn:#x}", key.id, leaf.gfn)
        });
    }
}
