//! Paging levels: 1 is the page table, 2 the directory (2 MiB leaves), 3 (1 GiB leaves), 4 and 5 roots.

/// Bytes of a page, as a shift.
pub const PAGE_SHIFT: u32 = 12;
/// The level of 4 KiB leaves.
pub const PAGE_TABLE: u8 = 1;
/// The largest level that can hold a leaf.
pub const MAX_LEAF: u8 = 3;
/// Entries of a table.
pub const ENTRIES: usize = 512;

/// How far a gfn is shifted to number the mappings of a level.
#[must_use]
#[inline]
pub const fn level_shift(level: u8) -> u32 {
    9 * (level as u32 - 1)
}

/// 4 KiB pages of one mapping of this level.
#[must_use]
#[inline]
pub const fn pages_per(level: u8) -> u64 {
    1 << level_shift(level)
}

/// Where in its table the entry for this address lies.
#[must_use]
#[inline]
pub const fn table_index(addr: u64, level: u8) -> u16 {
    ((addr >> (PAGE_SHIFT + level_shift(level))) & 0x1ff) as u16
}
