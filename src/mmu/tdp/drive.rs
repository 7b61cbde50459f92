//! How work over the roots of the TDP MMU is carried on, from entry to entry and from root to root, and stops where the
//! lock is dropped. What is done at an entry is a verb of its own file.
//!
//! Models the loops over `for_each_tdp_mmu_root_yield_safe` and `for_each_tdp_pte_min_level` with
//! `tdp_mmu_iter_cond_resched`, v6.1 to v7.3.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{is_last, is_shadow_present};
use crate::mmu::tdp::tdp_walk::{Body, Lock, TdpIter, TdpWalk};
use crate::mmu::vm::runs::Step;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};

/// Kind of a lock break: a table is allocated with the lock dropped.
const ALLOCATION: u8 = 3;

impl MmuState {
    /// Goes on until the last root is done, the lock is dropped or the slice ends.
    pub(in crate::mmu) fn drive_tdp_walk(&mut self, walk: &mut TdpWalk) -> Step {
        loop {
            let mut iter = match walk.iter.take() {
                Some(iter) => iter,
                None => match self.begin_pass(walk) {
                    Some(iter) => iter,
                    None => return Step::Done,
                },
            };
            let step = self.walk_entries(walk, &mut iter);
            if step != Step::Done {
                walk.iter = Some(iter);
                return step;
            }
        }
    }

    /// Ends a walk that will not be carried on.
    pub(in crate::mmu) fn drop_tdp_walk(&mut self, walk: &mut TdpWalk) {
        walk.iter = None;
        walk.is_over = true;
        if walk.root != PageIdx::NONE {
            self.put_tdp_root(std::mem::take(&mut walk.root));
        }
    }

    /// The next pass over the root, or the first over the next one.
    fn begin_pass(&mut self, walk: &mut TdpWalk) -> Option<TdpIter> {
        if let Body::ZapRoot { only_scheduled } = walk.body {
            if walk.root != PageIdx::NONE {
                if let Some(least) = self.zap_level(walk.root, walk.pass) {
                    return Some(self.begin_zap_pass(walk, least));
                }
                if only_scheduled {
                    // The MMU's own reference.
                    self.put_tdp_root(walk.root);
                }
            }
            while !walk.is_over
                && let Some(root) = self.next_tdp_root(walk.root, walk.roots)
            {
                walk.root = root;
                if self.tdp.roots.unschedule(root) || !only_scheduled {
                    walk.pass = 0;
                    let least = self.zap_level(root, 0)?;
                    return Some(self.begin_zap_pass(walk, least));
                }
            }
            walk.root = PageIdx::NONE;
            walk.is_over = true;
            return None;
        }
        if matches!(walk.body, Body::Collapse { .. }) {
            // Owed for each root.
            self.flush_walked(walk);
        }
        if walk.is_over {
            return None;
        }
        walk.root = self.next_tdp_root(walk.root, walk.roots).unwrap_or_default();
        walk.is_over = walk.root == PageIdx::NONE;
        let root = walk.root.some()?;
        Some(self.tdp_iter(root, walk.start, walk.end, walk.least))
    }

    fn begin_zap_pass(&mut self, walk: &mut TdpWalk, least: u8) -> TdpIter {
        walk.pass += 1;
        walk.least = least;
        self.tdp_iter(walk.root, walk.start, walk.end, least)
    }

    fn walk_entries(&mut self, walk: &mut TdpWalk, iter: &mut TdpIter) -> Step {
        if iter.is_yielded {
            self.tdp_next(iter);
        }
        while iter.is_valid() {
            if self.slice.is_over() {
                return Step::Slice;
            }
            self.slice.spend(1);
            self.clear_quietly(walk, iter);
            let quiet = self.quiet_entries(walk, iter);
            if quiet > 0 {
                self.pass_over_quiet(walk, iter, quiet);
            }
            let spte = self.tdp_spte(iter);
            let is_leaf = is_shadow_present(&self.masks, spte) && is_last(spte, iter.level);
            // Where the host's log is cleared only leaves are a place to look up from.
            let may_yield = walk.is_polled && (is_leaf || walk.body != Body::ClearDirty);
            if may_yield && self.tdp_wants_yield(iter) {
                iter.is_yielded = true;
                self.flush_walked(walk);
                if self.cond_resched_of(u8::from(walk.lock == Lock::Shared)) {
                    return Step::LockBreak;
                }
                self.tdp_next(iter);
                continue;
            }
            match walk.body {
                Body::Unmap if is_leaf => {
                    self.tdp_set_spte(iter.sptep(), iter.gfn, 0, walk.lock);
                    walk.flush |= !self.is_flush_spared(walk);
                }
                Body::WriteProtect if is_leaf => walk.flush |= self.tdp_write_protect(iter, false, walk.lock),
                Body::ClearDirty if is_leaf => walk.flush |= self.tdp_clear_dirty(iter, walk.lock),
                Body::Split { to, has_table } if is_leaf && iter.level > to => {
                    if !has_table && self.config.kernel.tdp_split_drops_lock {
                        iter.is_yielded = true;
                        walk.body = Body::Split { to, has_table: true };
                        if self.polls.alloc() {
                            self.push_lock_break(ALLOCATION);
                            return Step::LockBreak;
                        }
                        self.tdp_next(iter);
                        continue;
                    }
                    walk.body = Body::Split { to, has_table: false };
                    if self.tdp_split(iter.sptep(), iter.gfn, walk.lock).is_err() {
                        self.push_split_failed(iter);
                        self.drop_tdp_walk(walk);
                        return Step::Done;
                    }
                }
                Body::Collapse { id } if is_shadow_present(&self.masks, spte) && !is_leaf => {
                    walk.flush |= self.tdp_collapse(walk.roots.as_id.unwrap_or(0), id, iter);
                }
                Body::ZapRoot { .. } if is_shadow_present(&self.masks, spte) && iter.level <= iter.least() => {
                    self.work.sptes_cleared += 1;
                    self.tdp_set_spte(iter.sptep(), iter.gfn, 0, walk.lock);
                    walk.flush = true;
                }
                _ => {}
            }
            self.tdp_next(iter);
        }
        if let Body::Split { to, has_table: true } = walk.body {
            // A table made for nothing.
            walk.body = Body::Split { to, has_table: false };
            self.stats.freed += 1;
        }
        Step::Done
    }

    /// Flushes what a walk removed, where it does so itself.
    fn flush_walked(&mut self, walk: &mut TdpWalk) {
        if !walk.is_flush_inside || !std::mem::take(&mut walk.flush) || is_chosen(Mutant::WalkForgetsFlush) {
            return;
        }
        if matches!(walk.body, Body::Collapse { .. }) {
            self.flush_range(walk.start, walk.end.0 - walk.start.0);
        } else {
            self.flush_remote_tlbs();
        }
    }

    /// What is removed from an invalid root is not flushed for: it is empty, or about to be, and nobody may use it.
    fn is_flush_spared(&self, walk: &TdpWalk) -> bool {
        self.arena.key(walk.root).role.invalid() && !self.config.kernel.tdp_walks_invalid_roots
    }

    /// Empties the leaves of a page table at once where the walk would do so one by one, nobody listens and no poll can be
    /// true.
    fn clear_quietly(&mut self, walk: &mut TdpWalk, iter: &TdpIter) {
        let is_zap = matches!(walk.body, Body::ZapRoot { .. });
        let is_quiet = !self.events.is_on() && (!walk.is_polled || self.polls.is_quiet());
        if iter.level > PAGE_TABLE || !is_quiet || !(is_zap || walk.body == Body::Unmap) {
            return;
        }
        let Some(gone) = self.clear_leaves(iter.sptep().page(), iter.sptep().index(), iter.left_in_table()) else {
            return;
        };
        self.stats.spte_changed = self.stats.spte_changed.wrapping_add_unsigned(gone.leaves);
        self.work.sptes_changed += gone.leaves;
        self.account_leaves_gone(gone);
        if is_zap {
            self.work.sptes_cleared += gone.leaves;
        }
        walk.flush |= gone.leaves > 0 && (is_zap || !self.is_flush_spared(walk));
    }

    /// How many entries from a walk's on are empty, in a table of the lowest level and where no poll can be true.
    fn quiet_entries(&self, walk: &TdpWalk, iter: &TdpIter) -> u16 {
        if iter.level != iter.least() || iter.level > PAGE_TABLE || walk.is_polled && !self.polls.is_quiet() {
            return 0;
        }
        let most = iter.left_in_table();
        let empty = self.arena.table(iter.sptep().page()).empty_from(iter.sptep().index(), most);
        // The last step out of a table is the walk's own.
        empty.saturating_sub(1)
    }

    fn pass_over_quiet(&mut self, walk: &TdpWalk, iter: &mut TdpIter, entries: u16) {
        let entries_i64 = i64::from(entries);
        self.stats.tdp_steps += entries_i64;
        self.work.walk_visited += u64::from(entries);
        self.slice.spend(u64::from(entries));
        if walk.is_polled && walk.body != Body::ClearDirty {
            let polls = u64::from(entries) - u64::from(!iter.has_advanced());
            self.lock_is_wanted_many(polls);
        }
        iter.pass_over(entries);
    }
}
