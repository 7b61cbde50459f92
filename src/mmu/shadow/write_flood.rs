//! A write to a table of the guest that is shadowed: what shadows the bytes written goes, and a table that is written again
//! and again goes whole.
//!
//! Models `kvm_mmu_pte_write`, `detect_write_flooding`, `detect_write_misaligned`, `kvm_mmu_unprotect_page`, v5.0 to v6.12.

use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::{child_of, is_large, is_last, is_shadow_present, pfn_of};
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::VcpuMmu;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::guest_mode::{CR4_PAE, Paging};
use crate::mmu::words::level::PAGE_TABLE;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::role::Role;
use crate::mmu::words::spte::layout::WRITABLE;

/// A write to guest memory.
#[derive(Clone, Copy, Debug)]
struct GuestWrite {
    gpa: u64,
    bytes: u64,
    /// The entry that is there now; 0 if what was written is none.
    gpte: u64,
}

impl MmuState {
    /// The guest's write is done in its place: 0, or -EFAULT without a slot. Then what shadows the bytes goes.
    pub(in crate::mmu) fn emulate_write(&mut self, vcpu: usize, gpa: u64, value: u64, bytes: u8) -> i32 {
        let ret = self.write_guest(self.vcpus[vcpu].as_id(), gpa, value, bytes);
        if ret == 0 && self.nr_indirect > 0 {
            self.track_write(vcpu, gpa, bytes);
        }
        ret
    }

    /// What a write of the guest means for the pages that shadow its gfn.
    pub(in crate::mmu) fn track_write(&mut self, vcpu: usize, gpa: u64, bytes: u8) {
        let mut write = GuestWrite { gpa, bytes: bytes.into(), gpte: 0 };
        if self.vcpus[vcpu].has_pae() && bytes == 4 {
            (write.gpa, write.bytes) = (gpa & !7, 8);
        }
        if let 4 | 8 = write.bytes {
            let size = if write.bytes == 4 { 4 } else { 8 };
            write.gpte = self.read_guest(self.vcpus[vcpu].as_id(), write.gpa, size).unwrap_or(0);
        }
        let mut invalid = InvalidList::default();
        let mut is_remote = false;
        let mut is_local = false;
        for page in self.indirect_pages_of(Gfn::of_gpa(gpa)) {
            // Zapping one page may have zapped another.
            if self.arena.key(page).role.invalid() {
                continue;
            }
            if self.is_misaligned(page, &write) || self.is_flooded(page) {
                self.prepare_zap_page(page, &mut invalid);
                continue;
            }
            let Some((first, count)) = self.sptes_written(page, &write) else { continue };
            is_local = true;
            for index in first..first + count {
                is_remote |= self.drop_written(vcpu, page.sptep(index & 0x1ff), write.gpte);
            }
        }
        is_remote &= !is_chosen(Mutant::WriteWithoutFlush);
        if !invalid.is_empty() {
            self.commit_zap_page(&mut invalid);
        } else if is_remote {
            self.flush_remote_tlbs();
        } else if is_local && !self.config.kernel.is_role_fixed {
            self.flush_or_zap_local(vcpu, &mut invalid, true);
        }
    }

    /// Bytes of an entry of the table that a page shadows.
    fn gpte_size(&self, role: Role) -> u64 {
        // From v6.1 on the bit says the opposite.
        if role.gpte_is_8_bytes() == self.config.kernel.is_role_fixed { 4 } else { 8 }
    }

    /// A write that is no whole entry, except of one byte at an entry's beginning, is not a write of an entry.
    fn is_misaligned(&self, page: PageIdx, write: &GuestWrite) -> bool {
        let size = self.gpte_size(self.arena.key(page).role);
        let offset = write.gpa & 0xfff;
        if offset.is_multiple_of(size) && write.bytes == 1 {
            return false;
        }
        let crosses = (offset ^ offset.wrapping_add(write.bytes).wrapping_sub(1)) & !(size - 1) != 0;
        (crosses || write.bytes < 4) && !is_chosen(Mutant::MisalignedTaken)
    }

    /// One write more to a table above the lowest; whether they are too many without a use of the table.
    fn is_flooded(&mut self, page: PageIdx) -> bool {
        if self.arena.key(page).role.level() == PAGE_TABLE {
            return false;
        }
        let limit = self.config.kernel.write_flood_limit;
        let limit = if is_chosen(Mutant::FloodOneLater) { limit.saturating_add(1) } else { limit };
        self.arena.indirect_mut(page).is_some_and(|indirect| {
            indirect.flood += 1;
            limit > 0 && indirect.flood >= limit
        })
    }

    /// First entry and number of those that shadow the bytes; none if another page of the table does.
    fn sptes_written(&self, page: PageIdx, write: &GuestWrite) -> Option<(u16, u16)> {
        let role = self.arena.key(page).role;
        let mut offset = write.gpa & 0xfff;
        let mut count = 1;
        if self.gpte_size(role) == 4 {
            // A table of 4-byte entries has as many again, in two pages or, of 4 MiB each, in four.
            offset <<= 1;
            if role.level() > PAGE_TABLE {
                offset = (offset & !7) << 1;
                count = 2;
            }
            if offset >> 12 != u64::from(role.quadrant()) {
                return None;
            }
            offset &= 0xfff;
        }
        Some((u16::try_from(offset / 8).ok()?, count))
    }

    /// Drops what shadows a written entry and may fill it again; whether every TLB must be flushed.
    fn drop_written(&mut self, vcpu: usize, sptep: Sptep, gpte: u64) -> bool {
        let old = self.arena.spte(sptep);
        let role = self.arena.key(sptep.page()).role;
        let was_present = self.zap_entry(sptep);
        if self.config.kernel.is_role_fixed {
            return was_present;
        }
        let of_vcpu = &self.vcpus[vcpu];
        if gpte != 0
            && role.level() == PAGE_TABLE
            && of_vcpu.mode.paging != Paging::None
            && mode_bits(role, of_vcpu) == mode_bits(of_vcpu.role, of_vcpu)
        {
            let gpte = if of_vcpu.mode.paging.entry_size() == 4 { gpte & 0xffff_ffff } else { gpte };
            self.prefetch_gpte(vcpu, sptep, gpte, false);
        }
        was_present && self.loses(old, self.arena.spte(sptep))
    }

    /// Whether an entry allowed something that the new one does not.
    fn loses(&self, old: u64, new: u64) -> bool {
        if !is_shadow_present(&self.masks, new) || pfn_of(old) != pfn_of(new) {
            return true;
        }
        let rights = self.masks.present | WRITABLE | self.masks.user | self.masks.nx;
        let flipped = |spte: u64| spte ^ self.masks.nx;
        flipped(old) & !flipped(new) & rights != 0
    }

    /// Empties an entry, whatever it is; whether it was present.
    pub(in crate::mmu) fn zap_entry(&mut self, sptep: Sptep) -> bool {
        let spte = self.arena.spte(sptep);
        let level = self.arena.key(sptep.page()).role.level();
        self.work.sptes_cleared += u64::from(spte != 0);
        if self.config.probes && spte != 0 {
            self.push_page_zap_pte(sptep, spte, level);
        }
        if !is_shadow_present(&self.masks, spte) {
            if spte != 0 {
                self.spte_set(sptep, 0);
            }
            return false;
        }
        if is_last(spte, level) {
            self.drop_spte(sptep);
            self.stats.lpages -= i64::from(is_large(spte));
        } else {
            self.drop_parent_pte(child_of(spte), sptep);
        }
        true
    }

    /// Zaps every page that shadows a gfn as a table; true if there was one, or from v6.12 on if one was freed.
    pub(in crate::mmu) fn unprotect_gfn(&mut self, gfn: Gfn) -> bool {
        let mut invalid = InvalidList::default();
        let mut any = false;
        for page in self.indirect_pages_of(gfn) {
            if self.arena.key(page).role.invalid() {
                continue;
            }
            self.prepare_zap_page(page, &mut invalid);
            any = true;
            if is_chosen(Mutant::UnprotectFirstOnly) {
                break;
            }
        }
        if self.config.kernel.unprotect_counts_freed {
            any = !invalid.is_empty();
        }
        self.commit_zap_page(&mut invalid);
        any
    }
}

/// What of a role says in which mode the guest runs.
const fn mode_bits(role: Role, vcpu: &VcpuMmu) -> u32 {
    // Of a page that maps directly the bit says nothing.
    let is_pae = if role.direct() { vcpu.cr4 & CR4_PAE != 0 } else { role.gpte_is_8_bytes() };
    role.with_level(0)
        .with_access(0)
        .with_quadrant(0)
        .with_direct(false)
        .with_invalid(false)
        .with_gpte_is_8_bytes(is_pae)
        .into_bits()
}
