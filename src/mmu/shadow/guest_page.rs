//! Finding or making the shadow page of a guest's table, or of a part of a guest's large page.
//!
//! Models `kvm_mmu_get_page` up to v5.10, and `kvm_mmu_find_shadow_page` and `kvm_mmu_alloc_shadow_page` from v6.1 on. A
//! page that is found may have fallen out of sync: it is synced, and if that leaves nothing of it another one is made.

use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::shadow::sync::SyncedPage;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::{REQ_MMU_SYNC, REQ_TLB_FLUSH};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;

impl MmuState {
    /// The page of a gfn and a role, found or made.
    pub(in crate::mmu) fn get_guest_page(&mut self, vcpu: usize, gfn: Gfn, role: Role) -> Result<PageIdx> {
        if self.config.kernel.is_role_fixed {
            self.find_or_make_guest_page(vcpu, gfn, role)
        } else {
            self.get_guest_page_v5(vcpu, gfn, role)
        }
    }

    /// The bucket of a gfn from a page on: the next valid page, with other gfns counted.
    fn next_valid_in_bucket(&self, from: PageIdx, gfn: Gfn, collisions: &mut i64) -> PageIdx {
        let mut page = from;
        while page != PageIdx::NONE {
            let key = self.arena.key(page);
            if !key.role.invalid() && key.valid_gen == self.valid_gen {
                if key.gfn == gfn {
                    break;
                }
                *collisions += 1;
            }
            page = key.hash_next;
        }
        page
    }

    fn count_collisions(&mut self, collisions: i64) {
        if self.hash.counts_collisions() {
            self.stats.max_collisions = self.stats.max_collisions.max(collisions);
        }
    }

    pub(in crate::mmu) fn reset_flood(&mut self, page: PageIdx) {
        if let Some(indirect) = self.arena.indirect_mut(page)
            && !is_chosen(Mutant::FloodKept)
        {
            indirect.flood = 0;
        }
    }

    fn get_guest_page_v5(&mut self, vcpu: usize, gfn: Gfn, role: Role) -> Result<PageIdx> {
        let mut invalid = InvalidList::default();
        let (mut collisions, mut need_sync) = (0, false);
        let mut page = self.next_valid_in_bucket(self.hash.first(gfn), gfn, &mut collisions);
        while page != PageIdx::NONE {
            let header = self.arena.page(page);
            need_sync |= header.unsync;
            if self.arena.key(page).role == role {
                if header.unsync {
                    if self.sync_page_or_zap(vcpu, page, &mut invalid) == SyncedPage::Unusable {
                        break;
                    }
                    self.vcpus[vcpu].requests |= REQ_TLB_FLUSH;
                }
                if self.arena.page(page).unsync_children != 0 {
                    self.vcpus[vcpu].requests |= REQ_MMU_SYNC;
                }
                self.reset_flood(page);
                self.work.get_page_found += 1;
                self.push_get_page(page, false);
                self.count_collisions(collisions);
                return Ok(page);
            }
            let next = self.arena.key(page).hash_next;
            page = self.next_valid_in_bucket(next, gfn, &mut collisions);
        }
        let page = self.make_page(gfn, role)?;
        let mut flush = false;
        if !role.direct() {
            self.account_shadowed(page);
            if role.level() == PAGE_TABLE {
                if self.vcpu_write_protect_gfn(vcpu, gfn) {
                    self.flush_remote_tlbs_with_address(gfn, 1);
                }
            } else if need_sync {
                flush = self.sync_pages_of(vcpu, gfn, &mut invalid);
            }
        }
        self.push_get_page(page, true);
        self.flush_or_zap_local(vcpu, &mut invalid, flush);
        self.count_collisions(collisions);
        Ok(page)
    }

    /// Syncs the unsync pages of a gfn, which is a table above level 1 now.
    fn sync_pages_of(&mut self, vcpu: usize, gfn: Gfn, invalid: &mut InvalidList) -> bool {
        let mut flush = false;
        for page in self.indirect_pages_of(gfn) {
            if self.arena.page(page).unsync {
                flush |= self.sync_unsync_page(vcpu, page, invalid);
            }
        }
        flush
    }

    fn find_or_make_guest_page(&mut self, vcpu: usize, gfn: Gfn, role: Role) -> Result<PageIdx> {
        let mut invalid = InvalidList::default();
        let mut collisions = 0;
        let mut found = None;
        let mut page = self.next_valid_in_bucket(self.hash.first(gfn), gfn, &mut collisions);
        while page != PageIdx::NONE {
            let (key, is_unsync) = (*self.arena.key(page), self.arena.page(page).unsync);
            if key.role != role {
                // A table that is an upper one now cannot stay unsync as a lower one.
                if role.level() > PAGE_TABLE && is_unsync {
                    self.prepare_zap_page(page, &mut invalid);
                }
            } else if role.direct() {
                found = Some(page);
                break;
            } else {
                let synced = if is_unsync { self.sync_page_or_zap(vcpu, page, &mut invalid) } else { SyncedPage::Same };
                if synced == SyncedPage::Unusable {
                    break;
                }
                if synced == SyncedPage::Changed {
                    self.flush_remote_tlbs();
                }
                self.reset_flood(page);
                found = Some(page);
                break;
            }
            page = self.next_valid_in_bucket(key.hash_next, gfn, &mut collisions);
        }
        self.commit_zap_page(&mut invalid);
        self.count_collisions(collisions);
        if let Some(page) = found {
            self.work.get_page_found += 1;
            self.push_get_page(page, false);
            return Ok(page);
        }
        let page = self.make_page(gfn, role)?;
        if !role.direct() {
            self.account_shadowed(page);
        }
        self.push_get_page(page, true);
        Ok(page)
    }

    /// The role of a child table in a vCPU's guest: up to v5.10 by the vCPU and the address, later by the table above.
    pub(in crate::mmu) fn guest_child_role(
        &self,
        vcpu: usize,
        gva: u64,
        (parent, index): (PageIdx, u16),
        level: u8,
        (direct, access): (bool, u8),
    ) -> Role {
        let of_vcpu = &self.vcpus[vcpu];
        if self.config.kernel.is_role_fixed {
            let above = self.arena.key(parent).role;
            let is_invalid = above.invalid() && !self.config.kernel.child_role_valid;
            let quadrant = if above.gpte_is_8_bytes() { (index & 1).to_le_bytes()[0] } else { 0 };
            let role = above.with_invalid(is_invalid).with_level(level).with_direct(direct).with_access(access);
            return role.with_quadrant(quadrant);
        }
        self.guest_page_role(of_vcpu.role, gva, level, direct, access)
    }

    /// The role up to v5.10: the vCPU's, with what the page is for.
    pub(in crate::mmu) fn guest_page_role(&self, base: Role, gva: u64, level: u8, direct: bool, access: u8) -> Role {
        let is_p32 = !base.direct() && !base.gpte_is_8_bytes();
        let quadrant = if is_p32 { gva >> (12 + 9 * u32::from(level)) & ((1 << level) - 1) } else { 0 };
        let bit4 = if direct { self.config.kernel.direct_role_bit4 } else { base.gpte_is_8_bytes() };
        let role = base.with_level(level).with_direct(direct).with_access(access).with_gpte_is_8_bytes(bit4);
        role.with_quadrant(quadrant.to_le_bytes()[0] & 3)
    }
}
