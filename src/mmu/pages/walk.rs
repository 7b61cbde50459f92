//! Walking the shadow table from a vCPU's root, and the questions about an SPTE that need the VM's masks.
//!
//! Models `for_each_shadow_entry`, `is_shadow_present_pte`, `is_last_spte` and their kin, v5.0/v5.2.

use crate::mmu::pages::last_path::{LastHardware, LastPath};
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::{PFERR_FETCH, PFERR_WRITE};
use crate::mmu::words::addr::Pfn;
use crate::mmu::words::level::{PAGE_SHIFT, PAGE_TABLE, level_shift};
use crate::mmu::words::spte::layout::{LARGE, PFN_FIELD, WRITABLE};
use crate::mmu::words::spte::masks::Masks;
pub(in crate::mmu) use crate::mmu::words::spte::masks::is_shadow_present;

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmu) struct Walked {
    pub sptep: Sptep,
    pub spte: u64,
    pub level: u8,
}

/// The table an entry links to.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "only `link` makes such entries, from an index below 2^22")]
pub(in crate::mmu) const fn child_of(spte: u64) -> PageIdx {
    PageIdx(((spte & PFN_FIELD) >> 12) as u32)
}

/// The frame an entry maps.
#[inline]
pub(in crate::mmu) const fn pfn_of(spte: u64) -> Pfn {
    Pfn((spte & PFN_FIELD) >> 12)
}

/// A leaf, given that the entry is present.
#[inline]
pub(in crate::mmu) const fn is_last(spte: u64, level: u8) -> bool {
    level == PAGE_TABLE || spte & LARGE != 0
}

/// A large leaf, given that the entry is present.
#[inline]
pub(in crate::mmu) const fn is_large(spte: u64) -> bool {
    spte & LARGE != 0
}

/// Both the host and the MMU allow writing: the lock-free path may set W.
#[inline]
pub(in crate::mmu) const fn can_be_made_writable(masks: &Masks, spte: u64) -> bool {
    let both = masks.host_writeable | masks.mmu_writeable;
    spte & both == both
}

/// The entry has no accessed and dirty bits, though the family may.
#[inline]
pub(in crate::mmu) const fn is_ad_disabled(masks: &Masks, spte: u64) -> bool {
    spte & masks.kind == masks.kind_ad_disabled
}

/// R, W and X are taken away to see the next access.
#[inline]
pub(in crate::mmu) const fn is_access_track(masks: &Masks, spte: u64) -> bool {
    is_ad_disabled(masks, spte) && spte & masks.acc_track == 0
}

/// The entry's accessed bit, or that it is not tracked.
#[inline]
pub(in crate::mmu) const fn is_accessed(masks: &Masks, spte: u64) -> bool {
    if masks.accessed == 0 || is_ad_disabled(masks, spte) {
        !is_access_track(masks, spte)
    } else {
        spte & masks.accessed != 0
    }
}

/// The entry's dirty bit, or that it is writable.
#[inline]
pub(in crate::mmu) const fn is_dirty(masks: &Masks, spte: u64) -> bool {
    if masks.dirty == 0 || is_ad_disabled(masks, spte) { spte & WRITABLE != 0 } else { spte & masks.dirty != 0 }
}

/// Whether the raw entry allows the access of an error code.
#[inline]
pub(in crate::mmu) const fn is_access_allowed(masks: &Masks, error_code: u64, spte: u64) -> bool {
    if error_code & PFERR_FETCH != 0 {
        spte & (masks.x | masks.nx) == masks.x
    } else if error_code & PFERR_WRITE != 0 {
        spte & WRITABLE != 0
    } else {
        spte & 1 != 0
    }
}

impl MmuState {
    /// Down from a root to the first entry that is not present, is a leaf, or lies below `least`.
    #[inline]
    pub(in crate::mmu) fn walk_down(&self, root: PageIdx, addr: u64, least: u8) -> Walked {
        let last = self.last_path.get();
        if let Some(page) = last.lower(root, addr).filter(|_| least <= 2) {
            let walked = self.walk_at(page, addr);
            debug_assert_eq!(walked.sptep, self.walk_from(root, root, addr, least).sptep, "the last path is none");
            return walked;
        }
        self.walk_from(root, last.upper(root, addr).filter(|_| least <= 3).unwrap_or(root), addr, least)
    }

    /// The entry of a table of level 1 for an address.
    #[inline]
    fn walk_at(&self, page: PageIdx, addr: u64) -> Walked {
        // Only nine bits are kept.
        let index = (addr >> PAGE_SHIFT & 0x1ff) as u16;
        Walked { sptep: page.sptep(index), spte: self.arena.table(page).get(index), level: PAGE_TABLE }
    }

    /// Down from a table on the way, which is remembered if it leads to one of level 1.
    pub(in crate::mmu) fn walk_from(&self, root: PageIdx, from: PageIdx, addr: u64, least: u8) -> Walked {
        let mut page = from;
        let mut upper = PageIdx::NONE;
        let mut level = self.arena.key(from).role.level();
        let mut frames = addr.wrapping_shr(PAGE_SHIFT + level_shift(level));
        let mut below = addr.wrapping_shl(64 - PAGE_SHIFT - level_shift(level));
        loop {
            if level <= PAGE_TABLE {
                self.last_path.set(LastPath::new(root, addr, upper, page));
                return self.walk_at(page, addr);
            }
            if level == 2 {
                upper = page;
            }
            // Only nine bits are kept.
            let index = (frames & 0x1ff) as u16;
            let spte = self.arena.table(page).get(index);
            if level < least || spte & LARGE != 0 || !is_shadow_present(&self.masks, spte) {
                return Walked { sptep: page.sptep(index), spte, level };
            }
            page = child_of(spte);
            level = level.wrapping_sub(1);
            frames = below >> 55;
            below <<= 9;
        }
    }

    /// A walk from a root ended at a table of level 1.
    #[inline]
    pub(in crate::mmu) fn remember_path(&self, root: PageIdx, addr: u64, page: PageIdx) {
        self.last_path.set(LastPath::new(root, addr, PageIdx::NONE, page));
    }

    /// A link to a table is made or dropped: the last walk may not be what a walk would be now.
    #[inline]
    pub(in crate::mmu) fn forget_last_path(&self) {
        self.last_path.set(LastPath::default());
        self.last_hardware.set(LastHardware::default());
    }
}
