//! Bit positions of an SPTE that do not depend on the host, v5.0 to v5.2, with the proofs that they do not overlap.
//!
//! | bits | meaning |
//! |---|---|
//! | 1 | writable |
//! | 7 | large leaf (PS); in an MMIO SPTE a generation bit |
//! | 10, 11 | host-writable, MMU-writable |
//! | 12-51 | page frame, or the arena index of the child table |
//! | 52, 54 | R and X saved while access-tracked |
//! | 62 | special: A/D disabled, and part of the MMIO value |

/// The entry allows writing.
pub const WRITABLE: u64 = 1 << 1;
/// A leaf above level 1.
pub const LARGE: u64 = 1 << 7;
/// The host maps the frame writable.
pub const HOST_WRITEABLE: u64 = 1 << 10;
/// The MMU would allow writing.
pub const MMU_WRITEABLE: u64 = 1 << 11;
/// Page frame number, in place.
pub const PFN_FIELD: u64 = ((1 << 52) - 1) & !0xfff;
/// Where R and X go while an entry is access-tracked.
pub const SAVED_SHIFT: u32 = 52;
/// The bits saved: R and X.
pub const SAVED_MASK: u64 = 0b101;
/// A/D disabled, or MMIO.
pub const SPECIAL: u64 = 1 << 62;

const fn disjoint(groups: &[u64]) -> bool {
    let mut seen = 0;
    let mut at = 0;
    while at < groups.len() {
        if seen & groups[at] != 0 {
            return false;
        }
        seen |= groups[at];
        at += 1;
    }
    true
}

const _: () =
    assert!(disjoint(&[WRITABLE, LARGE, HOST_WRITEABLE, MMU_WRITEABLE, PFN_FIELD, SAVED_MASK << SAVED_SHIFT, SPECIAL]));
