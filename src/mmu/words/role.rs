//! The packed page role, v5.0 to v5.3: what makes two shadow pages of one gfn different.
//!
//! | bits | 0-3 | 4 | 5-6 | 7 | 8-10 | 11 | 12 | 13 | 14 | 15 | 16 | 17 | 24-31 |
//! |---|---|---|---|---|---|---|---|---|---|---|---|---|---|
//! | | level | `cr4_pae` (v5.0) / `gpte_is_8_bytes` | quadrant | direct | access | invalid | nxe | `cr0_wp` | `smep_andnot_wp` | `smap_andnot_wp` | `ad_disabled` | `guest_mode` | smm |

use serde::{Deserialize, Serialize};

use bitfield_struct::bitfield;

/// A page role; `into_bits` is the raw word.
#[bitfield(u32)]
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub struct Role {
    #[bits(4)]
    pub level: u8,
    pub gpte_is_8_bytes: bool,
    #[bits(2)]
    pub quadrant: u8,
    pub direct: bool,
    #[bits(3)]
    pub access: u8,
    pub invalid: bool,
    pub nxe: bool,
    pub cr0_wp: bool,
    pub smep_andnot_wp: bool,
    pub smap_andnot_wp: bool,
    pub ad_disabled: bool,
    pub guest_mode: bool,
    #[bits(6)]
    __: u8,
    pub smm: u8,
}

impl Role {
    /// The address space whose slots the page maps.
    #[must_use]
    pub const fn as_id(self) -> u8 {
        if self.smm() == 0 { 0 } else { 1 }
    }
}
