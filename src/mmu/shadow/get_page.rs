//! Finding or making the shadow page for a gfn and role.
//!
//! Models `kvm_mmu_get_page`, v5.0 to v6.12, for direct pages.

use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;

impl MmuState {
    /// The newest valid page of this gfn and role.
    pub(in crate::mmu) fn find_page(&mut self, gfn: Gfn, role: Role) -> Option<PageIdx> {
        let mut collisions = 0;
        let mut page = self.hash.first(gfn);
        let mut probes = 0;
        let mut found = None;
        while page != PageIdx::NONE {
            let key = self.arena.key(page);
            probes += 1;
            if !key.role.invalid() && (key.valid_gen == self.valid_gen || is_chosen(Mutant::ObsoletePageTaken)) {
                if key.gfn != gfn {
                    collisions += 1;
                } else if key.role == role {
                    found = Some(page);
                    break;
                }
            }
            page = key.hash_next;
        }
        self.work.hash_probes += probes;
        if self.hash.counts_collisions() {
            self.stats.max_collisions = self.stats.max_collisions.max(collisions);
        }
        found
    }

    /// The page, found (newest first) or made.
    pub(in crate::mmu) fn get_page(&mut self, gfn: Gfn, role: Role) -> Result<PageIdx> {
        if self.nr_indirect != 0 {
            // A direct page is nothing that any vCPU's guest could have to be asked for.
            return self.get_guest_page(0, gfn, role);
        }
        if let Some(page) = self.find_page(gfn, role) {
            self.work.get_page_found += 1;
            self.push_get_page(page, false);
            return Ok(page);
        }
        let page = self.make_page(gfn, role)?;
        self.push_get_page(page, true);
        Ok(page)
    }

    /// A new page of a gfn and a role, listed and hashed; the event is the caller's.
    pub(in crate::mmu) fn make_page(&mut self, gfn: Gfn, role: Role) -> Result<PageIdx> {
        let page = self.arena.alloc(gfn, role, self.valid_gen).ok_or(Error::TooManyPages)?;
        self.has_high_pages |= gfn.0 >> self.root_gfn_bits != 0;
        self.stats.cache_miss += 1;
        self.stats.created += 1;
        self.work.get_page_created += 1;
        if let Some(ghost) = &mut self.ghost {
            ghost.made(page.0);
        }
        self.active.push_head(page);
        #[cfg(feature = "mutants")]
        if is_chosen(Mutant::NewPageAtTail) {
            self.active.move_to_tail(page);
        }
        self.arena.page_mut(page).place = Place::Active;
        self.hash.insert(&mut self.arena, page);
        self.used += 1;
        Ok(page)
    }

    pub(in crate::mmu) fn push_get_page(&mut self, page: PageIdx, created: bool) {
        let facts = self.page_facts(page);
        self.events.push(|| Event::GetPage { page: facts, created });
    }
}
