//! How a guest pages, as its registers say: the mode, the shape of its tables, their reserved bits, and the protections
//! that are on.
//!
//! | mode | levels | entries of a table | first table |
//! |---|---|---|---|
//! | `none` | - | - | guest-virtual addresses are guest-physical |
//! | `p32` | 2 | 1024 of 4 bytes | CR3 |
//! | `pae` | 2 | 512 of 8 bytes | one of four PDPTEs that the processor keeps |
//! | `long` | 4 or 5 | 512 of 8 bytes | CR3 |
//!
//! [`Registers`] are a vCPU's; a [`GuestMode`] is made of them once and kept, as the kernel keeps its MMU context. When it
//! is made anew is the business of whoever writes the registers. Models the guest's half of `kvm_init_shadow_mmu` and
//! `reset_rsvds_bits_mask`, v5.0 to v7.3. The guest has 1 GiB pages and PSE36.

use serde::{Deserialize, Serialize};

use crate::mmu::words::access::{ACC_EXEC, ACC_USER, ACC_WRITE};

/// CR0: a supervisor may not write to what is write-protected.
pub const CR0_WP: u64 = 1 << 16;
/// CR0: the guest pages.
pub const CR0_PG: u64 = 1 << 31;
/// CR0 after INIT: no paging, no protection, caches off.
pub const CR0_AFTER_INIT: u64 = 0x6000_0010;
/// CR4: large pages of tables with 4-byte entries.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4: entries have 8 bytes.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: five levels.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4: a supervisor does not fetch from the user's pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4: a supervisor does not read or write the user's pages.
pub const CR4_SMAP: u64 = 1 << 21;
/// CR4: protection keys of user pages.
pub const CR4_PKE: u64 = 1 << 22;
/// EFER: long mode is active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER: bit 63 of an entry forbids fetches.
pub const EFER_NX: u64 = 1 << 11;

/// Entry: it leads somewhere.
pub const GPTE_PRESENT: u64 = 1;
/// Entry: the processor used it.
pub const GPTE_ACCESSED: u64 = 1 << 5;
/// Entry: the processor wrote through it.
pub const GPTE_DIRTY: u64 = 1 << 6;
/// Entry: it is a leaf above level 1.
pub const GPTE_LARGE: u64 = 1 << 7;
/// Entry: no fetches.
pub const GPTE_NX: u64 = 1 << 63;

const KEY_SHIFT: u32 = 59;
const KEY_MASK: u64 = 0xf;

/// Bits `low` to `high`; none if `high` lies below.
const fn bits(low: u32, high: u32) -> u64 {
    if high < low { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}

/// The registers that say how a guest pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the processor's own names")]
pub struct Registers {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub pkru: u32,
    /// `EFLAGS.AC`: a supervisor may read and write user pages although SMAP is on.
    pub ac: bool,
}

/// A guest's paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Paging {
    /// No paging.
    None,
    /// Two levels of 4-byte entries.
    P32,
    /// Two levels of 8-byte entries below four PDPTEs.
    Pae,
    /// Four levels.
    Long4,
    /// Five levels.
    Long5,
}

impl Registers {
    /// The paging mode.
    #[must_use]
    pub const fn paging(&self) -> Paging {
        if self.cr0 & CR0_PG == 0 {
            Paging::None
        } else if self.efer & EFER_LMA != 0 {
            if self.cr4 & CR4_LA57 == 0 { Paging::Long4 } else { Paging::Long5 }
        } else if self.cr4 & CR4_PAE != 0 {
            Paging::Pae
        } else {
            Paging::P32
        }
    }
}

impl Paging {
    /// Its name; that of both long modes is `long`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::P32 => "p32",
            Self::Pae => "pae",
            Self::Long4 | Self::Long5 => "long",
        }
    }

    /// Whether this is long mode.
    #[must_use]
    pub const fn is_long(self) -> bool {
        matches!(self, Self::Long4 | Self::Long5)
    }

    /// The level of the entry that CR3 leads to; for `pae` that of the PDPTEs, for `none` 0.
    #[must_use]
    pub const fn root_level(self) -> u8 {
        match self {
            Self::None => 0,
            Self::P32 => 2,
            Self::Pae => 3,
            Self::Long4 => 4,
            Self::Long5 => 5,
        }
    }

    /// The highest level whose entries lie in guest memory.
    #[must_use]
    pub const fn top_level(self) -> u8 {
        if matches!(self, Self::Pae) { 2 } else { self.root_level() }
    }

    /// Bytes of an entry.
    #[must_use]
    pub const fn entry_size(self) -> u8 {
        if matches!(self, Self::P32) { 4 } else { 8 }
    }

    /// Address bits that choose an entry of a table.
    #[must_use]
    pub const fn index_bits(self) -> u32 {
        if matches!(self, Self::P32) { 10 } else { 9 }
    }

    /// The address bits of an entry and of CR3.
    #[must_use]
    pub const fn address_mask(self) -> u64 {
        if matches!(self, Self::P32) { bits(12, 31) } else { bits(12, 51) }
    }

    /// Which entry of a table of this level an address chooses.
    #[must_use]
    pub const fn index(self, gva: u64, level: u8) -> u64 {
        gva >> (12 + self.index_bits() * (level as u32 - 1)) & ((1 << self.index_bits()) - 1)
    }
}

/// A guest's paging mode with all that follows from its registers: what the kernel keeps as the guest's half of its MMU
/// context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a bit of a register")]
pub struct GuestMode {
    /// The mode.
    pub paging: Paging,
    /// Bit 63 of an entry forbids fetches: EFER.NXE, never in `p32` and `none`.
    pub nx: bool,
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// Protection keys are in use: CR4.PKE in long mode.
    pub pke: bool,
    /// A supervisor's writes obey the write-disable bits of protection keys: CR0.WP, and what an older kernel kept.
    pub keys_obey_wp: bool,
    /// CR4.PSE.
    pub pse: bool,
    /// Reserved bits of entries without the bit PS and with it, by level.
    reserved: [[u64; 5]; 2],
}

impl GuestMode {
    /// The mode that the registers say, of a guest with so many physical address bits. An AMD guest has one more
    /// reserved bit: 8 in entries that lead to tables, from level 3 up in long mode.
    #[must_use]
    pub fn of(registers: &Registers, phys_bits: u8, is_amd: bool) -> Self {
        let paging = registers.paging();
        let has_cr4 = |bit| registers.cr4 & bit != 0;
        let nx = matches!(paging, Paging::Pae | Paging::Long4 | Paging::Long5) && registers.efer & EFER_NX != 0;
        let wp = registers.cr0 & CR0_WP != 0;
        let mut mode = Self {
            paging,
            nx,
            wp,
            smep: has_cr4(CR4_SMEP),
            smap: has_cr4(CR4_SMAP),
            pke: paging.is_long() && has_cr4(CR4_PKE),
            keys_obey_wp: wp,
            pse: has_cr4(CR4_PSE),
            reserved: [[0; 5]; 2],
        };
        for level in 1..=5 {
            for is_large in [false, true] {
                mode.reserved[usize::from(is_large)][usize::from(level) - 1] =
                    mode.make_reserved(u32::from(phys_bits), is_amd, level, is_large);
            }
        }
        mode
    }

    fn make_reserved(&self, phys_bits: u32, is_amd: bool, level: u8, is_large: bool) -> u64 {
        let no_nx = if self.nx { 0 } else { GPTE_NX };
        match (self.paging, level) {
            (Paging::P32, 2) if is_large && self.pse => bits(17, 21),
            (Paging::None | Paging::P32, _) => 0,
            (Paging::Pae, 3..) => bits(phys_bits, 63) | bits(5, 8) | bits(1, 2),
            (Paging::Pae, _) => bits(phys_bits, 62) | no_nx | if is_large && level == 2 { bits(13, 20) } else { 0 },
            (Paging::Long4 | Paging::Long5, _) => {
                let high = bits(phys_bits, 51) | no_nx;
                let to_table = if is_amd && level >= 3 { 1 << 8 } else { 0 };
                match (level, is_large) {
                    (4.., true) => high | GPTE_LARGE | to_table,
                    (3, true) => high | bits(13, 29),
                    (2, true) => high | bits(13, 20),
                    (1, _) | (2, false) => high,
                    _ => high | to_table,
                }
            }
        }
    }

    /// The reserved bits of an entry of this level, by the entry's own bit PS.
    #[inline]
    #[must_use]
    pub const fn reserved(&self, entry: u64, level: u8) -> u64 {
        let row = (entry >> 7 & 1) as usize;
        self.reserved[row][level as usize - 1]
    }

    /// Whether an entry of this level has a reserved bit set.
    #[inline]
    #[must_use]
    pub const fn is_reserved(&self, entry: u64, level: u8) -> bool {
        entry & self.reserved(entry, level) != 0
    }

    /// Whether an entry of this level ends the walk.
    #[inline]
    #[must_use]
    pub const fn is_leaf(&self, entry: u64, level: u8) -> bool {
        if level == 1 {
            return true;
        }
        if entry & GPTE_LARGE == 0 {
            return false;
        }
        if matches!(self.paging, Paging::P32) { self.pse } else { level < self.paging.root_level() }
    }

    /// The gfn that a leaf of this level gives to an address.
    #[must_use]
    pub const fn leaf_gfn(&self, entry: u64, level: u8, gva: u64) -> u64 {
        let within = (1 << (self.paging.index_bits() * (level as u32 - 1))) - 1;
        let gfn = ((entry & self.paging.address_mask()) >> 12 & !within) | (gva >> 12 & within);
        // PSE36: bits 13 to 16 of a large 4-byte entry are address bits 32 to 35.
        if matches!(self.paging, Paging::P32) && level == 2 { gfn | (entry >> 13 & 0xf) << 20 } else { gfn }
    }

    /// The protection key of a leaf; 0 outside long mode.
    #[must_use]
    pub const fn key_of(&self, entry: u64) -> u8 {
        if self.paging.is_long() { (entry >> KEY_SHIFT & KEY_MASK) as u8 } else { 0 }
    }
}

/// The access that one entry gives: write and user by their bits, fetch unless bit 63 is set.
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "two bits are kept")]
pub const fn gpte_access(entry: u64) -> u8 {
    let rights = entry as u8 & (ACC_WRITE | ACC_USER);
    if entry & GPTE_NX == 0 { rights | ACC_EXEC } else { rights }
}

/// The access of a mapping made for a leaf that the guest has not written yet: its first write is to be seen.
#[inline]
#[must_use]
pub const fn protect_clean_gpte(access: u8, leaf: u64) -> u8 {
    if leaf & GPTE_DIRTY == 0 { access & !ACC_WRITE } else { access }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Registers = Registers { cr0: 0x8001_0001, cr3: 0x1000, cr4: 0x20, efer: 0xd00, pkru: 0, ac: false };

    fn mode(change: impl FnOnce(&mut Registers), phys_bits: u8) -> GuestMode {
        let mut registers = LONG;
        change(&mut registers);
        GuestMode::of(&registers, phys_bits, false)
    }

    #[test]
    fn registers_name_the_mode() {
        assert_eq!(LONG.paging(), Paging::Long4);
        let five = Registers { cr4: 0x1020, ..LONG };
        assert_eq!((five.paging(), five.paging().name()), (Paging::Long5, "long"));
        assert_eq!(Registers { efer: 0, ..LONG }.paging(), Paging::Pae);
        assert_eq!(Registers { efer: 0, cr4: 0x1000, ..LONG }.paging(), Paging::P32);
        assert_eq!(Registers { cr0: 1, ..LONG }.paging(), Paging::None);
    }

    #[test]
    fn reserved_bits_are_those_of_the_architecture() {
        let long = mode(|_| (), 46);
        assert_eq!(long.reserved(0, 1), 0x000f_c000_0000_0000);
        assert_eq!(long.reserved(GPTE_LARGE, 1), long.reserved(0, 1));
        assert_eq!(long.reserved(GPTE_LARGE, 2), long.reserved(0, 1) | 0x1f_e000);
        assert_eq!(long.reserved(GPTE_LARGE, 3), long.reserved(0, 1) | 0x3fff_e000);
        assert_eq!(long.reserved(GPTE_LARGE, 4), long.reserved(0, 1) | 0x80);
        let no_nx = mode(|registers| registers.efer = 0x500, 52);
        assert_eq!(no_nx.reserved(0, 4), GPTE_NX);
        let pae = mode(|registers| registers.efer = 0x800, 36);
        assert_eq!(pae.reserved(0, 1), 0x7fff_fff0_0000_0000);
        assert_eq!(pae.reserved(0, 3), 0xffff_fff0_0000_01e6);
        let p32 = mode(|registers| (registers.efer, registers.cr4) = (0, CR4_PSE), 46);
        assert_eq!([p32.reserved(0, 2), p32.reserved(GPTE_LARGE, 2), p32.reserved(GPTE_LARGE, 1)], [0, 0x3e_0000, 0]);
        let amd = GuestMode::of(&LONG, 48, true);
        assert!(amd.is_reserved(0x101, 4) && amd.is_reserved(0x101, 3) && !amd.is_reserved(0x101, 2));
        assert!(!amd.is_reserved(0x181, 3) && !amd.is_reserved(0x101, 1));
    }

    #[test]
    fn leaves_are_those_the_mode_allows() {
        let long = mode(|_| (), 46);
        assert_eq!([1, 2, 3, 4].map(|level| long.is_leaf(GPTE_LARGE, level)), [true, true, true, false]);
        assert_eq!([1, 2].map(|level| long.is_leaf(0, level)), [true, false]);
        let no_pse = mode(|registers| (registers.efer, registers.cr4) = (0, 0), 46);
        assert!(!no_pse.is_leaf(GPTE_LARGE, 2));
        let pae = mode(|registers| registers.efer = 0, 46);
        assert!(pae.is_leaf(GPTE_LARGE, 2));
    }

    #[test]
    fn a_large_4_byte_leaf_reaches_64_gib() {
        let p32 = mode(|registers| (registers.efer, registers.cr4) = (0, CR4_PSE), 46);
        assert_eq!(p32.leaf_gfn(0x0041_e083, 2, 0x1234_5678), 0x00f0_0400 | 0x345);
        let long = mode(|_| (), 46);
        assert_eq!(long.leaf_gfn(0x4000_0083, 3, 0x12_3456_7000), 0x4_0000 | 0x3_4567 & 0x3_ffff);
    }
}
